//! Answers connections, with TLS or without: bounded in number, in the size of a header, and in the time that anything may
//! take. docs/front-door.md tells the whole.

mod paced;
mod places;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    serve::{Listener, ListenerExt},
};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use paced::{Answered, Paced, Taken};
use places::{Place, Places};

pub use places::Limits;

/// Longest time the header of a request on HTTP/1.1 may take to arrive, and that of the first one on any connection; the wait for its
/// first byte is included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may rest on which nothing is being answered.
const REST: Duration = Duration::from_secs(120);
/// Most bytes of a request's header.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Longest time a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// First byte of a TLS handshake; no HTTP method begins like that.
const HANDSHAKE: u8 = 0x16;
/// Most requests at a time on one connection of HTTP/2.
const MAX_STREAMS: u32 = 128;
/// Most bytes of bodies that nobody has read yet: of one request on HTTP/2, and of a connection.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Most bytes of an answer on HTTP/2 that wait to be sent.
const MAX_SEND_BYTES: usize = 64 * 1024;
/// Time between two questions whether the other side of a connection of HTTP/2 is there, and longest wait for its answer.
const PING: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Where a request comes from, as an extension of those that come over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
}

/// Answers on a TCP listener until `cancel`: with `tls` over TLS, and who speaks plain HTTP is told where to go.
pub async fn tcp(
    listener: TcpListener,
    app: Router,
    (tls, limits): (Option<Arc<ServerConfig>>, Limits),
    cancel: CancellationToken,
) {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection is not sent at once");
        }
    });
    let elsewhere = Router::new().fallback(to_https);
    let from = |address: &SocketAddr| Some(address.ip());
    serve(listener, (limits, from), cancel, move |stream: TcpStream, address: SocketAddr, answering: Answering| {
        let (app, elsewhere, acceptor) = (app.clone(), elsewhere.clone(), tls.clone().map(TlsAcceptor::from));
        async move {
            let peer = Some(Peer(address));
            let Some(acceptor) = acceptor else { return answering.answer(stream, Speaks::Http1, app, peer).await };
            let mut first = [0];
            match answering.begun(stream.peek(&mut first)).await {
                Some(1..) if first[0] == HANDSHAKE => {
                    if let Some(stream) = answering.begun(acceptor.accept(stream)).await {
                        let speaks = match stream.get_ref().1.alpn_protocol() {
                            Some(b"h2") => Speaks::Http2,
                            _ => Speaks::Http1,
                        };
                        answering.answer(stream, speaks, app, peer).await;
                    }
                }
                Some(1..) => answering.answer(stream, Speaks::Http1, elsewhere, peer).await,
                Some(0) | None => {}
            }
        }
    })
    .await;
}

/// Answers on a unix listener until `cancel`.
pub async fn unix(listener: UnixListener, app: Router, connections: usize, cancel: CancellationToken) {
    let limits = Limits { connections, per_address: connections };
    let from = |_: &tokio::net::unix::SocketAddr| None;
    serve(listener, (limits, from), cancel, move |stream: UnixStream, _, answering: Answering| {
        let app = app.clone();
        async move { answering.answer(stream, Speaks::Http1, app, None).await }
    })
    .await;
}

/// Sends who speaks plain HTTP where TLS is spoken to the same address with TLS.
async fn to_https(request: axum::extract::Request) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-:[]".contains(&b);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let known = !host.is_empty() && host.len() <= 260 && host.bytes().all(plain) && path.starts_with('/');
    if known && request.method().is_safe() {
        let to = format!("https://{host}{path}");
        return (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, to)]).into_response();
    }
    // A password that came in the clear is not answered as if nothing had happened.
    (StatusCode::BAD_REQUEST, "this port speaks TLS\nhint: write https:// instead of http://\n").into_response()
}

/// How a connection is answered.
struct Answering {
    builders: Arc<Builders>,
    watcher: Watcher,
    cancel: CancellationToken,
    place: Arc<Place>,
}

/// What answers, by what is spoken. Who speaks what is known before, so that nobody is waited for who does not say it.
struct Builders {
    http1: Builder<TokioExecutor>,
    http2: Builder<TokioExecutor>,
}

impl Builders {
    fn new() -> Self {
        let mut http1 = Builder::new(TokioExecutor::new()).http1_only();
        http1.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEADER_BYTES);
        let mut http2 = Builder::new(TokioExecutor::new()).http2_only();
        http2
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(MAX_SEND_BYTES)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING_TIMEOUT);
        Self { http1, http2 }
    }
}

impl Answering {
    /// Waits for what a connection begins with; nothing when it takes too long, has to give way, or the end has come.
    async fn begun<T>(&self, work: impl Future<Output = std::io::Result<T>>) -> Option<T> {
        let done = tokio::select! {
            done = timeout(HANDSHAKE_TIMEOUT, work) => done,
            () = self.cancel.cancelled() => return None,
            () = self.place.given_away() => return None,
        };
        match done {
            Ok(Ok(done)) => Some(done),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection could not begin");
                None
            }
            Err(_) => None,
        }
    }

    async fn answer<S>(self, stream: S, speaks: Speaks, app: Router, peer: Option<Peer>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let place = Arc::clone(&self.place);
        let service = service_fn(move |request: Request<Incoming>| {
            let (app, asked) = (app.clone(), place.asked());
            async move {
                let request = match peer {
                    Some(peer) => {
                        let mut request = request.map(|body| Body::new(Paced::new(body)));
                        request.extensions_mut().insert(peer);
                        request
                    }
                    // Root may take its time.
                    None => request.map(Body::new),
                };
                let response = app.oneshot(request).await?;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    asked.for_good();
                    return Ok(response);
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| Body::new(Answered::new(body, asked))))
            }
        });
        let builder = match speaks {
            Speaks::Http1 => &self.builders.http1,
            Speaks::Http2 => &self.builders.http2,
        };
        let stream = TokioIo::new(Taken::new(stream, Arc::clone(&self.place)));
        let connection = builder.serve_connection_with_upgrades(stream, service);
        tokio::select! {
            ended = self.watcher.watch(connection.into_owned()) => if let Err(error) = ended {
                tracing::debug!(error, "a connection ended with an error");
            },
            () = self.place.given_away() => tracing::debug!("a connection that rested gives way to another"),
            () = self.place.rested(HEADER_TIMEOUT, REST) => {}
        }
    }
}

async fn serve<L, F, W>(
    mut listener: L,
    (limits, from): (Limits, impl Fn(&L::Addr) -> Option<IpAddr>),
    cancel: CancellationToken,
    take: F,
) where
    L: Listener,
    F: Fn(L::Io, L::Addr, Answering) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let (builders, places) = (Arc::new(Builders::new()), Places::new(limits));
    let mut connections = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        // Who finds no place is told so by the end of the connection: an answer would cost what there is too little of.
        let Some(place) = places.take(from(&address)) else { continue };
        let (builders, watcher, cancel) = (Arc::clone(&builders), graceful.watcher(), cancel.clone());
        connections.spawn(take(stream, address, Answering { builders, watcher, cancel, place: Arc::new(place) }));
    }
    // Streams that never end by themselves are cut when the daemon's patience ends and drops this future.
    graceful.shutdown().await;
}
