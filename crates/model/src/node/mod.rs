//! One machine running toft: what it is and what it has.

mod inventory;
mod subnet;

pub use inventory::Inventory;
pub use subnet::{Subnet, Subnet6, pick_subnet};
