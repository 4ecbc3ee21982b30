//! A passkey in memory: makes and signs what a browser sends (WebAuthn, ES256), apart from the product's own, and lies on demand.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};

/// The user was there.
pub const PRESENT: u8 = 1;
/// The user was verified.
pub const VERIFIED: u8 = 4;
/// It can be kept elsewhere.
pub const MOVABLE: u8 = 8;
/// It is kept elsewhere.
pub const BACKED_UP: u8 = 16;
/// A credential is told.
const CREDENTIAL: u8 = 64;

/// A passkey.
pub struct SoftKey {
    key: EcdsaKeyPair,
    pub credential: Vec<u8>,
    pub handle: Vec<u8>,
    pub counter: u32,
    pub flags: u8,
}

/// What goes into an answer, before it is signed: what a test may change.
pub struct Parts {
    /// What the browser says.
    pub client: Value,
    /// What the authenticator says.
    pub authenticator: Vec<u8>,
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

pub fn base64url(bytes: &[u8]) -> String {
    BASE64URL.encode(bytes)
}

fn decoded(text: &Value) -> Vec<u8> {
    BASE64URL.decode(text.as_str().unwrap()).unwrap()
}

/// The head of a CBOR text or byte string.
fn head(kind: u8, length: usize) -> Vec<u8> {
    match length {
        0..24 => vec![kind << 5 | length as u8],
        24..256 => vec![kind << 5 | 24, length as u8],
        _ => [&[kind << 5 | 25][..], &(length as u16).to_be_bytes()].concat(),
    }
}

fn text(text: &str) -> Vec<u8> {
    [head(3, text.len()), text.as_bytes().to_vec()].concat()
}

/// What an authenticator gives that proves nothing of itself: the format `none`.
pub fn attestation(authenticator: &[u8]) -> Vec<u8> {
    let bytes = [head(2, authenticator.len()), authenticator.to_vec()].concat();
    [vec![0xa3], text("fmt"), text("none"), text("attStmt"), vec![0xa0], text("authData"), bytes].concat()
}

impl SoftKey {
    /// A new one, which counts its signatures.
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let credential = sha256(key.public_key().as_ref())[..20].to_vec();
        Self { key, credential, handle: Vec::new(), counter: 1, flags: PRESENT | VERIFIED | MOVABLE }
    }

    fn client(kind: &str, options: &Value, origin: &str) -> Value {
        json!({ "type": kind, "challenge": options["challenge"], "origin": origin, "crossOrigin": false })
    }

    fn authenticator(&self, domain: &str, more: u8) -> Vec<u8> {
        [&sha256(domain.as_bytes())[..], &[self.flags | more], &self.counter.to_be_bytes()].concat()
    }

    /// The public key as the authenticator tells it (COSE).
    fn cose(&self) -> Vec<u8> {
        let point = self.key.public_key().as_ref();
        let (x, y) = (&point[1..33], &point[33..65]);
        [&[0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32][..], x, &[0x22, 0x58, 32], y].concat()
    }

    /// What a browser at `origin` answers to a wish for a new one.
    pub fn create(&mut self, options: &Value, origin: &str, lie: impl FnOnce(&mut Parts)) -> Value {
        self.handle = decoded(&options["user"]["id"]);
        let domain = options["rp"]["id"].as_str().unwrap();
        let length = (self.credential.len() as u16).to_be_bytes();
        let told = [&[0; 16][..], &length, &self.credential, &self.cose()].concat();
        let authenticator = [self.authenticator(domain, CREDENTIAL), told].concat();
        let mut parts = Parts { client: Self::client("webauthn.create", options, origin), authenticator };
        lie(&mut parts);
        self.whole(json!({
            "clientDataJSON": base64url(parts.client.to_string().as_bytes()),
            "attestationObject": base64url(&attestation(&parts.authenticator)),
            "transports": ["internal", "hybrid"],
        }))
    }

    /// What a browser at `origin` answers when it is asked for one; it counts.
    pub fn sign(&mut self, options: &Value, origin: &str, lie: impl FnOnce(&mut Parts)) -> Value {
        self.counter += 1;
        let domain = options["rpId"].as_str().unwrap();
        let client = Self::client("webauthn.get", options, origin);
        let mut parts = Parts { client, authenticator: self.authenticator(domain, 0) };
        lie(&mut parts);
        let client = parts.client.to_string();
        let signed = [&parts.authenticator[..], &sha256(client.as_bytes())].concat();
        let signature = self.key.sign(&SystemRandom::new(), &signed).unwrap();
        self.whole(json!({
            "clientDataJSON": base64url(client.as_bytes()),
            "authenticatorData": base64url(&parts.authenticator),
            "signature": base64url(signature.as_ref()),
            "userHandle": base64url(&self.handle),
        }))
    }

    fn whole(&self, response: Value) -> Value {
        let id = base64url(&self.credential);
        json!({ "id": id, "rawId": id, "type": "public-key", "response": response,
            "authenticatorAttachment": "platform", "clientExtensionResults": {} })
    }
}
