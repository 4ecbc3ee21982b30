//! Keeps the log short: a snapshot whenever it has grown by so much, and openraft forgets the entries before it.

use std::time::Duration;

use super::{
    log_store::LogSize,
    types::{Fatal, Raft},
};
use tokio::sync::watch;
use uuid::Uuid;

/// Wait for a snapshot before it is asked for again: there may have been nothing new to put into it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Into how many steps the second half of a length is divided to draw one.
const SHARES: u64 = 1_000;

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
        Self { entries: 20_000, bytes: 16 << 20, kept: 2_000 }
    }
}

impl Limits {
    /// The same with a share of the lengths, between the half and the whole, drawn for this member: all have the same log, and
    /// would otherwise make their snapshots at the same moment, when none is left who answers at once.
    pub(super) fn staggered(self) -> Self {
        // The last 64 bits of such an id hold 62 that are drawn.
        let drawn = Uuid::new_v4().as_u64_pair().1 % (SHARES + 1);
        let of = |length: u64| length / 2 + length / 2 / SHARES * drawn;
        Self { entries: of(self.entries), bytes: of(self.bytes), ..self }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn members_do_not_make_their_snapshots_at_the_same_moment() {
        let whole = Limits::default();
        let drawn: Vec<Limits> = (0..100).map(|_| whole.staggered()).collect();
        for limits in &drawn {
            assert!((whole.entries / 2..=whole.entries).contains(&limits.entries), "{limits:?}");
            assert!((whole.bytes / 2..=whole.bytes).contains(&limits.bytes), "{limits:?}");
            assert_eq!(limits.kept, whole.kept);
        }
        let lengths: BTreeSet<u64> = drawn.iter().map(|limits| limits.bytes).collect();
        assert!(lengths.len() > 80, "{lengths:?}");
    }
}
