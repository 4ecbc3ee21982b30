//! Signing in by way of a provider, and what a hostile one, or somebody on the way, gains by lying.

use std::{fs, time::SystemTime};

use serde_json::{Value, json};

use crate::harness::{
    appliance::Appliance,
    http::Answer,
    id_provider::{CLIENT, IdProvider, SECRET, Signer, Wish},
    machine::Machine,
    made_up::cookie_of,
};

/// An appliance whose people sign in at a provider on the same machine.
struct Site {
    toft: Appliance,
    port: u16,
}

impl Site {
    fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let host = format!("127.0.0.1:{}", self.port);
        let mut all = vec![("host", host.as_str())];
        all.extend(headers.iter().filter(|(_, value)| !value.is_empty()));
        self.toft.machine.http(self.port, "GET", path, &all).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

fn site() -> (Site, IdProvider) {
    let machine = Machine::new();
    let provider = machine.spawn(IdProvider::start).join().unwrap();
    let mut toft = Appliance::prepare(&machine, "d");
    let secret = toft.data.join("oidc-secret");
    fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let config = format!(
        "[access.oidc]\nname = 'Home <b>'\nissuer = '{}'\nclient_id = '{CLIENT}'\nclient_secret_file = '{}'\n\
         roles = {{ admins = 'admin', family = 'viewer', staff = 'operator' }}\n",
        provider.issuer,
        secret.display()
    );
    fs::write(toft.data.join("toft.toml"), config).unwrap();
    toft.up();
    let url = fs::read_to_string(toft.data.join("toft.url")).unwrap();
    let port = url.trim().trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
    (Site { toft, port }, provider)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// A sign-in that went to the provider.
struct Begun {
    wish: Wish,
    cookie: String,
}

fn begin(site: &Site, next: &str) -> Begun {
    let answer = site.ask(&format!("/login/oidc?next={next}"), &[]);
    assert_eq!(answer.status, 303, "{}", answer.text());
    let set = answer.header("set-cookie").unwrap();
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Lax"), "{set}");
    Begun { wish: Wish::read(answer.header("location").unwrap()), cookie: cookie_of(&answer) }
}

fn claims(provider: &IdProvider, begun: &Begun, who: &str, groups: &[&str]) -> Value {
    json!({"iss": provider.issuer, "sub": format!("id-of-{who}"), "aud": CLIENT, "exp": now() + 300, "iat": now(),
           "nonce": begun.wish.fields["nonce"], "preferred_username": who, "groups": groups})
}

fn come_back(site: &Site, begun: &Begun, code: &str) -> Answer {
    let path = format!("/login/oidc/callback?code={code}&state={}", begun.wish.fields["state"]);
    site.ask(&path, &[("cookie", &begun.cookie), ("sec-fetch-site", "cross-site")])
}

/// The cookie of a session, if the answer gives one.
fn session(answer: &Answer) -> Option<String> {
    let port = answer.header("set-cookie")?.split('=').next()?.to_owned();
    (!port.ends_with("-oidc")).then(|| cookie_of(answer))
}

#[test]
fn whom_the_provider_knows_comes_in_with_the_role_of_their_groups() {
    let (site, provider) = site();
    let toft = &site.toft;
    let page = site.ask("/login?next=/nodes", &[]).text();
    assert!(page.contains("Sign in with Home &#60;b&#62;") && page.contains("/login/oidc?next=%2Fnodes"), "{page}");
    let signers = [("ed", Signer::ed25519(7)), ("p", Signer::p256()), ("r", Signer::rsa())];
    provider.publish(signers.iter().map(|(kid, signer)| signer.jwk(kid)).collect());
    let mut cookies = Vec::new();
    for ((kid, signer), (who, groups, role)) in signers.iter().zip([
        ("eve", &["family"][..], "viewer"),
        ("Carl@example.org", &["family", "staff"], "operator"),
        ("ida", &["x", "admins"], "admin"),
    ]) {
        let begun = begin(&site, "/nodes");
        assert_eq!(begun.wish.address, format!("{}/authorize", provider.issuer));
        for (field, value) in [
            ("response_type", "code"),
            ("client_id", CLIENT),
            ("scope", "openid profile"),
            ("code_challenge_method", "S256"),
        ] {
            assert_eq!(begun.wish.fields[field], value);
        }
        assert_eq!(begun.wish.fields["redirect_uri"], format!("http://127.0.0.1:{}/login/oidc/callback", site.port));
        let code = provider.grant(&begun.wish, signer.token(kid, &claims(&provider, &begun, who, groups), None));
        let answer = come_back(&site, &begun, &code);
        assert_eq!((answer.status, answer.header("location")), (303, Some("/nodes")), "{}", answer.text());
        let cookie = session(&answer).unwrap();
        let me = site.ask("/api/v1/me", &[("cookie", &cookie)]).good();
        assert_eq!((me["name"].as_str().unwrap(), me["role"].as_str().unwrap()), (who.to_lowercase().as_str(), role));
        // It came back once.
        let again = come_back(&site, &begun, &code);
        assert!(again.status == 401 && session(&again).is_none(), "{}", again.status);
        cookies.push(cookie);
    }
    // The role follows the groups, and who is in none any more is out.
    let signer = &signers[0].1;
    let sign_in = |who: &str, groups: &[&str]| {
        let begun = begin(&site, "/");
        let code = provider.grant(&begun.wish, signer.token("ed", &claims(&provider, &begun, who, groups), None));
        come_back(&site, &begun, &code)
    };
    let ida = |cookie: &str| site.ask("/users", &[("cookie", cookie)]).status;
    assert_eq!(ida(&cookies[2]), 200);
    assert_eq!(sign_in("ida", &["family"]).status, 303);
    assert_eq!(ida(&cookies[2]), 403, "also where they were signed in before");
    let refused = sign_in("ida", &["nothing"]);
    assert!(refused.status == 403 && refused.text().contains("groups"), "{}", refused.text());
    assert_eq!(ida(&cookies[2]), 303, "they are signed out");
    assert_eq!(sign_in("mallory", &[]).status, 403);
    toft.good("user set eve --disable");
    assert!(session(&sign_in("eve", &["admins"])).is_none());
    // Nobody becomes a user who is here already, and nobody signs in with a password that is none.
    toft.reading(&["user", "create", "ann", "--role", "admin", "--password-stdin"], "correct horse battery").good();
    for name in ["ann", "admin"] {
        let refused = sign_in(name, &["admins"]);
        assert!(refused.status == 409 && refused.text().contains("another user"), "{}", refused.text());
    }
    assert!(sign_in("no name <b>", &["admins"]).status >= 400);
    let users = toft.good("user ls --json");
    assert!(!users.contains("mallory") && !users.contains("no name"), "{users}");
    let trail = toft.good("audit --json");
    assert!(trail.contains("\"action\":\"accept_user\"") && trail.contains("\"way\":\"provider\""), "{trail}");
    let told = [trail, toft.log()].concat();
    for hidden in [SECRET, "code-0", &cookies[0]] {
        assert!(!told.contains(hidden), "{hidden}");
    }
}

/// What is wrong with a token, and the token.
type Lie<'a> = (&'a str, Box<dyn Fn(&Begun) -> String + 'a>);

fn lie<'a>(what: &'a str, token: impl Fn(&Begun) -> String + 'a) -> Lie<'a> {
    (what, Box::new(token))
}

#[test]
fn nobody_comes_in_by_a_lie() {
    let (site, provider) = site();
    let toft = &site.toft;
    // It calls itself otherwise than it is known.
    provider.lie(Some("https://evil.example"));
    let answer = site.ask("/login/oidc", &[]);
    assert!(answer.status == 401 && answer.header("location").is_none(), "{}", answer.status);
    provider.lie(None);
    let (signer, other) = (Signer::ed25519(7), Signer::ed25519(8));
    provider.publish(vec![signer.jwk("ed")]);
    let honest = |begun: &Begun| claims(&provider, begun, "eve", &["admins"]);
    let with = |begun: &Begun, key: &str, value: Value| {
        let mut claims = honest(begun);
        claims[key] = value;
        signer.token("ed", &claims, None)
    };
    let lies = [
        lie("another nonce", |begun| with(begun, "nonce", "other".into())),
        lie("no nonce", |begun| with(begun, "nonce", Value::Null)),
        lie("another issuer", |begun| with(begun, "iss", "https://evil.example".into())),
        lie("another program", |begun| with(begun, "aud", "other".into())),
        lie("over", |begun| with(begun, "exp", (now() - 90).into())),
        lie("old", |begun| with(begun, "iat", (now() - 900).into())),
        lie("another key", |begun| other.token("ed", &honest(begun), None)),
        lie("an unknown key", |begun| other.token("new", &honest(begun), None)),
        lie("no algorithm", |begun| {
            let token = signer.token("ed", &honest(begun), Some(json!({"alg": "none"})));
            format!("{}.", token.rsplit_once('.').unwrap().0)
        }),
        lie("another algorithm", |begun| {
            signer.token("ed", &honest(begun), Some(json!({"alg": "HS256", "kid": "ed"})))
        }),
        lie("altered", |begun| {
            let (low, high) = (with(begun, "groups", json!(["family"])), signer.token("ed", &honest(begun), None));
            let [low, high]: [Vec<&str>; 2] = [&low, &high].map(|token| token.split('.').collect());
            format!("{}.{}.{}", low[0], high[1], low[2])
        }),
        lie("no token", |_| String::new()),
    ];
    for (lie, token) in lies {
        let begun = begin(&site, "/");
        let code = provider.grant(&begun.wish, token(&begun));
        let answer = come_back(&site, &begun, &code);
        assert!(answer.status == 401 && session(&answer).is_none(), "{lie}: {}", answer.status);
    }
    // What another browser began, what nobody began, and what the provider refuses.
    let (mine, theirs) = (begin(&site, "/"), begin(&site, "/"));
    let code = provider.grant(&mine.wish, signer.token("ed", &honest(&mine), None));
    let mixed = Begun {
        wish: Wish { address: String::new(), fields: theirs.wish.fields.clone() },
        cookie: mine.cookie.clone(),
    };
    assert_eq!(come_back(&site, &mixed, &code).status, 401, "the state of another browser");
    assert_eq!(come_back(&site, &mine, &code).status, 401, "that was its turn");
    assert_eq!(come_back(&site, &theirs, "code-none").status, 401, "a code that the provider does not know");
    let without = Begun { cookie: String::new(), ..begin(&site, "/") };
    assert_eq!(come_back(&site, &without, &code).status, 401, "a browser that began nothing");
    for query in [
        "",
        "?code=x",
        "?state=x",
        "?error=access_denied&state=x",
        "?error=%3Cscript%3E",
        &format!("?code={}&state=x", "x".repeat(5_000)),
    ] {
        let answer = site.ask(&format!("/login/oidc/callback{query}"), &[("cookie", &begin(&site, "/").cookie)]);
        assert!(answer.status == 401 && !answer.text().contains("<script>"), "{query}: {}", answer.status);
    }
    // Nobody is sent elsewhere after all.
    for next in ["//evil.example", "https://evil.example", "/login/oidc", "%2F%5Cevil.example"] {
        let begun = begin(&site, next);
        let code =
            provider.grant(&begun.wish, signer.token("ed", &claims(&provider, &begun, "eve", &["family"]), None));
        assert_eq!(come_back(&site, &begun, &code).header("location"), Some("/"), "{next}");
    }
    // Keys that the provider changes are read anew, and not for each lie.
    let users = toft.good("user ls -q");
    assert_eq!(users.lines().collect::<Vec<_>>(), ["admin", "eve"]);
}
