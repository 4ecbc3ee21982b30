//! What IP, TCP and UDP headers say, read from packets that nobody has checked yet, and the Internet checksum.

use bytes::BytesMut;

/// Shortest header of each kind.
const IPV4_MIN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_MIN: usize = 20;
const UDP_LEN: usize = 8;

/// Numbers of the protocols that are looked into.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// Where things are in a packet of one IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Whether it is IPv6.
    pub v6: bool,
    /// Where TCP or UDP begins.
    pub transport: usize,
    /// Where its content begins.
    pub payload: usize,
}

/// Length that an IP packet says it has, if it is one and that many bytes are there.
pub(super) fn ip_length(packet: &[u8]) -> Option<usize> {
    let length = match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_MIN => usize::from(be16(packet, 2)),
        6 if packet.len() >= IPV6_LEN => IPV6_LEN + usize::from(be16(packet, 4)),
        _ => return None,
    };
    let least = if packet[0] >> 4 == 4 { IPV4_MIN } else { IPV6_LEN };
    (least..=packet.len()).contains(&length).then_some(length)
}

/// Sender of a packet that [`ip_length`] accepted, as a number (see [`toft_model::mesh::number`]).
pub(super) fn source(packet: &[u8]) -> u128 {
    address(packet, 12, 8)
}

/// Receiver of such a packet.
pub(super) fn destination(packet: &[u8]) -> u128 {
    address(packet, 16, 24)
}

fn address(packet: &[u8], v4: usize, v6: usize) -> u128 {
    if packet[0] >> 4 == 4 {
        0xffff_0000_0000 | u128::from(u32::from_be_bytes(take(packet, v4)))
    } else {
        u128::from_be_bytes(take(packet, v6))
    }
}

/// The layout of a whole packet of `protocol` without IPv4 options, IPv6 extensions or fragmentation.
pub(super) fn layout(packet: &[u8], protocol: u8) -> Option<Layout> {
    let (v6, transport) = match *packet.first()? {
        // More fragments to come, or not the first.
        0x45 if packet.len() >= IPV4_MIN && packet[9] == protocol && be16(packet, 6) & 0x3fff == 0 => (false, IPV4_MIN),
        byte if byte >> 4 == 6 && packet.len() >= IPV6_LEN && packet[6] == protocol => (true, IPV6_LEN),
        _ => return None,
    };
    let length = match protocol {
        TCP if packet.len() >= transport + TCP_MIN => usize::from(packet[transport + 12] >> 4) * 4,
        UDP => UDP_LEN,
        _ => return None,
    };
    let payload = transport + length;
    let least = if protocol == TCP { TCP_MIN } else { UDP_LEN };
    (length >= least && payload <= packet.len()).then_some(Layout { v6, transport, payload })
}

/// Writes the length of an IP packet into its header, and the header's checksum with it.
pub(super) fn set_ip_length(packet: &mut [u8], v6: bool, length: usize) {
    if v6 {
        put16(packet, 4, (length - IPV6_LEN) as u16);
        return;
    }
    put16(packet, 2, length as u16);
    put16(packet, 10, 0);
    let sum = !fold(sum(&packet[..IPV4_MIN], 0));
    packet[10..12].copy_from_slice(&sum.to_ne_bytes());
}

/// The part of a TCP or UDP checksum that stands for the IP header.
pub(super) fn pseudo_sum(packet: &[u8], v6: bool, protocol: u8, length: usize) -> u64 {
    let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
    // Both lengths fit: a packet has at most 65,535 bytes.
    let rest = u64::from(u16::from(protocol).to_be()) + u64::from((length as u16).to_be());
    sum(addresses, rest)
}

/// Adds bytes to an Internet checksum, as this machine keeps numbers.
pub(super) fn sum(bytes: &[u8], initial: u64) -> u64 {
    let mut total = initial;
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        total += u64::from(u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let rest = chunks.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

/// Ends an addition.
pub(super) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Sixteen bits at `at`, as the network writes them.
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(take(bytes, at))
}

/// Thirty-two bits at `at`, as the network writes them.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(take(bytes, at))
}

/// Writes sixteen bits.
pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes thirty-two bits.
pub(super) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|offset| bytes[at + offset])
}

/// Room for a packet of this length and what is put behind it so that its length is a multiple of sixteen.
pub(super) fn room_for(length: usize) -> BytesMut {
    BytesMut::with_capacity(length + 16)
}
