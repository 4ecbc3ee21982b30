//! Measures what containers use while somebody asks, and never else. However many ask, a container is measured once a
//! second at most.

use std::{collections::HashMap, sync::Arc, time::Duration};

use toft_model::{ids::InstanceId, usage::Usage};
use tokio::{sync::Mutex, time::Instant};

use super::runtime::{
    Runtime, RuntimeError,
    usage::{Counters, RunningTask},
};

/// A measurement that is younger is given again.
const FRESH: Duration = Duration::from_millis(800);
/// One that is older says nothing about what is used now.
const OLD: Duration = Duration::from_secs(10);
/// Time between two measurements when there is none before.
const SPAN: Duration = Duration::from_millis(250);

/// Measures the containers of a runtime.
pub struct Meter {
    runtime: Arc<dyn Runtime>,
    memory_bytes: u64,
    known: Mutex<HashMap<InstanceId, Known>>,
}

/// The last measurement of a container.
struct Known {
    pid: u32,
    at: Instant,
    cpu_ns: u64,
    /// Absent when it was the first one.
    usage: Option<Usage>,
}

impl Meter {
    /// A meter; `memory_bytes` is what a container without a limit can use.
    pub fn new(runtime: Arc<dyn Runtime>, memory_bytes: u64) -> Self {
        Self { runtime, memory_bytes, known: Mutex::default() }
    }

    /// What the containers use; those that do not run any more are left out. With `pss`, their shares of memory too.
    pub async fn usage(&self, tasks: &[RunningTask], pss: bool) -> Result<Vec<(InstanceId, Usage)>, RuntimeError> {
        // Held while measuring: whoever asks meanwhile gets what is measured now.
        let mut known = self.known.lock().await;
        known.retain(|_, known| known.at.elapsed() < OLD);
        let stale = |known: &HashMap<InstanceId, Known>, task: &RunningTask| {
            known
                .get(&task.id)
                .filter(|known| known.pid == task.pid && known.at.elapsed() < FRESH)
                .is_none_or(|known| known.usage.as_ref().is_none_or(|usage| pss && usage.memory_pss_bytes.is_none()))
        };
        let stale: Vec<RunningTask> = tasks.iter().filter(|task| stale(&known, task)).copied().collect();
        let unknown = |task: &&RunningTask| known.get(&task.id).is_none_or(|known| known.pid != task.pid);
        let unknown: Vec<RunningTask> = stale.iter().filter(unknown).copied().collect();
        if !unknown.is_empty() {
            for (task, counters) in self.measure(&unknown, false).await? {
                let first = Known { pid: task.pid, at: Instant::now(), cpu_ns: counters.cpu_ns, usage: None };
                known.insert(task.id, first);
            }
            tokio::time::sleep(SPAN).await;
        }
        if !stale.is_empty() {
            for task in &stale {
                if let Some(known) = known.get_mut(&task.id) {
                    known.usage = None;
                }
            }
            for (task, counters) in self.measure(&stale, pss).await? {
                let at = Instant::now();
                let Some(before) = known.get(&task.id).filter(|known| known.pid == task.pid) else { continue };
                let (cpu_ns, span) = (counters.cpu_ns, at.duration_since(before.at));
                let usage = Some(self.told(counters, before.cpu_ns, span));
                known.insert(task.id, Known { pid: task.pid, at, cpu_ns, usage });
            }
        }
        let told = |task: &RunningTask| {
            let known = known.get(&task.id).filter(|known| known.pid == task.pid)?;
            Some((task.id, known.usage.clone()?))
        };
        Ok(tasks.iter().filter_map(told).collect())
    }

    async fn measure(&self, tasks: &[RunningTask], pss: bool) -> Result<Vec<(RunningTask, Counters)>, RuntimeError> {
        let measured = self.runtime.usage(tasks.to_vec(), pss).await?;
        let of = |id: InstanceId| tasks.iter().find(|task| task.id == id).copied();
        Ok(measured.into_iter().filter_map(|(id, counters)| Some((of(id)?, counters))).collect())
    }

