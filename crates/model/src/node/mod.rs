//! One machine running toft: what it is and what it has.

mod inventory;
mod subnet;

pub use inventory::Inventory;
pub use subnet::{Subnet, pick_subnet};
