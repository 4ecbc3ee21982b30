//! Passkeys: adding one, signing in with it, what lies, what ends it, and the same in a browser with an authenticator of its own.

use std::net::TcpStream;

use serde_json::{Value, json};

use crate::{
    browser_pages::{WIDTHS, faults},
    harness::{
        authenticator::{Authenticator, step},
        axe,
        browser::Browser,
        http::{Answer, PATIENCE, exchange},
        made_up::{MadeUp, cookie_of, encoded},
        soft_key::{BACKED_UP, PRESENT, Parts, SoftKey, VERIFIED, attestation, base64url},
    },
};

const PASSWORD: &str = "correct horse battery";

/// What is changed before it is signed.
type Lie = Box<dyn Fn(&mut Parts)>;

/// A name of this machine's, at which browsers offer passkeys.
struct Page<'a> {
    toft: &'a MadeUp,
    host: String,
}

impl<'a> Page<'a> {
    fn at(toft: &'a MadeUp, name: &str) -> Self {
        Self { toft, host: format!("{name}:{}", toft.port) }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.host)
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let stream = TcpStream::connect(("127.0.0.1", self.toft.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let origin = self.origin();
        let mut all = vec![("host", self.host.as_str())];
        if method != "GET" && !headers.iter().any(|(name, _)| *name == "origin") {
            all.push(("origin", &origin));
        }
        all.extend(headers.iter().filter(|(_, value)| !value.is_empty()));
        exchange(stream, method, path, &all, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    fn form(&self, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Answer {
        let headers = [("cookie", cookie), ("content-type", "application/x-www-form-urlencoded")];
        self.send("POST", path, &headers, encoded(fields).as_bytes())
    }

    fn open(&self, path: &str, cookie: &str) -> Answer {
        self.send("GET", path, &[("cookie", cookie)], b"")
    }

    fn sign_in(&self, name: &str) -> String {
        let answer = self.form("/login", "", &[("name", name), ("password", PASSWORD)]);
        assert_eq!(answer.status, 303, "{}", answer.text());
        cookie_of(&answer)
    }

    /// What a browser is asked to make.
    fn offer(&self, cookie: &str, label: &str, password: &str) -> Answer {
        self.form("/account/passkeys/options", cookie, &[("label", label), ("password", password)])
    }

    fn offered(&self, cookie: &str, label: &str) -> Value {
        let answer = self.offer(cookie, label, PASSWORD);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    fn add(&self, cookie: &str, answer: &Value) -> Answer {
        self.form("/account/passkeys", cookie, &[("answer", &answer.to_string())])
    }

    /// A passkey of whoever has the cookie.
    fn added(&self, cookie: &str, label: &str) -> SoftKey {
        let mut key = SoftKey::new();
        let options = self.offered(cookie, label);
        let answer = key.create(&options, &self.origin(), |_| {});
        let added = self.add(cookie, &answer);
        assert_eq!((added.status, added.header("location")), (303, Some("/account/passkeys")), "{}", added.text());
        key
    }

    /// What a browser is asked at the sign-in.
    fn asked(&self) -> Value {
        let answer = self.form("/login/passkey/options", "", &[]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    fn show(&self, answer: &Value) -> Answer {
        self.form("/login/passkey", "", &[("answer", &answer.to_string()), ("next", "/nodes")])
    }

    /// Signs in with a passkey.
    fn come_in(&self, key: &mut SoftKey) -> Answer {
        self.show(&key.sign(&self.asked(), &self.origin(), |_| {}))
    }
}

fn signed_in(answer: &Answer) -> String {
    assert_eq!((answer.status, answer.header("location")), (303, Some("/nodes")), "{}", answer.text());
    cookie_of(answer)
}

#[track_caller]
fn refused(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{words}: {}", answer.text());
    assert!(answer.header("set-cookie").is_none() && answer.text().contains(words), "{words}: {}", answer.text());
}

fn listed(toft: &MadeUp, name: &str) -> Vec<Value> {
    let text = toft.root(&["user", "passkey", "ls", name, "--json"]).good();
    serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
}

#[test]
fn a_passkey_opens_what_a_password_and_a_code_open() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "operator"], PASSWORD);
    let page = Page::at(&toft, "localhost");
    let cookie = page.sign_in("ann");
    assert!(!page.open("/login", "").text().contains("passkey"), "nobody has one, and nobody is asked for one");

    // A wrong password and a bad name are told before anything is made.
    for (label, password, status, words) in [
        ("phone", "wrong password", 422, "present password"),
        ("", PASSWORD, 422, "no usable name"),
        (&"x".repeat(61), PASSWORD, 422, "no usable name"),
        ("a\nb", PASSWORD, 422, "no usable name"),
    ] {
        let answer = page.offer(&cookie, label, password);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(words), "{}", answer.text());
    }
    let mut key = page.added(&cookie, " phone ");
    let row = &listed(&toft, "ann")[0];
    assert_eq!(
        (&row["label"], &row["domain"], &row["backup"]),
        (&json!("phone"), &json!("localhost"), &json!("possible"))
    );
    assert!(row["used_at"].is_null());
    assert_eq!(page.offer(&cookie, "phone", PASSWORD).status, 422, "names are taken once");
    let again = page.offered(&cookie, "other");
    assert_eq!(again["excludeCredentials"][0]["id"], base64url(&key.credential));
    assert_eq!(again["user"]["id"], base64url(&key.handle), "a user is the same to all authenticators");

    // It stands for a second factor too.
    let codes = page.open("/account/second-factor", &cookie).text();
    let between =
        |text: &str, before: &str| text.split_once(before).unwrap().1.split(['"', '<']).next().unwrap().to_owned();
    let authenticator = Authenticator::new(&between(&codes, "id=\"secret\">"));
    let offer = between(&codes, "name=\"offer\" value=\"");
    let code = authenticator.code(step());
    let on =
        page.form("/account/second-factor", &cookie, &[("offer", &offer), ("code", &code), ("password", PASSWORD)]);
    assert_eq!(on.status, 200, "{}", on.text());
    key.flags |= BACKED_UP;
    let mine = signed_in(&page.come_in(&mut key));
    assert_eq!(page.open("/nodes", &mine).status, 200);
    let row = &listed(&toft, "ann")[0];
    assert!(row["backup"] == "done" && row["used_at"].is_string(), "{row}");
    let login = page.open("/login", "").text();
    assert!(login.contains("Sign in with a passkey") && login.contains("/static/passkeys.js"), "{login}");
    let by_address = toft.ask("GET", "/login", &[], b"").text();
    assert!(by_address.contains("Passkeys belong to a name") && !by_address.contains("Sign in with a passkey"));
    let own = page.send("GET", "/api/v1/me/passkeys", &[("cookie", &mine)], b"").good();
    assert_eq!(own["items"].as_array().unwrap().len(), 1, "{own}");
    assert!(toft.root(&["user", "ls"]).good().contains("PASSKEYS"));
    let ann: Value = serde_json::from_str(&toft.root(&["user", "ls", "--json"]).good()).unwrap();
    assert_eq!(ann.as_array().unwrap().iter().find(|user| user["name"] == "ann").unwrap()["passkeys"], 1);

    // Whoever removes it is asked, and learns that they go with it.
    let path = format!("/account/passkeys/{}/remove", row["id"].as_str().unwrap());
    assert!(page.open(&path, &mine).text().contains("that is you, in this browser"));
    assert!(!page.open(&path, &cookie).text().contains("that is you"));
    assert_eq!(page.form(&path, &mine, &[]).header("location"), Some("/account/passkeys"));
    assert_eq!(page.open("/nodes", &mine).status, 303, "what it opened has ended");
    assert_eq!(page.open("/nodes", &cookie).status, 200, "what the password opened goes on");
    assert_eq!(page.form(&path, &cookie, &[]).status, 404);
    refused(&page.come_in(&mut key), 401, "opens nothing here");
    let trail = toft.root(&["audit", "--json"]).good();
    for action in ["add_passkey", "remove_passkey", "sign_in"] {
        assert!(trail.contains(&format!("\"{action}\"")), "{action}: {trail}");
    }
    assert!(trail.contains("phone") && !trail.contains(&base64url(&key.credential)));
}

#[test]
fn what_lies_opens_nothing_and_is_told_plainly() {
    let toft = MadeUp::start(1);
    toft.user("ann", &[], PASSWORD);
    toft.user("bob", &[], PASSWORD);
    let page = Page::at(&toft, "localhost");
    let other = Page::at(&toft, "other.localhost");
    let (ann, bob) = (page.sign_in("ann"), page.sign_in("bob"));
    let origin = page.origin();

    // Answers to a wish for a new one.
    let lies: [(&str, Lie); 10] = [
        ("another origin", Box::new(|parts| parts.client["origin"] = json!("https://evil.example"))),
        ("another port", Box::new(|parts| parts.client["origin"] = json!("http://localhost:1"))),
        ("another kind", Box::new(|parts| parts.client["type"] = json!("webauthn.get"))),
        ("a frame of another site", Box::new(|parts| parts.client["crossOrigin"] = json!(true))),
        ("another domain", Box::new(|parts| parts.authenticator[0] ^= 1)),
        ("nobody there", Box::new(|parts| parts.authenticator[32] &= !PRESENT)),
        ("nobody verified", Box::new(|parts| parts.authenticator[32] &= !VERIFIED)),
        (
            "backed up and not to be backed up",
            Box::new(|parts| parts.authenticator[32] = parts.authenticator[32] & !8 | 16),
        ),
        ("a point on no curve", Box::new(|parts| *parts.authenticator.last_mut().unwrap() ^= 1)),
        ("cut off", Box::new(|parts| parts.authenticator.truncate(80))),
    ];
    for (what, lie) in lies {
        let options = page.offered(&ann, "phone");
        let answer = SoftKey::new().create(&options, &origin, |parts| lie(parts));
        let added = page.add(&ann, &answer);
        assert_eq!(added.status, 422, "{what}: {}", added.text());
        assert!(added.text().contains("role=\"alert\""), "{what}: {}", added.text());
    }
    // A challenge that nobody gave, one of another page, and one of another user.
    let mut options = page.offered(&ann, "phone");
    let given = options["challenge"].clone();
    options["challenge"] = json!("AAAAAAAAAAAAAAAAAAAAAA");
    let forged = SoftKey::new().create(&options, &origin, |_| {});
    assert!(page.add(&ann, &forged).text().contains("took too long, or was begun elsewhere"));
    options["challenge"] = given;
    let mut key = SoftKey::new();
    let answer = key.create(&options, &origin, |_| {});
    assert_eq!(page.add(&bob, &answer).status, 422, "it is Ann's turn");
    assert_eq!(page.add(&ann, &answer).status, 422, "and was, whoever answered");
    let options = other.offered(&other.sign_in("ann"), "phone");
    let answer = key.create(&options, &other.origin(), |_| {});
    assert_eq!(page.add(&ann, &answer).status, 422, "it was asked at another name");
    assert_eq!(listed(&toft, "ann").len(), 0);

    // Whole bodies that are none.
    let options = page.offered(&ann, "phone");
    let good = key.create(&options, &origin, |_| {});
    let whole = attestation(&[0; 164]);
    let mut bad: Vec<String> = (0..whole.len())
        .step_by(7)
        .map(|cut| {
            let mut answer = good.clone();
            answer["response"]["attestationObject"] = json!(base64url(&whole[..cut]));
            answer.to_string()
        })
        .collect();
    let deep = base64url(&[0x81; 9_000]);
    let long = base64url(&[&[0x5b][..], &[0xff; 8], &[0; 64]].concat());
    for object in [deep.as_str(), &long, "", "!!", "AA==", &base64url(&[0xff; 200])] {
        let mut answer = good.clone();
        answer["response"]["attestationObject"] = json!(object);
        bad.push(answer.to_string());
    }
    bad.extend(["", "null", "{}", "[]", "\u{0}", "{\"response\":", "{\"id\":1}"].map(str::to_owned));
    bad.extend([format!("{{\"id\":\"{}\"}}", "A".repeat(100_000)), "[".repeat(20_000)]);
    for body in &bad {
        let begins: String = body.chars().take(80).collect();
        let answer = page.form("/account/passkeys", &ann, &[("answer", body)]);
        assert_eq!(answer.status, 422, "{begins}: {}", answer.text());
        let answer = page.form("/login/passkey", "", &[("answer", body)]);
        assert!(matches!(answer.status, 401 | 422), "{begins}: {} {}", answer.status, answer.text());
    }
    let huge = format!("answer={}", "A".repeat(3 << 20));
    for (path, cookie) in
        [("/account/passkeys", ann.as_str()), ("/login/passkey", ""), ("/account/passkeys/options", &ann)]
    {
        let headers = [("cookie", cookie), ("content-type", "application/x-www-form-urlencoded")];
        let answer = page.send("POST", path, &headers, huge.as_bytes());
        assert_eq!(answer.status, 413, "{path}");
    }

    // Answers at the sign-in.
    key = page.added(&ann, "phone");
    let lies: [(&str, Lie); 5] = [
        ("another origin", Box::new(|parts| parts.client["origin"] = json!("https://evil.example"))),
        ("another kind", Box::new(|parts| parts.client["type"] = json!("webauthn.create"))),
        ("another domain", Box::new(|parts| parts.authenticator[0] ^= 1)),
        ("nobody verified", Box::new(|parts| parts.authenticator[32] &= !VERIFIED)),
        ("one that could move and cannot", Box::new(|parts| parts.authenticator[32] &= !8)),
    ];
    for (what, lie) in lies {
        let answer = page.show(&key.sign(&page.asked(), &origin, |parts| lie(parts)));
        refused(&answer, 401, "opens nothing here");
        assert!(answer.text().contains("Sign in with a passkey"), "{what}: {}", answer.text());
        signed_in(&page.come_in(&mut key));
    }
    let mut forged = key.sign(&page.asked(), &origin, |_| {});
    forged["response"]["signature"] =
        SoftKey::new().sign(&page.asked(), &origin, |_| {})["response"]["signature"].clone();
    refused(&page.show(&forged), 401, "opens nothing here");
    let mut foreign = page.added(&bob, "key");
    foreign.handle.clone_from(&key.handle);
    refused(&page.come_in(&mut foreign), 401, "opens nothing here");
    let mut asked = page.asked();
    asked["challenge"] = json!("AAAAAAAAAAAAAAAAAAAAAA");
    refused(&page.show(&key.sign(&asked, &origin, |_| {})), 401, "took too long, or was begun elsewhere");
    let answer = key.sign(&page.asked(), &origin, |_| {});
    signed_in(&page.show(&answer));
    refused(&page.show(&answer), 401, "took too long, or was begun elsewhere");
    refused(&other.show(&key.sign(&page.asked(), &other.origin(), |_| {})), 401, "begun elsewhere");
    let elsewhere = [("origin", "https://evil.example"), ("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(page.send("POST", "/login/passkey/options", &elsewhere, b"").status, 403);
    assert_eq!(page.send("POST", "/login/passkey", &elsewhere, b"answer=x").status, 403);
    let by_address = toft.form("/login/passkey/options", "", &[]);
    assert_eq!(by_address.status, 422);
    assert!(by_address.json()["error"]["message"].as_str().unwrap().contains("opened by an address"));

    // A copy: its counter stays behind.
    key.counter = 1;
    refused(&page.come_in(&mut key), 401, "counter went backwards");
    let trail = toft.root(&["audit", "--json"]).good();
    assert!(trail.contains("refuse_passkey") && trail.contains("user/ann/passkey/phone"), "{trail}");
    assert!(!toft.log().contains("panicked"), "{}", toft.log());
}

#[test]
fn guessing_is_slowed_down_and_who_is_kept_out_stays_out() {
    let toft = MadeUp::start(1);
    toft.user("ann", &[], PASSWORD);
    let page = Page::at(&toft, "localhost");
    let cookie = page.sign_in("ann");
    let mut key = page.added(&cookie, "phone");
    toft.root(&["user", "set", "ann", "--disable"]).good();
    refused(&page.come_in(&mut key), 403, "disabled");
    toft.root(&["user", "set", "ann", "--enable"]).good();
    signed_in(&page.come_in(&mut key));
    let wrong =
        |key: &mut SoftKey| page.show(&key.sign(&page.asked(), &page.origin(), |parts| parts.authenticator[0] ^= 1));
    let told: Vec<u16> = (0..6).map(|_| wrong(&mut key).status).collect();
    assert!(told.starts_with(&[401, 401, 401, 401]) && told.ends_with(&[429]), "{told:?}");
    refused(&page.come_in(&mut key), 429, "Too many attempts");
    page.sign_in("ann");
    // Root removes what was lost, by its name or by its id.
    assert!(toft.root(&["user", "passkey", "rm", "ann", "tablet"]).bad().contains("has no passkey `tablet`"));
    assert_eq!(toft.root(&["user", "passkey", "rm", "ann", "phone"]).good(), "phone\n");
    assert!(listed(&toft, "ann").is_empty());
    toft.root(&["user", "passkey", "ls", "nobody"]).bad();

    // A token cannot change how its owner signs in.
    let token = toft.token("ann", &[]);
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    let offered = page.send("POST", "/account/passkeys/options", &headers, b"label=x&password=y");
    assert_eq!(offered.status, 422, "{}", offered.text());
    assert!(page.send("GET", "/account/passkeys", &headers[..1], b"").text().contains("no password to stand beside"));
    page.send("DELETE", "/api/v1/me/passkeys/aaaaaaaaaa", &headers[..1], b"").refusal(409);
}

#[test]
fn admins_with_a_passkey_are_content_and_ten_are_enough() {
    let toft = MadeUp::start(1);
    toft.user("boss", &["--role", "admin"], PASSWORD);
    let page = Page::at(&toft, "localhost");
    let by_password = page.sign_in("boss");
    let mut key = page.added(&by_password, "phone");
    let patch = |cookie: &str| {
        let body = br#"{"second_factor_for_admins":true}"#;
        page.send("PATCH", "/api/v1/access", &[("cookie", cookie)], body)
    };
    let refusal = patch(&by_password).refusal(409);
    assert!(refusal["hint"].as_str().unwrap().contains("passkey"), "the password alone would not be enough: {refusal}");
    let by_passkey = signed_in(&page.come_in(&mut key));
    patch(&by_passkey).good();
    assert_eq!((page.open("/users", &by_passkey).status, page.open("/users", &by_password).status), (200, 403));
    let missing = "asks admins for a second factor";
    assert!(!page.open("/account/second-factor", &by_passkey).text().contains(missing));
    assert!(page.open("/account/second-factor", &by_password).text().contains(missing));
    // Whoever may only look adds one all the same: it is the way to come in.
    page.added(&by_password, "key 2");
    for number in 3..=10 {
        page.added(&by_passkey, &format!("key {number}"));
    }
    let full = page.offer(&by_passkey, "key 11", PASSWORD);
    assert!(full.status == 422 && full.text().contains("no more fit"), "{}", full.text());
    assert!(page.open("/account/passkeys", &by_passkey).text().contains("No more passkeys fit"));
    let user = page.open("/users/boss", &by_passkey).text();
    let path = user.split("href=\"").filter_map(|rest| rest.split('"').next()).find(|path| path.contains("/passkeys/"));
    let path = path.unwrap().to_owned();
    assert!(page.open(&path, &by_passkey).text().contains("phone of boss"));
    assert_eq!(page.form(&path, &by_passkey, &[]).header("location"), Some("/users/boss"));
    assert_eq!(page.open("/users", &by_passkey).status, 303, "they ended their own session");
    assert_eq!(toft.root(&["user", "second-factor", "require", "nobody"]).good(), "nobody\n");
}

#[test]
fn a_domain_is_shared_by_the_names_in_it() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "admin"], PASSWORD);
    let [a, b] = ["a.home.localhost", "b.home.localhost"].map(|name| Page::at(&toft, name));
    let cookie = a.sign_in("ann");
    let mut own = a.added(&cookie, "own");
    signed_in(&a.come_in(&mut own));
    assert_eq!(b.asked()["rpId"], "b.home.localhost", "a browser would not show it there");
    refused(&b.come_in(&mut own), 401, "opens nothing here");
    assert!(toft.root(&["user", "passkey", "domain", "192.0.2.1"]).bad().contains("is no domain"));
    let wrong = a.form("/access/passkeys", &cookie, &[("passkey_domain", "home.localhost:7443")]);
    assert!(
        wrong.status == 422
            && wrong.text().contains("is no domain")
            && wrong.text().contains("value=\"home.localhost:7443\"")
    );
    assert_eq!(toft.root(&["user", "passkey", "domain", "home.localhost"]).good(), "home.localhost\n");
    let mut shared = a.added(&cookie, "shared");
    signed_in(&b.come_in(&mut shared));
    signed_in(&a.come_in(&mut shared));
    refused(&a.come_in(&mut own), 401, "opens nothing here");
    let names: Vec<Value> = listed(&toft, "ann").iter().map(|row| row["domain"].clone()).collect();
    assert_eq!(names, ["a.home.localhost", "home.localhost"]);
    // Outside of it a name stands for itself.
    assert_eq!(Page::at(&toft, "localhost").asked()["rpId"], "localhost");
    assert_eq!(a.form("/access/passkeys", &cookie, &[("passkey_domain", "")]).header("location"), Some("/users"));
    assert!(!toft.root(&["user", "passkey", "domain", "--json"]).good().contains("home"));
    signed_in(&a.come_in(&mut own));
}

#[test]
fn a_browser_adds_one_signs_in_with_it_and_removes_it() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "admin"], PASSWORD);
    let url = format!("http://localhost:{}", toft.port);
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::start(profile.path(), true);
    let device = browser.add_authenticator();
    let axe = axe::script();
    let mut found = Vec::new();
    let mut look = |page: &str| {
        for (size, dark) in WIDTHS.into_iter().flat_map(|size| [(size, false), (size, true)]) {
            browser.look_like(size, dark);
            found.extend(faults(&browser, &axe).into_iter().map(|fault| format!("{page} at {}: {fault}", size.0)));
        }
    };
    let sign_out = || {
        browser.open(&format!("{url}/account"));
        browser.follow("//button[normalize-space()='Sign out']");
        browser.wait_for_text("//h1", "Sign in");
    };
    browser.open(&format!("{url}/login?next=/nodes"));
    browser.fill("//input[@id='name']", "ann");
    browser.fill("//input[@id='password']", PASSWORD);
    browser.follow("//button[normalize-space()='Sign in']");
    browser.wait_for_text("//h1", "Nodes");
    browser.open(&format!("{url}/account"));
    browser.follow("//a[normalize-space()='Add one']");
    browser.wait_for_text("//h2", "Add a passkey");
    look("none yet");
    let add = |label: &str, password: &str| {
        browser.fill("//input[@id='label']", label);
        browser.fill("//input[@id='password']", password);
        browser.click("//button[normalize-space()='Add a passkey']");
    };
    add("phone", "wrong password");
    browser.wait_for_text("//*[@role='alert']", "present password is another");
    look("a mistake");
    browser.fill("//input[@id='password']", PASSWORD);
    browser.follow("//button[normalize-space()='Add a passkey']");
    browser.wait_for_text("//table", "phone");
    assert_eq!(browser.credentials(&device), 1);
    add("again", PASSWORD);
    browser.wait_for_text("//*[@role='alert']", "is kept there already");
    look("one");
    sign_out();
    browser.open(&format!("{url}/login?next=/nodes"));
    browser.wait_for_text("//button[@data-passkey]", "Sign in with a passkey");
    look("signing in");
    browser.follow("//button[@data-passkey]");
    browser.wait_for_text("//h1", "Nodes");
    assert!(listed(&toft, "ann")[0]["used_at"].is_string());
    for path in ["/users", "/users/ann", "/account"] {
        browser.open(&format!("{url}{path}"));
        browser.wait_for_text("//main", "asskey");
        look(path);
    }
    // A question that comes in a frame of the page, and one on a page of its own.
    browser.look_like((1440, 900), false);
    browser.open(&format!("{url}/account/passkeys"));
    browser.click("//a[@aria-label='Remove phone']");
    browser.wait_for_text("//dialog//h1", "Remove the passkey phone?");
    browser.click("//dialog//a[normalize-space()='Keep it']");
    browser.run("location = document.querySelector('td.actions a').href");
    browser.wait_for_text("//main//h1", "Remove the passkey phone?");
    browser.wait_for_text("//main", "that is you, in this browser");
    look("removing it");
    browser.follow("//main//button[normalize-space()='Remove the passkey']");
    browser.wait_for_text("//h1", "Sign in");
    browser.wait_for_absence("//button[@data-passkey]");
    // Somebody else has one, so that people are asked; this device's opens nothing any more.
    toft.user("bob", &[], PASSWORD);
    let page = Page::at(&toft, "localhost");
    page.added(&page.sign_in("bob"), "key");
    browser.reload();
    browser.wait_for_text("//button[@data-passkey]", "Sign in with a passkey");
    browser.complaints();
    browser.follow("//button[@data-passkey]");
    browser.wait_for_text("//*[@role='alert' and not(@hidden)]", "This passkey opens nothing here");
    look("refused");
    // Whoever cancels is told so; an authenticator without a user would wait for minutes.
    browser.run("navigator.credentials.get = () => Promise.reject(new DOMException('', 'NotAllowedError'))");
    browser.click("//button[@data-passkey]");
    browser.wait_for_text("//*[@data-wrong]", "The browser gave no passkey");
    browser.open(&format!("http://127.0.0.1:{}/login", toft.port));
    browser.wait_for_text("//main", "Passkeys belong to a name");
    look("at an address");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn without_a_script_the_pages_say_so() {
    let toft = MadeUp::start(1);
    toft.user("ann", &[], PASSWORD);
    let page = Page::at(&toft, "localhost");
    page.added(&page.sign_in("ann"), "phone");
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::start(profile.path(), false);
    let url = page.origin();
    browser.open(&format!("{url}/login"));
    browser.wait_for_text("//main", "this browser runs none");
    assert_eq!(browser.text("//button[@data-passkey]").as_deref(), Some(""), "it is there and not shown");
    browser.fill("//input[@id='name']", "ann");
    browser.fill("//input[@id='password']", PASSWORD);
    browser.follow("//button[normalize-space()='Sign in']");
    browser.open(&format!("{url}/account/passkeys"));
    browser.wait_for_text("//main", "this browser runs none");
    browser.follow("//a[@aria-label='Remove phone']");
    browser.wait_for_text("//h1", "Remove the passkey phone?");
    browser.follow("//button[normalize-space()='Remove the passkey']");
    browser.wait_for_text("//h1", "Passkeys");
    assert!(listed(&toft, "ann").is_empty());
}
