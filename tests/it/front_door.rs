//! The port that everybody reaches, under those who mean no good: requests within requests, senders and readers that are slow
//! on purpose, what is too large, and more connections than there are places.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};
use tokio_rustls::TlsConnector;

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
    made_up::MadeUp,
    slowness,
};

/// Sends bytes as they are, and reads until the other side ends it or nothing comes for a while.
fn said(port: u16, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    // Who is refused early may be cut off while sending.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut part = [0; 16 * 1024];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return (String::from_utf8_lossy(&answer).into_owned(), true),
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return (String::from_utf8_lossy(&answer).into_owned(), true);
            }
            Err(_) => return (String::from_utf8_lossy(&answer).into_owned(), false),
        }
    }
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.match_indices("HTTP/1.1 ").filter_map(|(at, _)| answer.get(at + 9..at + 12)).collect()
}

#[test]
fn no_request_hides_within_another() {
    let toft = MadeUp::start(1);
    toft.user("boss", &["--role", "admin"], "correct horse battery");
    let token = toft.token("boss", &["--role", "admin"]);
    let hidden = format!("GET /api/v1/hidden HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\r\n");
    let post = |headers: &str, body: &str| {
        format!(
            "POST /api/v1/workloads HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\n{headers}\r\n\r\n{body}{hidden}"
        )
    };
    // One after the other is two, so that two would be seen.
    let (answer, _) = said(toft.port, post("content-length: 2", "{}").as_bytes());
    assert_eq!(statuses(&answer), ["400", "404"], "{answer}");
    let (answer, _) = said(toft.port, post("transfer-encoding: chunked", "2\r\n{}\r\n0\r\n\r\n").as_bytes());
    assert_eq!(statuses(&answer), ["400", "404"], "{answer}");

    let chunked = "transfer-encoding: chunked";
    let empty = "0\r\n\r\n";
    for (headers, body) in [
        ("content-length: 5\r\ntransfer-encoding: chunked", empty),
        ("transfer-encoding: chunked\r\ncontent-length: 5", empty),
        ("content-length: 5\r\ncontent-length: 6", "12345"),
        ("content-length: 5\r\ncontent-length: 50", "12345"),
        ("content-length: 5, 6", "12345"),
        ("content-length: +5", "12345"),
        ("content-length: 0x5", "12345"),
        ("content-length: -1", ""),
        ("content-length: 99999999999999999999", ""),
        ("content-length : 5", "12345"),
        ("content-length:\r\n 5", "12345"),
        ("transfer-encoding: xchunked", empty),
        ("transfer-encoding: identity", empty),
        ("transfer-encoding: chunked, identity", empty),
        ("transfer-encoding: chunked\r\ntransfer-encoding: cow", empty),
        ("transfer-encoding: \x0bchunked", empty),
        ("transfer-encoding : chunked", empty),
        ("transfer-encoding:\r\n chunked", empty),
        ("x: a\r\n b: c\r\ncontent-length: 5", "12345"),
        ("x: a\0b\r\ncontent-length: 5", "12345"),
        ("x: a\rb\r\ncontent-length: 5", "12345"),
        ("no colon\r\ncontent-length: 5", "12345"),
        (chunked, "zz\r\n\r\n"),
        (chunked, "-1\r\n\r\n"),
        (chunked, "0x2\r\n{}\r\n0\r\n\r\n"),
        (chunked, "+2\r\n{}\r\n0\r\n\r\n"),
        (chunked, "fffffffffffffffff\r\n"),
        (chunked, "2\r\n{}0\r\n\r\n"),
        (chunked, "2\n{}\n0\n\n"),
        (chunked, "2;a\nb\r\n{}\r\n0\r\n\r\n"),
        (chunked, "\r\n2\r\n{}\r\n0\r\n\r\n"),
    ] {
        let (answer, ended) = said(toft.port, post(headers, body).as_bytes());
        let statuses = statuses(&answer);
        assert!(ended, "{headers:?} {body:?}: the connection goes on: {answer}");
        assert!(statuses.len() <= 1 && !statuses.contains(&"404"), "{headers:?} {body:?}: {answer}");
        assert!(statuses.iter().all(|status| status.starts_with('4')), "{headers:?} {body:?}: {answer}");
    }
    for line in [
        "GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\tfolded: x\r\n\r\n",
        "GET /health HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET  /health  HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        "GET /health HTTP/9.9\r\nhost: 127.0.0.1\r\n\r\n",
        "GET /he\0alth HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        "G\u{e9}T /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let (answer, ended) = said(toft.port, format!("{line}{hidden}").as_bytes());
        assert!(ended && statuses(&answer).iter().all(|status| status.starts_with('4')), "{line:?}: {answer}");
        assert!(!answer.contains("HTTP/1.1 404"), "{line:?}: {answer}");
    }
    assert_eq!(toft.ask("GET", "/health", &[], b"").status, 200);
}

