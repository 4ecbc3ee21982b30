//! What the fake's containers use: each half a core and 16 MiB, in one process. Where every image is there, on machines
//! that are looked at, they are as restless as real ones.

use async_trait::async_trait;
use toft_model::{ids::InstanceId, usage::Process};

use super::{Call, FakeContainer, FakeRuntime};
use crate::agent::{
    made_up::Work,
    runtime::{
        RuntimeError, TaskState,
        usage::{Counters, RunningTask, UsageRuntime},
    },
};

const MEMORY_BYTES: u64 = 16 << 20;

impl FakeContainer {
    /// CPU time its process has taken, if it is that one and runs.
    fn cpu_ns(&self, pid: u32) -> Option<u64> {
        let runs = self.task == TaskState::Running { pid };
        let started = self.started.filter(|_| runs)?;
        Some(u64::try_from(started.elapsed().as_nanos() / 2).unwrap_or(u64::MAX))
    }
}

/// Makes the counters of a container restless; it took `cpu_ns` in half a core.
fn restless(id: InstanceId, counters: Counters) -> Counters {
    let work = Work::of(&id.to_string());
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let ran_ms = i64::try_from(counters.cpu_ns / 500_000).unwrap_or(0);
    let since = |wave: &crate::agent::made_up::Wave| wave.between(now_ms - ran_ms, now_ms) as u64;
    Counters {
        cpu_ns: (work.cores.between(now_ms - ran_ms, now_ms) * 1e9) as u64,
        memory_bytes: work.memory.at(now_ms) as u64,
        network: Some((since(&work.network.0), since(&work.network.1))),
        block: Some((since(&work.disk.0), since(&work.disk.1))),
        ..counters
    }
}

#[async_trait]
impl UsageRuntime for FakeRuntime {
    async fn usage(&self, tasks: Vec<RunningTask>, pss: bool) -> Result<Vec<(InstanceId, Counters)>, RuntimeError> {
        let state = self.begin(Call::Usage)?;
        let counters = |task: &RunningTask| {
            let container = state.containers.get(&task.id)?;
            let counters = Counters {
                cpu_ns: container.cpu_ns(task.pid)?,
                memory_bytes: MEMORY_BYTES,
                memory_limit_bytes: container.spec.resources.memory_bytes,
                memory_pss_bytes: pss.then_some(MEMORY_BYTES / 2),
                network: Some((1, 2)),
                block: Some((3, 4)),
                pids: 1,
                pressure: None,
            };
            Some((task.id, if state.has_every_image { restless(task.id, counters) } else { counters }))
        };
        Ok(tasks.iter().filter_map(counters).collect())
    }

    async fn processes(&self, task: RunningTask) -> Result<Vec<Process>, RuntimeError> {
        let state = self.begin(Call::Processes)?;
        let container = state.containers.get(&task.id);
        let cpu_ns = container.and_then(|container| container.cpu_ns(task.pid));
        let (Some(container), Some(cpu_ns)) = (container, cpu_ns) else {
            return Err(RuntimeError::NotRunning { id: task.id });
        };
        let words = container.spec.entrypoint.iter().flatten().chain(&container.spec.command);
        Ok(vec![Process {
            pid: task.pid,
            parent: 1,
            uid: 0,
            state: 'S',
            cpu_ms: cpu_ns / 1_000_000,
            memory_bytes: MEMORY_BYTES,
            started_at_ms: jiff::Timestamp::now().as_millisecond(),
            command: words.cloned().collect::<Vec<_>>().join(" "),
        }])
    }
}
