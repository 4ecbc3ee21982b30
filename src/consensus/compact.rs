//! Keeps the log short: a snapshot whenever it has grown by so much, and openraft forgets the entries before it.

use super::{
    log_store::LogSize,
    types::{Fatal, Raft},
};
use tokio::sync::watch;

/// Entries the log may grow by between two snapshots.
const ENTRIES: u64 = 20_000;
/// Bytes the log may grow by between two snapshots.
const BYTES: u64 = 16 << 20;
/// Entries before the snapshot that are kept, so that a member that was away for a moment needs no snapshot.
pub(super) const KEPT: u64 = 500;

/// Runs until consensus ends.
pub(super) async fn run(raft: Raft, mut size: watch::Receiver<LogSize>) {
    let mut metrics = raft.data_metrics();
    loop {
        let base = *size.borrow_and_update();
        let grown = size.wait_for(|now| {
            now.entries.saturating_sub(base.entries) >= ENTRIES || now.bytes.saturating_sub(base.bytes) >= BYTES
        });
        if grown.await.is_err() {
            return;
        }
        let before = metrics.borrow_and_update().snapshot;
        if let Err(error) = trigger(&raft).await {
            tracing::debug!(%error, "consensus has ended");
            return;
        }
        // The next one is counted from the end of this one.
        if metrics.wait_for(|now| now.snapshot != before).await.is_err() {
            return;
        }
    }
}

async fn trigger(raft: &Raft) -> Result<(), Fatal> {
    raft.trigger().snapshot().await
}
