//! Decides: what users ask for becomes commands (`ops`), and what the state asks for becomes plans (`loops`).

pub mod actor;
pub mod belonging;
pub mod error;
pub mod loops;
pub mod node_access;
pub mod ops;

pub use error::{ControlError, ErrorKind};
