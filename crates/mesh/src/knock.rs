//! Sends datagrams as if the device had: from its port, past its socket, to an address of the sender's choice. So a packet of
//! a session can be tried on another way than the one it goes, whatever carries the device; and a router in between opens for
//! the device, not for somebody else.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket},
};

/// Bytes of UDP's header.
const HEADER: usize = 8;

/// Sends from a port that is somebody else's.
pub struct Knocker {
    four: OwnedFd,
    /// Absent where there is no IPv6.
    six: Option<OwnedFd>,
}

impl Knocker {
    /// One for all ports.
    pub fn open() -> io::Result<Self> {
        let raw = |family| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(family, SockType::Raw, flags, SockProtocol::Udp)?;
            deafen(&fd)?;
            io::Result::Ok(fd)
        };
        let six = raw(AddressFamily::Inet6).and_then(|fd| {
            // IPv6 asks for a checksum, and the kernel knows the addresses: it stands behind the first six bytes.
            set(&fd, libc::IPPROTO_IPV6, libc::IPV6_CHECKSUM, &6_i32)?;
            Ok(fd)
        });
        Ok(Self { four: raw(AddressFamily::Inet)?, six: six.ok() })
    }

    /// Sends `content` from `port` to `to`. With IPv4 without a checksum, which it need not have: what WireGuard takes is
    /// authenticated.
    pub fn send(&self, port: u16, to: SocketAddr, content: &[u8]) -> io::Result<()> {
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let length = u16::try_from(content.len() + HEADER).map_err(|_| too_long())?;
        let mut packet = Vec::with_capacity(usize::from(length));
        for field in [port, to.port(), length, 0] {
            packet.extend_from_slice(&field.to_be_bytes());
        }
        packet.extend_from_slice(content);
        let (fd, mut at) = match to {
            SocketAddr::V4(_) => (&self.four, to),
            SocketAddr::V6(_) => (self.six.as_ref().ok_or(io::ErrorKind::Unsupported)?, to),
        };
        // The port stands in the packet; an address with one would not be taken.
        at.set_port(0);
        sendto(fd.as_raw_fd(), &packet, &SockaddrStorage::from(at), MsgFlags::empty())?;
        Ok(())
    }
}

/// Every such socket is given a copy of all that comes in for its protocol; this one takes none.
fn deafen(fd: &OwnedFd) -> io::Result<()> {
    let mut nothing = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn set<T>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer leads to a value of that size, which lives longer than the call.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const *value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use super::*;

    #[test]
    fn a_datagram_comes_from_a_port_that_is_anothers() {
        let knocker = Knocker::open().unwrap();
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let (holder, listener) = (UdpSocket::bind(own).unwrap(), UdpSocket::bind(own).unwrap());
            listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let port = holder.local_addr().unwrap().port();
            knocker.send(port, listener.local_addr().unwrap(), b"knock").unwrap();
            let mut buffer = [0; 16];
            let (length, from) = listener.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"knock"[..], holder.local_addr().unwrap()));
        }
        assert!(knocker.send(1, "192.0.2.1:1".parse().unwrap(), &vec![0; 1 << 16]).is_err());
    }
}
