//! Registries to pull from: Debian's `docker-registry`, and one of our own that can be told to misbehave.

use std::{
    collections::HashMap,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    image::{Layout, digest},
    machine::Machine,
};

/// Name and password of [`Registry::with_password`].
pub const LOGIN: (&str, &str) = ("keeper", "open sesame");
/// The password as `htpasswd` keeps it.
const HASHED: &str = "$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";

/// A real registry.
pub struct Registry {
    pub address: SocketAddr,
    dir: tempfile::TempDir,
    process: Child,
    command: Command,
    secure: bool,
    password: bool,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// On loopback, for everybody.
    pub fn open() -> Self {
        Self::start(false, false)
    }

    /// With TLS and basic authentication.
    pub fn with_password() -> Self {
        Self::start(true, true)
    }

    fn start(secure: bool, password: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("docker-registry");
        let config = dir.path().join("config.yml");
        fs::write(&config, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {}}\n").unwrap();
        command
            .args([Path::new("serve"), &config])
            .env("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", dir.path().join("store"))
            .env("REGISTRY_HTTP_ADDR", address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if secure {
            let key =
                rcgen::generate_simple_self_signed(["127.0.0.1", "localhost", "registry.test"].map(str::to_owned))
                    .unwrap();
            fs::write(dir.path().join("cert.pem"), key.cert.pem()).unwrap();
            fs::write(dir.path().join("key.pem"), key.signing_key.serialize_pem()).unwrap();
            command
                .env("REGISTRY_HTTP_TLS_CERTIFICATE", dir.path().join("cert.pem"))
                .env("REGISTRY_HTTP_TLS_KEY", dir.path().join("key.pem"));
        }
        if password {
            let file = dir.path().join("htpasswd");
            fs::write(&file, format!("{}:{HASHED}\n", LOGIN.0)).unwrap();
            command
                .env("REGISTRY_AUTH", "htpasswd")
                .env("REGISTRY_AUTH_HTPASSWD_REALM", "test")
                .env("REGISTRY_AUTH_HTPASSWD_PATH", file);
        }
        let process = command.spawn().expect("docker-registry is installed");
        let registry = Self { address, dir, process, command, secure, password };
        registry.listens();
        registry
    }

    fn listens(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "the registry listens");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again where it was, with all it had.
    pub fn restart(&mut self) {
        self.process = self.command.spawn().unwrap();
        self.listens();
    }

    /// The certificate it shows.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    /// The key that goes with it.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    /// Pushes the image of an archive as `name` (`busybox:1`).
    pub fn push(&self, archive: &[u8], name: &str) {
        let file = self.dir.path().join("push.tar");
        fs::write(&file, archive).unwrap();
        let mut command = Command::new("skopeo");
        command.args(["copy", "--all", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]);
        if self.password {
            command.args(["--dest-creds", &format!("{}:{}", LOGIN.0, LOGIN.1)]);
        }
        command.arg(format!("oci-archive:{}", file.display()));
        command.arg(format!("docker://{}/{name}", self.address));
        let out = command.output().expect("skopeo is installed");
        assert!(out.status.success(), "{}, TLS {}", String::from_utf8_lossy(&out.stderr), self.secure);
    }
}

/// What the misbehaving registry does with a request: path and headers in, an answer of its own or `None`.
pub type Whim = Box<dyn FnMut(&str, &HeaderMap) -> Option<Response> + Send>;

struct Shelf {
    blobs: HashMap<String, Vec<u8>>,
    /// By tag or digest: kind and bytes.
    manifests: HashMap<String, (String, Vec<u8>)>,
    whim: Option<Whim>,
    asked: Vec<String>,
}

/// A registry in this process that can be told to misbehave.
#[derive(Clone)]
pub struct OwnRegistry {
    pub address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

impl OwnRegistry {
    pub async fn start() -> Self {
        let shelf = Shelf { blobs: HashMap::new(), manifests: HashMap::new(), whim: None, asked: Vec::new() };
        let shelf = Arc::new(Mutex::new(shelf));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        // The kernel takes a piece at once, so that it arrives however late it is read: see `breaks_after`.
        setsockopt(&listener, sockopt::SndBufForce, &(16 << 20)).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(shelf.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, shelf }
    }

