//! The demo as a container runs it: a process with a port, asked over TCP.

use std::ffi::c_int;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;

unsafe extern "C" {
    fn kill(pid: c_int, signal: c_int) -> c_int;
}

/// A running demo on a free port.
struct Demo {
    child: Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Demo {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_toft-demo"));
        command.env("PORT", "0").env("TOFT_NODE", "attic").env("TOFT_WORKLOAD", "a<b").env("TOFT_INSTANCE", "a-1");
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the demo starts");
        let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("the demo says where it listens");
        let port = line.trim_end().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { child, output, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the demo accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        stream
    }

    /// Sends `bytes` and reads until the demo closes.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("the demo reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the demo answers");
        String::from_utf8(answer).expect("the answer is text")
    }

    fn get(&self, path: &str) -> String {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn logged(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("stdout is readable");
        line
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads one answer of a kept connection: its head, and the body that the head announces.
fn read_answer(reader: &mut BufReader<TcpStream>) -> (String, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("a head") > 0, "the connection ended in {head:?}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    reader.read_exact(&mut body).expect("a body");
    (head, String::from_utf8(body).expect("text"))
}

#[test]
fn pages_tell_where_they_come_from() {
    let mut demo = Demo::start();
    let page = demo.get("/");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html"), "{page}");
    assert!(page.contains("<b>attic</b>") && page.contains("a&lt;b") && page.contains("a-1"), "{page}");
    let json = demo.get("/json?pretty");
    assert!(json.contains("\r\n\r\n{\"node\":\"attic\",\"workload\":\"a<b\",\"instance\":\"a-1\","), "{json}");
    assert!(json.contains("\"requests\":2,"), "{json}");
    assert!(demo.get("/healthz").ends_with("\r\n\r\nok"));
    assert!(demo.get("/elsewhere").starts_with("HTTP/1.1 404 "));
    let post = demo.exchange(b"POST / HTTP/1.1\r\nHost: demo\r\nContent-Length: 3\r\n\r\nabc");
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("\r\nAllow: GET\r\n"), "{post}");

    for expected in ["GET / 200 ", "GET /json 200 ", "GET /healthz 200 ", "GET /elsewhere 404 ", "POST / 405 "] {
        let line = demo.logged();
        assert!(line.starts_with(expected) && line.ends_with("ms\n"), "{line:?}");
    }
}

#[test]
fn one_connection_serves_many_requests() {
    let demo = Demo::start();
    let mut reader = BufReader::new(demo.connect());
    let two = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /json HTTP/1.1\r\nHost: a\r\n\r\n";
    reader.get_mut().write_all(two).expect("the demo reads");
    assert_eq!(read_answer(&mut reader).1, "ok");
    assert!(read_answer(&mut reader).1.contains("\"requests\":1,"));
    reader.get_mut().write_all(b"GET / HTTP/1.0\r\n\r\n").expect("the demo reads");
    assert!(read_answer(&mut reader).0.contains("\r\nConnection: close\r\n"));
    assert_eq!(reader.read(&mut [0; 1]).expect("an orderly end"), 0);
}

#[test]
fn hostile_bytes_are_refused_and_the_demo_lives_on() {
    let mut demo = Demo::start();
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000));
    let endless = format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(3_000));
    for (bytes, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n"[..], 400),
        (b"GET /\x1b[2J HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (long.as_bytes(), 431),
        (endless.as_bytes(), 431),
    ] {
        let answer = demo.exchange(bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let line = demo.logged();
        assert!(line.starts_with(&format!("- {status} ")), "{line:?}");
    }
    assert!(demo.get("/healthz").ends_with("ok"));
}

#[test]
fn connections_beyond_the_limit_are_turned_away() {
    let demo = Demo::start();
    // An answer on each proves that each has its place.
    let mut kept: Vec<_> = (0..64).map(|_| BufReader::new(demo.connect())).collect();
    for reader in &mut kept {
        reader.get_mut().write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("the demo reads");
        assert_eq!(read_answer(reader).1, "ok");
    }
    let mut turned_away = BufReader::new(demo.connect());
    assert!(read_answer(&mut turned_away).0.starts_with("HTTP/1.1 503 "));
    drop(kept);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut stream = demo.connect();
        // Turned away once more, either of these may fail.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        if answer.starts_with(b"HTTP/1.1 200 ") {
            return;
        }
        assert!(Instant::now() < deadline, "no place became free");
    }
}

#[test]
fn signals_end_it_with_success() {
    for signal in [SIGTERM, SIGINT] {
        let mut demo = Demo::start();
        // SAFETY: the child has not been waited for, so its id is still its own.
        assert_eq!(unsafe { kill(demo.child.id() as c_int, signal) }, 0);
        assert_eq!(demo.child.wait().expect("it can be waited for").code(), Some(0));
    }
}

#[test]
fn a_port_that_is_no_port_is_refused() {
    let status = Command::new(env!("CARGO_BIN_EXE_toft-demo")).env("PORT", "http").stderr(Stdio::null()).status();
    assert_eq!(status.expect("the demo starts").code(), Some(2));
}
