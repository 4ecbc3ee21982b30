//! Answers connections, with TLS or without: bounded in number, in header size and in the time a header may take.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    serve::{Listener, ListenerExt},
};
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Connections answered at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 2_048;
/// Longest time a request's header may take to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Most bytes of a request's header.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Where a request comes from, as an extension of those that come over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Longest time a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// First byte of a TLS handshake; no HTTP method begins like that.
const HANDSHAKE: u8 = 0x16;

/// Answers on a TCP listener until `cancel`: with `tls` over TLS, and who speaks plain HTTP is told where to go.
pub async fn tcp(listener: TcpListener, app: Router, tls: Option<Arc<ServerConfig>>, cancel: CancellationToken) {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection is not sent at once");
        }
    });
    let elsewhere = Router::new().fallback(to_https);
    serve(listener, cancel, move |stream: TcpStream, address: SocketAddr, answering: Answering| {
        let (app, elsewhere, acceptor) = (app.clone(), elsewhere.clone(), tls.clone().map(TlsAcceptor::from));
        async move {
            let peer = Some(Peer(address));
            let Some(acceptor) = acceptor else { return answering.answer(stream, app, peer).await };
            let mut first = [0];
            match answering.begun(stream.peek(&mut first)).await {
                Some(1..) if first[0] == HANDSHAKE => {
                    if let Some(stream) = answering.begun(acceptor.accept(stream)).await {
                        answering.answer(stream, app, peer).await;
                    }
                }
                Some(1..) => answering.answer(stream, elsewhere, peer).await,
                Some(0) | None => {}
            }
        }
    })
    .await;
}

/// Answers on a unix listener until `cancel`.
pub async fn unix(listener: UnixListener, app: Router, cancel: CancellationToken) {
    serve(listener, cancel, move |stream: UnixStream, _, answering: Answering| {
        let app = app.clone();
        async move { answering.answer(stream, app, None).await }
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
    builder: Arc<Builder<TokioExecutor>>,
    watcher: Watcher,
    cancel: CancellationToken,
}

impl Answering {
    /// Waits for what a connection begins with; nothing when it takes too long, or the end has come.
    async fn begun<T>(&self, work: impl Future<Output = std::io::Result<T>>) -> Option<T> {
        match self.cancel.run_until_cancelled(timeout(HANDSHAKE_TIMEOUT, work)).await? {
            Ok(Ok(done)) => Some(done),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection could not begin");
                None
            }
            Err(_) => None,
        }
    }

    async fn answer<S>(self, stream: S, app: Router, peer: Option<Peer>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = app.map_request(move |mut request: Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            request
        });
        let service = TowerToHyperService::new(service);
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        if let Err(error) = self.watcher.watch(connection.into_owned()).await {
            tracing::debug!(error, "a connection ended with an error");
        }
    }
}

async fn serve<L, F, W>(mut listener: L, cancel: CancellationToken, take: F)
where
    L: Listener,
    F: Fn(L::Io, L::Addr, Answering) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_concurrent_streams(128);
    let graceful = GracefulShutdown::new();
    let builder = Arc::new(builder);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let ((stream, address), place) = tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        let (builder, watcher, cancel) = (Arc::clone(&builder), graceful.watcher(), cancel.clone());
        let taken = take(stream, address, Answering { builder, watcher, cancel });
        connections.spawn(async move {
            taken.await;
            drop(place);
        });
    }
    // Streams that never end by themselves are cut when the daemon's patience ends and drops this future.
    graceful.shutdown().await;
}
