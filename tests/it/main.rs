//! Integration tests, one binary. Those that need root, containerd or the kernel's network say so by failing.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on shall stop")]

mod harness;
mod network;
mod runtime_conformance;
mod runtime_containerd;
mod tidy;
