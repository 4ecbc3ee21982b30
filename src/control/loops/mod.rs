//! Loops: `schedule`, `node_health` and `signing_keys` are the leader's, `cards` and `images` every node's own. They take no input but the state,
//! and `node_health` what consensus hears of the members: whatever woke them, they look at all of it.

pub mod cards;
pub mod images;
pub mod node_health;
pub mod schedule;
pub mod signing_keys;
pub mod uses;
