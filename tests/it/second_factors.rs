//! Second factors: turning one on without a script, signing in with a code, codes that count once, who lost theirs, and what the
//! cluster asks of admins.

use std::{fs, net::TcpStream, sync::Barrier};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    browser_pages::{WIDTHS, faults},
    harness::{
        appliance::Appliance,
        authenticator::{Authenticator, step},
        axe,
        browser::Browser,
        http::{Answer, PATIENCE, exchange},
        made_up::{MadeUp, cookie_of, send_form},
        trio::Trio,
    },
};

const PASSWORD: &str = "correct horse battery";

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("`{before}` is missing in {text}")).1;
    rest.split_once(after).unwrap().0
}

fn hidden<'a>(page: &'a str, name: &str) -> &'a str {
    between(page, &format!("name=\"{name}\" value=\""), "\"")
}

/// A dashboard as browsers reach it.
trait Site {
    fn page(&self, path: &str, cookie: &str) -> Answer;
    fn send(&self, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Answer;
}

impl Site for MadeUp {
    fn page(&self, path: &str, cookie: &str) -> Answer {
        self.ask("GET", path, &[("cookie", cookie)], b"")
    }

    fn send(&self, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Answer {
        self.form(path, cookie, fields)
    }
}

impl Site for Appliance {
    fn page(&self, path: &str, cookie: &str) -> Answer {
        let (path, cookie) = (path.to_owned(), cookie.to_owned());
        connected(self, move |stream, host| {
            exchange(stream, "GET", &path, &[("host", host), ("cookie", &cookie)], b"").unwrap()
        })
    }

    fn send(&self, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Answer {
        let (path, cookie) = (path.to_owned(), cookie.to_owned());
        let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        connected(self, move |stream, host| {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            send_form(stream, host, &path, &cookie, &fields)
        })
    }
}

/// Does something with a connection to a node's dashboard, from its own machine.
fn connected(toft: &Appliance, work: impl FnOnce(TcpStream, &str) -> Answer + Send + 'static) -> Answer {
    let url = fs::read_to_string(toft.data.join("toft.url")).unwrap();
    let host = url.trim().trim_end_matches('/').rsplit('/').next().unwrap().to_owned();
    let asked = toft.machine.spawn(move || {
        let stream = TcpStream::connect(&host).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        work(stream, &host)
    });
    asked.join().unwrap()
}

fn open(toft: &impl Site, path: &str, cookie: &str) -> Answer {
    toft.page(path, cookie)
}

/// Turns the second factor of whoever has the cookie on; gives the authenticator, the recovery codes, and the code that proved it.
fn turn_on(toft: &impl Site, cookie: &str) -> (Authenticator, Vec<String>, String) {
    let page = open(toft, "/account/second-factor", cookie);
    assert_eq!(page.status, 200, "{}", page.text());
    let page = page.text();
    let authenticator = Authenticator::new(between(&page, "id=\"secret\">", "<"));
    // The oldest code that counts, so that newer ones are left.
    let code = authenticator.code(step() - 1);
    let fields = [("offer", hidden(&page, "offer")), ("code", &code), ("password", PASSWORD)];
    let answer = toft.send("/account/second-factor", cookie, &fields);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let page = answer.text();
    let codes = between(&page, "<pre id=\"recovery\"><code>", "</code>").split_whitespace().map(str::to_owned);
    (authenticator, codes.collect(), code)
}

/// The first half of a sign-in; gives what is brought along to the second.
fn half(toft: &impl Site, name: &str) -> String {
    let answer = toft.send("/login", "", &[("name", name), ("password", PASSWORD), ("next", "/nodes")]);
    assert!(answer.status == 200 && answer.header("set-cookie").is_none(), "{}", answer.text());
    let page = answer.text();
    assert_eq!(hidden(&page, "next"), "/nodes");
    hidden(&page, "half").to_owned()
}

fn second(toft: &impl Site, half: &str, code: &str) -> Answer {
    toft.send("/login/code", "", &[("half", half), ("code", code), ("next", "/nodes")])
}

fn basic(name: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{PASSWORD}")))
}

#[test]
fn a_password_and_a_code_open_what_a_password_alone_does_not() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "operator"], PASSWORD);
    let token = toft.token("ann", &["--role", "operator"]);
    let cookie = toft.sign_in("ann", PASSWORD);

