//! Short-lived tokens that the cluster signs: whom they open doors for, what ends them, and how others tell that they are ours.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::harness::{machine::wait_until, made_up::MadeUp};

fn sign(toft: &MadeUp, more: &[&str]) -> String {
    let signed = wait_until("there is a key that signs", || {
        let said = toft.root(&[&["user", "token", "sign"], more].concat());
        if said.code == Some(0) { Some(said.out) } else { panic_unless_no_key(&said.err) }
    });
    signed.trim().to_owned()
}

fn panic_unless_no_key(said: &str) -> Option<String> {
    assert!(said.contains("no key yet"), "{said}");
    None
}

fn me(toft: &MadeUp, token: &str) -> u16 {
    toft.ask("GET", "/api/v1/me", &[("authorization", &format!("Bearer {token}"))], b"").status
}

fn part(token: &str, at: usize) -> Value {
    serde_json::from_slice(&BASE64.decode(token.split('.').nth(at).unwrap()).unwrap()).unwrap()
}

fn keys(toft: &MadeUp) -> Value {
    let answer = toft.ask("GET", "/.well-known/jwks.json", &[], b"");
    assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
    answer.good()["keys"].clone()
}

#[test]
fn a_signed_token_opens_what_it_says_until_it_is_ended() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "operator", "--grant", "shop"], "correct horse battery");
    let token = sign(&toft, &["--user", "ann", "--role", "operator", "--ttl", "10m"]);
    let said = toft.get("/api/v1/me", &token);
    assert_eq!((said["name"].as_str(), said["role"].as_str()), (Some("ann"), Some("operator")));
    assert!(said["way"].as_str().unwrap().starts_with("signed token "));
    let claims = part(&token, 1);
    assert_eq!((claims["sub"].as_str(), claims["aud"].as_str()), (Some("ann"), Some("toft")));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);

    // Others tell it by the published keys alone.
    let published = keys(&toft);
    let header = part(&token, 0);
    let key = published.as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).unwrap();
    assert_eq!(
        (key["kty"].as_str(), key["crv"].as_str(), key["alg"].as_str()),
        (Some("OKP"), Some("Ed25519"), Some("EdDSA"))
    );
    assert!(key.get("d").is_none());
    let (text, signature) = token.rsplit_once('.').unwrap();
    let public = BASE64.decode(key["x"].as_str().unwrap()).unwrap();
    let known = UnparsedPublicKey::new(&ED25519, public);
    assert!(known.verify(text.as_bytes(), &BASE64.decode(signature).unwrap()).is_ok());

    // It never has more than its user, also when they have less later.
    let ask = |path: &str, body: &Value| {
        let authorization = format!("Bearer {token}");
        toft.ask("POST", path, &[("authorization", &authorization)], body.to_string().as_bytes())
    };
    ask("/api/v1/signed-tokens", &json!({})).refusal(403);
    ask("/api/v1/api-tokens", &json!({})).refusal(403);
    ask("/api/v1/me/password", &json!({"present": "correct horse battery", "new": "another good password"}))
        .refusal(403);
    toft.root(&["user", "set", "ann", "--role", "viewer"]).good();
    assert_eq!(toft.get("/api/v1/me", &token)["role"], "viewer");
    toft.root(&["user", "set", "ann", "--disable"]).good();
    assert_eq!(me(&toft, &token), 401);
    toft.root(&["user", "set", "ann", "--enable"]).good();
    assert_eq!(me(&toft, &token), 200);
    toft.root(&["user", "token", "rotate-keys"]).good();
    wait_until("no old key counts", || (me(&toft, &token) == 401).then_some(()));
    let now = keys(&toft);
    assert!(now.as_array().unwrap().len() == 1 && now[0]["kid"] != header["kid"], "{now}");
    assert_eq!(me(&toft, &sign(&toft, &["--user", "ann"])), 200);

    let trail = toft.root(&["audit", "--json"]).good();
    assert!(
        trail.contains("\"action\":\"sign_token\"") && trail.contains("\"action\":\"rotate_signing_keys\""),
        "{trail}"
    );
    assert!(![trail, toft.log()].concat().contains(signature));
}

#[test]
fn what_is_not_signed_for_us_opens_nothing() {
    let toft = MadeUp::start(1);
    toft.root(&["user", "create", "ann", "--role", "admin", "--no-password"]).good();
    let token = sign(&toft, &["--user", "ann", "--role", "viewer"]);
    assert_eq!(me(&toft, &token), 200);
    let [header, payload, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let elsewhere = sign(&toft, &["--user", "ann", "--audience", "https://grafana.lan"]);
    assert_eq!(part(&elsewhere, 1)["aud"], "https://grafana.lan");
    let encode = |value: &Value| BASE64.encode(value.to_string());
    let mut more = part(&token, 1);
    more["role"] = "admin".into();
    let mut later = part(&token, 1);
    later["exp"] = 9_999_999_999_i64.into();
    let mut none = part(&token, 0);
    none["alg"] = "none".into();
    let mut unknown = part(&token, 0);
    unknown["kid"] = "aaaaaaaaaa".into();
    // The public half as a secret that both sides share.
    let mut shared = part(&token, 0);
    shared["alg"] = "HS256".into();
    let public = BASE64.decode(keys(&toft)[0]["x"].as_str().unwrap()).unwrap();
    let text = format!("{}.{}", encode(&shared), encode(&more));
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &public), text.as_bytes());
    let hostile = [
        elsewhere.clone(),
        format!("{header}.{}.{signature}", encode(&more)),
        format!("{header}.{}.{signature}", encode(&later)),
        format!("{}.{payload}.", encode(&none)),
        format!("{}.{payload}.{signature}", encode(&unknown)),
        format!("{text}.{}", BASE64.encode(tag.as_ref())),
        format!("{header}.{payload}.{}", BASE64.encode([0; 64])),
        format!("{header}.{payload}"),
        format!("{token}."),
        "..".to_owned(),
        format!("{header}.{}.{signature}", "A".repeat(3_000)),
    ];
    for forged in hostile {
        assert_eq!(me(&toft, &forged), 401, "{forged}");
    }
    let said = |more: &[&str]| toft.root(&[&["user", "token", "sign", "--user", "ann"], more].concat()).bad();
    assert!(said(&["--ttl", "2h"]).contains("1s to 1h"));
    assert!(said(&["--audience", "a b"]).contains("nobody") && said(&["--audience", ""]).contains("nobody"));
    assert!(toft.root(&["user", "token", "sign"]).bad().contains("--user"));
    assert!(toft.root(&["user", "token", "sign", "--user", "nobody"]).bad().contains("no user"));
    toft.root(&["user", "set", "ann", "--role", "viewer"]).good();
    assert!(said(&["--role", "operator"]).contains("may more than"));
    // Who may less signs less, and no token outlives the one it was asked for with.
    let program = toft.token("ann", &["--ttl", "2m"]);
    let ask = |body: Value| {
        let authorization = format!("Bearer {program}");
        toft.ask("POST", "/api/v1/signed-tokens", &[("authorization", &authorization)], body.to_string().as_bytes())
    };
    assert_eq!(ask(json!({"role": "operator"})).refusal(403)["field"], "role");
    ask(json!({"user": "admin"})).refusal(403);
    ask(json!({"scope": "all"})).refusal(400);
    let short = part(ask(json!({"ttl": "1h"})).good()["token"].as_str().unwrap(), 1);
    assert!(short["exp"].as_i64().unwrap() - short["iat"].as_i64().unwrap() <= 121, "{short}");
}
