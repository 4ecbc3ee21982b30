//! Answers connections: bounded in number, in header size and in the time a header may take.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Connections answered at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 2_048;
/// Longest time a request's header may take to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Most bytes of a request's header.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Wait after a connection could not be accepted (out of descriptors).
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Answers on a TCP listener until `cancel`.
pub async fn tcp(listener: TcpListener, app: Router, cancel: CancellationToken) {
    let accept = async || {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    serve(accept, app, cancel).await;
}

/// Answers on a unix listener until `cancel`.
pub async fn unix(listener: UnixListener, app: Router, cancel: CancellationToken) {
    serve(async || Ok(listener.accept().await?.0), app, cancel).await;
}

async fn serve<S>(accept: impl AsyncFn() -> io::Result<S>, app: Router, cancel: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
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
    let service = TowerToHyperService::new(app);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (accept().await, place)
            } => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            (Ok(stream), Ok(place)) => {
                let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service.clone());
                let connection = graceful.watch(connection.into_owned());
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(error, "a connection ended with an error");
                    }
                    drop(place);
                });
            }
            (Err(error), _) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
            (_, Err(_closed)) => break,
        }
    }
    // Streams that never end by themselves are cut when the daemon's patience ends and drops this future.
    graceful.shutdown().await;
}
