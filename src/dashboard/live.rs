//! Fragments sent again when they change.
//!
//! Whoever looks at the same page and may the same shares one feed: its fragment is rendered once for all of them, when the state moved or
//! a pull began or ended, at most four times a second, and once in a while because ages grow, pulls go on or cards are looked at
//! again. The feed ends with its last reader.
//!
//! A reader is sent the whole fragment once, and after that only the lines that are others: a page of a thousand rows costs
//! no more than what changed. That, too, is found out, written and packed ([`wire`]) once for all.

mod wire;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::stream::{self, Stream, StreamExt};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Dashboard, error::PageError, lines::changed, sight};
use crate::control::{actor, ops::Ops};
pub(super) use wire::{Event, Events, unpacks};

/// Least time between two renderings.
const PACE: Duration = Duration::from_millis(250);
/// Most time between two renderings.
const REFRESH: Duration = Duration::from_secs(15);
/// The same for pages that show what cards do: their nodes look at them, and are asked, as often.
const MEASURED: Duration = Duration::from_secs(3);
/// What a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);
/// Time between two renderings of a page that shows how far a pull is.
const PULLING: Duration = Duration::from_millis(500);
/// Steps that are kept for readers who are behind; who is further behind gets the whole.
const STEPS: usize = 16;

/// A fragment as it is now, and how it came to be.
struct Rendered {
    /// Counts the texts.
    number: u64,
    text: String,
    whole: Arc<Event>,
    /// What made each of the latest texts of the one before it; the last made this one.
    steps: VecDeque<Arc<Event>>,
}

impl Rendered {
    fn first(text: String) -> Self {
        Self { number: 1, whole: Arc::new(Event::new("fragment", &text)), text, steps: VecDeque::new() }
    }

    /// The next one.
    fn followed_by(&self, text: String) -> Self {
        let whole = Arc::new(Event::new("fragment", &text));
        let step = step(&self.text, &text).map_or_else(|| Arc::clone(&whole), Arc::new);
        let mut steps = self.steps.clone();
        steps.push_back(step);
        steps.drain(..steps.len().saturating_sub(STEPS));
        Self { number: self.number + 1, text, whole, steps }
    }

    /// What a reader who has the text of that number is sent next, and which number it has then; nothing when that is this.
    fn after(&self, has: Option<u64>) -> Option<(u64, Arc<Event>)> {
        let behind = has.and_then(|has| self.number.checked_sub(has));
        match behind {
            Some(0) => None,
            Some(behind) if behind <= self.steps.len() as u64 => {
                let step = &self.steps[self.steps.len() - behind as usize];
                Some((self.number - behind + 1, Arc::clone(step)))
            }
            Some(_) | None => Some((self.number, Arc::clone(&self.whole))),
        }
    }
}

/// What makes `after` of `before`: a list of `[place, how many lines go, [lines that come]]`, with places before any of it is
/// done. Nothing when the whole is shorter.
fn step(before: &str, after: &str) -> Option<Event> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.split('\n').collect(), after.split('\n').collect());
    let changes: Vec<_> = changed(&old, &new)
        .into_iter()
        .map(|change| (change.before.start, change.before.len(), &new[change.after]))
        .collect();
    let text = serde_json::to_string(&changes).ok()?;
    (text.len() < after.len()).then(|| Event::new("changes", &text))
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
    refresh: Duration,
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
            // Lines end alike for us and for those who read them.
            let fragment = fragment.replace("\r\n", "\n").replace('\r', "\n");
            let known = newest.borrow().clone();
            let next = match known {
                Some(known) if known.text == fragment => continue,
                Some(known) => known.followed_by(fragment),
                None => Rendered::first(fragment),
            };
            newest.send_replace(Some(Arc::new(next)));
        }
    }

    /// Waits until there may be something new; `None` at the end.
    async fn wait(&mut self) -> Option<()> {
        let Some(rendered) = self.rendered else { return Some(()) };
        let pulling = self.ops.image_pulls().iter().any(|pull| pull.failure.is_none());
        let refresh = if pulling { PULLING } else { self.refresh };
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
    /// The number of its text.
    has: Option<u64>,
}

