//! A file or a tree as a tar archive, read while it may change: whatever happens, the archive is well-formed.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use bytes::Bytes;
use rustix::{
    fs::{Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, open as open_file, openat},
    io::Errno,
};
use tar::{EntryType, Header};
use toft_model::files::FileKind;
use tokio::sync::mpsc;

use super::{FileError, parts::Parts, path};

/// Directories in directories; each keeps a descriptor open.
const DEEPEST: u32 = 256;
/// File systems in which the kernel speaks of itself, and which have no end: proc, sysfs, cgroup of both versions, devpts,
/// mqueue, debugfs, tracefs, securityfs, bpf.
const VIRTUAL: [u64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
];

/// What is packed, open.
#[derive(Debug)]
pub struct Source {
    file: OwnedFd,
    /// How it was called.
    shown: String,
    /// The name of the archive's first entry.
    name: String,
}

impl Source {
    /// Opens a path below a root.
    pub fn within(root: BorrowedFd<'_>, path: &str, follow: bool) -> Result<Self, FileError> {
        let file = path::open(root, path, follow)?;
        Self::of(file, path)
    }

    /// Opens a path of this machine.
    pub fn local(path: &str, follow: bool) -> Result<Self, FileError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let file = open_file(path, flags, Mode::empty()).map_err(|errno| FileError::at(path, errno))?;
        Self::of(file, path)
    }

    fn of(file: OwnedFd, path: &str) -> Result<Self, FileError> {
        let source = Self { file, shown: path.to_owned(), name: path::name_of(path).to_owned() };
        match source.kind()? {
            FileKind::Other => Err(FileError::Special { path: path.to_owned() }),
            FileKind::File | FileKind::Directory | FileKind::Link => Ok(source),
        }
    }

    /// What it is.
    pub fn kind(&self) -> Result<FileKind, FileError> {
        Ok(path::kind(&fstat(&self.file).map_err(|errno| FileError::at(&self.shown, errno))?))
    }

    /// The name of the archive's first entry: the last part of the path, `.` for a directory's content.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same with another name for the first entry.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The same in parts into a channel, the last of which is an error if one came.
    pub fn pack_into(self, sender: mpsc::Sender<io::Result<Bytes>>) -> Result<(), FileError> {
        let mut parts = Parts::new(sender);
        let shown = self.shown.clone();
        let packed = self.pack(&mut parts).and_then(|()| parts.flush().map_err(|error| FileError::io(shown, error)));
        if let Err(error) = &packed {
            parts.fail(error.to_string());
        }
        packed
    }

    /// Writes the archive. Devices and sockets in a tree are left out; so is what virtual file systems hold.
    pub fn pack(self, out: impl Write) -> Result<(), FileError> {
        let mut packer = Packer { builder: tar::Builder::new(out) };
        packer.add(&self.file, Path::new(&self.name), 0)?;
        packer.builder.finish().map_err(|error| FileError::io(&self.shown, error))
    }
}

struct Packer<W: Write> {
    builder: tar::Builder<W>,
}

impl<W: Write> Packer<W> {
    fn add(&mut self, file: &OwnedFd, name: &Path, depth: u32) -> Result<(), FileError> {
        let shown = name.to_string_lossy().into_owned();
        let failed = |errno: Errno| FileError::at(&shown, errno);
        let broken = |error: io::Error| FileError::io(&shown, error);
        let told = fstat(file).map_err(failed)?;
        let mut header = header(&told);
        match FileType::from_raw_mode(told.st_mode) {
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.builder.append_data(&mut header, name, io::empty()).map_err(broken)?;
                self.descend(file, name, depth)
            }
            FileType::RegularFile => {
                let size = u64::try_from(told.st_size).unwrap_or(0);
                header.set_entry_type(EntryType::Regular);
                header.set_size(size);
                let open = reopen(file, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
                let content = Exactly { file: File::from(open), left: size };
                self.builder.append_data(&mut header, name, content).map_err(broken)
            }
            FileType::Symlink => {
                let target = path::link_target(file.as_fd(), &shown)?;
                header.set_entry_type(EntryType::Symlink);
                self.builder.append_link(&mut header, name, OsStr::from_bytes(&target)).map_err(broken)
            }
            FileType::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.builder.append_data(&mut header, name, io::empty()).map_err(broken)
            }
            _ => Ok(()),
        }
    }

    fn descend(&mut self, file: &OwnedFd, name: &Path, depth: u32) -> Result<(), FileError> {
        let shown = || name.to_string_lossy().into_owned();
        if depth == DEEPEST {
            return Err(FileError::refused(format!("`{}` lies more than {DEEPEST} directories deep", shown())));
        }
        let failed = |errno: Errno| FileError::at(shown(), errno);
        if VIRTUAL.contains(&(fstatfs(file).map_err(failed)?.f_type as u64)) {
            return Ok(());
        }
        let listed = openat(file, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let listed = listed.map_err(failed)?;
        for entry in Dir::read_from(&listed).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let own = entry.file_name();
            if matches!(own.to_bytes(), b"." | b"..") {
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = match openat(&listed, own, flags, Mode::empty()) {
                Ok(child) => child,
                // It went between being listed and being opened.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            self.add(&child, &name.join(OsStr::from_bytes(own.to_bytes())), depth + 1)?;
        }
        Ok(())
    }
}

/// Opens what a descriptor stands for, and nothing else.
fn reopen(file: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_file(format!("/proc/self/fd/{}", file.as_raw_fd()), flags | OFlags::CLOEXEC, Mode::empty())
}

fn header(told: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(told.st_mode & 0o7777);
    header.set_uid(told.st_uid.into());
    header.set_gid(told.st_gid.into());
    header.set_mtime(u64::try_from(told.st_mtime).unwrap_or(0));
    header
}

/// As many bytes as the header says, though the file may grow or shrink meanwhile.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut read = self.file.read(&mut buffer[..most])?;
        if read == 0 {
            buffer[..most].fill(0);
            read = most;
        }
        self.left -= read as u64;
        Ok(read)
    }
}
