//! Short-lived tokens for services: statements about a user that the cluster signs (JWT, RFC 7519) with Ed25519. Nobody keeps them.

use std::{collections::BTreeSet, fmt};

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use toft_model::{
    identity::{Rights, Role, UserName},
    name::Name,
    token::TokenId,
};
use zeroize::Zeroizing;

use super::{
    jws::{Signed, VerifyingKey},
    secret::{NoRandom, random},
};

/// Bytes of a private key.
const SEED: usize = 32;
/// What kind of text a token is, so that no other signed text is taken for one.
const KIND: &str = "at+jwt";
/// How far clocks may be apart, in seconds.
const LEEWAY_S: i64 = 30;
/// Whom a token is for that opens this cluster's own doors.
pub const OWN_AUDIENCE: &str = "toft";
/// Longest token that is looked at, in bytes.
const LONGEST: usize = 8 << 10;

/// A private key.
pub struct SigningKey {
    seed: Zeroizing<[u8; SEED]>,
    pair: Ed25519KeyPair,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who says it: the cluster.
    pub iss: String,
    /// Of whom: a user.
    pub sub: UserName,
    /// To whom.
    pub aud: String,
    /// When, in seconds since 1970.
    pub iat: i64,
    /// Until when.
    pub exp: i64,
    /// What it is called.
    pub jti: TokenId,
    /// What they may.
    pub role: Role,
    /// Deployments in which they are an operator.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub grants: BTreeSet<Name>,
}

impl Claims {
    /// What they may.
    pub fn rights(&self) -> Rights {
        Rights { role: self.role, grants: self.grants.clone() }
    }
}

impl SigningKey {
    /// A new one.
    pub fn make() -> Result<Self, NoRandom> {
        let seed = Zeroizing::new(random::<SEED>()?);
        Ok(Self::of(seed).expect("any 32 bytes are a private key"))
    }

