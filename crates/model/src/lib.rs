//! The cluster as data: what exists, which rules hold, what should happen next.
//!
//! Everything here is pure. There is no clock, no randomness, no network and no task: times and ids arrive as
//! arguments, and the only thing touched outside memory is the SQLite connection that a caller hands in. The same
//! inputs therefore give the same outputs on every node, which is what replicated state needs.

pub mod exec;
pub mod files;
pub mod gpu;
pub mod identity;
pub mod ids;
pub mod image;
pub mod instance;
pub mod invalid;
pub mod log;
pub mod mesh;
pub mod name;
pub mod node;
pub mod passkey;
pub mod pull;
pub mod registry;
pub mod schedule;
pub mod second_factor;
pub mod secret;
pub mod series;
pub mod signing;
pub mod state;
mod text;
pub mod token;
pub mod units;
pub mod usage;
pub mod volume;
pub mod workload;
