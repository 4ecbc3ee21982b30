//! The one integration binary.

#![allow(missing_docs, clippy::unwrap_used)]

mod harness;
mod runtime_conformance;
mod runtime_containerd;
