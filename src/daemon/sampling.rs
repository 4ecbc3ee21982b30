//! Measures this node every ten seconds and keeps it: the machine by its pulse, the cards as they were seen last, and the
//! containers by the runtime. Every few minutes what was measured is written, and once more at the end.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use toft_model::{
    gpu::GpuFacts,
    ids::{InstanceId, NodeId},
    instance::InstanceState,
    series::{Measure, Subject},
    state::InstanceRow,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{
        gpu::GpuWatch,
        pulse::Pulse,
        runtime::{
            Runtime,
            usage::{Counters, RunningTask},
        },
    },
    consensus::Handle,
    observe::chain,
    series::{FLUSH, PACE, Store},
};

/// Longest wait for what the runtime measures.
const PATIENCE: Duration = Duration::from_secs(5);
/// Instances of a made-up node whose past is made up too.
const MOST_PASTS: usize = 24;
/// How long a card of a made-up node that rests is not measured: its made-up past ends where its work begins.
const RESTS: Duration = Duration::from_secs(40);

/// What measures.
pub(super) struct Sampling {
    pub(super) store: Store,
    pub(super) state: Handle,
    pub(super) node_id: NodeId,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) gpus: GpuWatch,
    pub(super) pulse: Box<dyn Pulse>,
}

/// Measures until `cancel`.
pub(super) async fn run(sampling: Sampling, cancel: CancellationToken) {
    let Sampling { store, state, node_id, runtime, gpus, pulse } = sampling;
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let told = pulse.past(&Subject::Machine, now_ms).map(|_| HashSet::new());
    let (tasks, before, begun) = (None, HashMap::new(), Instant::now());
    let mut sampler = Sampler { store, state, node_id, runtime, gpus, pulse: Some(pulse), tasks, before, told, begun };
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut written = Instant::now();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            _ = ticks.tick() => {}
        }
        if cancel.run_until_cancelled(sampler.sample()).await.is_none() {
            break;
        }
        if written.elapsed() >= FLUSH {
            sampler.write().await;
            written = Instant::now();
        }
    }
    sampler.write().await;
}

struct Sampler {
    store: Store,
    state: Handle,
    node_id: NodeId,
    runtime: Arc<dyn Runtime>,
    gpus: GpuWatch,
    /// Absent only while it beats on another thread.
    pulse: Option<Box<dyn Pulse>>,
    /// What runs, as of a position of the state.
    tasks: Option<(u64, Vec<RunningTask>)>,
    /// The counters of each process when it was measured last.
    before: HashMap<(InstanceId, u32), (Instant, Counters)>,
    /// Whose past was made up; absent on real machines.
    told: Option<HashSet<Subject>>,
    begun: Instant,
}

impl Sampler {
    async fn sample(&mut self) {
        let at_ms = jiff::Timestamp::now().as_millisecond();
        let machine = self.beat().await;
        self.record(&Subject::Machine, at_ms, &machine).await;
        let cards = self.gpus.borrow().as_ref().map(|sight| sight.facts()).unwrap_or_default();
        for card in cards {
            let rests = card.measured.busy_percent == Some(0);
            if self.told.is_some() && rests && self.begun.elapsed() < RESTS {
                continue;
            }
            self.record(&Subject::Gpu(card.gpu.id.clone()), at_ms, &of_card(&card)).await;
        }
        for (id, values) in self.instances().await {
            self.record(&Subject::Instance(id), at_ms, &values).await;
        }
    }

    async fn record(&mut self, subject: &Subject, at_ms: i64, values: &[f32]) {
        if self.told.as_mut().is_some_and(|told| told.insert(subject.clone())) {
            self.make_up(subject, at_ms).await;
        }
        self.store.record(subject, at_ms, values);
    }

    /// Gives a subject of a made-up node a past; others have their own.
    async fn make_up(&mut self, subject: &Subject, at_ms: i64) {
        let Some(pulse) = self.pulse.take() else { return };
        let instances = self.told.iter().flatten().filter(|told| matches!(told, Subject::Instance(_))).count();
        let few = instances <= MOST_PASTS || !matches!(subject, Subject::Instance(_));
        if !few || pulse.past(subject, at_ms).is_none() {
            self.pulse = Some(pulse);
            return;
        }
        let (store, subject) = (self.store.clone(), subject.clone());
        let filled = tokio::task::spawn_blocking(move || {
            let values = |at_ms| pulse.past(&subject, at_ms).unwrap_or_default();
            let filled = store.fill(&subject, at_ms, values);
            (pulse, filled)
        });
        if let Ok((pulse, filled)) = filled.await {
            self.pulse = Some(pulse);
            if let Err(error) = filled {
                tracing::warn!(error = chain(&error), "a past could not be made up");
            }
        }
    }

