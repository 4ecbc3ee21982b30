//! What the provider says of somebody, once it is proved.

use serde::Deserialize;
use serde_json::{Map, Value};
use toft_model::identity::{Role, UserName};

use super::{OidcError, Settings, user_name};
use crate::identity::{Jwks, Signed};

/// How far clocks may be apart, in seconds.
const LEEWAY_S: i64 = 60;
/// How old what it says may be, in seconds: it was said just now.
const OLDEST_S: i64 = 10 * 60;
/// Longest name that a provider has for somebody, in bytes.
const LONGEST_SUBJECT: usize = 255;
/// Most groups that are looked at.
const MOST_GROUPS: usize = 1_000;
/// That no key fits, which may be because there are others by now.
pub(super) const UNKNOWN_KEY: &str = "no key of its own has signed it";

/// Somebody, as the provider knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The provider.
    pub issuer: String,
    /// What it calls them for ever.
    pub subject: String,
    /// What they are called here when they come for the first time; nothing when no name can be made of theirs.
    pub name: Option<UserName>,
    /// What their groups give; nothing when they give nothing.
    pub role: Option<Role>,
}

/// What is looked at.
#[derive(Deserialize)]
struct IdToken {
    iss: String,
    sub: String,
    aud: Audience,
    #[serde(default)]
    azp: Option<String>,
    exp: i64,
    iat: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    nonce: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Who an id token speaks of, if a key of the provider's has signed it for us, now, for this very sign-in.
pub(super) fn person(
    settings: &Settings,
    keys: &Jwks,
    text: &str,
    nonce: &str,
    now_s: i64,
) -> Result<Person, OidcError> {
    let unproved = |why| Err(OidcError::Unproved(why));
    let Some(signed) = Signed::read(text) else { return unproved("it is no signed text") };
    let fits = |kid: &Option<String>| signed.header.kid.is_none() || *kid == signed.header.kid;
    let keys = keys.keys.iter().filter(|key| fits(&key.kid)).filter_map(|key| key.key());
    let Some(payload) = keys.into_iter().find_map(|key| signed.proved(&key).map(<[u8]>::to_vec)) else {
        return unproved(UNKNOWN_KEY);
    };
    let Ok(token) = serde_json::from_slice::<IdToken>(&payload) else { return unproved("it lacks what it must say") };
    if token.iss != settings.issuer {
        return unproved("another issuer says it");
    }
    let for_us = match &token.aud {
        Audience::One(one) => *one == settings.client_id,
        Audience::Many(all) => {
            let alone = all.len() == 1 || token.azp.as_ref() == Some(&settings.client_id);
            all.contains(&settings.client_id) && alone
        }
    };
    if !for_us || token.azp.as_ref().is_some_and(|azp| *azp != settings.client_id) {
        return unproved("it is meant for another program");
    }
    let soon = now_s.saturating_add(LEEWAY_S);
    let over = now_s >= token.exp.saturating_add(LEEWAY_S) || token.iat < now_s.saturating_sub(OLDEST_S);
    if over || token.iat > soon || token.nbf.is_some_and(|nbf| nbf > soon) {
        return unproved("it is over, or not valid yet; the clocks must be right");
    }
    // It was random and comes from us: no time is told by comparing it.
    if nonce.is_empty() || token.nonce != nonce {
        return unproved("it answers another sign-in");
    }
    if token.sub.is_empty() || token.sub.len() > LONGEST_SUBJECT {
        return unproved("it does not say of whom");
    }
    let texts = |value: &Value| match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(all) => all.iter().take(MOST_GROUPS).filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    let groups = token.more.get(&settings.groups_claim).map(texts).unwrap_or_default();
    let name = token.more.get(&settings.name_claim).and_then(Value::as_str).and_then(user_name);
    Ok(Person { role: settings.role_of(&groups), issuer: token.iss, subject: token.sub, name })
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
    };
    use serde_json::json;

    use super::*;
    use crate::identity::Jwk;

    const NOW_S: i64 = 1_760_000_000;

    fn settings() -> Settings {
        Settings {
            name: "Home".into(),
            issuer: "https://id.lan".into(),
            client_id: "toft".into(),
            client_secret: None,
            scopes: vec!["openid".into()],
            groups_claim: "groups".into(),
            name_claim: "preferred_username".into(),
            roles: [("admins".to_owned(), Role::Admin), ("family".to_owned(), Role::Viewer)].into(),
            ca_file: None,
        }
    }

    fn claims() -> Value {
        json!({"iss": "https://id.lan", "sub": "1f", "aud": "toft", "exp": NOW_S + 300, "iat": NOW_S, "nonce": "n",
               "preferred_username": "Ann", "groups": ["family"]})
    }

