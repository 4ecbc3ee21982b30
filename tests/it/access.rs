//! Who may touch what: every route as everybody, signing in, guessing, grants, tokens, and what the trail tells.

use std::{collections::BTreeSet, fs, time::Duration};

use serde_json::{Value, json};
use sha2::Digest;
use toft::access::rules::{API, Need, PAGES, Rule};
use toft_model::identity::Role;

use crate::{
    harness::{
        appliance::Appliance,
        http::Answer,
        machine::wait_until,
        made_up::{MadeUp, cookie_of, run},
    },
    joining::{join, lone, ticket},
};

const PASSWORD: &str = "correct horse battery";

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// An address that a rule is about.
fn address(rule: &Rule, is_page: bool) -> String {
    let name = match rule.path {
        path if path.starts_with("/workloads") || path.starts_with("/live/workloads") => "granted",
        path if path.starts_with("/instances") => "granted-0",
        _ => "nothing",
    };
    let path = rule.path.replace("{name}", name).replace("{id}", "aaaaaaaaaa").replace("{gpu}", "GPU-0");
    let path = path.replace("{registry}", "nas.lan").replace("{*path}", "toft.css");
    if is_page { path } else { format!("/api/v1{path}") }
}

/// Whether somebody with that role and that grant comes through.
fn may(need: Need, role: Role, granted: bool, any_grant: bool) -> bool {
    match need {
        Need::Nothing | Need::Known => true,
        Need::Role(least) => role >= least,
        Need::Workload | Need::Instance => role >= Role::Operator || granted,
        // What it asks for is looked at when it is read.
        Need::Specification => role >= Role::Operator || any_grant,
    }
}

