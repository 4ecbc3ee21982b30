//! A tree of files as one stream and back: what backups of volumes are made of, and how a volume gets what an image
//! has.
//!
//! The stream is a tar: a manifest, the tree below `data`, and an end that says how much there was, so that a file cut
//! short is known. Owners, permissions, times, extended attributes, hard links and symbolic links come back as they
//! were; blocks of zeros come back as holes. Devices and sockets are left out, and refused when a stream holds them.

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::{io, os::fd::BorrowedFd, thread};

use serde::{Deserialize, Serialize};

pub use read::read;
pub use write::write;

/// Name of the first entry.
const MANIFEST: &str = "toft-volume.json";
/// Folder that holds the tree.
const TREE: &str = "data";
/// Name of the last entry.
const END: &str = "toft-volume-end.json";
/// Version of the format.
const FORMAT: u32 = 1;
/// Longest path inside a tree, in bytes; the kernel's own limit.
const MAX_PATH: usize = 4095;
/// Most bytes of the first and the last entry.
const MAX_HEADERS: u64 = 1 << 20;

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// Name of the volume it was made of.
    pub volume: String,
    /// Node on which it was made.
    pub node: String,
    /// When, as RFC 3339.
    pub created_at: String,
    /// Version of toft.
    pub toft_version: String,
}

impl Manifest {
    /// One made here and now.
    pub fn new(volume: &str, node: &str) -> Self {
        Self {
            format: FORMAT,
            volume: volume.to_owned(),
            node: node.to_owned(),
            created_at: jiff::Timestamp::now().to_string(),
            toft_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// How much went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices and sockets that were left out.
    #[serde(default)]
    pub left_out: u64,
}

/// Why a stream could not be read into a tree.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream breaks off, or its checksum is wrong.
    #[error("the backup is damaged or cut short")]
    Damaged(#[source] io::Error),
    /// It is something else.
    #[error("this is no backup of a volume: {0}")]
    NotABackup(String),
    /// It was made by a newer toft.
    #[error("the backup has format {0}, this toft knows format {FORMAT}")]
    Newer(u32),
    /// It holds what no backup of toft holds.
    #[error("the backup holds `{path}`, {why}; nothing of it is used")]
    Hostile {
        /// The entry.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The tree could not be written.
    #[error("`{path}` could not be written")]
    Write {
        /// Path in the volume.
        path: String,
        /// Cause.
        source: io::Error,
    },
}

impl ArchiveError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// Copies the tree of folder `from` into the empty folder `to`, the folder's own owner and permissions included.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Summary, ArchiveError> {
    let (receiver, sender) = io::pipe().map_err(ArchiveError::Damaged)?;
    thread::scope(|scope| {
        let writes = scope.spawn(move || write(from, &Manifest::new("", ""), sender).map(drop));
        let read = read(to, io::BufReader::with_capacity(256 << 10, receiver));
        match writes.join() {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(ArchiveError::Damaged(error)),
            _ => read,
        }
    })
}
