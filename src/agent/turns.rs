//! Turns for what keeps the machine busy. Starts that all begin at once would wait together for containerd's database and
//! then together for the processor; a few at a time, one has the database while another has the processor.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns there are for each core of the machine.
const EACH_CORE: usize = 4;
/// Turns there are at least.
const LEAST: usize = 8;

/// The turns of a machine.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::of((EACH_CORE * cores).max(LEAST))
    }
}

impl Turns {
    fn of(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
    }

    /// Somebody who does not have a turn yet.
    pub(super) fn someone(&self) -> Turn {
        Turn { turns: Arc::clone(&self.0), held: None }
    }
}

/// Somebody who has a turn or not; it ends with its holder.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// Waits for a turn, in the order of those who ask.
    pub(super) async fn take(&mut self) {
        if self.held.is_none() {
            // They are never closed; without a turn it would go on all the same.
            self.held = Arc::clone(&self.turns).acquire_owned().await.ok();
        }
    }

    /// Lets others have it while this one waits for something else.
    pub(super) fn pause(&mut self) {
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_pauses_lets_the_next_one_in() {
        let turns = Turns::of(1);
        let (mut first, mut second) = (turns.someone(), turns.someone());
        first.take().await;
        first.take().await;
        assert!(timeout(Duration::from_millis(20), second.take()).await.is_err(), "there is one turn");
        first.pause();
        second.take().await;
        drop(second);
        first.take().await;
    }
}
