//! How often something was tried in vain, and how slowly it goes.

use std::time::Duration;

use tokio::time::Instant;

use super::{error::Trouble, settings::Patience};

/// Progress that makes up for the tries before it.
pub(super) const PROGRESS_BYTES: u64 = 256 << 10;
/// A connection that brings less than [`PROGRESS_BYTES`] in this time is given up.
pub(super) const SLOW: Duration = Duration::from_secs(60);

pub(super) struct Tries {
    patience: Patience,
    failed: u32,
    counted: Option<(Instant, u64)>,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, failed: 0, counted: None }
    }

    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    pub(super) fn begin(&mut self, at: u64) {
        self.counted = Some((Instant::now(), at));
    }

    /// Whether too little arrived in a long time; begins to count anew after each such time.
    pub(super) fn crawls(&mut self, at: u64, slow: Duration) -> bool {
        let Some((since, from)) = self.counted else { return false };
        if since.elapsed() < slow {
            return false;
        }
        self.counted = Some((Instant::now(), at));
        at - from < PROGRESS_BYTES
    }

    /// Waits before the next try, or gives up.
    pub(super) async fn after(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        self.failed += 1;
        self.counted = None;
        if !trouble.passes() || self.failed >= self.patience.tries {
            return Err(trouble);
        }
        tokio::time::sleep(self.patience.wait(self.failed, trouble.later)).await;
        Ok(())
    }
}
