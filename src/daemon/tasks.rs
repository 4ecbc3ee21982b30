//! The tasks of the daemon, by name. One that ends by itself ends the daemon.

use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

/// Named tasks with one owner.
#[derive(Default)]
pub(super) struct Tasks {
    running: JoinSet<&'static str>,
    names: Vec<&'static str>,
}

impl Tasks {
    pub(super) fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.names.push(name);
        self.running.spawn(async move {
            work.await;
            name
        });
    }

    async fn next_end(&mut self) -> Option<Result<&'static str, JoinError>> {
        let ended = self.running.join_next().await?;
        if let Ok(name) = &ended
            && let Some(at) = self.names.iter().position(|running| running == name)
        {
            self.names.swap_remove(at);
        }
        Some(ended)
    }

    /// The name of the first task that ends.
    pub(super) async fn first_end(&mut self) -> &'static str {
        match self.next_end().await {
            Some(Ok(name)) => name,
            Some(Err(error)) => {
                tracing::error!(%error, "a task panicked");
                "panicked"
            }
            None => std::future::pending().await,
        }
    }

    /// Waits for all to end, at most `patience`; then they are dropped.
    pub(super) async fn join(&mut self, patience: Duration) {
        let all = async { while self.next_end().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("did not end in time: {}", self.names.join(", "));
            self.running.shutdown().await;
        }
    }
}
