//! Keeps the log short: a snapshot whenever it has grown by so much, and openraft forgets the entries before it.

use std::time::Duration;

use super::{
    log_store::LogSize,
    types::{Fatal, Raft},
};
use tokio::sync::watch;

/// Wait for a snapshot before it is asked for again: there may have been nothing new to put into it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the log may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Entries it may grow by between two snapshots.
    pub(super) entries: u64,
    /// Bytes it may grow by between two snapshots.
    pub(super) bytes: u64,
    /// Entries before the snapshot that are kept, so that a member that was away for a moment needs no snapshot.
    pub(super) kept: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 20_000, bytes: 16 << 20, kept: 500 }
    }
}

/// Runs until consensus ends.
pub(super) async fn run(raft: Raft, mut size: watch::Receiver<LogSize>, limits: Limits) {
    let mut metrics = raft.data_metrics();
    let mut base = *size.borrow_and_update();
    loop {
        let grown = size.wait_for(|now| {
            // Entries may be forgotten some time after the snapshot was made.
            base = LogSize { entries: base.entries.min(now.entries), bytes: base.bytes.min(now.bytes) };
            now.entries - base.entries >= limits.entries || now.bytes - base.bytes >= limits.bytes
        });
        if grown.await.is_err() {
            return;
        }
        let before = metrics.borrow_and_update().snapshot;
        if let Err(error) = trigger(&raft).await {
            tracing::debug!(%error, "consensus has ended");
            return;
        }
        match tokio::time::timeout(PATIENCE, metrics.wait_for(|now| now.snapshot != before)).await {
            // The next one is counted from the end of this one.
            Ok(Ok(_)) => base = *size.borrow_and_update(),
            Ok(Err(_)) => return,
            Err(_) => {}
        }
    }
}

async fn trigger(raft: &Raft) -> Result<(), Fatal> {
    raft.trigger().snapshot().await
}
