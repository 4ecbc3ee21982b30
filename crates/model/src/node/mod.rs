//! One machine running toft: what it is and what it has.

mod facts;
mod inventory;

pub use facts::{DiskFacts, NodeFacts, Temperature};
pub use inventory::{Inventory, Subnet};
