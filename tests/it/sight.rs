//! Nobody is shown a button that is refused: every form and link of every page, as everybody.

use std::collections::BTreeSet;

use crate::harness::{machine::wait_until, made_up::MadeUp};

const PAGES: [&str; 23] = [
    "/",
    "/workloads",
    "/workloads/granted",
    "/workloads/other",
    "/workloads/granted/history",
    "/workloads/other/history",
    "/workloads/granted/logs",
    "/events",
    "/nodes",
    "/nodes/node-1",
    "/gpus",
    "/gpus/node-1/0",
    "/mesh",
    "/images",
    "/volumes",
    "/secrets",
    "/logs",
    "/find",
    "/account",
    "/account/second-factor",
    "/account/passkeys",
    "/run",
    "/settings",
];

/// What a page offers: forms that send something, and links.
fn offers(page: &str) -> BTreeSet<(&'static str, String)> {
    let mut found = BTreeSet::new();
    let value = |tag: &str, key: &str| {
        let rest = tag.split_once(&format!(" {key}=\""))?.1;
        Some(rest.split_once('"')?.0.replace("&#38;", "&").replace("&amp;", "&"))
    };
    for tag in page.split('<').filter_map(|rest| rest.split_once('>').map(|(tag, _)| tag)) {
        if tag.starts_with("form ") && value(tag, "method").as_deref() == Some("post") {
            found.insert(("POST", value(tag, "action").unwrap()));
        } else if tag.starts_with("a ") {
            found.extend(value(tag, "href").filter(|to| to.starts_with('/')).map(|to| ("GET", to)));
        }
    }
    found
}

#[test]
fn nobody_is_shown_a_button_that_is_refused() {
    let toft = MadeUp::start(1);
    for name in ["granted", "other"] {
        for image in ["example.org/web:1", "example.org/web:2"] {
            let spec = format!("{{\"name\":\"{name}\",\"image\":\"{image}\"}}");
            let stream = std::os::unix::net::UnixStream::connect(toft.data.join("node-1/toft.sock")).unwrap();
            let path = format!("/api/v1/workloads/{name}");
            crate::harness::http::exchange(stream, "PUT", &path, &[], spec.as_bytes()).unwrap().good();
        }
    }
    toft.root_reading(&["secret", "create", "key", "-"], "value").good();
    toft.root(&["volume", "create", "data"]).good();
    let mut seen = std::collections::BTreeMap::new();
    for (name, more) in [
        ("viewer", &["--role", "viewer"][..]),
        ("grantee", &["--grant", "granted"]),
        ("operator", &["--role", "operator"]),
        ("boss", &["--role", "admin"]),
    ] {
        toft.root(&[&["user", "create", name, "--no-password"], more].concat()).good();
        let bearer = format!("Bearer {}", toft.token(name, more));
        let get = |path: &str| toft.ask("GET", path, &[("authorization", &bearer)], b"");
        let mut offered = BTreeSet::new();
        for path in PAGES {
            let page = get(path);
            // What is shown in the place of a page that is not theirs offers nothing else either.
            assert!(matches!(page.status, 200 | 403), "{name}: {path}: {}", page.status);
            offered.extend(offers(&page.text()));
        }
        // What is live shows the same.
        for path in [
            "/live/workloads",
            "/live/workloads/granted",
            "/live/workloads/other",
            "/live/nodes/node-1",
            "/live/volumes",
        ] {
            let fragment = live(&toft, path, &bearer);
            offered.extend(offers(&fragment));
        }
        seen.insert(name, (bearer, offered));
    }
    // Who is not signed in is shown the way in.
    let open: Vec<String> = offers(&toft.ask("GET", "/ca", &[], b"").text()).into_iter().map(|(_, to)| to).collect();
    assert_eq!(open, ["/", "/ca.crt", "/ca.pem"]);
    let sees = |name: &str, what: &str| seen[name].1.iter().any(|(_, path)| path == what);
    for (what, who) in [
        ("/run", [false, true, true, true]),
        ("/workloads/granted/stop", [false, true, true, true]),
        ("/workloads/other/stop", [false, false, true, true]),
        ("/workloads/granted/edit", [false, true, true, true]),
        ("/workloads/granted/rollback", [false, true, true, true]),
        ("/workloads/other/rollback", [false, false, true, true]),
        ("/workloads/other/remove", [false, false, true, true]),
        ("/nodes/node-1/drain", [false, false, true, true]),
        ("/gpus/node-1/0/cordon", [false, false, true, true]),
        ("/secrets/new", [false, false, true, true]),
        ("/secrets/key/update", [false, false, true, true]),
        ("/volumes/data/remove", [false, false, true, true]),
        ("/images", [true; 4]),
        ("/settings", [false, false, false, true]),
        ("/users", [false, false, false, true]),
        ("/audit", [false, false, false, true]),
    ] {
        assert_eq!(["viewer", "grantee", "operator", "boss"].map(|name| sees(name, what)), who, "{what}");
    }
    assert!(!seen["viewer"].1.contains(&("POST", "/images".to_owned())));
    // Everything that is offered is let through. What is one's own is, whoever one is, and would end the tokens that ask.
    let mut refused = Vec::new();
    for (name, (bearer, offered)) in &seen {
        for (method, path) in offered.iter().filter(|(_, path)| path != "/logout" && !path.starts_with("/account/")) {
            let status = toft.status(method, path, &[("authorization", bearer)]);
            if status == 403 || status == 401 {
                refused.push(format!("{name}: {method} {path}: {status}"));
            }
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}

/// The first fragment of a stream.
fn live(toft: &MadeUp, path: &str, bearer: &str) -> String {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", toft.port)).unwrap();
    stream.set_read_timeout(Some(crate::harness::http::PATIENCE)).unwrap();
    let host = format!("host: 127.0.0.1:{}", toft.port);
    write!(stream, "GET {path} HTTP/1.1\r\n{host}\r\nconnection: close\r\nauthorization: {bearer}\r\n\r\n").unwrap();
    let mut text = String::new();
    wait_until("the fragment has come", || {
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap() > 0 {
            let ends = line.trim().is_empty() && text.contains("event: fragment") && text.contains("data:");
            text.push_str(&line);
            line.clear();
            if ends {
                return Some(());
            }
        }
        None
    });
    text
}