impl Reader {
    async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            let next = self.newest.borrow_and_update().as_ref().and_then(|newest| newest.after(self.has));
            if let Some((number, event)) = next {
                self.has = Some(number);
                return Some(event);
            }
            let shutdown = self.shutdown.clone();
            shutdown.run_until_cancelled(self.newest.changed()).await?.ok()?;
        }
    }
}

/// Answers with the stream of what `render` gives: events called `fragment`, and `changes` of it. Readers with the same
/// `key` who may the same are shown the same.
pub(super) fn fragments<F, R>(dashboard: &Dashboard, key: impl Into<String>, render: F) -> Response
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = Result<String, PageError>> + Send + 'static,
{
    refreshed(dashboard, REFRESH, key.into(), render)
}

/// [`fragments`] that show what is measured, too, and not only the state.
pub(super) fn measured<F, R>(dashboard: &Dashboard, key: impl Into<String>, render: F) -> Response
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = Result<String, PageError>> + Send + 'static,
{
    refreshed(dashboard, MEASURED, key.into(), render)
}

fn refreshed<F, R>(dashboard: &Dashboard, refresh: Duration, key: String, render: F) -> Response
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = Result<String, PageError>> + Send + 'static,
{
    let (whose, alike) = sight::of_whom_looks();
    let feed = dashboard.feeds.of(format!("{key} {whose}"), || {
        let (sender, newest) = watch::channel(None);
        let watch = Watch {
            ops: dashboard.ops.clone(),
            moved: dashboard.ops.state().watch(),
            pulls_moved: dashboard.ops.image_pulls_moved(),
            shutdown: dashboard.shutdown.clone(),
            refresh,
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
pub(super) fn answer(dashboard: &Dashboard, events: impl Stream<Item = Arc<Event>> + Send + 'static) -> Response {
    let Ok(permit) = Arc::clone(&dashboard.streams).try_acquire_owned() else {
        return PageError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Too many live pages",
            "too many live pages are open",
            "close some; this page can be reloaded by hand",
        )
        .into_response();
    };
    let hello = stream::once(async { Arc::new(Event::retry(RETRY)) });
    Events::answer(hello.chain(events), permit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, &str)]) -> String {
        let row = |(id, text): &(&str, &str)| format!("<tr id=\"{id}\">\n<td>{text}</td>\n</tr>\n");
        format!("<table>\n{}</table>", rows.iter().map(row).collect::<String>())
    }

    #[test]
    fn who_is_a_little_behind_is_sent_steps_and_who_is_far_behind_the_whole() {
        let rows: Vec<(String, String)> = (0..40).map(|row| (format!("w-{row}"), "1".repeat(40))).collect();
        let text = |moment: usize| {
            let mut rows: Vec<(&str, &str)> = rows.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
            rows[moment % 40].1 = "changed";
            table(&rows)
        };
        let mut now = Rendered::first(text(0));
        assert_eq!(now.after(None).map(|(number, _)| number), Some(1));
        assert!(now.after(Some(1)).is_none());
        for moment in 1..=STEPS + 4 {
            now = now.followed_by(text(moment));
        }
        let last = (STEPS + 5) as u64;
        assert_eq!((now.number, now.steps.len()), (last, STEPS));
        let sent = |has: u64| now.after(Some(has)).map(|(number, event)| (number, Arc::ptr_eq(&event, &now.whole)));
        assert_eq!(sent(last), None);
        assert_eq!(sent(last - 1), Some((last, false)));
        assert_eq!(sent(last - STEPS as u64), Some((last - STEPS as u64 + 1, false)));
        assert_eq!(sent(last - STEPS as u64 - 1), Some((last, true)));
        assert_eq!(sent(last + 1), Some((last, true)), "of another life of the feed");
        assert!(step(&text(1), &text(2)).unwrap().packed_len() < 200);
        assert!(step("one\ntwo", "other\nlines").is_none(), "the whole is shorter");
    }
}
