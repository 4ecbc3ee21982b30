//! Who may come in, and what is kept from others.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use crate::harness::{appliance::Appliance, http::Answer};

fn tcp_port(toft: &Appliance) -> u16 {
    let url = fs::read_to_string(toft.data.join("toft.url")).unwrap();
    url.trim().trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap()
}

fn password(toft: &Appliance) -> String {
    fs::read_to_string(toft.data.join("admin-password")).unwrap().trim().to_owned()
}

/// `user:password` as HTTP Basic wants it (RFC 4648).
fn basic(credentials: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("Basic ");
    for chunk in credentials.as_bytes().chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = char::from(LETTERS[(word >> (18 - 6 * i) & 63) as usize]);
            text.push(if i > chunk.len() { '=' } else { letter });
        }
    }
    text
}

fn ask(toft: &Appliance, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    toft.machine.http(tcp_port(toft), method, path, headers).unwrap()
}

#[test]
fn through_tcp_only_the_password_opens() {
    let toft = Appliance::start();
    let right = basic(&format!("admin:{}", password(&toft)));
    assert_eq!(ask(&toft, "GET", "/api/v1/workloads", &[("authorization", &right)]).status, 200);
    let wrong = [
        basic("admin:wrong"),
        basic("admin:"),
        basic(&format!("root:{}", password(&toft))),
        basic(&format!("admin:{} ", password(&toft))),
        format!("Bearer {}", password(&toft)),
        "Basic ***".to_owned(),
        format!("Basic {}", "A".repeat(10_000)),
    ];
    for path in ["/api/v1/workloads", "/v1/workloads", "/metrics", "/api/v1/openapi.json", "/api/v1/none"] {
        let none = ask(&toft, "GET", path, &[]);
        assert_eq!(none.status, 401, "{path}");
        // Browsers that are asked for Basic send a password along from everywhere.
        assert!(none.header("www-authenticate").unwrap().starts_with("Bearer"), "{path}");
        for wrong in &wrong {
            let status = ask(&toft, "GET", path, &[("authorization", wrong)]).status;
            assert!(matches!(status, 401 | 429), "{path} {wrong}: {status}");
        }
    }
    let page = ask(&toft, "GET", "/", &[]);
    assert_eq!((page.status, page.header("location")), (303, Some("/login")));
    assert_eq!(ask(&toft, "GET", "/api/v1/workloads", &[("authorization", &right)]).status, 200, "it is not kept out");
    ask(&toft, "GET", "/api/v1/workloads", &[]).refusal(401);
    for path in ["/health", "/ready"] {
        assert_eq!(ask(&toft, "GET", path, &[]).status, 200, "{path} tells nothing worth hiding");
    }
    let url = format!("http://127.0.0.1:{}", tcp_port(&toft));
    let file = toft.data.join("admin-password");
    let client = |arguments: &[&str]| {
        let output = toft.up_command().get_program().to_owned();
        toft.machine.command(output.to_str().unwrap()).args(["--connect", &url]).args(arguments).output().unwrap()
    };
    assert!(client(&["--password-file", file.to_str().unwrap(), "ls"]).status.success());
    let refused = client(&["ls"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--password-file"), "{refused:?}");
}

#[test]
fn pages_of_other_sites_cannot_act_for_a_browser_that_knows_the_password() {
    let toft = Appliance::start();
    toft.good("run -n web toft/demo");
    let right = basic(&format!("admin:{}", password(&toft)));
    let post = |headers: &[(&str, &str)]| {
        let headers: Vec<_> = [("authorization", right.as_str())].into_iter().chain(headers.iter().copied()).collect();
        ask(&toft, "POST", "/api/v1/workloads/web/stop", &headers)
    };
    for hostile in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example")],
        &[("origin", "http://127.0.0.1:1")],
        &[("origin", "null"), ("sec-fetch-site", "cross-site")],
    ] {
        let error = post(hostile).refusal(403);
        assert_eq!(error["code"], "forbidden", "{hostile:?}");
    }
    assert_eq!(toft.instance("web")["state"], "running");
    for host in ["evil.example", "127.0.0.1.evil.example", "evil.example:7443", "192.0.2.1", "[::2]", ""] {
        for method in ["GET", "POST"] {
            let headers = [("authorization", right.as_str()), ("host", host)];
            let answer = ask(&toft, method, "/api/v1/workloads/web/stop", &headers);
            assert!([403, 400].contains(&answer.status), "{method} {host}: {}", answer.status);
        }
    }
    assert_eq!(toft.instance("web")["state"], "running");
    let own = format!("127.0.0.1:{}", tcp_port(&toft));
    let origin = format!("http://{own}");
    let friendly = [("host", own.as_str()), ("origin", origin.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(post(&friendly).status, 200);
}

#[test]
fn files_are_for_root_alone() {
    let toft = Appliance::start();
    toft.good("run -n web toft/demo");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for (name, want) in [
        ("", 0o700),
        ("toft.sock", 0o600),
        ("admin-password", 0o600),
        ("node.json", 0o600),
        ("logs", 0o700),
        ("instances", 0o700),
        ("programs", 0o700),
        ("containerd", 0o700),
    ] {
        assert_eq!(mode(&toft.data.join(name)), want, "{name}");
    }
    let opened = fs::set_permissions(&toft.data, fs::Permissions::from_mode(0o755));
    opened.unwrap();
    let mut toft = toft;
    assert_eq!(toft.stop(), 0);
    toft.up();
    assert_eq!(mode(&toft.data), 0o700, "it is closed again");
}

#[test]
fn secrets_are_told_nowhere() {
    let toft = Appliance::start();
    toft.good("run -n web -e TOKEN=verysecretvalue toft/demo");
    ask(&toft, "GET", "/api/v1/workloads", &[("authorization", &basic(&format!("admin:{}", password(&toft))))]);
    ask(&toft, "GET", "/api/v1/workloads", &[("authorization", &basic("admin:wrongpassword"))]);
    let log = toft.log();
    assert!(!log.is_empty());
    for secret in [password(&toft).as_str(), "wrongpassword", "verysecretvalue"] {
        assert!(!log.contains(secret), "{secret} in {log}");
        assert!(!toft.get("/metrics").text().contains(secret));
        assert!(!toft.get("/api/v1/events").text().contains(secret));
    }
    let command = fs::read_to_string(format!("/proc/{}/cmdline", toft.pid())).unwrap();
    assert!(!command.contains(&password(&toft)));
}

#[test]
fn a_password_file_that_is_too_short_is_refused_and_a_missing_one_made_anew() {
    let mut toft = Appliance::start();
    let first = password(&toft);
    assert!(first.len() >= 20, "{first}");
    assert_eq!(toft.stop(), 0);
    toft.up();
    assert_eq!(password(&toft), first, "it is kept");
    assert_eq!(toft.stop(), 0);
    fs::write(toft.data.join("admin-password"), "short").unwrap();
    let error = toft.up_refuses().bad(1);
    assert!(error.contains("admin-password") && !error.contains("short\n"), "{error}");
    fs::remove_file(toft.data.join("admin-password")).unwrap();
    toft.up();
    assert_ne!(password(&toft), first);
}

#[test]
fn only_loopback_listens_and_slow_visitors_do_no_harm() {
    let toft = Appliance::start();
    let port = tcp_port(&toft);
    let listening = toft.machine.spawn(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap()).join().unwrap();
    let listeners: Vec<&str> = listening
        .lines()
        .skip(1)
        .filter(|line| line.split_whitespace().nth(3) == Some("0A"))
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    // Besides loopback, names for containers: on the bridge's own address, where the packet rules let nobody else in.
    let (names, others): (Vec<&str>, Vec<&str>) = listeners.iter().partition(|address| address.ends_with(":2745"));
    assert_eq!(others, [format!("0100007F:{port:04X}")]);
    assert!(names.len() == 1 && names[0].starts_with("01") && names[0][..8].ends_with("D20A"), "{names:?}");
    let visitors = toft.machine.spawn(move || {
        let mut open = Vec::new();
        for part in ["", "GET", "GET / HTTP/1.1\r\nHost: localhost\r\n", "\0\0\0\0", "GET / HTTP/9.9\r\n\r\n"] {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(part.as_bytes()).unwrap();
            open.push(stream);
        }
        open
    });
    let mut visitors = visitors.join().unwrap();
    assert_eq!(ask(&toft, "GET", "/health", &[]).status, 200);
    // A version nobody knows is answered or cut, at once.
    let mut answer = Vec::new();
    drop(visitors.pop().unwrap().read_to_end(&mut answer));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1"), "{answer:?}");
}
