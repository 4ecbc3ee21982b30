//! From a tree to a stream.

use std::{
    io::{self, Write},
    os::fd::BorrowedFd,
};

use super::{END, MANIFEST, Manifest, Summary, TREE};
use crate::agent::tree::{Fault, Mounts, Packer, Packing};

/// Writes the tree of folder `root` to `out`. What changes meanwhile is in it as it was when it was passed by; what
/// lies on another file system is left out, its folder stays.
pub fn write<W: Write>(root: BorrowedFd<'_>, manifest: &Manifest, out: W) -> io::Result<(Summary, W)> {
    let root = root.try_clone_to_owned()?;
    // Holes are zeros here, which compression makes nothing of and reading makes holes again.
    let mut packer = Packer::new(out, Packing { mounts: Mounts::LeftOut, sparse: false });
    packer.note(MANIFEST, &serde_json::to_vec(manifest)?).map_err(plain)?;
    packer.add(&root, TREE.as_bytes()).map_err(plain)?;
    let packed = packer.packed();
    let summary = Summary { entries: packed.entries, bytes: packed.bytes, left_out: packed.left_out };
    packer.note(END, &serde_json::to_vec(&summary)?).map_err(plain)?;
    Ok((summary, packer.finish().map_err(plain)?))
}

fn plain(fault: Fault) -> io::Error {
    match fault {
        Fault::Disk { path, source } => io::Error::new(source.kind(), format!("`{path}`: {source}")),
        Fault::Unwritable(source) => source,
        other => io::Error::other(other.to_string()),
    }
}
