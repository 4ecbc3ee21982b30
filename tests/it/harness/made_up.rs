//! A made-up cluster of one process (`toft dev`), asked over TCP as browsers and programs do.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use super::{
    http::{Answer, PATIENCE, exchange},
    machine::wait_until,
    mounts::unmount_below,
};

/// The cluster; it ends when this is dropped.
pub struct MadeUp {
    process: Child,
    _folder: tempfile::TempDir,
    pub data: PathBuf,
    log: PathBuf,
    pub port: u16,
}

/// What a command did.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.out
    }

    #[track_caller]
    pub fn bad(self) -> String {
        assert_ne!(self.code, Some(0), "{}", self.out);
        self.err
    }
}

impl MadeUp {
    pub fn start(nodes: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (data, log) = (folder.path().join("dev"), folder.path().join("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_toft"));
        command.args(["dev", "--bind", "127.0.0.1:0", "--nodes", &nodes.to_string(), "--data-dir"]).arg(&data);
        command.env_remove("RUST_LOG").stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let process = command.spawn().unwrap();
        let mut made_up = Self { process, _folder: folder, data, log, port: 0 };
        made_up.port = wait_until("the first node answers", || {
            let url = fs::read_to_string(made_up.data.join("node-1/toft.url")).ok()?;
            let port = url.trim().trim_end_matches('/').rsplit_once(':')?.1.parse().ok()?;
            TcpStream::connect(("127.0.0.1", port)).ok().map(|_| port)
        });
        made_up
    }

    /// The first password of the first node.
    pub fn password(&self) -> String {
        fs::read_to_string(self.data.join("node-1/admin-password")).unwrap().trim().to_owned()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What all nodes said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// A command of root's at the first node's socket, which reads `input`.
    pub fn root_reading(&self, arguments: &[&str], input: &str) -> Said {
        let socket = format!("unix://{}", self.data.join("node-1/toft.sock").display());
        run(&[&["--connect", &socket], arguments].concat(), input)
    }

    /// The same without anything to read.
    pub fn root(&self, arguments: &[&str]) -> Said {
        self.root_reading(arguments, "")
    }

    /// A user with a password.
    pub fn user(&self, name: &str, more: &[&str], password: &str) {
        let arguments = [&["user", "create", name, "--password-stdin"], more].concat();
        self.root_reading(&arguments, password).good();
    }

    /// An API token of a user who may be made for it.
    pub fn token(&self, user: &str, more: &[&str]) -> String {
        let arguments = [&["user", "token", "create", "--user", user], more].concat();
        self.root(&arguments).good().trim().to_owned()
    }

    /// Asks over TCP, as the page that is at this address would.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let (host, origin) = (format!("127.0.0.1:{}", self.port), format!("http://127.0.0.1:{}", self.port));
        let mut all = vec![("host", host.as_str())];
        if method != "GET" && !headers.iter().any(|(name, _)| *name == "origin") {
            all.push(("origin", &origin));
        }
        all.extend(headers.iter().filter(|(_, value)| !value.is_empty()));
        exchange(self.connect(), method, path, &all, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// The status alone, for answers that may never end.
    pub fn status(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut stream = self.connect();
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = if method == "GET" { "" } else { "content-length: 0\r\n" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{0}\r\norigin: http://127.0.0.1:{0}\r\nconnection: close\r\n{length}{more}\r\n",
            self.port
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            line.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{method} {path}: {line}"))
    }

    /// An answer that goes on, from its beginning.
    pub fn stream(&self, path: &str, cookie: &str) -> TcpStream {
        let mut stream = self.connect();
        let host = format!("host: 127.0.0.1:{}", self.port);
        write!(stream, "GET {path} HTTP/1.1\r\n{host}\r\nconnection: close\r\ncookie: {cookie}\r\n\r\n").unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200");
        stream
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends a form.
    pub fn form(&self, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Answer {
        send_form(self.connect(), &format!("127.0.0.1:{}", self.port), path, cookie, fields)
    }

    /// Signs in at the dashboard; gives the cookie.
    pub fn sign_in(&self, name: &str, password: &str) -> String {
        let answer = self.form("/login", "", &[("name", name), ("password", password)]);
        assert_eq!(answer.status, 303, "{}", answer.text());
        cookie_of(&answer)
    }

    /// What the API answers to an API token.
    pub fn get(&self, path: &str, token: &str) -> Value {
        self.ask("GET", path, &[("authorization", &format!("Bearer {token}"))], b"").good()
    }
}

/// Sends a form to `host`, as its own page would.
pub fn send_form(mut stream: TcpStream, host: &str, path: &str, cookie: &str, fields: &[(&str, &str)]) -> Answer {
    let body = encoded(fields);
    let (origin, length) = (format!("http://{host}"), body.len().to_string());
    let headers = [
        ("host", host),
        ("origin", &origin),
        ("content-length", &length),
        ("content-type", "application/x-www-form-urlencoded"),
        ("cookie", cookie),
    ];
    let mut request = format!("POST {path} HTTP/1.1\r\nconnection: close\r\n");
    headers.iter().filter(|(_, value)| !value.is_empty()).for_each(|(n, v)| request.push_str(&format!("{n}: {v}\r\n")));
    request.push_str("\r\n");
    request.push_str(&body);
    stream.write_all(request.as_bytes()).unwrap();
    Answer::read(&mut stream).unwrap_or_else(|e| panic!("POST {path}: {e}"))
}

/// The cookie that an answer sets, as a browser sends it back.
pub fn cookie_of(answer: &Answer) -> String {
    let set = answer.header("set-cookie").expect("a cookie is set");
    set.split(';').next().unwrap().to_owned()
}

/// The body of a form.
pub fn encoded(fields: &[(&str, &str)]) -> String {
    let encode = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect()
    };
    let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}

/// Runs a client command that reads `input`.
pub fn run(arguments: &[&str], input: &str) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_toft"));
    command
        .args(arguments)
        .env_remove("TOFT_CONNECT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ran = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: ran.status.code(), out: text(ran.stdout), err: text(ran.stderr) }
}

impl Drop for MadeUp {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let end: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- what it said last, the newest first:\n{}\n---", end.join("\n"));
        }
        drop(self.process.kill());
        drop(self.process.wait());
        // Whoever is killed leaves what it has mounted.
        unmount_below(&self.data);
    }
}