    fn told(&self, counters: Counters, cpu_ns_before: u64, span: Duration) -> Usage {
        let taken = counters.cpu_ns.saturating_sub(cpu_ns_before) as f64;
        let percent = if span.is_zero() { 0.0 } else { taken * 100.0 / span.as_nanos() as f64 };
        let (received_bytes, sent_bytes) = counters.network.unzip();
        let (read_bytes, written_bytes) = counters.block.unzip();
        Usage {
            cpu_percent: (percent * 100.0).round() / 100.0,
            cpu_ns: counters.cpu_ns,
            memory_bytes: counters.memory_bytes,
            memory_limit_bytes: counters.memory_limit_bytes.unwrap_or(self.memory_bytes).min(self.memory_bytes),
            memory_pss_bytes: counters.memory_pss_bytes,
            received_bytes,
            sent_bytes,
            read_bytes,
            written_bytes,
            pids: counters.pids,
            pressure: counters.pressure,
        }
    }
}

#[cfg(test)]
mod tests {

    use uuid::Uuid;

    use super::*;
    use crate::agent::runtime::{
        ContainerSpec, LoggerCommand, Runtime,
        fake::{Call, FakeRuntime},
    };

    async fn running(runtime: &FakeRuntime) -> RunningTask {
        let (id, image) = (InstanceId(Uuid::new_v4()), "busybox".parse().unwrap());
        runtime.add_image(&image);
        let spec = ContainerSpec::plain(id, image, &["serve"]);
        runtime.create_container(&spec).await.unwrap();
        let logger = LoggerCommand { program: "/bin/logger".into(), args: Vec::new() };
        let pid = runtime.create_task(id, &logger).await.unwrap();
        runtime.start_task(id).await.unwrap();
        RunningTask { id, pid }
    }

    #[tokio::test]
    async fn many_who_ask_cost_one_measurement_and_nobody_costs_none() {
        let runtime = FakeRuntime::new();
        let task = running(&runtime).await;
        let meter = Meter::new(Arc::new(runtime.clone()), 1 << 30);
        let begun = Instant::now();
        let (id, used) = meter.usage(&[task], false).await.unwrap().remove(0);
        assert_eq!((id, used.memory_limit_bytes), (task.id, 1 << 30));
        assert!((30.0..70.0).contains(&used.cpu_percent), "half a core: {used:?}");
        assert_eq!(runtime.calls(Call::Usage), 2, "the first one needs something to compare with");
        let tasks = [task];
        for _ in 0..100 {
            tokio::join!(meter.usage(&tasks, false), meter.usage(&tasks, false)).0.unwrap();
        }
        let most = 2 + begun.elapsed().as_millis() / FRESH.as_millis();
        let calls = runtime.calls(Call::Usage);
        assert!(calls as u128 <= most, "{calls}, not {most}");
        assert!(meter.usage(&[task], true).await.unwrap()[0].1.memory_pss_bytes.is_some());
        let calls = runtime.calls(Call::Usage);
        tokio::time::sleep(FRESH + Duration::from_millis(10)).await;
        assert_eq!(runtime.calls(Call::Usage), calls);
        let used = meter.usage(&[task], false).await.unwrap().remove(0).1;
        assert!((40.0..60.0).contains(&used.cpu_percent), "compared with the one before: {used:?}");
    }

    #[tokio::test]
    async fn what_ended_or_was_started_anew_is_not_mixed_up() {
        let runtime = FakeRuntime::new();
        let task = running(&runtime).await;
        let meter = Meter::new(Arc::new(runtime.clone()), 1 << 30);
        meter.usage(&[task], false).await.unwrap();
        let another = RunningTask { pid: task.pid + 1, ..task };
        assert_eq!(meter.usage(&[another], false).await.unwrap(), []);
        runtime.end(task.id, 0);
        tokio::time::sleep(FRESH).await;
        assert_eq!(meter.usage(&[task], false).await.unwrap(), []);
    }
}
