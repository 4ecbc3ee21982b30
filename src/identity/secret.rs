//! What browsers and programs show: an id, by which the row is found, and a secret, of which the state has the digest alone.

use std::fmt;

use sha2::{Digest as _, Sha256};
use toft_model::token::{Digest, TokenId};
use zeroize::Zeroizing;

/// Begins the text of an API token, so that people and scanners of leaked secrets know what it is.
pub const API_TOKEN_PREFIX: &str = "toft_";
/// Bytes of a secret.
const SECRET: usize = 32;

/// The system gives no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandom(#[source] std::io::Error);

/// Random bytes of the system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    let read =
        std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes));
    read.map(|()| bytes).map_err(NoRandom)
}

/// A new id, of random bytes.
pub fn new_token_id() -> Result<TokenId, NoRandom> {
    Ok(TokenId::of(random()?))
}

/// An id and a secret, as they are shown.
pub struct Bearer {
    /// What the row is found by.
    pub id: TokenId,
    secret: Zeroizing<String>,
}

impl Bearer {
    /// A new one, of random bytes.
    pub fn make() -> Result<Self, NoRandom> {
        let id = new_token_id()?;
        let bytes = Zeroizing::new(random::<SECRET>()?);
        Ok(Self { id, secret: Zeroizing::new(hex::encode(&bytes[..])) })
    }

    /// What the state keeps of the secret.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.secret.as_bytes()).into())
    }

    /// The value of a session's cookie: `ID.SECRET`.
    pub fn cookie(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}.{}", self.id, *self.secret))
    }

    /// The text of an API token: `toft_ID_SECRET`.
    pub fn api_token(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{API_TOKEN_PREFIX}{}_{}", self.id, *self.secret))
    }

    /// Reads the value of a cookie; `None` for what can be none.
    pub fn from_cookie(text: &str) -> Option<Self> {
        Self::read(text, '.')
    }

    /// Reads the text of an API token; `None` for what can be none.
    pub fn from_api_token(text: &str) -> Option<Self> {
        Self::read(text.strip_prefix(API_TOKEN_PREFIX)?, '_')
    }

    fn read(text: &str, between: char) -> Option<Self> {
        let (id, secret) = text.split_once(between)?;
        let plain = secret.len() == 2 * SECRET && secret.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Some(Self { id: id.parse().ok()?, secret: Zeroizing::new(plain.then(|| secret.to_owned())?) })
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bearer({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again_and_nothing_else() {
        let made = Bearer::make().unwrap();
        let (cookie, token) = (made.cookie(), made.api_token());
        for read in [Bearer::from_cookie(&cookie).unwrap(), Bearer::from_api_token(&token).unwrap()] {
            assert!(read.id == made.id && read.digest().is(&made.digest()));
        }
        assert!(!Bearer::make().unwrap().digest().is(&made.digest()));
        assert!(!format!("{made:?}").contains(&cookie[11..]));
        let hostile = [
            "",
            ".",
            "toft__",
            &cookie[..cookie.len() - 1],
            &cookie.to_uppercase(),
            &format!("{}0", *cookie),
            &format!("{} ", *cookie),
            &cookie.replace('.', "_"),
            &format!("{}.{}", made.id, "\u{e4}".repeat(32)),
            &"a".repeat(100_000),
        ];
        for text in hostile {
            assert!(Bearer::from_cookie(text).is_none() && Bearer::from_api_token(text).is_none(), "{text}");
        }
        assert!(Bearer::from_api_token(&cookie).is_none() && Bearer::from_cookie(&token).is_none());
    }
}