    // What is mistyped shows the same secret again, and turns nothing on.
    let page = open(&toft, "/account/second-factor", &cookie).text();
    assert!(page.contains("<svg id=\"qr\""), "{page}");
    let (secret, offer) = (between(&page, "id=\"secret\">", "<"), hidden(&page, "offer"));
    let code = Authenticator::new(secret).code(step());
    for (offered, code, password, words) in [
        (offer, "000000x", PASSWORD, "code is wrong"),
        (offer, code.as_str(), "another password", "present password"),
        ("AAAA", &code, PASSWORD, "offered too long ago"),
        (&offer.to_lowercase(), &code, PASSWORD, "offered too long ago"),
    ] {
        let fields = [("offer", offered), ("code", code), ("password", password)];
        let answer = toft.form("/account/second-factor", &cookie, &fields);
        assert!(answer.status == 422 && answer.text().contains(words), "{words}: {}", answer.text());
        let again = answer.text();
        assert_eq!(between(&again, "id=\"secret\">", "<") == secret, offered == offer);
    }
    let (authenticator, recovery, used) = turn_on(&toft, &cookie);
    assert_eq!(recovery.len(), 10);
    assert!(open(&toft, "/account", &cookie).text().contains("/account/second-factor\">Turn it off"));

    // The password alone opens nothing any more; tokens and who is signed in go on.
    let answer = toft.ask("GET", "/api/v1/me", &[("authorization", &basic("ann"))], b"");
    assert!(answer.refusal(403)["hint"].as_str().unwrap().contains("API token"));
    assert_eq!(toft.get("/api/v1/me", &token)["role"], "operator");
    assert_eq!(open(&toft, "/nodes", &cookie).status, 200);

    let now = step();
    let begun = half(&toft, "ann");
    let wrong = second(&toft, &begun, "123 45");
    assert!(wrong.status == 401 && wrong.text().contains("code is wrong") && wrong.header("set-cookie").is_none());
    assert_eq!(second(&toft, &begun, &used).status, 401, "it proved the second factor already");
    let right = authenticator.code(now);
    let answer = second(&toft, &begun, &right);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/nodes")), "{}", answer.text());
    assert_eq!(open(&toft, "/nodes", &cookie_of(&answer)).status, 200);
    assert_eq!(second(&toft, &begun, &authenticator.code(now + 1)).status, 401, "it is whole once");
    let written = recovery[3].to_uppercase().replace('-', " ");
    assert_eq!(second(&toft, &half(&toft, "ann"), &written).status, 303);
    assert_eq!(second(&toft, &half(&toft, "ann"), &recovery[3]).status, 401, "a recovery code opens once");

    // Whoever changes the password in the meantime ends what was begun with the old one.
    let begun = half(&toft, "ann");
    toft.root_reading(&["user", "passwd", "ann", "--password-stdin"], "another good password").good();
    let answer = second(&toft, &begun, &recovery[0]);
    assert!(answer.status == 401 && answer.text().contains("name=\"password\""), "they begin again");
    toft.root_reading(&["user", "passwd", "ann", "--password-stdin"], PASSWORD).good();

    let cookie = cookie_of(&second(&toft, &half(&toft, "ann"), &recovery[0]));
    let off = |password: &str, code: &str| {
        toft.form("/account/second-factor/off", &cookie, &[("password", password), ("code", code)])
    };
    assert_eq!(off("another password", &recovery[1]).status, 422);
    assert_eq!(off(PASSWORD, &recovery[0]).status, 422);
    assert_eq!(off(PASSWORD, &recovery[1]).header("location"), Some("/account"));
    let cookie = toft.sign_in("ann", PASSWORD);

    // Who has lost it is helped by an admin, and the trail tells of it.
    let (other, ..) = turn_on(&toft, &cookie);
    toft.root(&["user", "second-factor", "reset", "ann"]).good();
    toft.sign_in("ann", PASSWORD);
    assert!(toft.root(&["user", "second-factor", "reset", "ann"]).bad().contains("no second factor"));
    let trail = toft.root(&["audit", "--json"]).good();
    for action in ["turn_on_second_factor", "turn_off_second_factor", "reset_second_factor"] {
        assert!(trail.contains(&format!("\"action\":\"{action}\"")), "{action}");
    }
    let told = [trail, toft.log()].concat();
    for hidden in [secret, &recovery[0], &recovery[9], offer, &right, &other.code(step())] {
        assert!(!told.contains(hidden), "{hidden}");
    }
}