    /// One in the network of a machine, until the guard is dropped.
    pub fn start_on(machine: &Machine) -> (Self, DropGuard) {
        let (stop, (sender, receiver)) = (CancellationToken::new(), std::sync::mpsc::channel());
        let stopped = stop.clone();
        machine.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                sender.send(Self::start().await).unwrap();
                stopped.cancelled().await;
            });
        });
        (receiver.recv_timeout(Duration::from_secs(10)).expect("the registry starts"), stop.drop_guard())
    }

    /// Takes everything of a layout; `target` gets the tag.
    pub fn put(&self, layout: &Layout, target: &Value, tag: &str) {
        let mut shelf = self.shelf.lock().unwrap();
        for (path, bytes) in &layout.blobs {
            let digest = path.trim_start_matches("blobs/").replace('/', ":");
            shelf.blobs.insert(digest.clone(), bytes.clone());
            if let Ok(document) = serde_json::from_slice::<Value>(bytes)
                && document["schemaVersion"] == 2
            {
                let kind = if document["manifests"].is_array() { "index" } else { "manifest" };
                let kind = format!("application/vnd.oci.image.{kind}.v1+json");
                let kind = document["mediaType"].as_str().map_or(kind, str::to_owned);
                shelf.manifests.insert(digest, (kind, bytes.clone()));
            }
        }
        let kind = target["mediaType"].as_str().unwrap().to_owned();
        let bytes = shelf.blobs[target["digest"].as_str().unwrap()].clone();
        shelf.manifests.insert(tag.to_owned(), (kind, bytes));
    }

    /// A manifest just so.
    pub fn put_manifest(&self, kind: &str, bytes: &[u8], tag: &str) {
        let mut shelf = self.shelf.lock().unwrap();
        for key in [tag.to_owned(), digest(bytes)] {
            shelf.manifests.insert(key, (kind.to_owned(), bytes.to_vec()));
        }
    }

    /// From now on it does as `whim` says first.
    pub fn misbehave(&self, whim: impl FnMut(&str, &HeaderMap) -> Option<Response> + Send + 'static) {
        self.shelf.lock().unwrap().whim = Some(Box::new(whim));
    }

    pub fn behave(&self) {
        self.shelf.lock().unwrap().whim = None;
    }

    /// The paths asked for since the last time, with their `Range` behind.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shelf.lock().unwrap().asked)
    }
}

async fn serve(State(shelf): State<Arc<Mutex<Shelf>>>, request: Request) -> Response {
    let path = request.uri().to_string();
    let headers = request.headers();
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map(str::to_owned);
    let mut shelf = shelf.lock().unwrap();
    shelf.asked.push(range.as_ref().map_or_else(|| path.clone(), |range| format!("{path} {range}")));
    if let Some(answer) = shelf.whim.as_mut().and_then(|whim| whim(&path, headers)) {
        return answer;
    }
    if path == "/v2/" {
        return StatusCode::OK.into_response();
    }
    if let Some((_, key)) = path.rsplit_once("/manifests/") {
        return match shelf.manifests.get(key) {
            Some((kind, bytes)) => ([(header::CONTENT_TYPE, kind.clone())], bytes.clone()).into_response(),
            None => (StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
                .into_response(),
        };
    }
    let found = path.rsplit_once("/blobs/").and_then(|(_, key)| shelf.blobs.get(key));
    let Some(bytes) = found else { return StatusCode::NOT_FOUND.into_response() };
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) => {
            let told = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, told)], bytes[from..].to_vec()).into_response()
        }
        None => bytes.clone().into_response(),
    }
}

/// The first `most` bytes, then the line breaks.
pub fn breaks_after(bytes: &[u8], most: usize) -> Response {
    let head = Bytes::copy_from_slice(&bytes[..most]);
    let pieces = futures_util::stream::unfold(Some(head), |head| async {
        let Some(head) = head else { return Some((Err(std::io::Error::other("the line breaks")), None)) };
        if head.is_empty() {
            // Whoever waits lets what was sent before go to the kernel.
            tokio::time::sleep(Duration::from_millis(50)).await;
            return Some((Ok(Bytes::new()), None));
        }
        Some((Ok::<_, std::io::Error>(head), Some(Bytes::new())))
    });
    Response::builder().header(header::CONTENT_LENGTH, bytes.len()).body(Body::from_stream(pieces)).unwrap()
}

/// The first half at once, the rest when `released`.
pub fn held_back(bytes: &[u8], released: watch::Receiver<bool>) -> Response {
    let halves = bytes.chunks(bytes.len() / 2 + 1).map(Bytes::copy_from_slice).collect::<Vec<_>>().into_iter();
    let pieces =
        futures_util::stream::unfold((halves, released, true), |(mut halves, mut released, first)| async move {
            if !first {
                released.wait_for(|released| *released).await.ok()?;
            }
            Some((Ok::<_, std::io::Error>(halves.next()?), (halves, released, false)))
        });
    Response::builder().header(header::CONTENT_LENGTH, bytes.len()).body(Body::from_stream(pieces)).unwrap()
}