#[test]
fn every_route_lets_through_whom_its_rule_names_and_nobody_else() {
    let toft = MadeUp::start(1);
    for name in ["granted", "other"] {
        toft.root(&["run", "-d", "-n", name, "example.org/web:1"]).good();
    }
    for (name, more) in [
        ("viewer", &["--role", "viewer"][..]),
        ("operator", &["--role", "operator"]),
        ("boss", &["--role", "admin"]),
        ("grantee", &["--grant", "granted"]),
        ("stranger", &["--grant", "other"]),
    ] {
        toft.root(&[&["user", "create", name, "--no-password"], more].concat()).good();
    }
    let expired = toft.token("boss", &["--role", "admin", "--ttl", "1s"]);
    let revoked = toft.token("boss", &["--role", "admin"]);
    toft.root(&["user", "token", "revoke", &revoked[5..15]]).good();
    let stranger = toft.token("stranger", &["--grant", "other"]);
    let somebody = [
        (Role::Viewer, false, toft.token("viewer", &[])),
        (Role::Viewer, false, stranger.clone()),
        (Role::Viewer, true, toft.token("grantee", &["--grant", "granted"])),
        // A token of an admin that may no more than that.
        (Role::Viewer, true, toft.token("boss", &["--grant", "granted"])),
        (Role::Operator, true, toft.token("operator", &["--role", "operator"])),
        (Role::Admin, true, toft.token("boss", &["--role", "admin"])),
    ];
    std::thread::sleep(Duration::from_secs(1));
    let nobody =
        [String::new(), bearer(&expired), bearer(&revoked), bearer("toft_x_y"), "Basic bm9ib2R5Om5vdGhpbmc=".into()];
    // What removes comes last: the others need something that is there.
    let removes = |rule: &Rule| rule.method == "DELETE" || rule.path.ends_with("/remove");
    let mut routes: Vec<(&Rule, bool)> = API.iter().map(|rule| (rule, false)).collect();
    routes.extend(PAGES.iter().map(|rule| (rule, true)));
    routes.sort_by_key(|(rule, _)| removes(rule));
    let mut wrong = Vec::new();
    for (rule, is_page) in routes {
        let path = address(rule, is_page);
        // Only signing in counts failed attempts.
        for who in nobody.iter().take(if rule.path == "/login" { 1 } else { 4 }) {
            let headers = [("authorization", who.as_str())];
            let headers = if who.is_empty() { &[][..] } else { &headers };
            let status = toft.status(rule.method, &path, headers);
            let let_in = match rule.need {
                Need::Nothing => status != 403,
                _ if is_page && rule.path != "/metrics" => match rule.method {
                    "GET" if rule.path.starts_with("/live") => status == 303,
                    "GET" => status == 303,
                    _ => status == 401,
                },
                _ => status == 401,
            };
            if !let_in {
                wrong.push(format!("nobody ({who}): {} {path}: {status}", rule.method));
            }
        }
        for (role, granted, token) in &somebody {
            let status = toft.status(rule.method, &path, &[("authorization", &bearer(token))]);
            let through = !matches!(status, 401 | 403);
            let any_grant = *granted || token == &stranger;
            let expected = may(rule.need, *role, *granted, any_grant);
            // Once the workload is gone its instance is nobody's.
            let gone = rule.need == Need::Instance && status == 404;
            if through != expected && !gone || matches!(status, 500 | 502) {
                wrong.push(format!("{role} {granted}: {} {path}: {status}", rule.method));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Both versions' prefixes, and methods that nobody named.
    let viewer = bearer(&somebody[0].2);
    let as_viewer = |method: &str, path: &str| toft.status(method, path, &[("authorization", &viewer)]);
    assert_eq!(as_viewer("DELETE", "/v1/workloads/other"), 403);
    assert_eq!(as_viewer("GET", "/v1/workloads"), 200);
    assert_eq!(as_viewer("PUT", "/v1/workloads"), 405);
    assert_eq!(as_viewer("GET", "/api/v1/none"), 404);
    assert_eq!(as_viewer("GET", "/none"), 404);
    for spelling in
        ["/api/v1/audit/", "/api/v1//audit", "/api/v1/%61udit", "/API/V1/audit", "/api/v1/./audit", "/users/"]
    {
        let status = as_viewer("GET", spelling);
        assert!(matches!(status, 400 | 403 | 404), "{spelling}: {status}");
    }
}

#[test]
fn the_first_password_is_changed_once() {
    let toft = MadeUp::start(1);
    let first = toft.password();
    let answer = toft.form("/login", "", &[("name", "admin"), ("password", &first), ("next", "/workloads")]);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/setup")));
    let set = answer.header("set-cookie").unwrap().to_owned();
    assert!(set.starts_with(&format!("toft-{}=", toft.port)), "{set}");
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Lax") && set.contains("Path=/"), "{set}");
    let cookie = cookie_of(&answer);
    let page = toft.ask("GET", "/setup", &[("cookie", &cookie)], b"");
    assert!(page.status == 200 && page.text().contains("Choose a password"));
    let users: Value = serde_json::from_str(&toft.root(&["user", "ls", "--json"]).good()).unwrap();
    assert_eq!((users[0]["name"].as_str(), users[0]["has_password"].as_bool()), (Some("admin"), Some(false)));
    for (new, again, words) in [("short", "short", "too short"), (PASSWORD, "another one", "not the same")] {
        let answer = toft.form("/setup", &cookie, &[("new", new), ("again", again)]);
        assert!(answer.status == 422 && answer.text().contains(words), "{}", answer.text());
    }
    let answer = toft.form("/setup", &cookie, &[("new", PASSWORD), ("again", PASSWORD)]);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/")));
    assert_eq!(toft.ask("GET", "/", &[("cookie", &cookie)], b"").status, 200, "who changed it goes on");
    assert_eq!(toft.ask("GET", "/setup", &[("cookie", &cookie)], b"").header("location"), Some("/account"));
    // The file is of no use any more.
    let answer = toft.form("/login", "", &[("name", "admin"), ("password", &first)]);
    assert_eq!(answer.status, 401);
    toft.sign_in("admin", PASSWORD);
    // Root helps whoever forgot it; every session ends with it.
    toft.root_reading(&["user", "passwd", "admin", "--password-stdin"], "another good password\n").good();
    wait_until("the session has ended", || {
        (toft.ask("GET", "/", &[("cookie", &cookie)], b"").status == 303).then_some(())
    });
    toft.sign_in("admin", "another good password");
    assert!(toft.root(&["user", "rm", "admin", "-y"]).bad().contains("cannot be removed"));
    assert!(toft.root(&["user", "set", "admin", "--disable"]).bad().contains("last admin"));
}

#[test]
fn sessions_open_pages_and_the_api_until_they_are_ended() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "operator"], PASSWORD);
    toft.user("bob", &[], PASSWORD);
    // Somebody who is not known is sent to the sign-in, and comes back.
    let answer = toft.ask("GET", "/workloads?x=1", &[], b"");
    assert_eq!((answer.status, answer.header("location")), (303, Some("/login?next=%2Fworkloads%3Fx%3D1")));
    let page = toft.ask("GET", "/login?next=//evil.example/", &[], b"");
    assert!(page.status == 200 && !page.text().contains("evil"), "{}", page.text());
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let fields = [("name", "ann"), ("password", PASSWORD), ("next", "/workloads")];
    let answer = toft.form("/login", "", &fields);
    assert_eq!(answer.header("location"), Some("/workloads"));
    let ann = cookie_of(&answer);
    let bob = toft.sign_in("bob", PASSWORD);
    let with = |method: &str, path: &str, cookie: &str, more: &[(&str, &str)]| {
        toft.ask(method, path, &[&[("cookie", cookie)], more].concat(), b"")
    };
    let page = with("GET", "/account", &ann, &[]);
    assert!(page.text().contains("this one") && !page.text().contains("bob"), "{}", page.text());
    assert_eq!(with("GET", "/api/v1/me", &ann, &[]).good()["name"], "ann");
    assert_eq!(with("GET", "/users", &ann, &[]).status, 403);
    assert!(with("GET", "/users", &ann, &[]).text().contains("role"), "it is a page");
    toft.root(&["run", "-d", "-n", "web", "example.org/web:1"]).good();
    assert_eq!(with("POST", "/api/v1/workloads/web/stop", &ann, &[]).status, 200);
    assert_eq!(with("POST", "/workloads/web/start", &bob, &[]).status, 403);

    // A cookie is sent by the browser itself: whoever does not say where the request comes from is refused.
    let hostile = [
        &[("origin", "")][..],
        &[("origin", "http://evil.example")],
        &[("origin", "null")],
        &[("origin", "http://127.0.0.1:1")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
    ];
    for more in hostile {
        for path in ["/workloads/web/stop", "/api/v1/workloads/web/stop", "/logout", "/login"] {
            assert_eq!(with("POST", path, &ann, more).status, 403, "{path} {more:?}");
        }
        let upgrade = [&[("upgrade", "websocket"), ("connection", "upgrade")], more].concat();
        assert_eq!(with("GET", "/api/v1/instances/web-0/exec", &ann, &upgrade).status, 403);
    }

    // Altered cookies are nobody's.
    let (name, value) = ann.split_once('=').unwrap();
    let (id, secret) = value.split_once('.').unwrap();
    let other = bob.split_once('=').unwrap().1.split_once('.').unwrap().0.to_owned();
    for forged in [format!("{id}."), format!("{id}.{}", "0".repeat(64)), format!("{other}.{secret}"), "x".repeat(9_000)]
    {
        assert_eq!(with("GET", "/", &format!("{name}={forged}"), &[]).status, 303, "{forged}");
    }
    // One's own sessions can be ended, others' not; an admin ends any.
    assert_eq!(with("DELETE", &format!("/api/v1/sessions/{id}"), &bob, &[]).status, 404);
    assert_eq!(with("GET", "/api/v1/sessions", &bob, &[]).good()["items"].as_array().unwrap().len(), 1);
    toft.root(&["user", "sign-out", &other]).good();
    assert_eq!(with("GET", "/", &bob, &[]).status, 303);
    let answer = with("POST", "/logout", &ann, &[]);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/login")));
    assert!(answer.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(with("GET", "/api/v1/me", &ann, &[]).status, 401, "the session is gone, not only the cookie");
    // A script that asks for a part of a page is sent to the sign-in as a whole.
    let part =
        with("GET", "/workloads", &ann, &[("hx-request", "true"), ("hx-current-url", "http://127.0.0.1:1/logs?a=b")]);
    assert_eq!((part.status, part.header("hx-redirect")), (401, Some("/login?next=%2Flogs%3Fa%3Db")));
    // Whoever is disabled is out at once, with what they look at, and comes in no more.
    let ann = toft.sign_in("ann", PASSWORD);
    let mut live = toft.stream("/live/overview", &ann);
    toft.root(&["user", "set", "ann", "--disable"]).good();
    std::io::copy(&mut live, &mut std::io::sink()).expect("the stream ends");
    assert_eq!(with("GET", "/", &ann, &[]).status, 303);
    assert_eq!(toft.form("/login", "", &[("name", "ann"), ("password", PASSWORD)]).status, 401);
}

#[test]
fn what_was_typed_comes_back_after_the_session_has_ended() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "operator"], PASSWORD);
    let cookie = toft.sign_in("ann", PASSWORD);
    let id = cookie.split_once('=').unwrap().1.split_once('.').unwrap().0.to_owned();
    toft.root(&["user", "sign-out", &id]).good();
    let typed = [("image", "example.org/web:1"), ("name", "typed"), ("env", "A=1\r\nB=<b>\"x\""), ("replicas", "2")];
    let answer = toft.form("/run", &cookie, &typed);
    assert_eq!(answer.status, 401);
    let page = answer.text();
    assert!(page.contains("what you typed comes back"), "{page}");
    assert!(!page.contains("<b>\"x"), "it is escaped");
    let kept = between(&page, "name=\"kept\" value=\"", "\"");
    // A wrong password loses nothing.
    let wrong = toft.form("/login", "", &[("name", "ann"), ("password", "wrong password"), ("kept", &kept)]);
    assert_eq!((wrong.status, between(&wrong.text(), "name=\"kept\" value=\"", "\"")), (401, kept.clone()));
    let answer = toft.form("/login", "", &[("name", "ann"), ("password", PASSWORD), ("kept", &kept)]);
    assert_eq!(answer.status, 200);
    let (cookie, page) = (cookie_of(&answer), answer.text());
    assert!(page.contains("action=\"/run\"") && page.contains("value=\"typed\"") && page.contains("A=1"), "{page}");
    assert!(toft.root(&["ls", "-q"]).good().is_empty(), "nothing is done by itself");
    let answer = toft.form("/run", &cookie, &typed);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/workloads/typed")));
    // A page of another site cannot have a form of its own come back.
    let headers = [("origin", "http://evil.example"), ("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(toft.ask("POST", "/run", &headers, b"").status, 403);
    let kept = json!({"to": "//evil.example/x", "in_parts": false, "fields": [], "without_files": false}).to_string();
    let answer = toft.form("/login", "", &[("name", "ann"), ("password", PASSWORD), ("kept", &kept)]);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/")));
}

fn between(text: &str, before: &str, after: &str) -> String {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("`{before}` is missing in {text}")).1;
    let raw = rest.split_once(after).unwrap().0;
    raw.replace("&quot;", "\"")
        .replace("&#34;", "\"")
        .replace("&#39;", "'")
        .replace("&lt;", "<")
        .replace("&#60;", "<")
        .replace("&gt;", ">")
        .replace("&#62;", ">")
        .replace("&amp;", "&")
        .replace("&#38;", "&")
}

