//! What containers use. Measured when asked and never else.

mod group;
pub mod kernel;
mod processes;

use async_trait::async_trait;
use toft_model::{
    ids::InstanceId,
    usage::{Pressure, Process},
};

use super::RuntimeError;

/// A container's main process that was running when somebody last looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningTask {
    /// The container.
    pub id: InstanceId,
    /// Process id on the host.
    pub pid: u32,
}

/// What the kernel counts for a container, since its process was started unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counters {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use now, without inactive file cache, in bytes.
    pub memory_bytes: u64,
    /// Its limit of memory in bytes, if it has one.
    pub memory_limit_bytes: Option<u64>,
    /// Its share of memory now, in bytes; only if asked for.
    pub memory_pss_bytes: Option<u64>,
    /// Bytes received and sent over its network interfaces; none in the host's network.
    pub network: Option<(u64, u64)>,
    /// Bytes read from and written to block devices; none where they are not counted.
    pub block: Option<(u64, u64)>,
    /// Processes and threads now.
    pub pids: u64,
    /// How much it waits; none where the kernel does not tell.
    pub pressure: Option<Pressure>,
}

/// The part of a runtime that measures containers.
#[async_trait]
pub trait UsageRuntime {
    /// What containers use; what does not run any more is left out. `pss` asks for each process's share of memory too,
    /// which costs the kernel a walk through its pages.
    async fn usage(&self, tasks: Vec<RunningTask>, pss: bool) -> Result<Vec<(InstanceId, Counters)>, RuntimeError>;

    /// The processes of a container that runs, by id; at most [`MOST_PROCESSES`]. Refusals: [`RuntimeError::NotRunning`].
    async fn processes(&self, task: RunningTask) -> Result<Vec<Process>, RuntimeError>;
}

/// Processes told of one container.
pub const MOST_PROCESSES: usize = 10_000;
