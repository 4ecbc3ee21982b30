//! Fragments sent again when they change.
//!
//! A stream renders its fragment at once and then whenever the state moved or a pull began or ended, at most four times a
//! second, and once in a while because ages grow, or pulls go on. What is the same as before is not sent. Comments keep proxies from closing a quiet stream.

use std::{
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use axum::{
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream::{self, Stream, StreamExt};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Dashboard, error::PageError};
use crate::control::ops::Ops;

/// Least time between two renderings.
const PACE: Duration = Duration::from_millis(250);
/// Most time between two renderings.
const REFRESH: Duration = Duration::from_secs(15);
/// Time between two comments on a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);

/// Time between two renderings of a page that shows how far a pull is.
const PULLING: Duration = Duration::from_millis(500);

struct Watch<F> {
    ops: Ops,
    moved: watch::Receiver<u64>,
    pulls_moved: watch::Receiver<u64>,
    shutdown: CancellationToken,
    render: F,
    sent: Option<u64>,
    rendered: Option<Instant>,
}

impl<F, R> Watch<F>
where
    F: FnMut() -> R,
    R: Future<Output = Result<String, PageError>>,
{
    /// The next fragment that differs from the one before; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(rendered) = self.rendered {
                let pulling = self.ops.image_pulls().iter().any(|pull| pull.failure.is_none());
                let refresh = if pulling { PULLING } else { REFRESH };
                tokio::select! {
                    () = self.shutdown.cancelled() => return None,
                    moved = self.moved.changed() => moved.ok()?,
                    Ok(()) = self.pulls_moved.changed() => {}
                    () = tokio::time::sleep_until(rendered + refresh) => {}
                }
                tokio::time::sleep_until(rendered + PACE).await;
            }
            self.moved.mark_unchanged();
            self.pulls_moved.mark_unchanged();
            let fragment = (self.render)().await;
            self.rendered = Some(Instant::now());
            // What cannot be read now is tried again; the page keeps what it shows.
            let Ok(fragment) = fragment else { continue };
            let hash = hash(&fragment);
            if self.sent.replace(hash) != Some(hash) {
                return Some(fragment);
            }
        }
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Answers with the stream of what `render` gives, as events called `fragment`.
pub(super) fn fragments<F, R>(dashboard: &Dashboard, render: F) -> Response
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = Result<String, PageError>> + Send + 'static,
{
    let watch = Watch {
        ops: dashboard.ops.clone(),
        moved: dashboard.ops.state().watch(),
        pulls_moved: dashboard.ops.image_pulls_moved(),
        shutdown: dashboard.shutdown.clone(),
        render,
        sent: None,
        rendered: None,
    };
    let fragments = stream::unfold(watch, |mut watch| async move {
        let fragment = watch.next().await?;
        Some((Event::default().event("fragment").data(fragment), watch))
    });
    answer(dashboard, fragments)
}

/// Answers with events, if one more stream is allowed.
pub(super) fn answer(dashboard: &Dashboard, events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let Ok(permit) = Arc::clone(&dashboard.streams).try_acquire_owned() else {
        return PageError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Too many live pages",
            "too many live pages are open",
            "close some; this page can be reloaded by hand",
        )
        .into_response();
    };
    let hello = stream::once(async { Event::default().retry(RETRY) });
    let events = Held { events: Box::pin(hello.chain(events)), _permit: permit };
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

/// Events with the permit they hold while somebody reads them.
struct Held<S> {
    events: std::pin::Pin<Box<S>>,
    _permit: OwnedSemaphorePermit,
}

impl<S: Stream<Item = Event>> Stream for Held<S> {
    type Item = Result<Event, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.events.as_mut().poll_next(context).map(|event| event.map(Ok))
    }
}
