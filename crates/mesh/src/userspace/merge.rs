//! Packets on their way to the kernel: those of one TCP connection that follow each other go as one, which costs the
//! kernel what a single packet costs. What it is handed is what the packets said, byte by byte: only headers that are
//! equal are joined, and only behind checksums that are right.

use std::io::IoSlice;

use bytes::{Buf, BytesMut};

use super::{
    headers::{Layout, TCP, be32, fold, layout, pseudo_sum, set_ip_length, sum},
    split::{Segmentation, VnetHeader},
};

/// Most bytes of a packet that stands for many.
const MAX_BYTES: usize = 65_535;
/// Most packets in one.
const MAX_PIECES: usize = 128;
/// How far back the run of a connection is looked for.
const MAX_RUNS_BACK: usize = 8;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Packets that wait to be written, in their order.
#[derive(Default)]
pub(super) struct Merger {
    runs: Vec<Run>,
}

/// One packet, and the content of those that go with it.
struct Run {
    first: BytesMut,
    /// Where its parts are, if it is one that others can follow.
    at: Option<Layout>,
    rest: Vec<BytesMut>,
    /// Length of all.
    length: usize,
    /// The number that the next one's content has.
    next: u32,
    /// Whether nothing follows any more.
    closed: bool,
    /// Whether the first one's checksum was looked at.
    checked: bool,
}

impl Merger {
    /// Adds a whole IP packet.
    pub(super) fn push(&mut self, packet: BytesMut) {
        let at = layout(&packet, TCP);
        let Some(at) = at else {
            self.runs.push(Run::alone(packet, None));
            return;
        };
        for run in self.runs.iter_mut().rev().take(MAX_RUNS_BACK) {
            if !run.same_connection(&packet, at) {
                continue;
            }
            if run.takes(&packet, at) {
                run.append(packet, at);
            } else {
                self.runs.push(Run::alone(packet, Some(at)));
            }
            return;
        }
        self.runs.push(Run::alone(packet, Some(at)));
    }

    /// Hands every packet over, as the parts it consists of, with what stands in front of it.
    pub(super) fn drain(&mut self, mut write: impl FnMut(&[IoSlice<'_>])) {
        for mut run in self.runs.drain(..) {
            let header = run.finish().bytes();
            let mut parts = Vec::with_capacity(run.rest.len() + 2);
            parts.extend([IoSlice::new(&header), IoSlice::new(&run.first)]);
            parts.extend(run.rest.iter().map(|piece| IoSlice::new(piece)));
            write(&parts);
        }
    }
}

impl Run {
    fn alone(first: BytesMut, at: Option<Layout>) -> Self {
        let length = first.len();
        let mut run = Self { first, at, rest: Vec::new(), length, next: 0, closed: true, checked: false };
        if let Some(at) = at {
            let flags = run.first[at.transport + 13];
            let content = length - at.payload;
            run.closed = flags != ACK || content == 0;
            run.next = be32(&run.first, at.transport + 4).wrapping_add(content as u32);
        }
        run
    }

    fn same_connection(&self, packet: &[u8], at: Layout) -> bool {
        let Some(own) = self.at.filter(|own| own.v6 == at.v6) else { return false };
        let addresses = if at.v6 { 8..40 } else { 12..20 };
        self.first[addresses.clone()] == packet[addresses]
            && self.first[own.transport..own.transport + 4] == packet[at.transport..at.transport + 4]
    }

    /// Whether the packet says what the next one of this run would say.
    fn takes(&mut self, packet: &[u8], at: Layout) -> bool {
        let Some(own) = self.at.filter(|_| !self.closed) else { return false };
        let segment = self.first.len() - own.payload;
        let content = packet.len() - at.payload;
        let t = at.transport;
        let (first, flags) = (&self.first, packet[t + 13]);
        let same_ip = if at.v6 {
            // Version, class, label; hop limit.
            first[..4] == packet[..4] && first[7] == packet[7]
        } else {
            // Class; fragmentation; time to live.
            first[1] == packet[1] && first[6..9] == packet[6..9]
        };
        let fits = own.payload == at.payload
            && content > 0
            && content <= segment
            && self.length + content <= MAX_BYTES
            && self.rest.len() + 1 < MAX_PIECES;
        let same_tcp = (flags == ACK || flags == ACK | PSH)
            && be32(packet, t + 4) == self.next
            // Acknowledgement, window, options.
            && first[t + 8..t + 13] == packet[t + 8..t + 13]
            && first[t + 14..t + 16] == packet[t + 14..t + 16]
            && first[t + 18..own.payload] == packet[t + 18..at.payload];
        if !(same_ip && fits && same_tcp) {
            return false;
        }
        if !self.checked {
            self.checked = true;
            self.closed = !is_right(&self.first, own);
        }
        !self.closed && is_right(packet, at)
    }

    fn append(&mut self, mut packet: BytesMut, at: Layout) {
        let segment = self.first.len() - at.payload;
        let content = packet.len() - at.payload;
        self.next = self.next.wrapping_add(content as u32);
        self.length += content;
        if packet[at.transport + 13] & PSH != 0 {
            self.first[at.transport + 13] |= PSH;
            self.closed = true;
        }
        self.closed |= content < segment;
        packet.advance(at.payload);
        self.rest.push(packet);
    }

    /// Makes the first packet's headers those of the whole.
    fn finish(&mut self) -> VnetHeader {
        let (Some(at), false) = (self.at, self.rest.is_empty()) else { return VnetHeader::default() };
        let segment = self.first.len() - at.payload;
        let partial = fold(pseudo_sum(&self.first, at.v6, TCP, self.length - at.transport));
        set_ip_length(&mut self.first, at.v6, self.length);
        self.first[at.transport + 16..at.transport + 18].copy_from_slice(&partial.to_ne_bytes());
        VnetHeader {
            needs_checksum: true,
            segmentation: if at.v6 { Segmentation::Tcp6 } else { Segmentation::Tcp4 },
            header_length: at.payload as u16,
            segment_size: segment as u16,
            checksum_start: at.transport as u16,
            checksum_offset: 16,
        }
    }
}

/// Whether the TCP checksum of a packet, and the checksum of its IPv4 header, are right.
fn is_right(packet: &[u8], at: Layout) -> bool {
    let transport = &packet[at.transport..];
    let tcp = fold(sum(transport, pseudo_sum(packet, at.v6, TCP, transport.len()))) == 0xffff;
    tcp && (at.v6 || fold(sum(&packet[..at.transport], 0)) == 0xffff)
}
