//! Packets cut up and put together again, and hostile ones.

use bytes::BytesMut;
use proptest::prelude::*;

use super::{
    headers::{TCP, UDP, fold, ip_length, layout, pseudo_sum, put16, put32, set_ip_length, sum},
    merge::Merger,
    split::{Malformed, Segmentation, VNET_LENGTH, VnetHeader, split},
};

const ACK: u8 = 0x10;

/// A packet of TCP with twelve bytes of options.
fn tcp(v6: bool, port: u16, sequence: u32, flags: u8, content: &[u8]) -> Vec<u8> {
    let start = if v6 { 40 } else { 20 };
    let mut packet = vec![0; start + 32];
    packet.extend_from_slice(content);
    if v6 {
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, TCP, 64]);
        packet[8..40].copy_from_slice(&[7; 32]);
    } else {
        packet[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, TCP]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    }
    put16(&mut packet, start, port);
    put32(&mut packet, start + 4, sequence);
    packet[start + 12] = 8 << 4;
    packet[start + 13] = flags;
    packet[start + 20..start + 32].fill(1);
    let length = packet.len();
    set_ip_length(&mut packet, v6, length);
    let check = !fold(sum(&packet[start..], pseudo_sum(&packet, v6, TCP, length - start)));
    packet[start + 16..start + 18].copy_from_slice(&check.to_ne_bytes());
    packet
}

fn is_whole(packet: &[u8], protocol: u8) -> bool {
    let at = layout(packet, protocol).unwrap();
    let transport = &packet[at.transport..];
    ip_length(packet) == Some(packet.len())
        && fold(sum(transport, pseudo_sum(packet, at.v6, protocol, transport.len()))) == 0xffff
        && (at.v6 || fold(sum(&packet[..20], 0)) == 0xffff)
}

/// What the kernel is handed: packets with what stands in front of them.
fn merged(packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut merger = Merger::default();
    packets.into_iter().for_each(|packet| merger.push(BytesMut::from(&packet[..])));
    let mut written = Vec::new();
    merger.drain(|parts| {
        let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let (front, packet) = all.split_first_chunk::<VNET_LENGTH>().unwrap();
        written.push((VnetHeader::parse(front).unwrap(), packet.to_vec()));
    });
    written
}

fn pieces(header: VnetHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut all = Vec::new();
    split(header, packet, |piece| all.push(piece.to_vec())).map(|()| all)
}

#[test]
fn segments_that_follow_each_other_go_as_one() {
    for v6 in [false, true] {
        let content: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let packets: Vec<_> = content
            .chunks(1_000)
            .enumerate()
            .map(|(n, piece)| tcp(v6, 80, (n as u32 * 1_000).wrapping_sub(3_000), ACK, piece))
            .collect();
        let written = merged(packets.clone());
        assert_eq!(written.len(), 1);
        let (header, packet) = &written[0];
        assert!(header.needs_checksum && header.segment_size == 1_000);
        assert_eq!(ip_length(packet), Some(packet.len()));
        assert_eq!(&packet[header.header_length.into()..], content);
        // The kernel would make of it what came in; identifications aside, which nobody reads of packets that may not be cut.
        let again = pieces(*header, packet).unwrap();
        assert_eq!(again.len(), packets.len());
        for (again, packet) in again.iter().zip(&packets) {
            assert!(is_whole(again, TCP));
            let start = if v6 { 0 } else { 20 };
            assert_eq!(again[start..], packet[start..]);
        }
    }
}

#[test]
fn what_differs_stays_apart() {
    let first = || tcp(false, 80, 0, ACK, &[1; 100]);
    let check = |what: &str, second: Vec<u8>, count: usize| {
        let (one, other) = (first(), second.clone());
        let written = merged([one.clone(), second]);
        assert_eq!(written.len(), count, "{what}");
        if count == 2 {
            assert_eq!(written, [(VnetHeader::default(), one), (VnetHeader::default(), other)], "{what}");
        }
    };
    let next = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = tcp(false, 80, 100, ACK, &[2; 100]);
        change(&mut packet);
        // Right again after the change.
        packet[36..38].fill(0);
        let (length, header) = (packet.len() - 20, packet.len());
        set_ip_length(&mut packet, false, header);
        let right = !fold(sum(&packet[20..], pseudo_sum(&packet, false, TCP, length)));
        packet[36..38].copy_from_slice(&right.to_ne_bytes());
        packet
    };
    check("the next", next(&|_| ()), 1);
    check("the last", next(&|packet| packet[33] |= 0x08), 1);
    check("a shorter one", next(&|packet| packet.truncate(packet.len() - 1)), 1);
    check("a longer one", next(&|packet| packet.push(0)), 2);
    check("a hole", tcp(false, 80, 101, ACK, &[2; 100]), 2);
    check("another connection", tcp(false, 81, 100, ACK, &[2; 100]), 2);
    check("the end", next(&|packet| packet[33] |= 0x01), 2);
    check("another window", next(&|packet| packet[34] = 9), 2);
    check("another acknowledgement", next(&|packet| packet[28] = 9), 2);
    check("other options", next(&|packet| packet[45] = 9), 2);
    check("another class", next(&|packet| packet[1] = 9), 2);
    check("another time to live", next(&|packet| packet[8] = 9), 2);
    check("another receiver", next(&|packet| packet[19] = 9), 2);
    check("a part of a packet", next(&|packet| packet[7] = 9), 2);
    check("no content", tcp(false, 80, 100, ACK, &[]), 2);
    let mut broken = next(&|_| ());
    broken[60] ^= 1;
    check("a wrong checksum", broken, 2);
    let mut first_broken = first();
    first_broken[60] ^= 1;
    assert_eq!(merged([first_broken, next(&|_| ())]).len(), 2, "a wrong checksum of the first");
}

