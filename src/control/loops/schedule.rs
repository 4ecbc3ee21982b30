//! Plans whenever the state moved, and once in a while all the same.

use std::time::Duration;

use toft_model::{
    ids::InstanceId,
    schedule::plan,
    state::{Command, Reply, query_snapshot},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{consensus::Handle, control::ops::now_ms, observe::chain};

/// Longest time between two rounds.
const PERIOD: Duration = Duration::from_secs(30);
/// Wait after a round that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Runs until `cancel`.
pub async fn run(state: Handle, cancel: CancellationToken) {
    let mut moves = state.watch_schedule();
    loop {
        moves.mark_unchanged();
        let wait = match round(&state).await {
            Ok(()) => PERIOD,
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

async fn round(state: &Handle) -> Result<(), String> {
    if !state.leads() {
        return Ok(());
    }
    let snapshot = state.read(query_snapshot).await.map_err(|e| chain(&e))?;
    let decided = plan(&snapshot, &mut || InstanceId(Uuid::now_v7()));
    if decided.is_empty() {
        return Ok(());
    }
    let command = Command::CommitPlan {
        placements: decided.placements,
        changes: decided.changes,
        pending: decided.pending,
        preemptions: decided.preemptions,
        at_ms: now_ms(),
    };
    let reply = state.propose(command).await.map_err(|e| chain(&e))?;
    if let Reply::Plan { dropped: dropped @ 1.., .. } = reply {
        tracing::info!(dropped, "some placements were stale and will be planned again");
    }
    Ok(())
}
