//! The thread on which consensus runs: everything between a proposal and its way to the disk and to the other members
//! happens here, so that a write wakes as few threads as it can, and whatever else keeps the daemon busy does not keep
//! heartbeats waiting.

use tokio::{runtime::Builder, sync::oneshot};

/// A thread that runs futures until this is dropped.
pub(super) struct Executor {
    runtime: tokio::runtime::Handle,
    _stop: oneshot::Sender<()>,
}

impl Executor {
    /// Starts the thread.
    pub(super) fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name("consensus".into()).spawn(move || {
            // Ends when the sender is dropped.
            drop(runtime.block_on(stopped));
            // Not waiting for what still blocks: it may be a disk that does not answer.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, _stop: stop })
    }

    /// Where futures can be given to the thread. They are dropped with it.
    pub(super) fn handle(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Runs `future` on the thread. Panics with it.
    pub(super) async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Option<T> {
        match self.runtime.spawn(future).await {
            Ok(value) => Some(value),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => None,
        }
    }
}