#[test]
fn what_is_too_large_is_refused_before_it_is_there() {
    let toft = MadeUp::start(1);
    toft.user("boss", &["--role", "admin"], "correct horse battery");
    let token = toft.token("boss", &["--role", "admin"]);
    let get = |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}\r\n");
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    let before = rss_mb(toft.pid());
    for (bytes, wanted) in [
        (get("/health", &format!("x: {}\r\n", "y".repeat(20_000))), "200"),
        (get("/health", &format!("x: {}\r\n", "y".repeat(40_000))), "431"),
        (get("/health", &many), "431"),
        (get(&format!("/health?{}", "y".repeat(40_000)), ""), "4"),
        (format!("{}: x", "y".repeat(1 << 20)), "4"),
        (get("/health", &format!("{}: x\r\n", "y".repeat(1 << 20))), "431"),
    ] {
        let (answer, _) = said(toft.port, bytes.as_bytes());
        let first: String = bytes.chars().take(60).collect();
        assert!(statuses(&answer).iter().all(|status| status.starts_with(wanted)), "{first}: {answer}");
        assert!(!statuses(&answer).is_empty() || bytes.len() > 30_000, "{first}: nothing was said");
    }
    let post = |path: &str, headers: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n{headers}\r\n\r\n"
        )
    };
    // Told, sent, and sent in an endless line of chunks.
    let (answer, ended) = said(toft.port, post("/api/v1/workloads", "content-length: 999999999999").as_bytes());
    assert!(statuses(&answer) == ["413"] && ended, "{answer}");
    let (answer, _) =
        said(toft.port, post("/api/v1/workloads", "content-length: 99999999\r\nexpect: 100-continue").as_bytes());
    assert_eq!(statuses(&answer), ["413"], "nobody is asked to send it: {answer}");
    for begin in ["10000\r\n", "1;x="] {
        let mut stream = TcpStream::connect(("127.0.0.1", toft.port)).unwrap();
        stream.write_all(post("/api/v1/workloads", "transfer-encoding: chunked").as_bytes()).unwrap();
        let chunk = [begin.as_bytes(), &b" ".repeat(0x10000), b"\r\n"].concat();
        let sent = (0..400).take_while(|_| stream.write_all(&chunk).is_ok()).count();
        assert!(sent < 400, "26 MB of a body that may have 1 MB were taken");
    }
    let grown = rss_mb(toft.pid()) - before;
    assert!(grown < 40.0, "{grown} MB more");
}

#[test]
fn slow_senders_and_readers_are_not_waited_for() {
    let machine = Machine::new();
    let mut toft = Appliance::prepare(&machine, "d");
    toft.set_variables(&[("TOFT_PLAIN_HTTP", "false")]);
    toft.set_flags(&["--bind", "127.0.0.1:7443"]);
    toft.up();
    let authority = fs::read(toft.data.join("cluster/authority.pem")).unwrap();
    let password = fs::read_to_string(toft.data.join("admin-password")).unwrap();
    let slow = machine.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let tls = connector(&authority);
            let raw = async |bytes: &'static [u8]| {
                let mut stream = tokio::net::TcpStream::connect(AT).await.unwrap();
                stream.write_all(bytes).await.unwrap();
                stream
            };
            let head = "POST /login HTTP/1.1\r\nhost: 127.0.0.1:7443\r\norigin: https://127.0.0.1:7443\r\n\
                        content-type: application/x-www-form-urlencoded\r\n";
            let (silent, half, none) =
                (raw(b"").await, raw(b"\x16\x03\x01\x02\x00\x01").await, secured(&tls, None).await);
            // A letter each second: of the request's line, of a header, of a body.
            let line = trickle(secured(&tls, None).await, String::new(), 'G');
            let header = trickle(secured(&tls, None).await, "GET /health HTTP/1.1\r\nhost: x\r\nx: ".into(), 'y');
            let body = trickle(
                secured(&tls, None).await,
                format!("{head}content-length: 2000\r\n\r\nname=admin&password="),
                'x',
            );
            // Asks again and again for something large, and takes none of it.
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4_096).unwrap();
            let mut unread = secured(&tls, Some(socket)).await;
            let ask = "GET /static/vendor/xterm.js HTTP/1.1\r\nhost: 127.0.0.1:7443\r\n\r\n".repeat(120);
            unread.write_all(ask.as_bytes()).await.unwrap();
            let (line, header, body) = (tokio::spawn(line), tokio::spawn(header), tokio::spawn(body));
            // Whoever is not slow is answered meanwhile.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(10) {
                let asked = Instant::now();
                let mut stream = secured(&tls, None).await;
                let fields = format!("name=admin&password={}", password.trim());
                let form = format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n{fields}", fields.len());
                stream.write_all(form.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                assert!(answer.starts_with(b"HTTP/1.1 303"), "{}", String::from_utf8_lossy(&answer));
                assert!(asked.elapsed() < Duration::from_secs(5) * slowness(), "{:?}", asked.elapsed());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            let ended = async |mut stream: tokio::net::TcpStream| {
                let _ = stream.read_to_end(&mut Vec::new()).await;
                begun.elapsed().as_secs()
            };
            let (silent, half) = (ended(silent).await, ended(half).await);
            let mut none = none;
            let _ = none.read_to_end(&mut Vec::new()).await;
            let none = begun.elapsed().as_secs();
            let (line, header, body) = (line.await.unwrap(), header.await.unwrap(), body.await.unwrap());
            // 40 seconds after nothing was taken any more there is no more than what was on its way.
            tokio::time::sleep_until((begun + Duration::from_secs(42)).into()).await;
            let mut taken = Vec::new();
            let _ = unread.read_to_end(&mut taken).await;
            [silent, half, none, line, header, body, taken.len() as u64]
        })
    });
    let [silent, half, none, line, header, body, taken] = slow.join().unwrap();
    let slowness = u64::from(slowness());
    for (what, seconds, most) in [
        ("silence", silent, 10),
        ("half a handshake", half, 10),
        ("no request", none, 15),
        ("a slow line", line, 15),
        ("a slow header", header, 15),
        ("a slow body", body, 30),
    ] {
        assert!(seconds <= (most + 8) * slowness, "{what} was waited for {seconds} s");
    }
    assert!(body >= 25, "a body has {body} s");
    assert!(taken < 120 * 60_000, "{taken} bytes came although nobody took them");
    assert!(!toft.log().contains("panicked"), "{}", toft.log());
}

