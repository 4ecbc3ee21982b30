//! The socket on which the tunnel's datagrams come and go, many at once where the kernel can.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

use bytes::BytesMut;
use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
        recvmsg, sendmsg, setsockopt, socket, sockopt,
    },
};

use toft_model::mesh::canonical;

/// Bytes that the kernel keeps for us while we do something else.
const BUFFER_BYTES: usize = 4 << 20;
/// Most bytes in one message, and most datagrams.
const MAX_BYTES: usize = 65_507;
const MAX_DATAGRAMS: usize = 64;
/// Size of the pieces of memory that messages are read into.
const SLAB: usize = 256 << 10;
/// How long a full send buffer is waited for.
const PATIENCE_MS: u16 = 10;

/// An open socket.
pub(super) struct Udp {
    socket: UdpSocket,
    /// Whether it takes IPv6, and IPv4 as IPv6 maps it.
    dual: bool,
    /// Whether the kernel cuts messages into datagrams; false once it refused to.
    cuts: bool,
    slab: BytesMut,
    control: Vec<u8>,
}

/// What came in one message: datagrams from one sender, all of the same length but the last.
pub(super) struct Message {
    pub from: SocketAddr,
    pub bytes: BytesMut,
    /// Length of each.
    pub datagram: usize,
}

impl Udp {
    /// Listens on `port` of every address.
    pub(super) fn bind(port: u16) -> io::Result<Self> {
        let (fd, dual) = match Self::open(AddressFamily::Inet6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Ok(fd) => (fd, true),
            // Machines without IPv6.
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                (Self::open(AddressFamily::Inet, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?, false)
            }
            Err(error) => return Err(error.into()),
        };
        // Without root the usual buffers remain, and without the second messages are single datagrams.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &BUFFER_BYTES);
        let _ = setsockopt(&fd, sockopt::SndBufForce, &BUFFER_BYTES);
        let _ = setsockopt(&fd, sockopt::UdpGroSegment, &true);
        // As the kernel's own WireGuard: routers on the way may cut up what is too large.
        for (level, name) in [(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER), (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)]
        {
            let off = libc::IP_PMTUDISC_DONT;
            let length = size_of_val(&off) as libc::socklen_t;
            // SAFETY: the option is a number, which outlives the call.
            unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const off).cast(), length) };
        }
        // SAFETY: nobody else owns the descriptor.
        let socket = unsafe { UdpSocket::from_raw_fd(fd.into_raw_fd()) };
        Ok(Self { socket, dual, cuts: true, slab: BytesMut::new(), control: cmsg_space!(i32) })
    }

    fn open(family: AddressFamily, address: SocketAddr) -> Result<OwnedFd, Errno> {
        let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        if family == AddressFamily::Inet6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(fd)
    }

    /// The next message, if there is one.
    pub(super) fn receive(&mut self) -> io::Result<Option<Message>> {
        if self.slab.len() <= MAX_BYTES {
            self.slab.clear();
            // Takes the old piece again when nobody holds any of it.
            self.slab.reserve(SLAB);
            self.slab.resize(SLAB, 0);
        }
        let mut parts = [IoSliceMut::new(&mut self.slab[..])];
        let flags = MsgFlags::MSG_DONTWAIT;
        let got = recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, Some(&mut self.control), flags);
        let got = match got {
            Ok(got) => got,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let length = got.bytes;
        let size = got.cmsgs().ok().and_then(|mut all| {
            all.find_map(|message| match message {
                ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
                _ => None,
            })
        });
        let from = got.address.and_then(|address| {
            let four = address.as_sockaddr_in().map(|four| SocketAddr::from(*four));
            four.or_else(|| address.as_sockaddr_in6().map(|six| SocketAddr::from(*six)))
        });
        let bytes = self.slab.split_to(length);
        let Some(from) = from else { return Err(io::Error::other("a datagram without a sender")) };
        let datagram = size.unwrap_or(length).max(1);
        Ok(Some(Message { from: canonical(from), bytes, datagram }))
    }

    /// Sends datagrams in their order, those to one receiver and of one length together. What cannot be sent is lost.
    pub(super) fn send(&mut self, datagrams: &[(SocketAddr, impl AsRef<[u8]>)]) {
        let mut rest = datagrams;
        while let Some((to, first)) = rest.first() {
            let size = first.as_ref().len();
            let most = if self.cuts { (MAX_BYTES / size.max(1)).clamp(1, MAX_DATAGRAMS) } else { 1 };
            let mut count = 1;
            while count < most.min(rest.len()) && rest[count - 1].1.as_ref().len() == size {
                let (next_to, next) = &rest[count];
                // A shorter one can only be the last.
                if next_to != to || next.as_ref().len() > size {
                    break;
                }
                count += 1;
            }
            let (group, others) = rest.split_at(count);
            rest = others;
            self.send_group(*to, group, size);
        }
    }

    fn send_group(&mut self, to: SocketAddr, group: &[(SocketAddr, impl AsRef<[u8]>)], size: usize) {
        let address = self.address(to);
        if group.len() > 1 {
            let parts: Vec<IoSlice<'_>> = group.iter().map(|(_, bytes)| IoSlice::new(bytes.as_ref())).collect();
            // At most 65,507.
            match self.send_message(&parts, &[ControlMessage::UdpGsoSegments(&(size as u16))], &address) {
                Ok(()) => return,
                // This interface cannot, and it is not asked again.
                Err(Errno::EIO | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => self.cuts = false,
                // Too large for the way there: the kernel cuts up single datagrams, but not these.
                Err(Errno::EINVAL | Errno::EMSGSIZE) => {}
                Err(_) => return,
            }
        }
        for (_, bytes) in group {
            let _ = self.send_message(&[IoSlice::new(bytes.as_ref())], &[], &address);
        }
    }

    fn send_message(
        &self,
        parts: &[IoSlice<'_>],
        control: &[ControlMessage<'_>],
        to: &SockaddrStorage,
    ) -> Result<(), Errno> {
        let flags = MsgFlags::MSG_DONTWAIT;
        let send = || sendmsg(self.socket.as_raw_fd(), parts, control, flags, Some(to)).map(drop);
        match send() {
            Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut ready, PollTimeout::from(PATIENCE_MS));
                send()
            }
            other => other,
        }
    }

    fn address(&self, to: SocketAddr) -> SockaddrStorage {
        match to {
            SocketAddr::V4(four) if self.dual => SocketAddr::from((four.ip().to_ipv6_mapped(), four.port())).into(),
            other => other.into(),
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
