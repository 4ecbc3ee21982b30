//! Speaks HTTP to an appliance, over its socket or over TCP.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderName},
    upgrade::{self, Upgraded},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::Mutex,
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};
use uuid::Uuid;

use super::{Failure, context::Target, tls};
use crate::api::types::ErrorEnvelope;

/// Changes below this path take a key, so that they can be repeated.
const KEYED: &str = "/api/v1/workloads";
/// Time for which a request is repeated whose connection broke: about as long as a daemon takes to start again.
const REPEAT: Duration = Duration::from_secs(10);
/// Wait before that.
const PAUSE: Duration = Duration::from_millis(200);
/// Names of failures.
const LOST: &str = "connection_lost";
const NOBODY: &str = "nobody_answers";
const NO_LEADER: &str = "no_leader";

/// A WebSocket to an appliance.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A client that keeps its connection between calls.
pub(super) struct Client {
    target: Target,
    kept: Mutex<Option<http1::SendRequest<Body>>>,
    warned: AtomicBool,
}

/// A request that can be sent again.
struct Repeatable<'a> {
    method: Method,
    path: &'a str,
    body: Bytes,
    /// Only if it still has this generation.
    generation: Option<u64>,
}

impl Client {
    pub(super) fn new(target: Target) -> Self {
        Self { target, kept: Mutex::new(None), warned: AtomicBool::new(false) }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        decode(self.read(path).await?).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = json(body)?;
        decode(self.change(Repeatable { method: Method::POST, path, body, generation: None }).await?).await
    }

    /// Writes what was read at `generation`.
    pub(super) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        generation: u64,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = json(body)?;
        let generation = Some(generation);
        decode(self.change(Repeatable { method: Method::PUT, path, body, generation }).await?).await
    }

    /// Asks for something that has neither content nor answer.
    pub(super) async fn post_quietly(&self, path: &str) -> Result<(), Failure> {
        let body = Bytes::new();
        self.change_quietly(Repeatable { method: Method::POST, path, body, generation: None }).await
    }

    pub(super) async fn patch(&self, path: &str, body: &impl Serialize) -> Result<(), Failure> {
        let body = json(body)?;
        self.change_quietly(Repeatable { method: Method::PATCH, path, body, generation: None }).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), Failure> {
        let body = Bytes::new();
        self.change_quietly(Repeatable { method: Method::DELETE, path, body, generation: None }).await
    }

    /// A change whose answer tells nothing.
    async fn change_quietly(&self, asked: Repeatable<'_>) -> Result<(), Failure> {
        let response = self.change(asked).await?;
        // Read to its end, so that the connection can be used again.
        drop(response.into_body().collect().await);
        Ok(())
    }

    /// Asks for the newest state, and for what the node knows if nobody can tell what the newest is.
    async fn read(&self, path: &str) -> Result<Response<Incoming>, Failure> {
        let ask = |path| Repeatable { method: Method::GET, path, body: Bytes::new(), generation: None };
        match self.repeat(ask(path), None).await {
            Err(failure) if failure.is(NO_LEADER) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    eprintln!("toft: warning: the cluster has no leader; what follows may be old");
                }
                let local = format!("{path}{}consistency=local", if path.contains('?') { '&' } else { '?' });
                self.repeat(ask(&local), None).await
            }
            answer => answer,
        }
    }

    async fn change(&self, asked: Repeatable<'_>) -> Result<Response<Incoming>, Failure> {
        if !asked.path.starts_with(KEYED) {
            return self.send(asked.method, asked.path, asked.body.into(), &[]).await;
        }
        let answer = self.repeat(asked, Some(Uuid::now_v7())).await;
        answer.map_err(|failure| match failure.is(LOST) {
            true => failure.hint("the change may have happened; look before you repeat it"),
            false => failure,
        })
    }

    /// Sends a request, and sends it again when the connection breaks.
    async fn repeat(&self, asked: Repeatable<'_>, key: Option<Uuid>) -> Result<Response<Incoming>, Failure> {
        let Repeatable { method, path, body, generation } = asked;
        let mut headers = Vec::new();
        headers.extend(key.map(|key| (HeaderName::from_static("idempotency-key"), key.to_string())));
        headers.extend(generation.map(|generation| (header::IF_MATCH, format!("\"{generation}\""))));
        let deadline = Instant::now() + REPEAT;
        let mut lost = None;
        loop {
            match self.send(method.clone(), path, body.clone().into(), &headers).await {
                Err(failure) if failure.is(LOST) => lost = Some(failure),
                // It is on its way up again.
                Err(failure) if failure.is(NOBODY) && lost.is_some() => {}
                answer => return answer,
            }
            match lost.take_if(|_| Instant::now() > deadline) {
                Some(failure) => return Err(failure),
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Sends a body as it comes.
    pub(super) async fn upload<T: DeserializeOwned>(&self, path: &str, body: Body) -> Result<T, Failure> {
        decode(self.send(Method::POST, path, body, &[]).await?).await
    }

    /// Sends a body in place of the `generation` that is there.
    pub(super) async fn replace<T: DeserializeOwned>(
        &self,
        path: &str,
        generation: u64,
        body: Body,
    ) -> Result<T, Failure> {
        let seen = (header::IF_MATCH, format!("\"{generation}\""));
        decode(self.send(Method::PUT, path, body, &[seen]).await?).await
    }

    /// Puts a body as it comes.
    pub(super) async fn put_stream<T: DeserializeOwned>(&self, path: &str, body: Body) -> Result<T, Failure> {
        decode(self.send(Method::PUT, path, body, &[]).await?).await
    }

    /// The body of an answer as it comes.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, Failure> {
        let response = self.read(path).await?;
        // The connection is busy until the stream ends: what is asked meanwhile or afterwards takes another.
        drop(self.kept.lock().await.take());
        Ok(response.into_body())
    }

    /// The whole answer to a question with a body, or without one, its body as it comes.
    pub(super) async fn download(&self, path: &str, question: Option<Body>) -> Result<Response<Incoming>, Failure> {
        let (method, body) = question.map_or((Method::GET, Body::empty()), |body| (Method::POST, body));
        let response = self.send(method, path, body, &[]).await?;
        drop(self.kept.lock().await.take());
        Ok(response)
    }

    /// Opens a WebSocket.
    pub(super) async fn upgrade(&self, path: &str) -> Result<Socket, Failure> {
        let key = generate_key();
        let headers = [
            (header::CONNECTION, "upgrade".to_owned()),
            (header::UPGRADE, "websocket".to_owned()),
            (header::SEC_WEBSOCKET_VERSION, "13".to_owned()),
            (header::SEC_WEBSOCKET_KEY, key.clone()),
        ];
        let response = self.ask(Method::GET, path, Body::empty(), &headers).await?;
        drop(self.kept.lock().await.take());
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS
                if accepted.is_some_and(|accepted| accepted == derive_accept_key(key.as_bytes()).as_str()) => {}
            status if status.is_informational() || status.is_success() => {
                return Err(Failure::of(1, "toft does not speak WebSocket here")
                    .hint("client and appliance may be of different versions"));
            }
            _ => return Err(refusal(response).await),
        }
        let upgraded = upgrade::on(response).await;
        let upgraded = upgraded.map_err(|e| Failure::of(1, format!("the connection to toft broke: {e}")))?;
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
    }

    /// Whether the appliance is on this machine, so that its paths are ours.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.target, Target::Unix(_))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Incoming>, Failure> {
        let response = self.ask(method, path, body, headers).await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// Whatever is answered.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Body,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.host());
        if let Target::Http { proof: Some(proof), .. } = &self.target {
            request = request.header(header::AUTHORIZATION, proof.0.as_str());
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| Failure::of(1, format!("the request could not be made: {e}")))?;
        let mut sender = match self.kept.lock().await.take().filter(|kept| !kept.is_closed()) {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let lost = |e: hyper::Error| Failure::of(1, format!("the connection to toft broke: {e}")).with_name(LOST);
        sender.ready().await.map_err(lost)?;
        let response = sender.send_request(request).await.map_err(lost)?;
        *self.kept.lock().await = Some(sender);
        Ok(response)
    }

    fn host(&self) -> &str {
        match &self.target {
            Target::Unix(_) => "localhost",
            Target::Http { authority, .. } => authority,
        }
    }

    async fn connect(&self) -> Result<http1::SendRequest<Body>, Failure> {
        match &self.target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| no_socket(path, &e))?;
                handshake(stream).await
            }
            Target::Http { authority, trust, .. } => {
                let stream = TcpStream::connect(authority).await.map_err(|e| {
                    Failure::of(1, format!("no toft answers on {authority}: {e}"))
                        .hint("check the address; `toft up` starts an appliance")
                        .with_name(NOBODY)
                })?;
                match trust {
                    None => handshake(stream).await,
                    Some(trust) => handshake(tls::connect(stream, authority, trust).await?).await,
                }
            }
        }
    }
}

