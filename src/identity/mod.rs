//! Proofs of who somebody is: hashes of passwords, secrets of sessions and API tokens, codes
//! of second factors, and brakes on guessing.
//!
//! Knows no state and no HTTP: control asks it. docs/access.md tells the whole.

mod brake;
mod gate;
mod half;
mod password;
mod secret;
mod totp;
mod visitor;

pub use brake::{Attempt, Brake};
pub use gate::{Gate, Lengths, Used};
pub use half::{Halves, Waiting};
pub use password::{FirstPassword, HashError, Passwords, Company, Turn};
pub use secret::{API_TOKEN_PREFIX, Bearer, NoRandom};
pub use totp::{TotpSecret, is_code, recovery_codes, recovery_digest};
pub use visitor::Visitor;
