//! How large the packets may be that fit the way to a peer.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::libc;
use toft_model::mesh::{MAX_MTU, MIN_MTU, MeshConfig, MeshPeer, PublicKey};

/// What the tunnel and the headers around it add: 32 bytes of WireGuard, 8 of UDP, 40 of IPv6. The same is left for
/// IPv4, so that a peer may move between both.
const OVERHEAD: u16 = 80;
/// What is taken for a way that nobody can tell anything about: Ethernet's.
const USUAL: u16 = 1_500;

/// Sizes of packets in the tunnel, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The device's: the largest that fits any way.
    pub device: u16,
    /// Of each peer.
    pub peers: std::collections::BTreeMap<PublicKey, u16>,
}

/// The sizes for a configuration. Where nobody chose one, every way is asked about: what the kernel knows of it, and what
/// a probe teaches the kernel until it is asked next time.
pub(super) fn sizes(config: &MeshConfig, seen: impl Fn(&PublicKey) -> Option<SocketAddr>) -> Sizes {
    let of_peer = |(key, peer): (&PublicKey, &MeshPeer)| {
        let told = peer.endpoints.first().map(|endpoint| endpoint.address);
        let size = config.mtu.unwrap_or_else(|| {
            // What a relay leads over, nobody can tell from its end here.
            let to = seen(key).or(told).filter(|to| !to.ip().to_canonical().is_loopback());
            let path = to.and_then(|to| probe(to).ok()).unwrap_or(USUAL);
            inside(path)
        });
        (*key, size)
    };
    let peers: std::collections::BTreeMap<_, _> = config.peers.iter().map(of_peer).collect();
    let device = peers.values().max().copied().or(config.mtu).unwrap_or_else(|| inside(USUAL));
    Sizes { device, peers }
}

/// What fits into the tunnel on a way of this size. Less than IPv6 asks of every link is not offered; routers cut the
/// datagrams up then.
fn inside(path: u16) -> u16 {
    path.saturating_sub(OVERHEAD).clamp(MIN_MTU, MAX_MTU)
}

/// Size of the way to an address as the kernel knows it. A datagram as large as that is sent, which no peer takes for
/// anything, so that a router that finds it too large says so.
fn probe(to: SocketAddr) -> io::Result<u16> {
    let (any, level, option, discover, headers): (SocketAddr, _, _, _, u16) = match to {
        SocketAddr::V4(_) => {
            ((Ipv4Addr::UNSPECIFIED, 0).into(), libc::IPPROTO_IP, libc::IP_MTU, libc::IP_MTU_DISCOVER, 28)
        }
        SocketAddr::V6(_) => {
            ((Ipv6Addr::UNSPECIFIED, 0).into(), libc::IPPROTO_IPV6, libc::IPV6_MTU, libc::IPV6_MTU_DISCOVER, 48)
        }
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    set(&socket, level, discover, libc::IP_PMTUDISC_DO)?;
    socket.connect(to)?;
    let known = get(&socket, level, option)?;
    let most = known.clamp(0, i32::from(MAX_MTU + OVERHEAD)) as u16;
    let _ = socket.send(&vec![0; usize::from(most.saturating_sub(headers))]);
    Ok(u16::try_from(get(&socket, level, option)?).unwrap_or(u16::MAX))
}

fn set(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option is a number, which outlives the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn get(socket: &UdpSocket, level: i32, option: i32) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel writes a number of that length at most, which both outlive the call.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_leaves_room_for_what_is_around_it() {
        assert_eq!(inside(1_500), 1_420);
        assert_eq!(inside(1_280), MIN_MTU);
        assert_eq!(inside(65_535), MAX_MTU);
    }

    #[test]
    fn loopback_takes_more_than_ethernet() {
        for to in ["127.0.0.1:9", "[::1]:9"] {
            assert!(probe(to.parse().unwrap()).unwrap() > 9_000, "{to}");
        }
    }
}