    fn of(seed: Zeroizing<[u8; SEED]>) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed[..]).ok()?;
        Some(Self { seed, pair })
    }

    /// Of these bytes, which were sealed.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::of(Zeroizing::new(bytes.try_into().ok()?))
    }

    /// The bytes, to be sealed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.seed[..]
    }

    /// The public half.
    pub fn public(&self) -> Vec<u8> {
        self.pair.public_key().as_ref().to_vec()
    }

    /// A token. `id` is what the key is called.
    pub fn sign(&self, id: &TokenId, claims: &Claims) -> Zeroizing<String> {
        let header = format!("{{\"alg\":\"EdDSA\",\"kid\":\"{id}\",\"typ\":\"{KIND}\"}}");
        let claims = serde_json::to_vec(claims).unwrap_or_default();
        let mut text = Zeroizing::new(BASE64URL_NOPAD.encode(header.as_bytes()));
        text.push('.');
        text.push_str(&BASE64URL_NOPAD.encode(&claims));
        let signature = self.pair.sign(text.as_bytes());
        text.push('.');
        text.push_str(&BASE64URL_NOPAD.encode(signature.as_ref()));
        text
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// What the key is called that is said to have signed a token; `None` for what can be no token of ours.
pub fn key_of(text: &str) -> Option<TokenId> {
    let signed = Signed::read((text.len() <= LONGEST).then_some(text)?)?;
    let ours = signed.header.alg == "EdDSA" && signed.header.typ.as_deref() == Some(KIND);
    ours.then_some(signed.header.kid?.parse().ok()?)
}

/// What a token says that this key has signed for `issuer`'s own doors, while it is valid.
pub fn opens(text: &str, public: &[u8], issuer: &str, now_ms: i64) -> Option<Claims> {
    key_of(text)?;
    let signed = Signed::read(text)?;
    let claims: Claims = serde_json::from_slice(signed.proved(&VerifyingKey::Ed25519(public.to_vec()))?).ok()?;
    let now = now_ms / 1_000;
    let meant = claims.iss == issuer && claims.aud == OWN_AUDIENCE;
    let valid = now < claims.exp.saturating_add(LEEWAY_S) && claims.iat.saturating_sub(LEEWAY_S) <= now;
    (meant && valid).then_some(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_760_000_000_000;
    const ISSUER: &str = "toft:cluster";

    fn id() -> TokenId {
        TokenId::of([7; 10])
    }

    fn claims() -> Claims {
        Claims {
            iss: ISSUER.into(),
            sub: "ann".parse().unwrap(),
            aud: OWN_AUDIENCE.into(),
            iat: NOW_MS / 1_000,
            exp: NOW_MS / 1_000 + 900,
            jti: TokenId::of([9; 10]),
            role: Role::Viewer,
            grants: ["shop".parse().unwrap()].into(),
        }
    }

    fn opened(text: &str, key: &SigningKey) -> Option<Claims> {
        opens(text, &key.public(), ISSUER, NOW_MS)
    }

    #[test]
    fn what_was_signed_is_read_while_it_is_valid() {
        let key = SigningKey::make().unwrap();
        let again = SigningKey::from_bytes(key.as_bytes()).unwrap();
        assert_eq!(again.public(), key.public());
        let text = again.sign(&id(), &claims());
        assert_eq!(key_of(&text), Some(id()));
        assert_eq!(opened(&text, &key), Some(claims()));
        assert!(opened(&text, &SigningKey::make().unwrap()).is_none(), "of another key");
        let at = |seconds: i64| opens(&text, &key.public(), ISSUER, NOW_MS + seconds * 1_000).is_some();
        assert!(at(-LEEWAY_S) && !at(-LEEWAY_S - 1) && at(900 + LEEWAY_S - 1) && !at(900 + LEEWAY_S));
        let with = |change: &dyn Fn(&mut Claims)| {
            let mut claims = claims();
            change(&mut claims);
            opened(&key.sign(&id(), &claims), &key)
        };
        assert!(with(&|claims| claims.aud = "https://other.example".into()).is_none());
        assert!(with(&|claims| claims.aud = String::new()).is_none());
        assert!(with(&|claims| claims.iss = "toft:another".into()).is_none());
        assert!(with(&|claims| claims.exp = i64::MAX).is_some() && with(&|claims| claims.exp = i64::MIN).is_none());
        assert!(!format!("{key:?}").contains(&hex::encode(key.as_bytes())));
    }

    #[test]
    fn nothing_else_is_taken_for_one() {
        let key = SigningKey::make().unwrap();
        let good = key.sign(&id(), &claims());
        let [header, payload, signature]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
        let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let head = |alg: &str, more: &str| {
            encode(&format!("{{\"alg\":\"{alg}\",\"kid\":\"{}\",\"typ\":\"{KIND}\"{more}}}", id()))
        };
        // Signed with the public half as if it were a secret that both sides share.
        let confused = head("HS256", "");
        let shared = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key.public());
        let tag = ring::hmac::sign(&shared, format!("{confused}.{payload}").as_bytes());
        let signed_as = |header: &str| {
            let pair = Ed25519KeyPair::from_seed_unchecked(key.as_bytes()).unwrap();
            let signature = pair.sign(format!("{header}.{payload}").as_bytes());
            format!("{header}.{payload}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
        };
        let more_rights = serde_json::to_string(&Claims { role: Role::Admin, ..claims() }).unwrap();
        let hostile = [
            String::new(),
            "..".into(),
            format!("{header}.{payload}."),
            format!("{header}.{payload}"),
            format!("{header}.{payload}.{signature}."),
            format!("{header}.{payload}.{signature}="),
            format!("{header}.{payload}.{}", BASE64URL_NOPAD.encode(&[0; 64])),
            format!("{header}.{}.{signature}", encode(&more_rights)),
            format!("{}.{payload}.", head("none", "")),
            format!("{}.{payload}.{signature}", head("none", "")),
            format!("{confused}.{payload}.{}", BASE64URL_NOPAD.encode(tag.as_ref())),
            signed_as(&head("RS256", "")),
            signed_as(&head("EdDSA", ",\"crit\":[\"x\"]")),
            signed_as(&encode(&format!("{{\"alg\":\"EdDSA\",\"kid\":\"{}\",\"typ\":\"JWT\"}}", id()))),
            signed_as(&encode(&format!("{{\"alg\":\"EdDSA\",\"typ\":\"{KIND}\"}}"))),
            signed_as(&encode(&format!("{{\"alg\":\"EdDSA\",\"kid\":\"../x\",\"typ\":\"{KIND}\"}}"))),
            "a".repeat(100_000),
        ];
        for text in hostile {
            assert_eq!(opened(&text, &key), None, "{text}");
        }
        assert!(opened(&signed_as(&head("EdDSA", "")), &key).is_some(), "the same made well opens");
    }
}
