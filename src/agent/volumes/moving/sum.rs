//! A checksum over a whole tree.

use std::{fmt, fs::File, io::Read, os::fd::AsFd};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::{
    Entry, Kind, MoveError,
    entry::shown,
    walk::{self, walk},
};

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// What a tree holds, in short: SHA-256 over every path with its kind, owner, permissions, time, attributes and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// The checksum.
    pub digest: [u8; 32],
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files and folders, {} bytes, {}", self.entries, self.bytes, hex::encode(self.digest))
    }
}

impl Sum {
    /// Of the tree below an open directory. `told` is told the bytes of files so far, and says whether to go on.
    pub fn of(root: impl AsFd + Copy, told: &mut dyn FnMut(u64) -> bool) -> Result<Self, MoveError> {
        let (mut all, mut entries, mut bytes) = (Sha256::new(), 0, 0);
        let mut buffer = vec![0; PIECE];
        walk(root, &mut |entry| {
            entries += 1;
            about(&mut all, &entry);
            if !told(bytes) {
                return Err(MoveError::Stopped);
            }
            if let Kind::File(_) = entry.kind {
                let own = content(root, &entry.path, &mut buffer, &mut |count| {
                    bytes += count;
                    told(bytes)
                })?;
                all.update(own);
            }
            Ok(())
        })?;
        Ok(Self { digest: all.finalize().into(), entries, bytes })
    }
}

fn content(
    root: impl AsFd,
    path: &[u8],
    buffer: &mut [u8],
    told: &mut dyn FnMut(u64) -> bool,
) -> Result<[u8; 32], MoveError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let mut file = File::from(walk::beneath(root, path, flags).map_err(MoveError::here(path))?);
    let mut own = Sha256::new();
    loop {
        let count = file.read(buffer).map_err(|source| MoveError::Here { path: shown(path), source })?;
        if count == 0 {
            return Ok(own.finalize().into());
        }
        own.update(&buffer[..count]);
        if !told(count as u64) {
            return Err(MoveError::Stopped);
        }
    }
}

/// Everything but content, each part with its length before it.
fn about(all: &mut Sha256, entry: &Entry) {
    let mut part = |bytes: &[u8]| {
        all.update((bytes.len() as u64).to_le_bytes());
        all.update(bytes);
    };
    let (kind, further): (u8, &[u8]) = match &entry.kind {
        Kind::Directory => (0, &[]),
        Kind::File(_) => (1, &[]),
        Kind::Symlink(to) => (2, to),
        Kind::Link(first) => (3, first),
        Kind::Pipe => (4, &[]),
    };
    part(&entry.path);
    part(&[kind]);
    part(further);
    part(&entry.size().to_le_bytes());
    for number in [entry.mode, entry.uid, entry.gid, entry.modified.1] {
        part(&number.to_le_bytes());
    }
    part(&entry.modified.0.to_le_bytes());
    for (name, value) in &entry.attributes {
        part(name.as_bytes());
        part(value);
    }
}