#[test]
fn whoever_guesses_waits_and_learns_nothing_of_names() {
    let toft = MadeUp::start(1);
    toft.user("ann", &[], PASSWORD);
    let good = toft.sign_in("ann", PASSWORD);
    let attempt = |name: &str, password: &str| toft.form("/login", "", &[("name", name), ("password", password)]);
    let said = |answer: &Answer| between(&answer.text(), "<div class=\"banner bad\" role=\"alert\">", "</div>");
    let mut told = BTreeSet::new();
    for name in ["ann", "nobody", "ann", "nobody", "ann", "nobody", "ann", "nobody", "ann", "nobody"] {
        let answer = attempt(name, "wrong password");
        assert_eq!(answer.status, 401, "{name}");
        told.insert(said(&answer));
    }
    assert_eq!(told.len(), 1, "who exists is told the same as who does not: {told:?}");
    for name in ["ann", "nobody"] {
        let answer = attempt(name, PASSWORD);
        assert_eq!(answer.status, 429, "{name}: the right one too");
        assert!(said(&answer).contains("seconds"), "{}", said(&answer));
    }
    let basic = |name: &str| {
        use base64::{Engine, prelude::BASE64_STANDARD};
        format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{PASSWORD}")))
    };
    let answer = toft.ask("GET", "/api/v1/me", &[("authorization", &basic("nobody"))], b"");
    assert_eq!(answer.refusal(429)["code"], "throttled", "there is one count for all ways");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(toft.ask("GET", "/", &[("cookie", &good)], b"").status, 200, "who is signed in goes on");
    assert_eq!(
        attempt("admin", &toft.password()).status,
        303,
        "the first password cannot be guessed, and is not kept out"
    );
    // Names that can be none, and the address at last.
    let mut last = 0;
    for i in 0..12 {
        last = attempt(&format!("../{i}\u{e4}"), &"x".repeat(3_000)).status;
        assert!(matches!(last, 401 | 429), "{last}");
    }
    assert_eq!(last, 429, "an address that tries many names is locked");
    let log = toft.log();
    assert!(!log.contains("wrong password") && !log.contains(PASSWORD) && !log.contains(&toft.password()), "{log}");
}

