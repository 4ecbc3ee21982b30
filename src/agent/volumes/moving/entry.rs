//! What a tree has at one path.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use super::MoveError;
use crate::agent::tree;

/// Longest path and longest name, in bytes; the kernel's limits.
const LONGEST_PATH: usize = 4095;
const LONGEST_NAME: usize = 255;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file of so many bytes.
    File(u64),
    /// A symbolic link, and where it leads, as it is written.
    Symlink(Vec<u8>),
    /// A further name of a file: its first.
    Link(Vec<u8>),
    /// A named pipe.
    Pipe,
}

/// Something in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path below the root; empty for that.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with the bits for other users.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last written: seconds since 1970, and nanoseconds.
    pub modified: (i64, u32),
    /// Portable extended attributes, by name.
    pub attributes: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// Bytes of a file; 0 for anything else.
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::File(size) => size,
            Kind::Directory | Kind::Symlink(_) | Kind::Link(_) | Kind::Pipe => 0,
        }
    }

    /// The directory it lies in and its name; nothing for the root.
    pub(super) fn place(&self) -> Option<(&[u8], &[u8])> {
        place(&self.path)
    }

    /// Refuses what no tree has.
    pub(super) fn check(&self) -> Result<(), MoveError> {
        let hostile = |why| MoveError::Hostile { path: shown(&self.path), why };
        let is_root = self.path.is_empty() && self.kind == Kind::Directory;
        if !is_root && !sound(&self.path) {
            return Err(hostile("which leads out of the volume"));
        }
        match &self.kind {
            Kind::Link(first) if !sound(first) => return Err(hostile("which links to something outside the volume")),
            Kind::Symlink(to) if to.is_empty() || to.len() > LONGEST_PATH || to.contains(&0) => {
                return Err(hostile("a link that leads nowhere"));
            }
            Kind::File(size) if i64::try_from(*size).is_err() => {
                return Err(hostile("a file larger than files can be"));
            }
            _ => {}
        }
        if self.attributes.iter().any(|(name, _)| !tree::portable(name) || name == super::incoming::MARK) {
            return Err(hostile("with an attribute that volumes do not keep"));
        }
        if self.mode & !0o7777 != 0 || self.modified.1 >= 1_000_000_000 {
            return Err(hostile("with permissions or times that are none"));
        }
        Ok(())
    }
}

/// The directory of a path and its last part; nothing for the root.
pub(super) fn place(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    })
}

/// Whether a path stays below the root.
fn sound(path: &[u8]) -> bool {
    let odd = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.len() > LONGEST_NAME || part.contains(&0);
    path.len() <= LONGEST_PATH && !path.split(|byte| *byte == b'/').any(odd)
}

pub(super) fn shown(path: &[u8]) -> String {
    tree::shown(path)
}

pub(super) fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(if path.is_empty() { b"." } else { path }))
}
