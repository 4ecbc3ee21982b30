//! Fragments sent again when they change.
//!
//! Whoever looks at the same page and may the same shares one feed: its fragment is rendered once for all of them, when the state moved or
//! a pull began or ended, at most four times a second, and once in a while because ages grow or pulls go on. The feed
//! ends with its last reader.
//!
//! A fragment marks its parts, such as the rows of a table, with [`PART`] and [`END`]. A reader is sent the whole fragment
//! once, and after that only the parts that differ from what it has: a page of a thousand rows costs no more than the row
//! that changed. Comments keep proxies from closing a quiet stream.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError, Weak},
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
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Dashboard, error::PageError, sight};
use crate::control::{actor, ops::Ops};

/// How a part begins: this, its id, and `-->`. The id is that of the one element in it.
const PART: &str = "<!--part ";
/// How a part ends.
const END: &str = "<!--end-->";
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

/// A fragment in parts.
#[derive(Debug, PartialEq, Eq)]
struct Rendered {
    whole: String,
    /// What stands around the parts.
    frame: String,
    /// Ids and HTML, in order.
    parts: Vec<(String, String)>,
    /// Those of them that something else stands before: they begin a list of their own.
    first: HashSet<String>,
}

impl Rendered {
    fn new(whole: String) -> Self {
        let (mut frame, mut parts, mut first) = (String::new(), Vec::new(), HashSet::new());
        let mut rest = whole.as_str();
        while let Some((before, after)) = rest.split_once(PART) {
            let Some(((id, html), behind)) =
                after.split_once(END).and_then(|(part, behind)| Some((part.split_once("-->")?, behind)))
            else {
                break;
            };
            frame.push_str(before.trim());
            if !before.trim().is_empty() {
                first.insert(id.trim().to_owned());
            }
            parts.push((id.trim().to_owned(), html.trim().to_owned()));
            rest = behind;
        }
        frame.push_str(rest);
        Self { whole, frame, parts, first }
    }

    /// What a reader of `before` lacks; `None`: the whole.
    fn since<'a>(&'a self, before: &'a Self) -> Option<Changes<'a>> {
        if self.frame != before.frame || self.parts.is_empty() || before.parts.is_empty() {
            return None;
        }
        let known: HashMap<&str, &str> = before.parts.iter().map(|(id, html)| (id.as_str(), html.as_str())).collect();
        let there: HashSet<&str> = self.parts.iter().map(|(id, _)| id.as_str()).collect();
        let stayed = |parts: &'a [(String, String)]| -> Vec<&'a str> {
            let ids = parts.iter().map(|(id, _)| id.as_str());
            ids.filter(|id| there.contains(id) && known.contains_key(id)).collect()
        };
        // Rows that change places are rare, and sent whole.
        if stayed(&self.parts) != stayed(&before.parts) {
            return None;
        }
        let gone = before.parts.iter().map(|(id, _)| id.as_str()).filter(|id| !there.contains(id)).collect();
        let mut after = None;
        let mut parts = Vec::new();
        for (id, html) in &self.parts {
            // The part before it is in another list.
            if after.is_some() && self.first.contains(id) && !known.contains_key(id.as_str()) {
                return None;
            }
            if known.get(id.as_str()) != Some(&html.as_str()) {
                parts.push(Change { id, after, html });
            }
            after = Some(id.as_str());
        }
        Some(Changes { gone, parts })
    }
}

/// What is different.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Changes<'a> {
    /// Ids of parts that are no more.
    gone: Vec<&'a str>,
    parts: Vec<Change<'a>>,
}

/// A part that is new or another.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Change<'a> {
    id: &'a str,
    /// The part before it.
    after: Option<&'a str>,
    html: &'a str,
}

/// The feeds that somebody reads, by what they show.
#[derive(Clone, Default)]
pub(super) struct Feeds(Arc<Mutex<HashMap<String, Weak<Feed>>>>);

struct Feed {
    newest: watch::Receiver<Option<Arc<Rendered>>>,
    _task: AbortOnDropHandle<()>,
}

