//! One machine running toft: what it is and what it has.

mod facts;
mod inventory;
mod subnet;

pub use facts::{DiskFacts, NodeFacts, Temperature};
pub use inventory::Inventory;
pub use subnet::{Subnet, Subnet6, pick_subnet};
