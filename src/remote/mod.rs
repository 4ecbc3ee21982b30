//! The other nodes as control sees them, and the door at which they ask this one.
//!
//! [`FarNode`] asks, [`NodeDoor`] answers for its own node, and never asks on. Both speak `wire::node`. An error keeps its kind,
//! text and hint on the way. Whoever stops reading what it asked for, or writing what it began, ends it on the other node.
//!
//! Each call has a window of its own for what is under way, so one who does not read holds up nobody but itself.

mod door;
mod far;
mod question;
mod session;
#[cfg(test)]
mod tests;

pub use door::NodeDoor;
pub use far::FarNodes;

/// Largest message, in bytes.
const LARGEST: usize = 8 << 20;
/// Bytes of an archive in one message.
const PART: usize = 128 << 10;
/// Lines in one message.
const LINES: usize = 32;
/// Calls of one member that are under way at once.
const CALLS: usize = 64;
/// Messages that wait on each way of a session.
const WAITING: usize = 16;
