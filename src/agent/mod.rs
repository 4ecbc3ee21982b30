//! Makes this node's assignments real and tells what it sees.
//!
//! Whole assignment sets come in ([`AgentParts::assignments`]), are written to the [`ledger`], and wake one task. It asks
//! the pure [`keeper`] (and that the pure [`reconcile`]) what each instance needs next, lets [`execute`] do it with at
//! most one action an instance under way, and hands what it learns to [`report`]. It never asks the cluster anything: after a reboot without any other
//! node the ledger alone starts the containers.

pub mod attach;
pub mod dns;
pub mod exec;
pub mod execute;
pub mod facts;
pub mod files;
pub mod gpu;
mod health;
pub mod host;
pub mod image;
pub mod keeper;
pub mod ledger;
pub mod logs;
pub mod made_up;
pub mod meter;
pub mod network;
pub mod pulse;
pub mod reconcile;
pub mod report;
pub mod retention;
pub mod runtime;
pub mod secrets;
pub mod tree;
pub mod turns;
pub mod volumes;

mod ports;
mod run;
#[cfg(test)]
mod simulation;

pub use run::{Agent, AgentConfig, AgentParts};