#[test]
fn a_code_counts_once_whichever_node_is_told() {
    let trio = Trio::start();
    let [a, b, c] = &trio.nodes;
    a.reading(&["user", "create", "ann", "--password-stdin", "--role", "operator"], PASSWORD).good();
    let answer = a.send("/login", "", &[("name", "ann"), ("password", PASSWORD)]);
    let cookie = cookie_of(&answer);
    let (authenticator, recovery, used) = turn_on(a, &cookie);

    // Other nodes ask for it at once, and know which codes are spent.
    let begun = half(b, "ann");
    assert_eq!(second(b, &begun, &used).status, 401, "it proved the second factor at another node");
    let code = authenticator.code(step());
    let answer = second(b, &begun, &code);
    assert_eq!(answer.status, 303, "{}", answer.text());
    assert_eq!(open(c, "/nodes", &cookie_of(&answer)).status, 200, "a session holds on all nodes");
    let begun = half(c, "ann");
    assert_eq!(second(c, &begun, &code).status, 401, "it was told at another node");
    assert_eq!(second(a, &begun, &recovery[0]).status, 401, "what was begun at one node is ended there");

    // Told at two nodes at the same moment, it opens one of them.
    let (at_b, at_c) = (half(b, "ann"), half(c, "ann"));
    let together = Barrier::new(2);
    let told = |node, half: &str| {
        together.wait();
        second(node, half, &recovery[1]).status
    };
    let mut statuses = std::thread::scope(|scope| {
        let other = scope.spawn(|| told(b, &at_b));
        [told(c, &at_c), other.join().unwrap()]
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [303, 401]);
}

#[test]
fn whoever_guesses_codes_waits() {
    let toft = MadeUp::start(1);
    toft.user("ann", &[], PASSWORD);
    let cookie = toft.sign_in("ann", PASSWORD);
    let (authenticator, recovery, _) = turn_on(&toft, &cookie);
    let begun = half(&toft, "ann");
    let mut told = Vec::new();
    for _ in 0..6 {
        // A right password takes no wrong code back.
        half(&toft, "ann");
        told.push(second(&toft, &begun, "000000").status);
    }
    assert_eq!(told, [401; 6]);
    let fresh = half(&toft, "ann");
    assert!(second(&toft, &begun, &authenticator.code(step())).text().contains("name=\"password\""), "it is gone");
    let answer = second(&toft, &fresh, &recovery[0]);
    assert!(answer.status == 429 && answer.text().contains("seconds"), "the right one too: {}", answer.text());
    for forged in ["", "x", "aaaaaaaaaa.", &format!("{}.{}", &fresh[..10], "0".repeat(64)), &"y".repeat(9_000)] {
        let answer = second(&toft, forged, "000000");
        assert!(answer.status == 401 && answer.text().contains("took too long"), "{}", answer.status);
    }
}

#[test]
fn the_api_turns_it_on_and_off_and_never_for_a_token() {
    let toft = MadeUp::start(1);
    toft.user("ann", &[], PASSWORD);
    let token = format!("Bearer {}", toft.token("ann", &[]));
    let cookie = toft.sign_in("ann", PASSWORD);
    let ask = |method: &str, path: &str, who: (&str, &str), body: &Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        toft.ask(method, &format!("/api/v1{path}"), &[who], body.as_bytes())
    };
    let (me, program) = (("cookie", cookie.as_str()), ("authorization", token.as_str()));
    let none = Value::Null;
    assert_eq!(
        ask("GET", "/me/second-factor", me, &none).good(),
        json!({"on": false, "recovery_codes": 0, "missing": false})
    );
    ask("POST", "/me/second-factor/offer", program, &none).refusal(409);
    let offer = ask("POST", "/me/second-factor/offer", me, &none).good();
    let authenticator = Authenticator::new(offer["secret"].as_str().unwrap());
    assert!(offer["address"].as_str().unwrap().starts_with("otpauth://totp/toft:ann?secret="));
    let mut wanted = json!({"offer": offer["offer"], "code": authenticator.code(step() - 1), "password": PASSWORD});
    ask("PUT", "/me/second-factor", program, &wanted).refusal(409);
    wanted["password"] = "wrong password".into();
    assert_eq!(ask("PUT", "/me/second-factor", me, &wanted).refusal(400)["field"], "password");
    wanted["password"] = PASSWORD.into();
    wanted["more"] = "x".into();
    ask("PUT", "/me/second-factor", me, &wanted).refusal(400);
    wanted.as_object_mut().unwrap().remove("more");
    // What was offered to somebody else is of no use.
    toft.user("bob", &[], PASSWORD);
    let bob = toft.sign_in("bob", PASSWORD);
    assert_eq!(ask("PUT", "/me/second-factor", ("cookie", &bob), &wanted).refusal(412)["field"], "offer");
    let codes = ask("PUT", "/me/second-factor", me, &wanted).good();
    assert_eq!(codes["recovery_codes"].as_array().unwrap().len(), 10);
    ask("PUT", "/me/second-factor", me, &wanted).refusal(409);
    assert_eq!(ask("GET", "/me/second-factor", me, &none).good()["recovery_codes"], 10);
    let off = json!({"code": authenticator.code(step()), "password": PASSWORD});
    ask("POST", "/me/second-factor/off", program, &off).refusal(409);
    assert_eq!(ask("POST", "/me/second-factor/off", me, &off).status, 204);
    let users: Value = serde_json::from_str(&toft.root(&["user", "ls", "--json"]).good()).unwrap();
    assert!(users.as_array().unwrap().iter().all(|user| user["second_factor"] == false));
}

