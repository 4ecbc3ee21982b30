//! What the tests run against.

pub mod containerd;
pub mod image;
