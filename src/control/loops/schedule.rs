//! Plans whenever the state moved, and once in a while all the same.

use std::{collections::BTreeMap, time::Duration};

use toft_model::{
    ids::{InstanceId, NodeId},
    state::{Command, Follower, Reply},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    consensus::{Follows, Handle, Rows},
    control::ops::now_ms,
    observe::chain,
};

/// Longest time between two rounds.
const PERIOD: Duration = Duration::from_secs(30);
/// Wait after a round that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Milliseconds by which clocks of other nodes are ahead of this one's, as it hears them now; those that hardly are may be
/// absent.
pub type Clocks = Box<dyn Fn() -> BTreeMap<NodeId, i64> + Send + Sync>;

/// Runs until `cancel`.
pub async fn run(state: Handle, clocks: Clocks, cancel: CancellationToken) {
    let mut moves = state.watch_schedule();
    let mut follower = None;
    loop {
        moves.mark_unchanged();
        let wait = match round(&state, &clocks, &mut follower).await {
            Ok(wake_at_ms) => until(wake_at_ms),
            Err(error) => {
                tracing::warn!(error, "planning failed and will be tried again");
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            moved = moves.changed() => if moved.is_err() { return },
        }
    }
}

/// The wait until `at_ms`, at most [`PERIOD`].
fn until(at_ms: Option<i64>) -> Duration {
    let left = at_ms.map(|at_ms| u64::try_from(at_ms - now_ms()).unwrap_or(0));
    left.map_or(PERIOD, |left| Duration::from_millis(left + 1).min(PERIOD))
}

/// Plans once; gives when to plan again although nothing happens. Who follows the state is kept while this member leads and
/// nothing fails.
async fn round(state: &Handle, clocks: &Clocks, follower: &mut Option<Follower>) -> Result<Option<i64>, String> {
    let kept = follower.take();
    if !state.leads() {
        return Ok(None);
    }
    // Before the read, which then sees them all.
    let written = state.take_written(Follows::Scheduler);
    let follow = move |connection: &rusqlite::Connection| match (kept, written) {
        (Some(mut kept), Rows::These(rows)) => {
            kept.follow(connection, &rows)?;
            Ok(kept)
        }
        (None, _) | (_, Rows::All) => Follower::read(connection),
    };
    let mut known = state.read(follow).await.map_err(|e| chain(&e).to_string())?;
    known.scheduler().set_clocks(clocks());
    let planned = tokio::task::spawn_blocking(move || {
        let decided = known.scheduler().plan(now_ms(), &mut || InstanceId(Uuid::now_v7()));
        (known, decided)
    });
    let (known, decided) = planned.await.map_err(|e| e.to_string())?;
    *follower = Some(known);
    let wake_at_ms = decided.wake_at_ms;
    if decided.is_empty() {
        return Ok(wake_at_ms);
    }
    let command = Command::CommitPlan {
        placements: decided.placements,
        changes: decided.changes,
        pending: decided.pending,
        rollouts: decided.rollouts,
        preemptions: decided.preemptions,
        unmoved: decided.unmoved,
        at_ms: now_ms(),
    };
    let reply = state.propose(command).await.map_err(|e| chain(&e))?;
    if let Reply::Plan { dropped: dropped @ 1.., .. } = reply {
        tracing::info!(dropped, "some placements were stale and will be planned again");
    }
    Ok(wake_at_ms)
}