#[test]
fn admins_who_lack_one_look_and_change_nothing() {
    let toft = MadeUp::start(1);
    toft.user("boss", &["--role", "admin"], PASSWORD);
    toft.user("ann", &["--role", "operator"], PASSWORD);
    let (boss, ann) = (toft.sign_in("boss", PASSWORD), toft.sign_in("ann", PASSWORD));
    let token = toft.token("boss", &["--role", "admin"]);
    // Nobody shuts themselves out.
    let patch = |cookie: &str| {
        let body = br#"{"second_factor_for_admins":true}"#;
        toft.ask("PATCH", "/api/v1/access", &[("cookie", cookie)], body)
    };
    assert_eq!(patch(&boss).refusal(409)["field"], "second_factor_for_admins");
    assert!(
        toft.form("/access", &boss, &[("second_factor_for_admins", "on")]).text().contains("urn your own on first")
    );
    patch(&ann).refusal(403);
    assert_eq!(toft.root(&["user", "second-factor", "require"]).good(), "nobody\n");
    assert_eq!(toft.root(&["user", "second-factor", "require", "admins"]).good(), "admins\n");

    assert_eq!(open(&toft, "/", &boss).status, 200);
    assert_eq!(open(&toft, "/users", &boss).status, 403);
    let refused = toft.ask("POST", "/api/v1/tokens", &[("cookie", &boss)], b"{}").refusal(403);
    assert!(refused["hint"].as_str().unwrap().contains("/account/second-factor"), "{refused}");
    let made = toft.ask("POST", "/api/v1/api-tokens", &[("cookie", &boss)], br#"{"role":"admin"}"#).refusal(403);
    assert_eq!(made["field"], "role", "nor is there a way around");
    let by_password = toft.ask("GET", "/api/v1/users", &[("authorization", &basic("boss"))], b"");
    by_password.refusal(403);
    assert_eq!(toft.get("/api/v1/me", &token)["role"], "admin", "tokens go on");
    assert_eq!(open(&toft, "/run", &ann).status, 200, "others are not asked");
    let again = toft.form("/login", "", &[("name", "boss"), ("password", PASSWORD)]);
    assert_eq!(again.header("location"), Some("/account/second-factor"));
    let cookie = cookie_of(&again);
    assert!(open(&toft, "/account/second-factor", &cookie).text().contains("asks admins for a second factor"));
    turn_on(&toft, &cookie);
    assert_eq!((open(&toft, "/users", &cookie).status, open(&toft, "/users", &boss).status), (200, 200));
    assert!(patch(&cookie).good()["second_factor_for_admins"].as_bool().unwrap());
    let page = open(&toft, "/users", &cookie).text();
    assert!(page.contains(">second factor<") && page.contains("type=\"checkbox\" checked"), "{page}");
    let answer = toft.form("/users/boss/second-factor/reset", &cookie, &[]);
    assert_eq!(answer.header("location"), Some("/users/boss"));
    assert_eq!(open(&toft, "/users", &cookie).status, 403);
    assert_eq!(toft.root(&["user", "second-factor", "require", "nobody"]).good(), "nobody\n");
    assert_eq!(open(&toft, "/users", &cookie).status, 200);
}

#[test]
fn a_program_that_asks_many_things_at_once_has_tried_one_password() {
    let toft = MadeUp::start(1);
    toft.user("ann", &[], PASSWORD);
    let at_once = |authorization: &str| {
        let barrier = Barrier::new(16);
        let mut told: Vec<u16> = std::thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                toft.ask("GET", "/api/v1/me", &[("authorization", authorization)], b"").status
            };
            let asked: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        told.sort_unstable();
        told
    };
    assert_eq!(at_once(&basic("ann")), [200; 16]);
    // A wrong one is told to all who show it, and counts.
    for _ in 0..5 {
        let wrong = at_once(&format!("Basic {}", BASE64_STANDARD.encode("ann:wrong password")));
        assert!(wrong.iter().all(|status| matches!(status, 401 | 429)), "{wrong:?}");
    }
    assert_eq!(at_once(&basic("ann")), [429; 16]);
}