/// Where the appliance of these tests listens.
const AT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7443);

fn connector(authority: &[u8]) -> TlsConnector {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

type Secured = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn secured(tls: &TlsConnector, socket: Option<TcpSocket>) -> Secured {
    let stream = socket.unwrap_or_else(|| TcpSocket::new_v4().unwrap()).connect(AT).await.unwrap();
    tls.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap()
}

/// Sends `begin` and then a letter each second; gives the seconds until the other side ended it.
async fn trickle(stream: Secured, begin: String, letter: char) -> u64 {
    let begun = Instant::now();
    let (mut read, mut write) = tokio::io::split(stream);
    let ended = tokio::spawn(async move {
        let _ = read.read_to_end(&mut Vec::new()).await;
    });
    let _ = write.write_all(begin.as_bytes()).await;
    while !ended.is_finished() && begun.elapsed() < Duration::from_secs(120) {
        let _ = write.write_all(letter.to_string().as_bytes()).await;
        let _ = write.flush().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    begun.elapsed().as_secs()
}

#[test]
fn ten_thousand_idle_connections_keep_nobody_out() {
    const MANY: usize = 10_000;
    const ADDRESSES: usize = 40;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    assert!(most as usize > MANY + 2_000, "this machine allows {most} open files");
    let machine = Machine::new();
    let mut toft = Appliance::prepare(&machine, "d");
    toft.set_variables(&[("TOFT_PLAIN_HTTP", "false")]);
    toft.set_flags(&["--bind", "127.0.0.1:7443"]);
    toft.up();
    let pid = toft.pid();
    let files = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let (memory, few) = (rss_mb(pid), files());
    let authority = fs::read(toft.data.join("cluster/authority.pem")).unwrap();
    let held = machine.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let tls = connector(&authority);
            let (mut plain, mut secure, mut slowest) = (Vec::new(), Vec::new(), Duration::ZERO);
            for number in 0..MANY {
                let socket = TcpSocket::new_v4().unwrap();
                let from = Ipv4Addr::new(127, 0, 1, (number % ADDRESSES) as u8 + 1);
                socket.bind((from, 0).into()).unwrap();
                if number % 10 == 0 {
                    secure.push(secured(&tls, Some(socket)).await);
                } else {
                    let mut stream = socket.connect(AT).await.unwrap();
                    if number % 2 == 0 {
                        // What begins like a handshake; it may be over already.
                        let _ = stream.write_all(b"\x16\x03\x01\x02\x00").await;
                    }
                    plain.push(stream);
                }
                if number % 200 == 199 {
                    slowest = slowest.max(asked(&tls).await);
                }
            }
            // And while they all are there.
            for _ in 0..20 {
                slowest = slowest.max(asked(&tls).await);
            }
            (plain, secure, slowest, rss_mb(pid), fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
        })
    });
    let (plain, secure, slowest, memory_then, files_then) = held.join().unwrap();
    assert_eq!(plain.len() + secure.len(), MANY);
    assert!(slowest < Duration::from_secs(3) * slowness(), "an answer took {slowest:?}");
    assert!(files_then < few + 2_048 + 64, "{files_then} files, {few} before");
    assert!(memory_then - memory < 150.0, "{memory_then} MB, {memory} MB before");
    // Nobody closed any of them here; the appliance did, after its 15 seconds.
    wait_until("those who ask nothing are gone", || (files() < few + 32).then_some(()));
    drop((plain, secure));
    assert!(!toft.log().contains("panicked"), "{}", toft.log());
}

/// How long somebody waits who comes now and asks something.
async fn asked(tls: &TlsConnector) -> Duration {
    let begun = Instant::now();
    let mut stream = secured(tls, None).await;
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1:7443\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    begun.elapsed()
}

/// Memory of a process that is not shared with a file, in megabytes.
fn rss_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1_024.0 / 1e6
}
