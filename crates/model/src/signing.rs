//! The keys that sign short-lived tokens for services. They are made by the leader, and change.

use serde::{Deserialize, Serialize};

use crate::{invalid::Invalid, secret::Sealed, token::TokenId};

/// How long a key is the newest, in milliseconds: a day.
pub const SIGNS_MS: i64 = 24 * 60 * 60 * 1_000;
/// Longest time for which a signed token is valid, in milliseconds: an hour.
pub const MAX_SIGNED_TTL_MS: i64 = 60 * 60 * 1_000;
/// Shortest: a second.
pub const MIN_SIGNED_TTL_MS: i64 = 1_000;
/// How long a key is known before it signs, so that whoever keeps a copy of the keys has read it, in milliseconds.
pub const KNOWN_BEFORE_MS: i64 = 10 * 60 * 1_000;
/// How long a key is kept after it was made: it signs for a day, and what it signed last is valid for an hour.
const KEPT_MS: i64 = SIGNS_MS + KNOWN_BEFORE_MS + 2 * MAX_SIGNED_TTL_MS;
/// Longest sealed key, in bytes.
const MAX_SEALED_BYTES: usize = 256;
/// Bytes of a public key.
const PUBLIC_BYTES: usize = 32;

/// A key on the way into the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSigningKey {
    /// What tokens call it.
    pub id: TokenId,
    /// The public half (Ed25519).
    #[serde(with = "as_hex")]
    pub public: Vec<u8>,
    /// The private half, sealed for this id.
    pub sealed: Sealed,
}

impl NewSigningKey {
    /// Checks it against the rules.
    pub fn check(&self) -> Result<(), Invalid> {
        let sealed = self.sealed.as_bytes().len();
        if self.public.len() != PUBLIC_BYTES || sealed == 0 || sealed > MAX_SEALED_BYTES {
            return Err(Invalid::value("this is no key of Ed25519", "make another").at("key"));
        }
        Ok(())
    }
}

/// Whether a key that was made then has no use any more.
pub fn is_over(created_at_ms: i64, now_ms: i64) -> bool {
    now_ms.saturating_sub(created_at_ms) > KEPT_MS
}

mod as_hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(D::Error::custom("this is not hexadecimal"));
        }
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(D::Error::custom);
        (0..text.len()).step_by(2).map(byte).collect()
    }
}
