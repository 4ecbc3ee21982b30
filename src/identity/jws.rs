//! Signed texts (JWS, RFC 7515) in their compact form, and the keys that prove them (JWK, RFC 7517).
//!
//! A key says by itself which algorithm it is for, and what a text says of its algorithm must be the same: no text chooses how it is
//! looked at. Only signatures by a key pair are known; there is no `none` and no secret that both sides share.

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};

/// Longest text that is looked at, in bytes.
const LONGEST: usize = 16 << 10;

/// A key that proves signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyingKey {
    /// Ed25519: `EdDSA`.
    Ed25519(Vec<u8>),
    /// ECDSA on P-256 with SHA-256: `ES256`. The point, uncompressed.
    P256(Vec<u8>),
    /// RSA with PKCS #1 v1.5 and SHA-256: `RS256`.
    Rsa {
        /// The modulus, at least 2,048 bits.
        modulus: Vec<u8>,
        /// The exponent.
        exponent: Vec<u8>,
    },
}

/// A key as it is published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Jwk {
    /// Kind of key: `OKP`, `EC`, `RSA`.
    pub kty: String,
    /// Its curve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The algorithm it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// What it is used for: `sig`.
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub usage: Option<String>,
    /// First part of a point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// Second part of a point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    /// Modulus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// Exponent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
}

/// Keys as they are published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwks {
    /// The keys.
    pub keys: Vec<Jwk>,
}

impl Jwk {
    /// An Ed25519 key of ours.
    pub fn of_ed25519(kid: &str, public: &[u8]) -> Self {
        let some = |text: &str| Some(text.to_owned());
        Self {
            kty: "OKP".into(),
            crv: some("Ed25519"),
            kid: some(kid),
            alg: some("EdDSA"),
            usage: some("sig"),
            x: Some(BASE64URL_NOPAD.encode(public)),
            ..Self::default()
        }
    }

    /// The key, if it is of a kind that is known and may prove signatures.
    pub fn key(&self) -> Option<VerifyingKey> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| BASE64URL_NOPAD.decode(text.as_deref()?.as_bytes()).ok();
        let key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => VerifyingKey::Ed25519(bytes(&self.x).filter(|x| x.len() == 32)?),
            ("EC", Some("P-256")) => {
                let part = |text| bytes(text).filter(|part| part.len() == 32);
                VerifyingKey::P256([&[4][..], &part(&self.x)?, &part(&self.y)?].concat())
            }
            ("RSA", None) => VerifyingKey::Rsa { modulus: bytes(&self.n)?, exponent: bytes(&self.e)? },
            _ => return None,
        };
        (self.alg.as_deref().is_none_or(|alg| alg == key.algorithm())).then_some(key)
    }
}

impl VerifyingKey {
    /// What texts call its algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "EdDSA",
            Self::P256(_) => "ES256",
            Self::Rsa { .. } => "RS256",
        }
    }

    fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(public) => UnparsedPublicKey::new(&ED25519, public).verify(text, signature),
            Self::P256(public) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public).verify(text, signature),
            Self::Rsa { modulus, exponent } => {
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, text, signature)
            }
        }
        .is_ok()
    }
}

/// What a signed text says of itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Header {
    /// The algorithm.
    pub alg: String,
    /// The key.
    #[serde(default)]
    pub kid: Option<String>,
    /// What kind of text it is.
    #[serde(default)]
    pub typ: Option<String>,
    /// What must be understood.
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

/// A signed text that was read, and not proved yet.
pub struct Signed<'a> {
    /// What it says of itself.
    pub header: Header,
    text: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Signed<'a> {
    /// Reads it; `None` for what can be none.
    pub fn read(text: &'a str) -> Option<Self> {
        let (signed, signature) = (text.len() <= LONGEST).then_some(text)?.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let bytes = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
        let header: Header = serde_json::from_slice(&bytes(header)?).ok()?;
        // What must be understood is not.
        if header.crit.is_some() {
            return None;
        }
        Some(Self { header, text: signed, payload: bytes(payload)?, signature: bytes(signature)? })
    }

    /// What was signed, if the key proves it.
    pub fn proved(&self, key: &VerifyingKey) -> Option<&[u8]> {
        let fits = self.header.alg == key.algorithm();
        (fits && key.verifies(self.text.as_bytes(), &self.signature)).then_some(&self.payload[..])
    }
}
