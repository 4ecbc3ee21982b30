//! One machine running toft: what it is and what it has.

mod inventory;

pub use inventory::{Inventory, Subnet};