    fn signer() -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
    }

    fn keys() -> Jwks {
        Jwks { keys: vec![Jwk::of_ed25519("one", signer().public_key().as_ref())] }
    }

    fn signed_with(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let text = format!("{}.{}", part(header), part(claims));
        format!("{text}.{}", BASE64URL_NOPAD.encode(signer().sign(text.as_bytes()).as_ref()))
    }

    fn told(claims: &Value) -> Result<Person, String> {
        let text = signed_with(&json!({"alg": "EdDSA", "kid": "one"}), claims);
        person(&settings(), &keys(), &text, "n", NOW_S).map_err(|error| error.to_string())
    }

    #[test]
    fn who_is_proved_is_known_and_groups_give_a_role() {
        let ann = told(&claims()).unwrap();
        assert_eq!((ann.subject.as_str(), ann.role), ("1f", Some(Role::Viewer)));
        assert_eq!(ann.name.unwrap().as_str(), "ann");
        let role = |groups: Value| {
            let mut claims = claims();
            claims["groups"] = groups;
            told(&claims).unwrap().role
        };
        assert_eq!(role(json!(["x", "family", "admins"])), Some(Role::Admin));
        assert_eq!(role(json!("admins")), Some(Role::Admin));
        for nothing in
            [json!([]), json!(["Admins"]), json!(null), json!({"admins": true}), json!([["admins"]]), json!(7)]
        {
            assert_eq!(role(nothing.clone()), None, "{nothing}");
        }
        let mut nameless = claims();
        nameless["preferred_username"] = "../<b>".into();
        assert_eq!(told(&nameless).unwrap().name, None);
        let everybody = Settings { roles: [("*".to_owned(), Role::Viewer)].into(), ..settings() };
        assert_eq!(everybody.role_of(&[]), Some(Role::Viewer));
    }

    #[test]
    fn nothing_else_is_believed() {
        let with = |key: &str, value: Value| {
            let mut claims = claims();
            claims[key] = value;
            told(&claims).unwrap_err()
        };
        assert!(with("iss", "https://evil.example".into()).contains("another issuer"));
        assert!(with("iss", "https://id.lan/".into()).contains("another issuer"));
        for other in [json!("other"), json!(["other"]), json!([]), json!(["toft", "other"])] {
            assert!(with("aud", other.clone()).contains("another program"), "{other}");
        }
        assert!(with("azp", "other".into()).contains("another program"));
        for (key, value) in
            [("exp", NOW_S - 61), ("iat", NOW_S + 61), ("iat", NOW_S - 601), ("nbf", NOW_S + 61), ("exp", i64::MIN)]
        {
            assert!(with(key, value.into()).contains("clocks"), "{key} {value}");
        }
        for nonce in ["", "N", "nn"] {
            assert!(with("nonce", nonce.into()).contains("another sign-in"));
        }
        assert!(with("sub", "".into()).contains("of whom") && with("sub", "x".repeat(256).into()).contains("of whom"));
        for lacks in ["iss", "sub", "aud", "exp", "iat"] {
            assert!(with(lacks, Value::Null).contains("lacks"), "{lacks}");
        }
        let mut both = claims();
        both["aud"] = json!(["toft", "other"]);
        both["azp"] = "toft".into();
        assert!(told(&both).is_ok());
    }

    #[test]
    fn a_signature_counts_by_its_key_and_algorithm() {
        let told = |text: &str, keys: &Jwks| person(&settings(), keys, text, "n", NOW_S).map(|_| ());
        let good = signed_with(&json!({"alg": "EdDSA", "kid": "one"}), &claims());
        assert!(told(&good, &keys()).is_ok());
        assert!(told(&signed_with(&json!({"alg": "EdDSA"}), &claims()), &keys()).is_ok());
        let (text, signature) = good.rsplit_once('.').unwrap();
        let (header, _) = text.split_once('.').unwrap();
        let mut more = claims();
        more["groups"] = json!(["admins"]);
        let more = BASE64URL_NOPAD.encode(more.to_string().as_bytes());
        let none = BASE64URL_NOPAD.encode(br#"{"alg":"none"}"#);
        let other = signed_with(&json!({"alg": "EdDSA", "kid": "two"}), &claims());
        for hostile in [
            format!("{header}.{more}.{signature}"),
            format!("{none}.{more}."),
            format!("{none}.{more}.{signature}"),
            format!("{text}."),
            signed_with(&json!({"alg": "RS256", "kid": "one"}), &claims()),
            signed_with(&json!({"alg": "HS256", "kid": "one"}), &claims()),
            other.clone(),
            String::new(),
        ] {
            assert!(told(&hostile, &keys()).is_err(), "{hostile}");
        }
        assert!(matches!(told(&other, &keys()), Err(OidcError::Unproved(UNKNOWN_KEY))));
        let for_secrets = Jwk { usage: Some("enc".into()), ..keys().keys[0].clone() };
        assert!(told(&good, &Jwks { keys: vec![for_secrets] }).is_err());
        let for_others = Jwk { alg: Some("RS256".into()), ..keys().keys[0].clone() };
        assert!(told(&good, &Jwks { keys: vec![for_others] }).is_err());
        assert!(told(&good, &Jwks { keys: Vec::new() }).is_err());
    }

    #[test]
    fn keys_of_other_kinds_prove_too() {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let point = &pair.public_key().as_ref()[1..];
        let part = |bytes: &[u8]| Some(BASE64URL_NOPAD.encode(bytes));
        let jwk = Jwk {
            kty: "EC".into(),
            crv: Some("P-256".into()),
            x: part(&point[..32]),
            y: part(&point[32..]),
            ..Jwk::default()
        };
        let encoded = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let text = format!("{}.{}", encoded(r#"{"alg":"ES256"}"#), encoded(&claims().to_string()));
        let signature = pair.sign(&random, text.as_bytes()).unwrap();
        let text = format!("{text}.{}", BASE64URL_NOPAD.encode(signature.as_ref()));
        let keys = Jwks { keys: vec![jwk] };
        assert!(person(&settings(), &keys, &text, "n", NOW_S).is_ok());
        assert!(
            person(&settings(), &keys, &text.replacen("eyJhbGciOiJFUzI1NiJ9", "eyJhbGciOiJSUzI1NiJ9", 1), "n", NOW_S)
                .is_err()
        );
    }
}