#[test]
fn connections_do_not_hold_each_other_up_and_keep_their_order() {
    let packets = (0..6).flat_map(|n| [tcp(false, 1, n * 10, ACK, &[1; 10]), tcp(false, 2, n * 10, ACK, &[2; 10])]);
    assert_eq!(merged(packets).len(), 2);
    // A packet that cannot be joined ends the run: what follows must not overtake it.
    let written = merged([
        tcp(false, 1, 0, ACK, &[1; 10]),
        tcp(false, 1, 10, ACK, &[]),
        tcp(false, 1, 10, ACK, &[2; 10]),
        tcp(false, 1, 20, ACK, &[3; 10]),
    ]);
    let lengths: Vec<usize> = written.iter().map(|(_, packet)| packet.len() - 52).collect();
    assert_eq!(lengths, [10, 0, 20]);
}

#[test]
fn packets_are_never_longer_than_ip_allows() {
    let count = 60;
    let packets = (0..count).map(|n| tcp(false, 1, n * 1_400, ACK, &[1; 1_400]));
    let written = merged(packets);
    assert!(written.len() == 2 && written.iter().all(|(_, packet)| packet.len() <= 65_535));
    assert_eq!(written.iter().map(|(_, packet)| packet.len() - 52).sum::<usize>(), count as usize * 1_400);
}

#[test]
fn datagrams_that_stand_for_many_are_cut_up() {
    let mut packet = vec![0; 28 + 2_500];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0, 0, 64, UDP]);
    let length = packet.len();
    set_ip_length(&mut packet, false, length);
    let header = VnetHeader {
        needs_checksum: true,
        segmentation: Segmentation::Udp,
        segment_size: 1_000,
        ..VnetHeader::default()
    };
    let all = pieces(header, &packet).unwrap();
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1_028, 1_028, 528]);
    assert!(all.iter().all(|piece| is_whole(piece, UDP)));
}

#[test]
fn a_checksum_that_the_kernel_left_out_is_written() {
    let whole = tcp(false, 80, 5, ACK, b"content");
    let mut packet = whole.clone();
    let partial = fold(pseudo_sum(&packet, false, TCP, packet.len() - 20));
    packet[36..38].copy_from_slice(&partial.to_ne_bytes());
    let header = VnetHeader { needs_checksum: true, checksum_start: 20, checksum_offset: 16, ..VnetHeader::default() };
    assert_eq!(pieces(header, &packet).unwrap(), [whole]);
    let beyond = VnetHeader { checksum_start: 65_535, checksum_offset: 65_535, ..header };
    assert_eq!(pieces(beyond, &packet), Err(Malformed));
}

#[test]
fn a_flood_in_one_packet_is_refused() {
    let packet = tcp(false, 80, 0, ACK, &[0; 60_000]);
    let header = |segment_size| VnetHeader { segmentation: Segmentation::Tcp4, segment_size, ..VnetHeader::default() };
    assert_eq!(pieces(header(0), &packet), Err(Malformed));
    assert_eq!(pieces(header(1), &packet), Err(Malformed));
    assert!(pieces(header(1_000), &packet).is_ok());
}

proptest! {
    #[test]
    fn anything_can_come_from_the_kernel(front in any::<[u8; VNET_LENGTH]>(), packet in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(header) = VnetHeader::parse(&front) {
            let _ = pieces(header, &packet);
        }
    }

    #[test]
    fn anything_like_a_packet_can_come(
        v6 in any::<bool>(),
        flags in any::<u8>(),
        changes in proptest::collection::vec((0_usize..120, any::<u8>()), 0..6),
        cut in 0_usize..152,
        size in any::<u16>(),
    ) {
        let mut packet = tcp(v6, 80, 0, flags, &[3; 60]);
        for (at, value) in changes {
            if at < packet.len() { packet[at] = value; }
        }
        packet.truncate(cut);
        let kinds = [Segmentation::None, Segmentation::Tcp4, Segmentation::Tcp6, Segmentation::Udp];
        for segmentation in kinds {
            let header = VnetHeader { segmentation, segment_size: size, needs_checksum: true, ..VnetHeader::default() };
            let _ = pieces(header, &packet);
        }
        let next = tcp(v6, 80, 60, flags, &[4; 60]);
        let total = packet.len() + next.len();
        if !packet.is_empty() {
            let written = merged([packet, next]);
            prop_assert!(written.iter().map(|(_, packet)| packet.len()).sum::<usize>() <= total);
        }
    }

    #[test]
    fn sums_are_those_of_sixteen_bit_words(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let words = bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
        prop_assert_eq!(fold(sum(&bytes, 0)).to_be(), fold(words.sum()));
    }
}