    async fn beat(&mut self) -> Vec<f32> {
        let Some(mut pulse) = self.pulse.take() else { return Vec::new() };
        let beat = tokio::task::spawn_blocking(move || {
            let values = pulse.beat();
            (pulse, values)
        });
        match beat.await {
            Ok((pulse, values)) => {
                self.pulse = Some(pulse);
                values
            }
            Err(_) => Vec::new(),
        }
    }

    /// What runs here; asked anew only when the state moved.
    async fn running(&mut self) -> Vec<RunningTask> {
        let position = *self.state.watch().borrow();
        if let Some((known, tasks)) = &self.tasks
            && *known == position
        {
            return tasks.clone();
        }
        let node_id = self.node_id;
        let rows = self.state.read(move |connection| InstanceRow::of_node(connection, node_id)).await;
        let running = |row: InstanceRow| match row.report?.state? {
            InstanceState::Running { pid, .. } => Some(RunningTask { id: row.id, pid }),
            _ => None,
        };
        let tasks: Vec<RunningTask> = rows.unwrap_or_default().into_iter().filter_map(running).collect();
        self.tasks = Some((position, tasks.clone()));
        tasks
    }

    async fn instances(&mut self) -> Vec<(InstanceId, Vec<f32>)> {
        let tasks = self.running().await;
        if tasks.is_empty() {
            self.before.clear();
            return Vec::new();
        }
        let measured = tokio::time::timeout(PATIENCE, self.runtime.usage(tasks.clone(), false)).await;
        // A runtime that is away is told of elsewhere.
        let Ok(Ok(measured)) = measured else { return Vec::new() };
        let now = Instant::now();
        let pids: HashMap<InstanceId, u32> = tasks.into_iter().map(|task| (task.id, task.pid)).collect();
        let mut known = HashMap::with_capacity(measured.len());
        let mut samples = Vec::with_capacity(measured.len());
        for (id, counters) in measured {
            let Some(pid) = pids.get(&id) else { continue };
            let before = self.before.get(&(id, *pid));
            samples.push((id, of_instance(before, (now, &counters))));
            known.insert((id, *pid), (now, counters));
        }
        self.before = known;
        samples
    }

    async fn write(&mut self) {
        let store = self.store.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.flush()).await {
            tracing::warn!(error = chain(&error), "what was measured could not be written");
        }
    }
}

fn of_card(card: &GpuFacts) -> Vec<f32> {
    let measured = &card.measured;
    let value = |measure: &Measure| match measure {
        Measure::BusyPercent => measured.busy_percent.map(|percent| percent as f32),
        Measure::MemoryBytes => measured.memory_used_mib.map(|mib| mib as f32 * 1_048_576.0),
        Measure::Watts => measured.power_watts.map(|watts| watts as f32),
        Measure::Celsius => measured.temperature_celsius.map(|celsius| celsius as f32),
        _ => None,
    };
    Subject::Gpu(card.gpu.id.clone()).measures().iter().map(|measure| value(measure).unwrap_or(f32::NAN)).collect()
}

/// What was used since the measurement before; memory is known at once.
fn of_instance(before: Option<&(Instant, Counters)>, (now, counters): (Instant, &Counters)) -> Vec<f32> {
    let rate = |of: fn(&Counters) -> Option<u64>| {
        let (at, before) = before?;
        let seconds = now.duration_since(*at).as_secs_f64().max(0.001);
        Some(of(counters)?.checked_sub(of(before)?)? as f64 / seconds)
    };
    let values = [
        rate(|counters| Some(counters.cpu_ns)).map(|nanoseconds| nanoseconds / 1e7),
        Some(counters.memory_bytes as f64),
        rate(|counters| Some(counters.network?.0)),
        rate(|counters| Some(counters.network?.1)),
        rate(|counters| Some(counters.block?.0)),
        rate(|counters| Some(counters.block?.1)),
    ];
    values.into_iter().map(|value| value.map_or(f32::NAN, |value| value as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_become_rates() {
        let begin = Instant::now();
        let counters = |cpu_ns, network| Counters { cpu_ns, memory_bytes: 7, network, ..Counters::default() };
        let before = (begin, counters(1_000_000_000, Some((100, 5))));
        let now = begin + Duration::from_secs(10);
        let values = of_instance(Some(&before), (now, &counters(6_000_000_000, Some((600, 5)))));
        assert_eq!(values[..4], [50.0, 7.0, 50.0, 0.0]);
        assert!(values[4].is_nan(), "the kernel does not count it");
        let first = of_instance(None, (now, &counters(6_000_000_000, None)));
        assert!(first[0].is_nan() && first[1] == 7.0 && first[2].is_nan());
        let again = of_instance(Some(&before), (now, &counters(0, Some((0, 0)))));
        assert!(again[0].is_nan(), "what was begun anew has no rate yet");
    }
}