#[test]
fn a_grant_gives_a_workload_and_nothing_of_the_machine() {
    let toft = MadeUp::start(1);
    toft.root(&["run", "-d", "-n", "shop", "example.org/web:1"]).good();
    toft.root(&["run", "-d", "-n", "blog", "example.org/web:1"]).good();
    toft.root_reading(&["secret", "create", "key", "-"], "value").good();
    toft.root(&["user", "create", "ann", "--grant", "shop", "--no-password"]).good();
    let token = bearer(&toft.token("ann", &["--grant", "shop"]));
    let put = |name: &str, spec: &Value| {
        toft.ask("PUT", &format!("/api/v1/workloads/{name}"), &[("authorization", &token)], spec.to_string().as_bytes())
    };
    let spec = |more: Value| {
        let mut spec = json!({"name": "shop", "image": "example.org/web:2"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    put("shop", &spec(json!({"replicas": 2, "env": {"A": "b"}}))).good();
    for (field, more) in [
        ("secrets", json!({"secrets": [{"name": "key"}]})),
        ("mounts", json!({"mounts": [{"type": "volume", "name": "data", "target": "/data"}]})),
        ("process.privileged", json!({"process": {"privileged": true}})),
        ("process.cap_add", json!({"process": {"cap_add": ["SYS_ADMIN"]}})),
        ("network", json!({"network": "host"})),
        ("networks", json!({"networks": ["blog"]})),
    ] {
        assert_eq!(put("shop", &spec(more)).refusal(403)["field"], field);
    }
    put("shop", &spec(json!({"deployment": "blog"}))).refusal(403);
    put("blog", &json!({"name": "blog", "image": "example.org/web:2"})).refusal(403);
    let create = json!({"name": "more", "image": "example.org/web:2"});
    toft.ask("POST", "/api/v1/workloads", &[("authorization", &token)], create.to_string().as_bytes()).refusal(403);
    let create = json!({"name": "more", "image": "example.org/web:2", "deployment": "shop"});
    toft.ask("POST", "/api/v1/workloads", &[("authorization", &token)], create.to_string().as_bytes()).good();
    // What root gave the workload stays, and what it has given up does not come back by going back.
    let root = |spec: &Value| {
        let admin = bearer(&toft.token("boss", &["--role", "admin"]));
        toft.ask("PUT", "/api/v1/workloads/shop", &[("authorization", &admin)], spec.to_string().as_bytes()).good()
    };
    toft.root(&["user", "create", "boss", "--role", "admin", "--no-password"]).good();
    root(&spec(json!({"secrets": [{"name": "key"}]})));
    put("shop", &spec(json!({"secrets": [{"name": "key"}], "replicas": 1}))).good();
    root(&spec(json!({"replicas": 3})));
    let back =
        |body: &str| toft.ask("POST", "/api/v1/workloads/shop/rollback", &[("authorization", &token)], body.as_bytes());
    assert_eq!(back("{}").refusal(403)["field"], "secrets");
    assert_eq!(back("{\"to\": 1}").status, 200);
    let logs = toft.ask("GET", "/api/v1/workloads/blog/logs", &[("authorization", &token)], b"");
    assert_eq!(logs.status, 200, "a viewer reads");
}

#[test]
fn a_token_never_has_more_than_its_owner() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "operator"], PASSWORD);
    let token = toft.token("ann", &["--role", "operator", "--label", "ci"]);
    let auth = bearer(&token);
    let ask =
        |method: &str, path: &str, body: &str| toft.ask(method, path, &[("authorization", &auth)], body.as_bytes());
    assert_eq!(toft.get("/api/v1/me", &token)["role"], "operator");
    let refused = ask("POST", "/api/v1/api-tokens", r#"{"role":"admin"}"#).refusal(403);
    assert_eq!(refused["field"], "role");
    ask("POST", "/api/v1/api-tokens", r#"{"user":"admin"}"#).refusal(403);
    ask("POST", "/api/v1/api-tokens", r#"{"ttl":"9999d"}"#).refusal(400);
    ask("POST", "/api/v1/api-tokens", r#"{"scope":"all"}"#).refusal(400);
    let made = ask("POST", "/api/v1/api-tokens", r#"{"label":"smaller","ttl":"1h"}"#).good();
    assert!(made["token"].as_str().unwrap().starts_with("toft_"));
    let listed = ask("GET", "/api/v1/api-tokens", "").text();
    assert!(listed.contains("smaller") && !listed.contains(made["token"].as_str().unwrap()), "{listed}");
    assert!(toft.root(&["user", "token", "create", "--role", "admin", "--user", "ann"]).bad().contains("may more"));
    assert!(toft.root(&["user", "token", "create"]).bad().contains("--user"));
    // Who may less has tokens that may less.
    toft.root(&["user", "set", "ann", "--role", "viewer"]).good();
    assert_eq!(toft.get("/api/v1/me", &token)["role"], "viewer");
    toft.root(&["user", "set", "ann", "--disable"]).good();
    assert_eq!(ask("GET", "/api/v1/me", "").status, 401);
    toft.root(&["user", "set", "ann", "--enable"]).good();
    assert_eq!(ask("GET", "/api/v1/me", "").status, 200);
    // The client uses it, too, and password files of any user.
    let folder = tempfile::tempdir().unwrap();
    let (file, password) = (folder.path().join("token"), folder.path().join("password"));
    fs::write(&file, &token).unwrap();
    fs::write(&password, PASSWORD).unwrap();
    let (url, file, password) =
        (format!("http://127.0.0.1:{}", toft.port), file.to_str().unwrap(), password.to_str().unwrap());
    run(&["--connect", &url, "--api-token-file", file, "ls"], "").good();
    run(&["--connect", &url, "--password-file", password, "--as", "ann", "ls"], "").good();
    assert!(run(&["--connect", &url, "ls"], "").bad().contains("--api-token-file"));
    assert!(run(&["--connect", &url, "--api-token-file", file, "user", "ls"], "").bad().contains("role"));
    let used = |tokens: &str| serde_json::from_str::<Value>(tokens).unwrap()[1]["used_at"].is_string();
    wait_until("its last use is told", || used(&toft.root(&["user", "token", "list", "--json"]).good()).then_some(()));
    toft.root(&["user", "rm", "ann", "-y"]).good();
    assert_eq!(ask("GET", "/api/v1/me", "").status, 401);
}

#[test]
fn the_trail_tells_who_did_what_and_no_secret() {
    let toft = MadeUp::start(1);
    toft.user("ann", &["--role", "operator"], PASSWORD);
    let cookie = toft.sign_in("ann", PASSWORD);
    let created = json!({"name": "web", "image": "example.org/web:1", "env": {"TOKEN": "hidden-in-env"}}).to_string();
    let as_ann = |method: &str, path: &str, body: &str| toft.ask(method, path, &[("cookie", &cookie)], body.as_bytes());
    as_ann("POST", "/api/v1/workloads", &created).good();
    as_ann("PUT", "/api/v1/workloads/web", &created.replace("web:1", "web:2").replace("hidden", "concealed")).good();
    as_ann("DELETE", "/api/v1/images?name=example.org/none:1", "");
    toft.root_reading(&["secret", "create", "key", "-"], "hidden-value").good();
    let token = toft.token("ann", &["--role", "operator"]);
    toft.ask("POST", "/api/v1/workloads/web/stop", &[("authorization", &bearer(&token))], b"").good();
    toft.ask("POST", "/api/v1/images/pull", &[("authorization", &bearer(&token))], br#"{"image":"example.org/x:1"}"#);
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let text = toft.root(&[&["audit", "--json"], arguments].concat()).good();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = wait_until("the other node's change is here", || {
        let all = lines(&[]);
        all.iter().any(|line| line["subject"] == "secret/key").then_some(all)
    });
    let find =
        |action: &str| all.iter().find(|line| line["action"] == action).unwrap_or_else(|| panic!("{action}: {all:#?}"));
    let changed = all.iter().find(|line| line["action"] == "put_workload").unwrap();
    assert_eq!((changed["user"].as_str(), changed["from"].as_str()), (Some("ann"), Some("127.0.0.1")));
    assert_eq!(changed["before"]["image"], "example.org/web:1");
    assert_eq!(changed["after"]["image"], "example.org/web:2");
    assert!(changed["way"].as_str().unwrap().starts_with("session "));
    assert!(find("stop_workload")["way"].as_str().unwrap().starts_with("token "));
    assert_eq!(
        (find("put_secret")["user"].as_str(), find("put_secret")["way"].as_str()),
        (Some("root"), Some("socket"))
    );
    assert_eq!(find("sign_in")["user"], "ann");
    assert_eq!(find("pull_image")["subject"], "/api/v1/images/pull");
    assert_eq!(find("create_user")["after"]["role"], "operator");
    assert!(!all.iter().any(|line| line["action"] == "remove_image"), "what failed was not done");
    let text = format!("{all:?}");
    for secret in ["hidden", "concealed", PASSWORD, "argon2", &token, cookie.split_once('=').unwrap().1] {
        assert!(!text.contains(secret), "{secret}");
        assert!(!toft.log().contains(secret), "{secret}");
    }
    assert!(lines(&["--user", "root"]).iter().all(|line| line["user"] == "root"));
    assert_eq!(lines(&["--grep", "WEB:2"]).len(), 1);
    assert_eq!(lines(&["--since", "2099-01-01T00:00:00Z"]).len(), 0);
    assert!(toft.root(&["audit", "--since", "yesterday"]).bad().contains("no time"));
    let shown = toft.root(&["audit", "-n", "3"]).good();
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert_eq!(as_ann("GET", "/api/v1/audit", "").status, 403);
    // The page, for admins, with hostile texts in it.
    toft.root(&["user", "create", "boss", "--role", "admin", "--no-password"]).good();
    let boss = bearer(&toft.token("boss", &["--role", "admin", "--label", "<script>alert(1)</script>"]));
    let page = toft.ask("GET", "/audit?grep=%3Cscript%3E", &[("authorization", &boss)], b"");
    assert!(page.status == 200 && page.text().contains("create api token"), "{}", page.text());
    assert!(!page.text().contains("<script>alert"), "{}", page.text());
    let pages: Vec<_> =
        ["/users", "/users/ann", "/users/ann/remove", "/account", "/audit?user=ann&since=3h", "/audit?since=x"].into();
    for path in pages {
        let page = toft.ask("GET", path, &[("authorization", &boss)], b"");
        assert!(page.status == 200 && !page.text().contains("<script>alert"), "{path}: {}", page.status);
    }
}

fn first_password(toft: &Appliance) -> String {
    fs::read_to_string(toft.data.join("admin-password")).unwrap().trim().to_owned()
}

/// Sends the form of the sign-in page to an appliance, as `admin`.
fn sign_in_at(toft: &Appliance, password: &str) -> Answer {
    let port = port_of(toft);
    let body = format!("name=admin&password={}", password.replace(' ', "+"));
    let request = format!(
        "POST /login HTTP/1.1\r\nconnection: close\r\nhost: localhost:{port}\r\norigin: http://localhost:{port}\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = toft.machine.spawn(move || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        Answer::read(&mut stream).unwrap()
    });
    answer.join().unwrap()
}

/// The status of a question that shows something.
fn as_at(toft: &Appliance, header: &str, value: &str) -> u16 {
    let port = port_of(toft);
    let host = format!("localhost:{port}");
    toft.machine.http(port, "GET", "/api/v1/me", &[("host", &host), (header, value)]).unwrap().status
}

#[test]
fn what_one_node_lets_in_every_node_does_and_what_ends_at_one_ends_at_all() {
    let machine = crate::harness::machine::Machine::new();
    let [mut a, mut b] = ["a", "b"].map(|name| lone(&machine, name, "witness"));
    a.up();
    b.up();
    join(&b, &ticket(&a, "--role witness")).good();
    wait_until("it is a member that answers", || (b.toft(&["cluster", "status"]).code == 0).then_some(()));
    let first = first_password(&b);
    wait_until("it can be signed in at", || (sign_in_at(&b, &first).status == 303).then_some(()));
    // One set-up ends the first passwords of all nodes.
    a.reading(&["user", "passwd", "admin", "--password-stdin"], PASSWORD).good();
    wait_until("the other node knows", || (sign_in_at(&b, &first).status == 401).then_some(()));
    assert_eq!(sign_in_at(&a, &first_password(&a)).status, 401);

    let cookie = cookie_of(&sign_in_at(&a, PASSWORD));
    let value = cookie.split_once('=').unwrap().1.to_owned();
    let at_b = format!("toft-{}={value}", port_of(&b));
    assert_eq!(as_at(&b, "cookie", &at_b), 200, "the other node knows the session at once");
    b.good(&format!("user sign-out {}", value.split_once('.').unwrap().0));
    wait_until("it ends here too", || (as_at(&a, "cookie", &cookie) == 401).then_some(()));

    let token = bearer(b.good("user token create --user admin --role viewer").trim());
    assert_eq!(as_at(&a, "authorization", &token), 200, "the other node knows the token at once");
    a.good(&format!("user token revoke {}", &token["Bearer toft_".len()..][..10]));
    wait_until("it is refused there too", || (as_at(&b, "authorization", &token) == 401).then_some(()));

    let signed = bearer(b.good("user token sign --user admin").trim());
    wait_until("the other node knows who signed it", || (as_at(&a, "authorization", &signed) == 200).then_some(()));
    a.good("user token rotate-keys");
    wait_until("no node lets it in", || (as_at(&b, "authorization", &signed) == 401).then_some(()));
    assert_eq!(as_at(&a, "authorization", &signed), 401);
}

#[test]
fn a_session_that_is_not_used_ends() {
    let machine = crate::harness::machine::Machine::new();
    let mut toft = Appliance::prepare(&machine, "d");
    fs::write(toft.data.join("toft.toml"), "[access]\nsession_idle = '3s'\nsession_max = '8s'\n").unwrap();
    toft.up();
    let sign_in = || cookie_of(&sign_in_at(&toft, &first_password(&toft)));
    let opens = |cookie: &str| as_at(&toft, "cookie", cookie) == 200;
    let (used, unused) = (sign_in(), sign_in());
    let begun = std::time::Instant::now();
    let mut lasted = Duration::ZERO;
    while opens(&used) {
        lasted = begun.elapsed();
        std::thread::sleep(Duration::from_millis(300));
        assert!(lasted < Duration::from_secs(20), "it ends at last, however much it is used");
    }
    assert!(lasted > Duration::from_secs(5), "it goes on while it is used: {lasted:?}");
    assert!(!opens(&unused));
}

/// Every `/package.Service/Method` of the files that say what machines tell each other.
fn methods() -> Vec<String> {
    let mut methods = Vec::new();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "proto") {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        let (mut package, mut service) = ("", "");
        for line in text.lines().map(str::trim) {
            let word = |rest: &'static str| {
                line.strip_prefix(rest).map(|rest| rest.split(['(', ' ', ';', '{']).next().unwrap())
            };
            if let Some(name) = word("package ") {
                package = name;
            } else if let Some(name) = word("service ") {
                service = name;
            } else if let Some(name) = word("rpc ") {
                methods.push(format!("/{package}.{service}/{name}"));
            }
        }
    }
    methods.sort();
    assert!(methods.len() > 15, "{methods:?}");
    methods
}

/// Calls a method with an empty message and without a certificate; gives the code of its answer, or nothing when the connection is closed.
async fn call(address: &str, authority: &str, protocol: &str, method: &str) -> Option<u16> {
    use http_body_util::{BodyExt, Full};
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("member.toft.internal").unwrap();
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.unwrap();
    let (executor, io) = (hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(stream));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.ok()?;
    tokio::spawn(connection);
    let request = hyper::Request::post(format!("https://member.toft.internal{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("toft-protocol", "1")
        .body(Full::new(bytes::Bytes::from_static(&[0; 5])))
        .unwrap();
    let answer = sender.send_request(request).await.ok()?;
    let status = |headers: &hyper::HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse::<u16>().ok();
    if let Some(code) = status(answer.headers()) {
        return Some(code);
    }
    let trailers = answer.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default();
    Some(status(&trailers).unwrap_or_else(|| panic!("{method} has no status")))
}

#[test]
fn members_answer_strangers_at_the_door_and_nowhere_else() {
    const UNIMPLEMENTED: u16 = 12;
    const UNAUTHENTICATED: u16 = 16;
    let toft = MadeUp::start(1);
    let authority = fs::read_to_string(toft.data.join("node-1/cluster/authority.pem")).unwrap();
    let status: Value = serde_json::from_str(&toft.root(&["cluster", "status", "--json"]).good()).unwrap();
    let address = status["members"][0]["address"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for method in methods() {
        let is_door = method.starts_with("/toft.peer.v1.Door/");
        let is_peer = method.starts_with("/toft.peer.v1.Peer/");
        for protocol in ["h2", "toft-services"] {
            let called = async {
                tokio::time::timeout(Duration::from_secs(20), call(&address, &authority, protocol, &method)).await
            };
            let code = runtime.block_on(called).unwrap_or_else(|_| panic!("{method} over {protocol} is not answered"));
            let want = match (protocol, is_door, is_peer) {
                ("h2", true, _) => {
                    let refused = code.is_some_and(|code| !matches!(code, 0 | UNIMPLEMENTED | UNAUTHENTICATED));
                    assert!(refused, "{method}: {code:?}: a stranger is read, and refused");
                    continue;
                }
                ("h2", _, true) => Some(UNAUTHENTICATED),
                ("h2", ..) => Some(UNIMPLEMENTED),
                // Who shows no certificate there is cut off.
                _ => None,
            };
            assert_eq!(code, want, "{method} over {protocol}");
        }
    }
}

/// Asks over TLS, trusting the authority alone.
fn over_tls(
    toft: &Appliance,
    (method, path): (&'static str, &'static str),
    headers: Vec<(&'static str, String)>,
    body: String,
) -> Answer {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    let authority = fs::read(toft.data.join("cluster/authority.pem")).unwrap();
    let port = port_of(toft);
    let asked = toft.machine.spawn(move || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&authority).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = std::sync::Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let client = rustls::ClientConnection::new(config, name).unwrap();
        let mut stream = rustls::StreamOwned::new(client, std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        std::io::Write::write_all(&mut stream, format!("{request}\r\n{body}").as_bytes()).unwrap();
        Answer::read(&mut stream).unwrap()
    });
    asked.join().unwrap()
}

fn port_of(toft: &Appliance) -> u16 {
    let url = fs::read_to_string(toft.data.join("toft.url")).unwrap();
    url.trim().trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn tls_is_spoken_with_a_certificate_of_the_cluster_and_plain_http_is_sent_there() {
    let machine = crate::harness::machine::Machine::new();
    let mut toft = Appliance::prepare(&machine, "d");
    toft.set_variables(&[("TOFT_PLAIN_HTTP", "false")]);
    fs::write(
        toft.data.join("toft.toml"),
        "[node]\nname = 'attic'\n[api]\nbind = '0.0.0.0:7443'\nnames = ['box.example.org']\nhsts = '1d'\n",
    )
    .unwrap();
    toft.up();
    let url = fs::read_to_string(toft.data.join("toft.url")).unwrap();
    assert_eq!(url, "https://127.0.0.1:7443/\n");
    let host = || ("host", "127.0.0.1:7443".to_owned());
    let origin = || ("origin", "https://127.0.0.1:7443".to_owned());
    let ready = over_tls(&toft, ("GET", "/ready"), vec![host()], String::new());
    assert_eq!(ready.status, 200);
    let page = over_tls(&toft, ("GET", "/login"), vec![host()], String::new());
    for (name, words) in [
        ("content-security-policy", "default-src 'none'"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cache-control", "no-store"),
        ("strict-transport-security", "max-age=86400"),
    ] {
        assert!(page.header(name).unwrap().contains(words), "{name}");
    }
    let password = fs::read_to_string(toft.data.join("admin-password")).unwrap();
    let form = ("content-type", "application/x-www-form-urlencoded".to_owned());
    let fields = format!("name=admin&password={}", password.trim());
    let signed_in = over_tls(&toft, ("POST", "/login"), vec![host(), origin(), form.clone()], fields.clone());
    assert_eq!(signed_in.status, 303);
    let cookie = signed_in.header("set-cookie").unwrap().to_owned();
    assert!(
        cookie.starts_with("__Host-toft=") && cookie.contains("; Secure") && !cookie.contains("Domain"),
        "{cookie}"
    );
    let cookie = ("cookie", cookie_of(&signed_in));
    assert_eq!(
        over_tls(&toft, ("GET", "/api/v1/me"), vec![host(), cookie.clone()], String::new()).good()["name"],
        "admin"
    );
    let plain_page = ("origin", "http://127.0.0.1:7443".to_owned());
    assert_eq!(over_tls(&toft, ("POST", "/logout"), vec![host(), plain_page, cookie], String::new()).status, 403);

    // Plain HTTP is told where to go, and nothing that it carries is looked at.
    let plain = |method: &str| machine.http(7443, method, "/workloads?x=1", &[("host", "box.lan:7443")]).unwrap();
    let redirect = plain("GET");
    assert_eq!((redirect.status, redirect.header("location")), (308, Some("https://box.lan:7443/workloads?x=1")));
    assert_eq!(plain("POST").status, 400);
    let hostile = machine.http(7443, "GET", "/x", &[("host", "evil\"><b>")]).unwrap();
    assert_eq!((hostile.status, hostile.header("location")), (400, None));

    // The client trusts a file, a digest, or what the system trusts.
    let shown: Value = serde_json::from_str(&toft.good("ca show --json")).unwrap();
    let sha256 = shown["sha256"].as_str().unwrap().to_owned();
    let ca = toft.data.join("ca.pem");
    fs::write(&ca, shown["pem"].as_str().unwrap()).unwrap();
    let (ca, password) = (ca.display().to_string(), toft.data.join("admin-password").display().to_string());
    let client = |url: &str, more: &[&str]| {
        let mut command = machine.command(env!("CARGO_BIN_EXE_toft"));
        command.args(["--connect", url, "--password-file", &password]).args(more).arg("ls").output().unwrap()
    };
    let (url, other) = ("https://127.0.0.1:7443", "ab".repeat(32));
    for trusted in [["--ca-file", ca.as_str()], ["--ca-sha256", sha256.as_str()]] {
        let output = client(url, &trusted);
        assert!(output.status.success(), "{output:?}");
    }
    for (url, more, words) in [
        (url, vec!["--ca-sha256", other.as_str()], "another authority"),
        (url, vec![], "toft ca show"),
        ("https://127.0.0.2:7443", vec!["--ca-file", ca.as_str()], "not valid for name"),
        ("https://127.0.0.2:7443", vec!["--ca-sha256", sha256.as_str()], "not valid for name"),
    ] {
        let output = client(url, &more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(words), "{words}: {said}");
    }
    let page = over_tls(&toft, ("GET", "/ca"), vec![host()], String::new());
    let told = page.text().replace(':', "").to_lowercase();
    assert!(page.status == 200 && told.contains(&sha256), "{}", page.text());
    let der = over_tls(&toft, ("GET", "/ca.crt"), vec![host()], String::new());
    assert_eq!(
        (der.header("content-type"), hex::encode(sha2::Sha256::digest(&der.body))),
        (Some("application/x-x509-ca-cert"), sha256)
    );

    // Who speaks nothing, or nonsense, keeps nobody out.
    let visitors = machine.spawn(|| {
        let open = |bytes: &[u8]| {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", 7443)).unwrap();
            std::io::Write::write_all(&mut stream, bytes).unwrap();
            stream
        };
        let mut open: Vec<_> =
            [&b""[..], b"\x16", b"\x16\x03\x01\xff\xff", b"\x16nonsense", b"\0\0", b"GET"].map(open).into();
        open.extend((0..200).map(|_| std::net::TcpStream::connect(("127.0.0.1", 7443)).unwrap()));
        open
    });
    let _visitors = visitors.join().unwrap();
    assert_eq!(over_tls(&toft, ("GET", "/health"), vec![host()], String::new()).status, 200);
    assert_eq!(toft.stop(), 0, "it does not wait for them");
    // Without TLS only loopback is bound.
    toft.set_variables(&[("TOFT_PLAIN_HTTP", "true")]);
    let refused = toft.up_refuses();
    assert!(refused.code != 0 && refused.err.contains("plain_http"), "{refused:?}");
}