#[test]
fn its_pages_fit_every_width_and_keep_nobody_out() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "operator"], PASSWORD);
    let url = format!("http://127.0.0.1:{}", toft.port);
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::start(profile.path(), true);
    let axe = axe::script();
    let mut found = Vec::new();
    let mut look = |page: &str| {
        for (size, dark) in WIDTHS.into_iter().flat_map(|size| [(size, false), (size, true)]) {
            browser.look_like(size, dark);
            found.extend(faults(&browser, &axe).into_iter().map(|fault| format!("{page} at {}: {fault}", size.0)));
        }
    };
    let sign_in = || {
        browser.open(&format!("{url}/login"));
        browser.fill("//input[@id='name']", "ann");
        browser.fill("//input[@id='password']", PASSWORD);
        browser.follow("//button[normalize-space()='Sign in']");
    };
    sign_in();
    browser.wait_for_text("//h1", "Overview");
    browser.open(&format!("{url}/account"));
    browser.follow("//a[normalize-space()='Turn it on']");
    browser.wait_for_text("//h1", "Second factor");
    look("the secret");
    let authenticator = Authenticator::new(&browser.text("//*[@id='secret']").unwrap());
    browser.fill("//input[@id='code']", &authenticator.code(step() - 1));
    browser.fill("//input[@id='password']", "wrong password");
    browser.follow("//button[normalize-space()='Turn it on']");
    browser.wait_for_text("//*[@role='alert']", "present password");
    look("a mistake");
    browser.fill("//input[@id='code']", &authenticator.code(step() - 1));
    browser.fill("//input[@id='password']", PASSWORD);
    browser.follow("//button[normalize-space()='Turn it on']");
    browser.wait_for_text("//main", "recovery codes");
    look("recovery codes");
    browser.open(&format!("{url}/account/second-factor"));
    browser.wait_for_text("//h2", "Turn it off");
    look("turning it off");
    browser.open(&format!("{url}/account"));
    browser.follow("//button[normalize-space()='Sign out']");
    browser.wait_for_text("//h1", "Sign in");
    sign_in();
    browser.wait_for_text("//h1", "Your code");
    look("the code");
    browser.fill("//input[@id='code']", &authenticator.code(step()));
    browser.follow("//button[normalize-space()='Sign in']");
    browser.wait_for_text("//h1", "Overview");
    browser.open(&format!("{url}/account"));
    browser.follow("//button[normalize-space()='Sign out']");
    browser.sign_in(&url, &toft.password());
    for path in ["/users", "/users/ann"] {
        browser.open(&format!("{url}{path}"));
        browser.wait_for_text("//main", "econd factor");
        look(path);
    }
    assert!(found.is_empty(), "{found:#?}");
}
