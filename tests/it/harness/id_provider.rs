//! A provider to sign in at (OpenID Connect), small enough to say what no real one would.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD as URL},
};
use ring::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, PublicKeyComponents},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const CLIENT: &str = "toft";
pub const SECRET: &str = "a secret: of/the client";
/// A key for tests alone.
const RSA: &str = "MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQC7N2qEwkWcvzYx6A8GIaNwGKm7z3O72OSkmb+fQAC8G+Uh7Hmz60GE6YaX/rX24iemK8Wf\
    ijGaDvAetVzLKBYWpyN58jlVf7UrwAtk1zaKpr8h7OqGurWwbz3m/kVG1f5dTK0xQSnJa0XrsF0ChFF6tMgE6uAmltIZxnMXe8SnZSPvauepc0LVoWM1jqU9\
    2WGePkaqhYQfk1ywmvBh9SiZtE8claYvsX9RijVMq2mAASPNPcc8sbjYzInxCaXKzq8eUFwYwsFoiyehXWVUkzXjun10ACo8aMRgN71fypuZrPzEMaRQJIMl\
    Qi40ZBRzI2VjUWSO0pl/69ES8VL+i+0bAgMBAAECggEAXQYoE1dEp6ILF7kq3e0Q/L4EeKGX7BrVYURUBpkSxGVH8RdDUbbvk09F5XhWihnNga/2PlO4Wcha\
    X6fWN8vvTco2wn0tJ+KQ7vA5uR2GqFY6Wm0SC2fyp3xe0cw+N/hUr59N3091p/N5hqbXUEzW/5WcXXUnc4U1WEFXJrAFAvdP4AycJjUr1o8t5G4+z4IYeGfi\
    eKHnqzpQQ/cTyFPPqGnnE253NUYU8rNkfhZzj3BXjDlzrwxTns1Tbwb8KkbRKaSffgoDLq4UURphPZb5B8L0WXlJ7FtuIMhedSOgiy4nOmrWZNVLE5I+TWit\
    zzx1ayyqJBitRZ8XoEVWsQG7YQKBgQDwl6MhZ/kkhaDu+224VRapLDdSQsQ+zVLEy9t3kSdml+vbbCNQ8AB/JnsazMwlysiCivb5JsyuGrc7wS681z0694AQ\
    me7G1kiv1IpxViZTqZ/48Gr0GMailZoSj0K7AtURmJMdGtZqMn4U2ubbc3fL3fdOada2iLQf9CeVGOfz/wKBgQDHNLbq/mSP3YP05/2+Ww8SLAauNtqVDxGN\
    8FM80mEU1VZ/F/Q29/QWpVFFkY2OMCS7kxWX1m/ir/zy5afRIxc6eflCgy/qp4HOwQrISNMHyH16AftiLojMciu2uH1kg3urVLvsb0ska1GXGpsKFREqFHoG\
    amTfjS33H6EnSOlW5QKBgH9MfHAMh3KfkcthFWjW/Kp+TrcjxJpGIWknQ/Q7xVEvSQhMa1ND6b9dKP3BJrNIXFdWF980fFASqqjfSk94w1kT45rlF8X1U3hV\
    SPs2zgiuU4pwCuckxNT5uw/e5Tv1/67Tv+NCc/i0xqlaOZQbwGMKCvReY9Eo+8V8dgUZrIEZAoGAEvR1I08pinbtg3Q/tMk9WeFOkW0ux1gzt2nSwcrS6gSS\
    wm0pE8HsO+tnHFOJQKpcFG0edOA2rT9JtmMb4M6R+0J38VhCSvW9aEr+F6i2S9tL9TwTC3iaE7oZZr2PUO0h61+Yshq077Y2gUZK0l7Gz1Y7djjReGQap5Ue\
    5HoPmfECgYAVhMLcHsAPFKE9WhK4WuIdAOnKvm+DFQCKV9NekeOFtxhAlrqWcUn31Hovm4lLWbW1Pm27Rg7f3/GYWs/Xh/80C6ul9L7OGGOAC4s8pILLjt1j\
    jzkh960HI7+myI7RwmJhR1kE4zdlEhLYJNR/u2Ad7FuGFBIW/Sw5i7o+2gSkmQ==";

/// A key pair of the provider.
pub enum Signer {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Signer {
    pub fn ed25519(seed: u8) -> Self {
        Self::Ed25519(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
    }

    pub fn p256() -> Self {
        let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        Self::P256(EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).unwrap())
    }