fn no_socket(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::of(1, format!("no toft answers on {}: {error}", path.display())).with_name(NOBODY);
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => failure.hint("the socket is root's: try again with sudo"),
        _ => failure
            .hint("start it with `sudo systemctl start toft` or `sudo toft up`; --connect names another appliance"),
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<http1::SendRequest<Body>, Failure> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| Failure::of(1, format!("toft does not speak HTTP: {e}")))?;
    // It lives as long as the command, which is one short process.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

async fn decode<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Failure> {
    let bytes = read(response).await?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Failure::of(1, format!("the answer was not understood: {e}"))
            .hint("client and appliance may be of different versions")
    })
}

async fn read(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = response.into_body().collect().await;
    Ok(body.map_err(|e| Failure::of(1, format!("the connection to toft broke: {e}")))?.to_bytes())
}

async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let bytes = match read(response).await {
        Ok(bytes) => bytes,
        Err(failure) => return failure,
    };
    match serde_json::from_slice::<ErrorEnvelope>(&bytes) {
        Ok(envelope) if status == StatusCode::UNAUTHORIZED => Failure::from(envelope.error)
            .hint("name a file with a password (--password-file, --as) or an API token (--api-token-file), or use the unix socket as root"),
        Ok(envelope) => envelope.error.into(),
        Err(_) => Failure::of(1, format!("toft answered {status}")),
    }
}

pub(super) fn json(body: &impl Serialize) -> Result<Bytes, Failure> {
    let bytes = serde_json::to_vec(body).map_err(|e| Failure::of(1, format!("the request could not be made: {e}")))?;
    Ok(bytes.into())
}

/// Percent-encodes a value for a query (RFC 3986: all but the unreserved characters).
pub(super) fn query_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(query_value("a/b:c d&é"), "a%2Fb%3Ac%20d%26%C3%A9");
    }
}
