//! Proofs of who somebody is: hashes of passwords, secrets of sessions and API tokens, and brakes on guessing.
//!
//! Knows no state and no HTTP: control asks it. docs/access.md tells the whole.

mod brake;
mod gate;
mod password;
mod secret;
mod visitor;

pub use brake::{Attempt, Brake};
pub use gate::{Gate, Lengths, Used};
pub use password::{FirstPassword, HashError, Passwords, Turn};
pub use secret::{API_TOKEN_PREFIX, Bearer, NoRandom};
pub use visitor::Visitor;