    pub fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::from_pkcs8(&BASE64_STANDARD.decode(RSA).unwrap()).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "EdDSA",
            Self::P256(_) => "ES256",
            Self::Rsa(_) => "RS256",
        }
    }

    pub fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": URL.encode(pair.public_key().as_ref())})
            }
            Self::P256(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": URL.encode(&point[..32]), "y": URL.encode(&point[32..])})
            }
            Self::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": URL.encode(public.n), "e": URL.encode(public.e)})
            }
        }
    }

    /// An id token, whose header may lie.
    pub fn token(&self, kid: &str, claims: &Value, header: Option<Value>) -> String {
        let header = header.unwrap_or_else(|| json!({"alg": self.algorithm(), "kid": kid, "typ": "JWT"}));
        let text = format!("{}.{}", URL.encode(header.to_string()), URL.encode(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Ed25519(pair) => pair.sign(text.as_bytes()).as_ref().to_vec(),
            Self::P256(pair) => pair.sign(&random, text.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature).unwrap();
                signature
            }
        };
        format!("{text}.{}", URL.encode(signature))
    }
}

/// What a code gives, once.
struct Grant {
    token: String,
    challenge: String,
    back: String,
}

#[derive(Default)]
struct Shared {
    keys: Vec<Value>,
    codes: HashMap<String, Grant>,
    /// What it calls itself, if that is not its address.
    lies: Option<String>,
}

/// The provider; its thread goes with the process.
pub struct IdProvider {
    pub issuer: String,
    shared: Arc<Mutex<Shared>>,
}

/// What the product asks of the provider by way of the browser.
pub struct Wish {
    pub address: String,
    pub fields: HashMap<String, String>,
}

impl Wish {
    pub fn read(location: &str) -> Self {
        let (address, query) = location.split_once('?').unwrap();
        let fields = serde_urlencoded::from_str::<Vec<(String, String)>>(query).unwrap().into_iter().collect();
        Self { address: address.to_owned(), fields }
    }
}

impl IdProvider {
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let issuer = format!("http://{}/home", listener.local_addr().unwrap());
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (known, own) = (Arc::clone(&shared), issuer.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream, &own, &known);
            }
        });
        Self { issuer, shared }
    }

    pub fn publish(&self, keys: Vec<Value>) {
        self.shared.lock().unwrap().keys = keys;
    }

    pub fn lie(&self, issuer: Option<&str>) {
        self.shared.lock().unwrap().lies = issuer.map(str::to_owned);
    }

    /// A code that gives this token to whoever asked with `wish`.
    pub fn grant(&self, wish: &Wish, token: String) -> String {
        let mut shared = self.shared.lock().unwrap();
        let code = format!("code-{}", shared.codes.len());
        let (challenge, back) = (wish.fields["code_challenge"].clone(), wish.fields["redirect_uri"].clone());
        shared.codes.insert(code.clone(), Grant { token, challenge, back });
        code
    }
}

fn answer(mut stream: TcpStream, issuer: &str, shared: &Mutex<Shared>) {
    let mut bytes = Vec::new();
    let mut part = [0; 4_096];
    let (head, body) = loop {
        let Ok(read @ 1..) = stream.read(&mut part) else { return };
        bytes.extend(&part[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                break (head.to_owned(), body.to_owned());
            }
        }
    };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut shared = shared.lock().unwrap();
    let (status, said) = match path.as_str() {
        "/home/.well-known/openid-configuration" => {
            let own = shared.lies.clone().unwrap_or_else(|| issuer.to_owned());
            let said = json!({"issuer": own, "authorization_endpoint": format!("{issuer}/authorize"),
                "token_endpoint": format!("{issuer}/token"), "jwks_uri": format!("{issuer}/keys"), "more": [1]});
            (200, said)
        }
        "/home/keys" => (200, json!({"keys": shared.keys})),
        "/home/token" => match exchange(&mut shared, &head, &body) {
            Ok(token) => (200, json!({"id_token": token, "access_token": "x", "token_type": "Bearer"})),
            Err(why) => (400, json!({"error": "invalid_grant", "error_description": why})),
        },
        _ => (404, json!({})),
    };
    let said = said.to_string();
    let length = said.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    drop(stream.write_all(format!("{head}{said}").as_bytes()));
}

fn exchange(shared: &mut Shared, head: &str, body: &str) -> Result<String, String> {
    let fields: HashMap<String, String> = serde_urlencoded::from_str(body).map_err(|error| error.to_string())?;
    let login = BASE64_STANDARD.encode(format!("{CLIENT}:{}", "a+secret%3A+of%2Fthe+client"));
    if !head.to_ascii_lowercase().contains(&format!("authorization: basic {}", login.to_ascii_lowercase())) {
        return Err("another client".into());
    }
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let grant = shared.codes.remove(field("code")).ok_or("no such code")?;
    let digest = URL.encode(Sha256::digest(field("code_verifier")));
    if field("grant_type") != "authorization_code" || field("redirect_uri") != grant.back || digest != grant.challenge {
        return Err("not what was asked for".into());
    }
    Ok(grant.token)
}
