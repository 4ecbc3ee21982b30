//! Whether the cluster's leader hears of this node, which is what exclusive instances may run by.
//!
//! A lease counts from before the leader was asked, by this machine's steady clock, and only an answer renews it. The leader lets
//! another start [`FENCED`](crate::control::loops::node_health::FENCED) after it heard of this node last: later than the lease's
//! end and the time it takes to stop.
//!
//! The end of the lease is also noted where the loggers beside the containers see it ([`note`]): they end what is exclusive when
//! the daemon is dead, or hangs. Where nobody else votes nobody can let another start without this daemon, and the lease does not
//! end.

use std::{path::Path, time::Duration};

use toft_model::instance::AssignmentSet;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub(super) use self::note::BootTime;
use self::note::Note;
use super::tasks::Tasks;
use crate::{agent::keeper::Lease, consensus::Handle};

mod note;

/// How long an answer counts.
const LEASE: Duration = Duration::from_secs(10);
/// How long what ran before this start of the daemon goes on without an answer.
const AT_START: Duration = Duration::from_secs(4);
/// Time between two questions.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long what is exclusive goes on while the daemon is away and said that it would be back. The leader waits for a minute.
const FAREWELL: Duration = Duration::from_secs(45);

/// Keeps asking for as long as there is something exclusive, and says whether it may run. `path`: the note.
pub(super) fn keep(
    (state, path): (Handle, &Path),
    assignments: watch::Receiver<Option<AssignmentSet>>,
    (tasks, cancel): (&mut Tasks, &CancellationToken),
) -> watch::Receiver<Lease> {
    let (sender, lease) = watch::channel(Lease::Awaited);
    let cancel = cancel.clone();
    let paper = Paper::open(path);
    tasks.spawn("lease", async move {
        let asking = ask(state, assignments, sender, paper);
        let _ = cancel.run_until_cancelled(asking).await;
    });
    lease
}

/// Since when the lease of the daemon before this one is over, if it is, in milliseconds since 1970 like `now_ms`.
pub(super) fn was_over_ms(path: &Path, now_ms: i64) -> Option<i64> {
    let until = path.exists().then(|| Note::open(path).ok()?.read())??;
    let ago = BootTime::now().since(until)?;
    Some(now_ms.saturating_sub(i64::try_from(ago.as_millis()).ok()?))
}

/// The leader knows since `told` that this daemon will be back. To be called when nobody asks for the lease any more.
pub(super) fn say_farewell(path: &Path, told: BootTime) {
    let longer = |note: &Note| match note.read() {
        Some(until) if until < told.plus(FAREWELL) => note.write(told.plus(FAREWELL)),
        Some(_) | None => Ok(()),
    };
    // Where no note is there is nothing exclusive.
    if path.exists()
        && let Err(error) = Note::open(path).and_then(|note| longer(&note))
    {
        tracing::warn!(%error, "what is exclusive here stops soon, for its lease could not be noted");
    }
}

/// The note, where it can be written.
struct Paper(Option<Note>);

impl Paper {
    fn open(path: &Path) -> Self {
        let note = Note::open(path).inspect_err(|error| {
            tracing::error!(%error, "`{}` cannot be written: nothing exclusive starts here", path.display());
        });
        let paper = Self(note.ok());
        // What the daemon before this one said when it went holds for its absence only.
        if let Some(until) = paper.0.as_ref().and_then(Note::read)
            && until != BootTime::NEVER
        {
            paper.note(until.min(BootTime::now().plus(LEASE)));
        }
        paper
    }

    /// Notes it; `false` when whoever looks would not know.
    fn note(&self, until: BootTime) -> bool {
        let written = self.0.as_ref().map(|note| note.write(until));
        match written {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                tracing::warn!(%error, "the lease of what is exclusive could not be noted");
                false
            }
            None => false,
        }
    }
}

fn is_needed(set: Option<&AssignmentSet>) -> bool {
    set.is_some_and(|set| set.assignments.iter().any(|order| order.container.exclusive))
}

async fn ask(
    state: Handle,
    mut assignments: watch::Receiver<Option<AssignmentSet>>,
    lease: watch::Sender<Lease>,
    paper: Paper,
) {
    let mut until = Instant::now() + AT_START;
    let mut answered = false;
    loop {
        if !is_needed(assignments.borrow_and_update().as_ref()) {
            // What comes later is asked for then, and starts when there is an answer.
            lease.send_replace(Lease::Awaited);
            if assignments.changed().await.is_err() {
                return std::future::pending().await;
            }
            (until, answered) = (Instant::now() + AT_START, false);
            continue;
        }
        let (asked, asked_at) = (Instant::now(), BootTime::now());
        let alone = state.stands_alone();
        let heard = async { alone || state.is_heard().await };
        let patience = ANSWER.min(until.saturating_duration_since(asked).max(Duration::from_millis(200)));
        if tokio::time::timeout(patience, heard).await.unwrap_or(false)
            && paper.note(if alone { BootTime::NEVER } else { asked_at.plus(LEASE) })
        {
            (until, answered) = (asked + LEASE, true);
        }
        let now = Instant::now();
        let is = match (now < until, answered) {
            (true, true) => Lease::Held,
            (true, false) => Lease::Awaited,
            (false, _) => Lease::Over,
        };
        if lease.send_if_modified(|was| std::mem::replace(was, is) != is) && is == Lease::Over {
            tracing::warn!("the leader has not heard of this node for too long: what is exclusive stops here");
        }
        let next = if is == Lease::Held { (now + PERIOD).min(until) } else { now + Duration::from_millis(500) };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            // Others may soon do without this daemon.
            () = state.stands_alone_no_longer(), if alone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_farewell_prolongs_a_lease_and_a_start_ends_the_farewell() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lease");
        let read = || Note::open(&path).unwrap().read();
        say_farewell(&path, BootTime::now());
        assert!(!path.exists(), "there is nothing exclusive");
        assert_eq!(Paper::open(&path).0.unwrap().read(), None);

        let now = BootTime::now();
        assert!(Paper::open(&path).note(now.plus(LEASE)));
        say_farewell(&path, now);
        assert_eq!(read(), Some(now.plus(FAREWELL)));
        drop(Paper::open(&path));
        let until = read().unwrap();
        assert!(until >= now.plus(LEASE) && until < now.plus(FAREWELL), "{until:?} after {now:?}");

        Paper::open(&path).note(now);
        drop(Paper::open(&path));
        assert_eq!(read(), Some(now), "a start prolongs nothing");
        Paper::open(&path).note(BootTime::NEVER);
        say_farewell(&path, now);
        drop(Paper::open(&path));
        assert_eq!(read(), Some(BootTime::NEVER), "who is alone stays so until it asked");
    }

    #[test]
    fn a_lease_that_is_over_is_known_by_the_time_of_day() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lease");
        assert_eq!(was_over_ms(&path, 1_000_000), None);
        let note = Note::open(&path).unwrap();
        assert_eq!(was_over_ms(&path, 1_000_000), None);
        for until in [BootTime::now().plus(LEASE), BootTime::NEVER] {
            note.write(until).unwrap();
            assert_eq!(was_over_ms(&path, 1_000_000), None);
        }
        note.write(BootTime::now()).unwrap();
        let since = was_over_ms(&path, 1_000_000).unwrap();
        assert!((990_000..=1_000_000).contains(&since), "{since}");
    }

    #[test]
    fn what_cannot_be_noted_is_no_lease() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Paper::open(&folder.path().join("missing/lease")).note(BootTime::now()));
    }
}
