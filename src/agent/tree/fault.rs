//! Why an archive did not become files, or files no archive.

use std::{io, path::Path};

use rustix::io::Errno;

/// Longest part of a path that is shown.
const MOST_SHOWN: usize = 200;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The archive ends before its end.
    #[error("it ends too early")]
    CutOff,
    /// The archive cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    /// It is something else.
    #[error("it is no tar archive")]
    NoArchive,
    /// What it says about a file makes no sense.
    #[error("a file's {0} is damaged")]
    Damaged(&'static str),
    /// A name is longer than the kernel takes.
    #[error("a file's name is too long")]
    LongName,
    /// What it says about a file has no end.
    #[error("it says more than 4 MiB about one file")]
    TooMuch,
    /// It holds what may not be.
    #[error("`{path}` {why}")]
    Refused {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: Why,
    },
    /// The file system refused.
    #[error("`{path}` cannot be used")]
    Disk {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("the archive cannot be written")]
    Unwritable(#[source] io::Error),
}

/// What is wrong with a file of an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It begins with `/`.
    #[error("is an absolute path")]
    Absolute,
    /// It has too many `..`.
    #[error("leads out of the root")]
    LeadsOut,
    /// No name on a disk has one.
    #[error("holds a zero byte")]
    ZeroByte,
    /// Where it belongs is behind a link.
    #[error("goes through a symbolic link")]
    ThroughLink,
    /// Only a directory may be there.
    #[error("would take the place of the root")]
    Root,
    /// Devices are not wanted.
    #[error("is a device")]
    Device,
    /// Neither file, directory, link, pipe nor device.
    #[error("is of the unknown kind {0}")]
    UnknownKind(u8),
    /// A hard link to what is not there.
    #[error("is a hard link to `{0}`, which is not in it")]
    NoTarget(String),
    /// A hard link to a directory.
    #[error("is a hard link to a directory")]
    LinkToDirectory,
    /// A link without a target.
    #[error("is a link to nothing")]
    LinkToNothing,
    /// Something is there.
    #[error("cannot be replaced: {0}")]
    InTheWay(&'static str),
    /// Something of the archive is there.
    #[error("is named twice")]
    Twice,
    /// It has an attribute that may not be.
    #[error("has the attribute `{0}`, which is not allowed")]
    Attribute(String),
    /// It lies too deep.
    #[error("lies too deep")]
    TooDeep,
}

impl Fault {
    /// A file that may not be.
    pub fn refused(path: &Path, why: Why) -> Self {
        Self::Refused { path: shown(path.as_os_str().as_encoded_bytes()), why }
    }

    /// What an error of the kernel means for a path.
    pub(super) fn at(path: &Path, errno: Errno) -> Self {
        Self::Disk { path: shown(path.as_os_str().as_encoded_bytes()), source: errno.into() }
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Disk { path: shown(path.as_os_str().as_encoded_bytes()), source }
    }

    /// What reading the archive came to.
    pub(super) fn read(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::CutOff,
            _ => Self::Unreadable(error),
        }
    }

    /// The kernel's number, when the file system refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Disk { source, .. } => source.raw_os_error().map(Errno::from_raw_os_error),
            _ => None,
        }
    }
}

/// A name of an archive, fit to be shown.
pub fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().filter(|c| !c.is_control()).take(MOST_SHOWN).collect()
}
