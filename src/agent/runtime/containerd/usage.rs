//! What containers use. Their control groups lie on this machine whatever runs them, so the kernel is asked: containerd
//! would ask the shims, one by one, for the same files.

use async_trait::async_trait;
use toft_model::{ids::InstanceId, usage::Process};

use super::ContainerdRuntime;
use crate::agent::runtime::{
    RuntimeError,
    usage::{Counters, RunningTask, UsageRuntime, kernel},
};

#[async_trait]
impl UsageRuntime for ContainerdRuntime {
    async fn usage(&self, tasks: Vec<RunningTask>, pss: bool) -> Result<Vec<(InstanceId, Counters)>, RuntimeError> {
        blocking(move || Ok(kernel::usage(&tasks, pss))).await
    }

    async fn processes(&self, task: RunningTask) -> Result<Vec<Process>, RuntimeError> {
        blocking(move || kernel::processes(task)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let failed = |error: tokio::task::JoinError| RuntimeError::Failed {
        doing: "measuring containers",
        reason: error.to_string(),
    };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
