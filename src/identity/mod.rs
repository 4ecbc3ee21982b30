//! Proofs of who somebody is: hashes of passwords, secrets of sessions and API tokens, codes
//! of second factors, passkeys, and brakes on guessing.
//!
//! Knows no state and no HTTP: control asks it. docs/access.md tells the whole.

mod brake;
mod gate;
mod half;
mod jws;
mod passkey;
mod password;
mod secret;
mod signer;
mod totp;
mod visitor;

pub use brake::{Attempt, Brake};
pub use gate::{Gate, Lengths, Used};
pub use half::{Halves, Waiting};
pub use jws::{Header, Jwk, Jwks, Signed, VerifyingKey};
pub use passkey::{PasskeyError, Passkeys, Shown, Site, Wish as PasskeyWish, unknown_name};
pub use password::{Company, FirstPassword, HashError, Passwords, Turn};
pub use secret::{API_TOKEN_PREFIX, Bearer, NoRandom, new_token_id};
pub use signer::{Claims, OWN_AUDIENCE, SigningKey, key_of, opens};
pub use totp::{TotpSecret, is_code, recovery_codes, recovery_digest};
pub use visitor::Visitor;
