//! The tasks of the daemon, by name. One that ends by itself ends the daemon.

use std::time::Duration;

use tokio::task::JoinSet;

/// Named tasks with one owner.
#[derive(Default)]
pub(super) struct Tasks(JoinSet<&'static str>);

impl Tasks {
    pub(super) fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            work.await;
            name
        });
    }

    /// The name of the first task that ends.
    pub(super) async fn first_end(&mut self) -> &'static str {
        match self.0.join_next().await {
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
        let all = async { while self.0.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("{} tasks did not end in time", self.0.len());
            self.0.shutdown().await;
        }
    }
}
