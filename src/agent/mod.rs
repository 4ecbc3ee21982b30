//! Makes this node's assignments real and tells what it sees.

pub mod network;
pub mod runtime;
