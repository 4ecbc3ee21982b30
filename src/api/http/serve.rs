//! Answers connections: bounded in number, in header size and in the time a header may take.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    serve::{Listener, ListenerExt},
};
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinSet,
};
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

/// Answers on a TCP listener until `cancel`.
pub async fn tcp(listener: TcpListener, app: Router, cancel: CancellationToken) {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection is not sent at once");
        }
    });
    serve(listener, app, cancel, |address| Some(Peer(*address))).await;
}

/// Answers on a unix listener until `cancel`.
pub async fn unix(listener: UnixListener, app: Router, cancel: CancellationToken) {
    serve(listener, app, cancel, |_| None).await;
}

async fn serve<L: Listener>(
    mut listener: L,
    app: Router,
    cancel: CancellationToken,
    peer: impl Fn(&L::Addr) -> Option<Peer>,
) {
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
        let peer = peer(&address);
        let service = app.clone().map_request(move |mut request: Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            request
        });
        let service = TowerToHyperService::new(service);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let connection = graceful.watch(connection.into_owned());
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "a connection ended with an error");
            }
            drop(place);
        });
    }
    // Streams that never end by themselves are cut when the daemon's patience ends and drops this future.
    graceful.shutdown().await;
}
