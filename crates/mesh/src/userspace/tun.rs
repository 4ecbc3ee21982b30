//! The TUN device: the end of the tunnel that the kernel routes packets into.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::libc;

use super::split::{VNET_LENGTH, VnetHeader};

const PATH: &str = "/dev/net/tun";
/// Longest name of an interface.
const NAME_LENGTH: usize = 15;

// From <linux/if_tun.h>; the same on every machine toft is built for.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca_u32 as libc::Ioctl;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
/// The interface must not be there yet.
const IFF_TUN_EXCL: u16 = 0x8000;
const OFFLOAD_CHECKSUM: libc::c_ulong = 0x01;
const OFFLOAD_TCP: libc::c_ulong = 0x02 | 0x04;
const OFFLOAD_UDP: libc::c_ulong = 0x20 | 0x40;

/// An open device. The interface goes with it.
pub(super) struct Tun {
    file: File,
    buffer: Box<[u8]>,
}

/// What a read gave.
pub(super) enum Next<'a> {
    /// There is nothing now.
    Nothing,
    /// Something that is no packet.
    Malformed,
    /// A packet as the kernel left it.
    Packet(VnetHeader, &'a [u8]),
}

#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

impl Tun {
    /// Makes an interface in the network namespace of this thread. Unfinished packets may then come from the kernel,
    /// which is told so.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() > NAME_LENGTH || name.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is no name of an interface")));
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(PATH)?;
        let flags = (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR) as u16 | IFF_TUN_EXCL;
        let mut request = InterfaceRequest { name: [0; 16], flags, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the kernel reads and writes one `struct ifreq`, which is what this is and as long (40 bytes).
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let offload = |flags: libc::c_ulong| {
            // SAFETY: the argument is a number.
            unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, flags) == 0 }
        };
        // Older kernels do not know UDP segmentation here; a kernel that refuses all sends finished packets only.
        let all = OFFLOAD_CHECKSUM | OFFLOAD_TCP;
        let _ = offload(all | OFFLOAD_UDP) || offload(all);
        Ok(Self { file, buffer: vec![0; VNET_LENGTH + 0x1_0000].into_boxed_slice() })
    }

    /// The next packet, if there is one.
    pub(super) fn read(&mut self) -> io::Result<Next<'_>> {
        let length = match self.file.read(&mut self.buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Next::Nothing),
            Err(error) => return Err(error),
        };
        let Some((front, packet)) = self.buffer[..length].split_first_chunk() else { return Ok(Next::Malformed) };
        Ok(VnetHeader::parse(front).map_or(Next::Malformed, |header| Next::Packet(header, packet)))
    }

    /// Hands one packet to the kernel, its [`VnetHeader`] first. What the kernel does not want is lost.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) {
        let _ = (&self.file).write_vectored(parts);
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_size() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    #[test]
    fn names_that_the_kernel_would_cut_are_refused() {
        for name in ["", "a-name-that-is-too-long", "a\0b"] {
            assert_eq!(Tun::open(name).err().unwrap().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
