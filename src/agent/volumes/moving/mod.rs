//! A volume's tree on its way to another node. One end ([`Source`]) lists what there is and gives parts of files; the other
//! ([`Incoming`]) makes its own tree the same, file by file: what is there already is left alone, and a file that is there in
//! part goes on where it ends. A [`Sum`] over everything shows that both are the same.
//!
//! Neither end trusts the other, nor what is in the tree: paths are resolved beneath a descriptor of the root, the last
//! part is never followed. Owners, permissions, times, portable attributes, hard and symbolic links and holes
//! come along; devices and sockets are left out, as backups leave them out. Everything blocks.

mod entry;
mod incoming;
mod local;
mod sum;
#[cfg(test)]
mod tests;
mod walk;

use std::io;

pub use entry::{Entry, Kind};
pub use incoming::{Incoming, Want, empty};
pub use local::Local;
pub use sum::Sum;

/// Most files that are asked for at once, and most bytes that are missing of them all, but for the last.
const MOST_WANTED: usize = 256;
const MOST_WANTED_BYTES: u64 = 64 << 20;

/// Why a tree did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// What is read from broke off, or failed.
    #[error("the other end broke off")]
    Source(#[source] io::Error),
    /// It gives what no tree holds.
    #[error("the other end names `{path}`, {why}; nothing of it is used")]
    Hostile {
        /// The path, fit to be shown.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The tree could not be written or read here.
    #[error("`{path}` could not be written")]
    Here {
        /// Path in the volume.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It was told to stop.
    #[error("it was stopped")]
    Stopped,
}

impl MoveError {
    fn here(path: &[u8]) -> impl Fn(rustix::io::Errno) -> Self + use<> {
        let path = entry::shown(path);
        move |error| Self::Here { path: path.clone(), source: error.into() }
    }

    /// Whether the disk here is full.
    pub fn is_full(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            )
        };
        matches!(self, Self::Here { source, .. } if full(source))
    }
}

/// A part of a file as it comes.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Bytes at an offset of the file that is given; what is between two parts is a hole.
    Bytes {
        /// Where they begin.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The file that is given has ended, and the next of those that are wanted begins.
    End,
}

/// The end that has the tree.
pub trait Source {
    /// Names everything, directories before what is in them, and what is in each in the order of its bytes.
    fn list(&self, each: &mut dyn FnMut(Entry) -> Result<(), MoveError>) -> Result<(), MoveError>;

    /// Gives what is wanted of each file, one after the other. A file that is no longer there ends without bytes.
    fn read(&self, wanted: &[Want], each: &mut dyn FnMut(Part<'_>) -> Result<(), MoveError>) -> Result<(), MoveError>;
}

/// How far a tree has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files that are there, those of before included.
    pub bytes: u64,
    /// Bytes that came.
    pub came: u64,
}

/// Makes a tree here what it is there. `told` is told how far it is, and says whether to go on.
pub fn carry(
    source: &dyn Source,
    mut into: Incoming,
    told: &mut dyn FnMut(Carried) -> bool,
) -> Result<Carried, MoveError> {
    let mut carried = Carried::default();
    let (mut wanted, mut missing) = (Vec::new(), 0);
    // While files are fetched the list waits.
    source.list(&mut |entry| {
        carried.entries += 1;
        let size = entry.size();
        match into.meet(entry)? {
            None => carried.bytes += size,
            Some(want) => {
                carried.bytes += want.from;
                missing += size - want.from;
                wanted.push(want);
                if wanted.len() >= MOST_WANTED || missing >= MOST_WANTED_BYTES {
                    fetch(source, &mut into, &std::mem::take(&mut wanted), &mut carried, told)?;
                    missing = 0;
                }
            }
        }
        if told(carried) { Ok(()) } else { Err(MoveError::Stopped) }
    })?;
    fetch(source, &mut into, &wanted, &mut carried, told)?;
    into.finish()?;
    told(carried);
    Ok(carried)
}

fn fetch(
    source: &dyn Source,
    into: &mut Incoming,
    wanted: &[Want],
    carried: &mut Carried,
    told: &mut dyn FnMut(Carried) -> bool,
) -> Result<(), MoveError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut left = wanted.iter();
    let mut now = left.next();
    source.read(wanted, &mut |part| {
        let Some(want) = now else {
            return Err(MoveError::Hostile { path: String::new(), why: "which nobody asked for" });
        };
        match part {
            Part::Bytes { offset, bytes } => {
                let before = into.reached(want);
                into.write(want, offset, bytes)?;
                carried.bytes += into.reached(want) - before;
                carried.came += bytes.len() as u64;
            }
            Part::End => {
                let before = into.reached(want);
                carried.bytes += into.end(want)?.saturating_sub(before);
                now = left.next();
            }
        }
        if told(*carried) { Ok(()) } else { Err(MoveError::Stopped) }
    })?;
    match now {
        None => Ok(()),
        Some(_) => Err(MoveError::Source(io::ErrorKind::UnexpectedEof.into())),
    }
}
