//! The loops of the leader. They take no input but the state: whatever woke them, they look at all of it.

pub mod schedule;
