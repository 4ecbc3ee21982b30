//! Packets from the kernel that it has not finished: one that stands for many (segmentation), or one whose checksum is
//! still to be written. What containers send comes through here, so nothing in a header is believed.

use bytes::BytesMut;

use super::headers::{
    Layout, TCP, UDP, be16, be32, fold, layout, pseudo_sum, put16, put32, room_for, set_ip_length, sum,
};

/// What stands in front of every packet on the TUN device (`struct virtio_net_hdr`, numbers as this machine keeps them).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct VnetHeader {
    /// Whether the checksum is still to be written.
    pub needs_checksum: bool,
    /// Which kind of packet stands for many.
    pub segmentation: Segmentation,
    /// Length of the headers, as a hint.
    pub header_length: u16,
    /// Content of each packet but the last.
    pub segment_size: u16,
    /// Where the checksum begins.
    pub checksum_start: u16,
    /// Where it is written, counted from there.
    pub checksum_offset: u16,
}

/// Kinds of packets that stand for many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Segmentation {
    #[default]
    None,
    Tcp4,
    Tcp6,
    Udp,
}

/// Length of [`VnetHeader`] in bytes.
pub(super) const VNET_LENGTH: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
/// Congestion was noticed; it says nothing that the TCP header does not say.
const ECN: u8 = 0x80;

/// A packet that cannot be what it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl VnetHeader {
    pub(super) fn parse(bytes: &[u8; VNET_LENGTH]) -> Result<Self, Malformed> {
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let segmentation = match bytes[1] & !ECN {
            0 => Segmentation::None,
            1 => Segmentation::Tcp4,
            4 => Segmentation::Tcp6,
            5 => Segmentation::Udp,
            _ => return Err(Malformed),
        };
        Ok(Self {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            segmentation,
            header_length: number(2),
            segment_size: number(4),
            checksum_start: number(6),
            checksum_offset: number(8),
        })
    }

    pub(super) fn bytes(self) -> [u8; VNET_LENGTH] {
        let mut bytes = [0; VNET_LENGTH];
        bytes[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = match self.segmentation {
            Segmentation::None => 0,
            Segmentation::Tcp4 => 1,
            Segmentation::Tcp6 => 4,
            Segmentation::Udp => 5,
        };
        let numbers = [self.header_length, self.segment_size, self.checksum_start, self.checksum_offset];
        for (at, number) in numbers.into_iter().enumerate() {
            bytes[2 + at * 2..4 + at * 2].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

/// Gives the packets that `packet` stands for, each whole with its checksums.
pub(super) fn split(header: VnetHeader, packet: &[u8], mut give: impl FnMut(BytesMut)) -> Result<(), Malformed> {
    let protocol = match header.segmentation {
        Segmentation::None => {
            give(finished(header, packet)?);
            return Ok(());
        }
        Segmentation::Tcp4 | Segmentation::Tcp6 => TCP,
        Segmentation::Udp => UDP,
    };
    let at = layout(packet, protocol).ok_or(Malformed)?;
    let size = usize::from(header.segment_size);
    let content = &packet[at.payload..];
    // A packet of 64 KiB in pieces of one byte would be a flood of our own making.
    let other_version = match header.segmentation {
        Segmentation::Tcp4 => at.v6,
        Segmentation::Tcp6 => !at.v6,
        Segmentation::Udp | Segmentation::None => false,
    };
    if other_version || size == 0 || content.len().div_ceil(size) > MAX_SEGMENTS {
        return Err(Malformed);
    }
    if content.is_empty() {
        give(segment(packet, at, protocol, Piece { number: 0, offset: 0, content, last: true }));
        return Ok(());
    }
    let count = content.len().div_ceil(size);
    for (number, content) in content.chunks(size).enumerate() {
        give(segment(
            packet,
            at,
            protocol,
            Piece { number, offset: number * size, content, last: number + 1 == count },
        ));
    }
    Ok(())
}

/// Most packets that one can stand for: the kernel's own limit for UDP, and more than 64 KiB of TCP in small segments.
const MAX_SEGMENTS: usize = 256;

/// A copy of a single packet, with its checksum if it lacks one.
fn finished(header: VnetHeader, packet: &[u8]) -> Result<BytesMut, Malformed> {
    let mut whole = room_for(packet.len());
    whole.extend_from_slice(packet);
    if header.needs_checksum {
        let start = usize::from(header.checksum_start);
        let field = start + usize::from(header.checksum_offset);
        if field + 2 > whole.len() {
            return Err(Malformed);
        }
        // The field holds the part for the IP header already.
        let total = !fold(sum(&whole[start..], 0));
        whole[field..field + 2].copy_from_slice(&written(total).to_ne_bytes());
    }
    Ok(whole)
}

/// For UDP zero means that there is no checksum; its other form is as good.
fn written(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// A part of a packet's content.
struct Piece<'a> {
    number: usize,
    /// Where it begins.
    offset: usize,
    content: &'a [u8],
    last: bool,
}

/// One of the packets that `packet` stands for.
fn segment(packet: &[u8], at: Layout, protocol: u8, piece: Piece<'_>) -> BytesMut {
    let length = at.payload + piece.content.len();
    let mut one = room_for(length);
    one.extend_from_slice(&packet[..at.payload]);
    one.extend_from_slice(piece.content);
    let transport = length - at.transport;
    if !at.v6 {
        // Each has an identification of its own, for routers that cut it up further.
        let id = be16(packet, 4).wrapping_add(piece.number as u16);
        put16(&mut one, 4, id);
    }
    set_ip_length(&mut one, at.v6, length);
    let field = if protocol == TCP {
        let sequence = be32(packet, at.transport + 4).wrapping_add(piece.offset as u32);
        put32(&mut one, at.transport + 4, sequence);
        let flags = &mut one[at.transport + 13];
        if !piece.last {
            *flags &= !(FIN | PSH);
        }
        if piece.offset > 0 {
            *flags &= !CWR;
        }
        at.transport + 16
    } else {
        put16(&mut one, at.transport + 4, transport as u16);
        at.transport + 6
    };
    put16(&mut one, field, 0);
    let total = sum(&one[at.transport..], pseudo_sum(packet, at.v6, protocol, transport));
    one[field..field + 2].copy_from_slice(&written(!fold(total)).to_ne_bytes());
    one
}

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