impl Feeds {
    fn of(&self, key: String, begin: impl FnOnce() -> Feed) -> Arc<Feed> {
        let mut feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feeds.get(&key).and_then(Weak::upgrade) {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let feed = Arc::new(begin());
        feeds.insert(key, Arc::downgrade(&feed));
        feed
    }
}

struct Watch<F> {
    ops: Ops,
    moved: watch::Receiver<u64>,
    pulls_moved: watch::Receiver<u64>,
    shutdown: CancellationToken,
    render: F,
    rendered: Option<Instant>,
}

impl<F, R> Watch<F>
where
    F: FnMut() -> R,
    R: Future<Output = Result<String, PageError>>,
{
    /// Renders again and again; ends with the appliance.
    async fn run(mut self, newest: watch::Sender<Option<Arc<Rendered>>>) {
        while self.wait().await.is_some() {
            self.moved.mark_unchanged();
            self.pulls_moved.mark_unchanged();
            let fragment = (self.render)().await;
            self.rendered = Some(Instant::now());
            // What cannot be read now is tried again; the page keeps what it shows.
            let Ok(fragment) = fragment else { continue };
            newest.send_if_modified(|known| {
                let same = known.as_ref().is_some_and(|known| known.whole == fragment);
                if !same {
                    *known = Some(Arc::new(Rendered::new(fragment)));
                }
                !same
            });
        }
    }

    /// Waits until there may be something new; `None` at the end.
    async fn wait(&mut self) -> Option<()> {
        let Some(rendered) = self.rendered else { return Some(()) };
        let pulling = self.ops.image_pulls().iter().any(|pull| pull.failure.is_none());
        let refresh = if pulling { PULLING } else { REFRESH };
        tokio::select! {
            () = self.shutdown.cancelled() => return None,
            moved = self.moved.changed() => moved.ok()?,
            Ok(()) = self.pulls_moved.changed() => {}
            () = tokio::time::sleep_until(rendered + refresh) => {}
        }
        tokio::time::sleep_until(rendered + PACE).await;
        Some(())
    }
}

/// What one reader has.
struct Reader {
    /// It goes on for as long as somebody has it.
    _feed: Arc<Feed>,
    newest: watch::Receiver<Option<Arc<Rendered>>>,
    shutdown: CancellationToken,
    has: Option<Arc<Rendered>>,
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        loop {
            let newest = self.newest.borrow_and_update().clone();
            if let Some(newest) = newest.filter(|newest| self.has.as_ref().is_none_or(|has| has != newest)) {
                let before = self.has.replace(Arc::clone(&newest));
                let changes = before.as_ref().and_then(|before| newest.since(before));
                return Some(match changes.and_then(|changes| serde_json::to_string(&changes).ok()) {
                    Some(changes) => Event::default().event("parts").data(changes),
                    None => Event::default().event("fragment").data(&newest.whole),
                });
            }
            let shutdown = self.shutdown.clone();
            shutdown.run_until_cancelled(self.newest.changed()).await?.ok()?;
        }
    }
}

/// Answers with the stream of what `render` gives: events called `fragment`, and `parts` of it. Readers with the same `key`
/// who may the same are shown the same.
pub(super) fn fragments<F, R>(dashboard: &Dashboard, key: impl Into<String>, render: F) -> Response
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = Result<String, PageError>> + Send + 'static,
{
    let (whose, alike) = sight::of_whom_looks();
    let feed = dashboard.feeds.of(format!("{} {whose}", key.into()), || {
        let (sender, newest) = watch::channel(None);
        let watch = Watch {
            ops: dashboard.ops.clone(),
            moved: dashboard.ops.state().watch(),
            pulls_moved: dashboard.ops.image_pulls_moved(),
            shutdown: dashboard.shutdown.clone(),
            render,
            rendered: None,
        };
        let run = actor::act(Arc::new(alike), watch.run(sender));
        Feed { newest, _task: AbortOnDropHandle::new(tokio::spawn(run)) }
    });
    let newest = feed.newest.clone();
    let reader = Reader { _feed: feed, newest, shutdown: dashboard.shutdown.clone(), has: None };
    answer(dashboard, stream::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) }))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, &str)]) -> Rendered {
        let row =
            |(id, text): &(&str, &str)| format!("<!--part {id}--><tr id=\"{id}\"><td>{text}</td></tr><!--end-->\n");
        Rendered::new(format!("<table>\n{}</table>", rows.iter().map(row).collect::<String>()))
    }

    #[test]
    fn only_what_changed_is_sent() {
        let before = table(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let changes = |now: &[(&str, &str)]| {
            let now = table(now);
            now.since(&before).map(|changes| {
                let one = |change: &Change<'_>| format!("{}<{}", change.after.unwrap_or("-"), change.id);
                (changes.gone.join(" "), changes.parts.iter().map(one).collect::<Vec<_>>().join(" "))
            })
        };
        let told = |gone: &str, parts: &str| Some((gone.to_owned(), parts.to_owned()));
        assert_eq!(changes(&[("a", "1"), ("b", "9"), ("c", "3")]), told("", "a<b"));
        assert_eq!(changes(&[("b", "2"), ("c", "3")]), told("a", ""));
        assert_eq!(changes(&[("x", "1"), ("a", "1"), ("c", "3"), ("y", "1")]), told("b", "-<x c<y"));
        assert_eq!(changes(&[("c", "3"), ("a", "1"), ("b", "2")]), None, "other places: all of it");
        assert_eq!(changes(&[]), None);
        assert_eq!(Rendered::new("<p>none</p>".into()).since(&before), None);
        let lists = |one: &str, two: &str| Rendered::new(format!("<ul>{one}</ul><ol>{two}</ol>"));
        let item = |id: &str| format!("<!--part {id}--><li id=\"{id}\"></li><!--end-->");
        let both = lists(&item("a"), &item("x"));
        assert!(
            lists(&item("a"), &(item("w") + &item("x"))).since(&both).is_none(),
            "`w` comes after nobody in its list"
        );
        assert!(lists(&item("a"), &(item("x") + &item("y"))).since(&both).is_some());
        let cut = Rendered::new("a<!--part x-->never ends".into());
        assert!(cut.parts.is_empty() && cut.frame.contains("never ends"));
    }
}
