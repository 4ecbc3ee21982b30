//! One layer as files: what a registry sent is decompressed, hashed and written below a directory, while it arrives.
//! [`extract`] does that with a layer on its own; [`merge`] moves the result to where overlayfs sees it above the
//! layers below it.
//!
//! Layers come from strangers. Every name is looked up inside the directory by the kernel (`openat2` with
//! `RESOLVE_IN_ROOT`), the last part of a name is never followed, and what describes files is bounded.

use std::io;

mod ahead;
mod decode;
mod extract;
mod merge;

pub(super) use decode::{Feed, incoming};
pub(super) use extract::{Extracted, Place, extract};
pub(super) use merge::merge;

/// Why a layer did not become files.
#[derive(Debug)]
pub(super) enum Fault {
    /// The layer's own fault; in words for people.
    Layer(String),
    /// The file system refused.
    Disk(io::Error),
    /// The layer did not come to its end; whoever sends it knows why.
    CutOff,
}

/// What overlayfs calls a directory that hides what is below it.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Attributes by which overlayfs remembers things; none of them is an image's business.
const OVERLAY_ATTRIBUTES: &str = "trusted.overlay.";

#[cfg(test)]
mod tests;
