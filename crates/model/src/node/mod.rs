//! One machine running toft: what it is, what it has, and what users say of it.

mod facts;
mod health;
mod inventory;
mod settings;
mod subnet;
mod taint;

pub use facts::{DiskFacts, NodeFacts, Temperature};
pub use health::NodeHealth;
pub use inventory::Inventory;
pub use settings::{Availability, NodeChanges, NodeSettings, Price};
pub use subnet::{Subnet, Subnet6, pick_subnet};
pub use taint::{Taint, TaintChange, TaintEffect, Toleration};
