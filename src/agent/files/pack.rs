//! A file or a tree as a tar archive, read while it may change: whatever happens, the archive is well-formed.

use std::{
    io::{self, Write},
    os::fd::{BorrowedFd, OwnedFd},
};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, fstat, open as open_file};
use toft_model::files::FileKind;
use tokio::sync::mpsc;

use super::{
    super::tree::{Mounts, Packer, Packing},
    FileError,
    parts::Parts,
    path,
};

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
        let mut packer = Packer::new(out, Packing { mounts: Mounts::Entered, sparse: true });
        packer.add(&self.file, self.name.as_bytes())?;
        packer.finish()?;
        Ok(())
    }
}
