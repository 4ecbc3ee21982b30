//! One connection: reads requests, answers them, and logs each with the time it took.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::page::Facts;
use crate::request::{self, MAX_HEAD_BYTES, Refusal, Request};

/// How long a whole request head may take to arrive, and how long a kept connection may idle.
const READ_LIMIT: Duration = Duration::from_secs(10);
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long, and how many times, we read on after the last answer so that it is not lost.
const LINGER_LIMIT: Duration = Duration::from_millis(500);
const LINGER_READS: usize = 8;

const TEXT: &str = "text/plain; charset=utf-8";

/// What goes back to the visitor.
struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Answer {
    fn text(status: u16, body: &str) -> Self {
        Self { status, content_type: TEXT, body: body.to_owned() }
    }
}

/// Serves requests until the visitor leaves, is too slow, or asks for an end.
pub fn serve(mut stream: TcpStream, facts: &Facts) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_write_timeout(Some(WRITE_LIMIT));
    let mut received = Vec::new();
    loop {
        let outcome = match next_request(&mut stream, &mut received) {
            Ok(Some(outcome)) => outcome,
            Ok(None) | Err(_) => return,
        };
        let started = Instant::now();
        let (answer, label, keep_alive, with_body) = match &outcome {
            Ok(request) => {
                let label = format!("{} {}", request.method, request.path);
                (answer(request, facts), label, request.keep_alive, request.method != "HEAD")
            }
            Err(refusal) => (refuse(*refusal), "-".to_owned(), false, true),
        };
        let sent = send(&mut stream, &answer, keep_alive, with_body);
        let took = started.elapsed().as_secs_f64() * 1000.0;
        crate::print_line(&format!("{label} {} {took:.1}ms", answer.status));
        if sent.is_err() {
            return;
        }
        if !keep_alive {
            linger(&mut stream);
            return;
        }
    }
}

/// Answers 503 without a thread and without waiting: a fresh connection has room for it.
pub fn turn_away(mut stream: TcpStream) {
    if stream.set_nonblocking(true).is_ok() {
        let answer = Answer::text(503, "too many connections, try again\n");
        let _ = send(&mut stream, &answer, false, true);
        let _ = stream.shutdown(Shutdown::Write);
        // A request left unread would turn the close into a reset and lose the answer.
        let _ = stream.read(&mut [0; 1024]);
    }
    crate::print_line("- 503 0.0ms");
}

/// Reads until `received` begins with a whole head, and takes it out. `None` is the end of the
/// connection.
fn next_request(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<Result<Request, Refusal>>> {
    let deadline = Instant::now() + READ_LIMIT;
    loop {
        match request::parse(received) {
            Err(refusal) => return Ok(Some(Err(refusal))),
            Ok(Some((request, length))) => {
                received.drain(..length);
                return Ok(Some(Ok(request)));
            }
            Ok(None) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; 2048];
        let room = chunk.len().min(MAX_HEAD_BYTES - received.len());
        match stream.read(&mut chunk[..room]) {
            Ok(0) => return Ok(None),
            Ok(count) => received.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn answer(request: &Request, facts: &Facts) -> Answer {
    let health = request.path == "/healthz";
    if !health && request.path != "/" && request.path != "/json" {
        return Answer::text(404, "not found\n");
    }
    if request.method != "GET" {
        return Answer::text(405, "only GET is served\n");
    }
    if health {
        return Answer::text(200, "ok");
    }
    let now = facts.count_request();
    match request.path.as_str() {
        "/json" => Answer { status: 200, content_type: "application/json", body: facts.json(&now) },
        _ => Answer { status: 200, content_type: "text/html; charset=utf-8", body: facts.html(&now) },
    }
}

fn refuse(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::Malformed => Answer::text(400, "not an HTTP request\n"),
        Refusal::TooLong => Answer::text(431, "the request head is too long\n"),
        Refusal::Version => Answer::text(505, "only HTTP/1 is served\n"),
    }
}

fn send(stream: &mut TcpStream, answer: &Answer, keep_alive: bool, with_body: bool) -> io::Result<()> {
    let reason = match answer.status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "HTTP Version Not Supported",
    };
    let mut message = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; img-src data:\r\n",
        answer.status,
        answer.content_type,
        answer.body.len(),
    );
    if answer.status == 405 {
        message.push_str("Allow: GET\r\n");
    }
    message.push_str(if keep_alive { "Connection: keep-alive\r\n\r\n" } else { "Connection: close\r\n\r\n" });
    if with_body {
        message.push_str(&answer.body);
    }
    stream.write_all(message.as_bytes())
}

/// Lets the visitor read the last answer: closing with bytes unread would reset the connection.
fn linger(stream: &mut TcpStream) {
    let ready = stream.shutdown(Shutdown::Write).and_then(|()| stream.set_read_timeout(Some(LINGER_LIMIT)));
    let mut unread = [0; 2048];
    for _ in 0..LINGER_READS {
        if ready.is_err() || !stream.read(&mut unread).is_ok_and(|count| count > 0) {
            return;
        }
    }
}
