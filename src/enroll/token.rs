//! The text that lets a machine join.

use std::{io, str::FromStr};

use sha2::Digest as _;
use toft_model::token::{Digest, TokenId};
use zeroize::Zeroizing;

/// Bytes of a secret.
const SECRET: usize = 20;
/// Longest text that is read for a token, in bytes.
pub const LONGEST: usize = 256;

/// What a machine needs to join: `toft1.AUTHORITY.ID.SECRET`.
#[derive(Clone)]
pub struct Token {
    /// SHA-256 of the authority's certificate.
    pub authority: [u8; 32],
    /// What the state knows it by.
    pub id: TokenId,
    /// What lets in: 40 hexadecimal digits.
    pub secret: Zeroizing<String>,
}

impl Token {
    /// A new one.
    pub fn make(authority: [u8; 32]) -> io::Result<Self> {
        let key = super::random_key()?;
        let mut id = [0; TokenId::CHARS];
        id.copy_from_slice(&super::random_key()?[..TokenId::CHARS]);
        Ok(Self { authority, id: TokenId::of(id), secret: Zeroizing::new(hex::encode(&key[..SECRET])) })
    }

    /// What the state keeps of the secret.
    pub fn hash(&self) -> Digest {
        hash(&self.secret)
    }

    /// The token as people hand it on.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("toft1.{}.{}.{}", hex::encode(self.authority), self.id, *self.secret))
    }
}

/// What the state keeps of a secret.
pub(super) fn hash(secret: &str) -> Digest {
    Digest(sha2::Sha256::digest(secret).into())
}

/// A text that is no token.
#[derive(Debug, thiserror::Error)]
#[error("this is no join token; one begins with `toft1.` and is printed by `toft token create` on a member")]
pub struct NoToken;

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(NoToken);
        }
        let mut parts = text.split('.');
        let (Some("toft1"), Some(authority), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoToken);
        };
        let authority = hex::decode(authority).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(NoToken)?;
        let id = id.parse().map_err(|_| NoToken)?;
        if secret.len() != 2 * SECRET || !secret.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(NoToken);
        }
        Ok(Self { authority, id, secret: Zeroizing::new(secret.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_survives_its_text_and_others_are_none() {
        let token = Token::make([7; 32]).unwrap();
        let text = token.text();
        let read: Token = format!(" {}\n", *text).parse().unwrap();
        assert!(read.authority == token.authority && read.id == token.id && read.secret == token.secret);
        assert!(read.hash().is(&token.hash()));
        let former = format!("toft1.{}.{}", "07".repeat(32), "ab".repeat(32));
        for bad in
            ["", "toft1", "toft1...", &former, &format!("{}.x", *text), &format!("{}x", *text), &text.to_uppercase()]
        {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
        assert!(Token::make([7; 32]).unwrap().secret != token.secret);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_the_same(text in "(toft1\\.)?[0-9a-f]{60,68}(\\.[a-z2-7]{9,11})?\\.[0-9a-f]{38,42}|.{0,300}") {
            if let Ok(token) = text.parse::<Token>() {
                let written = token.text();
                prop_assert_eq!(written.as_str(), text.trim());
            }
        }
    }
}
