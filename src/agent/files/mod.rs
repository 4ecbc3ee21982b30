//! Copies files out of and into a tree that nobody trusts: a container's, whose processes may change it meanwhile, or one
//! of this machine that an archive from elsewhere is unpacked into.
//!
//! Nothing here leaves the tree. The kernel resolves every path below a descriptor of its root (`openat2`), and what is
//! found is used through its descriptor, so that a path that changes in between changes nothing. Archives are read and
//! written by [`super::tree`]. Everything blocks.

mod pack;
mod parts;
mod path;
mod unpack;

#[cfg(test)]
mod tests;

use std::io;

use rustix::io::Errno;

pub use pack::Source;
pub use path::{open_dir, stat};
pub use unpack::Unpack;

pub use super::tree::Owner;
use super::tree::{Fault, Why};

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The path leads nowhere.
    #[error("there is no `{path}`")]
    NotFound {
        /// The path.
        path: String,
    },
    /// A directory is needed there.
    #[error("`{path}` is no directory")]
    NotADirectory {
        /// The path.
        path: String,
    },
    /// A file stands where a directory must be, or the other way round.
    #[error("`{path}` cannot be replaced: {reason}")]
    InTheWay {
        /// The path.
        path: String,
        /// What is there, and what was to be.
        reason: &'static str,
    },
    /// It is no file, directory or link.
    #[error("`{path}` is a device or a socket, which is not copied")]
    Special {
        /// The path.
        path: String,
    },
    /// Writing is forbidden by the file system.
    #[error("`{path}` cannot be written: its file system is read-only")]
    ReadOnly {
        /// The path.
        path: String,
    },
    /// The disk is full.
    #[error("no space is left while writing `{path}`")]
    DiskFull {
        /// The path.
        path: String,
    },
    /// The archive is damaged, or made to do harm.
    #[error("the archive is refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// Anything else.
    #[error("`{path}` cannot be used")]
    Io {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }

    /// What an error of the kernel means for a path.
    fn at(path: impl Into<String>, errno: Errno) -> Self {
        let path = path.into();
        match errno {
            Errno::NOENT => Self::NotFound { path },
            Errno::NOTDIR => Self::NotADirectory { path },
            Errno::ROFS => Self::ReadOnly { path },
            Errno::NOSPC | Errno::DQUOT => Self::DiskFull { path },
            errno => Self::Io { path, source: errno.into() },
        }
    }

    fn io(path: impl Into<String>, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::at(path, Errno::from_raw_os_error(errno)),
            None => Self::Io { path: path.into(), source: error },
        }
    }
}

impl From<Fault> for FileError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Disk { path, source } => Self::io(path, source),
            Fault::Unwritable(source) => Self::Io { path: "the archive".to_owned(), source },
            Fault::Refused { path, why: Why::InTheWay(reason) } => Self::InTheWay { path, reason },
            other => Self::refused(other.to_string()),
        }
    }
}
