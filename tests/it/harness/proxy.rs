//! A proxy as companies and schools have them: makes tunnels, passes plain questions on, may want a login, and keeps a
//! list of what went through. It knows a few names that nobody else here does.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::machine::Machine;

/// How the proxy behaves.
#[derive(Default, Clone)]
pub struct Manner {
    /// Where the names lead that it knows, `HOST:PORT`.
    pub names: HashMap<String, SocketAddr>,
    /// What it wants to be sent, such as `Basic bWU6cGFzcw==`.
    pub login: Option<String>,
    /// What it says to everybody, instead of doing anything.
    pub says: Option<Vec<u8>>,
    /// Certificate and key, if it speaks TLS.
    pub identity: Option<(String, String)>,
}

/// The proxy.
pub struct Proxy {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    carried: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl Proxy {
    /// One in the network of this thread.
    pub fn start(manner: Manner) -> Self {
        Self::start_by(manner, std::thread::spawn)
    }

    /// One in the network of a machine.
    pub fn start_on(machine: &Machine, manner: Manner) -> Self {
        Self::start_by(manner, |work| machine.spawn(work))
    }

    fn start_by(manner: Manner, spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> std::thread::JoinHandle<()>) -> Self {
        let stop = CancellationToken::new();
        let (asked, carried) = (Arc::default(), Arc::default());
        let (sender, receiver) = std::sync::mpsc::channel();
        let state = State { manner, asked: Arc::clone(&asked), carried: Arc::clone(&carried) };
        let stopped = stop.clone();
        spawn(Box::new(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                stopped.run_until_cancelled(serve(listener, Arc::new(state))).await;
            });
        }));
        let address = receiver.recv_timeout(Duration::from_secs(10)).expect("the proxy starts");
        Self { address, asked, carried, _stop: stop.drop_guard() }
    }

    /// First lines of what it was asked for since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Bytes that came back through it.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

struct State {
    manner: Manner,
    asked: Arc<Mutex<Vec<String>>>,
    carried: Arc<AtomicU64>,
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let tls = state.manner.identity.as_ref().map(|(certificate, key)| acceptor(certificate, key));
    while let Ok((line, _)) = listener.accept().await {
        let (state, tls) = (Arc::clone(&state), tls.clone());
        tokio::spawn(async move {
            // Who went away meanwhile is nobody's trouble.
            drop(match tls {
                Some(tls) => match tls.accept(line).await {
                    Ok(line) => answer(line, &state).await,
                    Err(error) => Err(error),
                },
                None => answer(line, &state).await,
            });
        });
    }
}

fn acceptor(certificate: &str, key: &str) -> TlsAcceptor {
    let der = |text: &str| pem::parse(text).unwrap().into_contents();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der(certificate).into()], PrivateKeyDer::try_from(der(key)).unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn answer(mut line: impl AsyncRead + AsyncWrite + Unpin, state: &State) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(line.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    state.asked.lock().unwrap().push(first.trim_end_matches(" HTTP/1.1").to_owned());
    if let Some(says) = &state.manner.says {
        return line.write_all(says).await;
    }
    let (mine, others): (Vec<&str>, Vec<&str>) =
        lines.filter(|line| !line.is_empty()).partition(|line| line.to_ascii_lowercase().starts_with("proxy-"));
    let login = mine.iter().find_map(|line| line.split_once(": ")).map(|(_, value)| value);
    if state.manner.login.as_deref() != login {
        return line.write_all(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n").await;
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (name, path) = match method {
        "CONNECT" => (target, ""),
        _ => {
            let rest = target.strip_prefix("http://").expect("the whole address is asked for");
            rest.split_at(rest.find('/').unwrap_or(rest.len()))
        }
    };
    let Some(address) = state.manner.names.get(name) else {
        return line.write_all(b"HTTP/1.1 502 No such name\r\ncontent-length: 0\r\n\r\n").await;
    };
    let mut further = TcpStream::connect(address).await?;
    if method == "CONNECT" {
        line.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        let others = others.join("\r\n");
        further
            .write_all(format!("{method} {path} HTTP/1.1\r\n{others}\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
    }
    let mut counted = tokio_util::io::InspectWriter::new(line, |bytes: &[u8]| {
        state.carried.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    });
    copy_bidirectional(&mut counted, &mut further).await.map(drop)
}

/// The certificate and key in two files.
pub fn identity(certificate: &Path, key: &Path) -> (String, String) {
    let read = |path| std::fs::read_to_string(path).unwrap();
    (read(certificate), read(key))
}
