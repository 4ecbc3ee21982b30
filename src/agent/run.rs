//! The one task that owns what the agent knows.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use toft_model::{
    ids::InstanceId,
    instance::{Assignment, AssignmentSet, Desired, Event, Exit, InstanceReport, InstanceState, NetworkOrder},
    node::Subnet,
};
use tokio::{
    sync::{Notify, broadcast, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    execute::{Done, Executor},
    ledger::{Outcome, Remembered},
    ports::OpenPorts,
    reconcile::{Memory, Observed, Step, Verdict, back_off, judge, next_step},
    report::Outbox,
    runtime::{Availability, RuntimeEvent, TaskState},
};
use crate::observe::chain;

/// How often everything is compared with the runtime, events or not.
const RESYNC: Duration = Duration::from_secs(30);
/// Longest wait for steps under way when the daemon stops.
const LAST_STEPS: Duration = Duration::from_secs(5);
/// Wait after a stop or removal that failed.
const AFTER_FAILURE_MS: i64 = 1_000;

/// What the agent is told once.
pub struct AgentConfig {
    /// The network of this node's containers, if it has one.
    pub subnet: Option<Subnet>,
    /// What the ledger knew.
    pub remembered: Remembered,
}

/// What the agent works with.
pub struct AgentParts {
    /// Performs steps.
    pub executor: Arc<Executor>,
    /// Takes observations.
    pub outbox: Outbox,
    /// The newest whole set of orders.
    pub assignments: watch::Receiver<Option<AssignmentSet>>,
    /// Rung when what failed may work now: an image was imported.
    pub retry: Arc<Notify>,
}

/// The agent.
pub struct Agent {
    parts: AgentParts,
    ports: Option<OpenPorts>,
    set: Option<AssignmentSet>,
    unsaved: bool,
    orders: HashMap<InstanceId, Assignment>,
    observed: HashMap<InstanceId, Observed>,
    memory: HashMap<InstanceId, Memory>,
    /// Whether `observed` is what the runtime has: it was compared since the runtime came up.
    known: bool,
    busy: HashSet<InstanceId>,
    early: HashMap<InstanceId, Exit>,
    gone: HashSet<InstanceId>,
    due: BTreeSet<(i64, InstanceId)>,
    steps: JoinSet<(InstanceId, Done)>,
}

impl Agent {
    /// An agent and the task that keeps its network; the daemon owns both futures ([`Agent::run`] is the other).
    pub fn new(
        config: AgentConfig,
        parts: AgentParts,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let network = Arc::clone(&parts.executor.network);
        let (ports, apply) = config.subnet.map(|subnet| OpenPorts::new(subnet, network, cancel.clone())).unzip();
        let mut agent = Self {
            parts,
            ports,
            set: None,
            unsaved: false,
            orders: HashMap::new(),
            observed: HashMap::new(),
            memory: HashMap::new(),
            known: false,
            busy: HashSet::new(),
            early: HashMap::new(),
            gone: HashSet::new(),
            due: BTreeSet::new(),
            steps: JoinSet::new(),
        };
        for (id, outcome) in config.remembered.outcomes {
            let finished = |exit| InstanceState::Finished { exit, reason: None };
            let state = outcome.finished.map_or(InstanceState::Assigned, finished);
            let memory = Memory {
                state,
                epoch: outcome.epoch,
                restarts: outcome.restarts,
                streak: 0,
                last_exit: outcome.finished.or(outcome.last_exit),
                started_ms: outcome.started_ms,
            };
            agent.memory.insert(id, memory);
        }
        if let Some(set) = config.remembered.set {
            agent.orders = set.assignments.iter().map(|order| (order.instance_id, order.clone())).collect();
            agent.set = Some(set);
        }
        let keep_network = async move {
            match apply {
                Some(apply) => apply.await,
                None => cancel.cancelled().await,
            }
        };
        (agent, keep_network)
    }

    /// Works until `cancel`. Containers go on running.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut availability = self.parts.executor.runtime.availability();
        let mut events = self.parts.executor.runtime.events();
        let mut assignments = self.parts.assignments.clone();
        let retry = Arc::clone(&self.parts.retry);
        let mut resync = tokio::time::interval_at(tokio::time::Instant::now() + RESYNC, RESYNC);
        assignments.mark_changed();
        availability.mark_changed();
        loop {
            let next_due =
                self.due.first().map_or(i64::MAX, |(at, _)| *at).saturating_sub(now_ms()).clamp(0, 3_600_000);
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = assignments.changed() => {
                    if changed.is_err() { break }
                    let newest = assignments.borrow_and_update().clone();
                    if let Some(set) = newest { self.take_orders(set).await; }
                }
                changed = availability.changed() => {
                    if changed.is_err() { break }
                    let up = matches!(*availability.borrow_and_update(), Availability::Up(_));
                    metrics::gauge!("toft_runtime_up").set(f64::from(u8::from(up)));
                    self.known &= up;
                    if up { self.compare().await; }
                }
                _ = resync.tick(), if self.runtime_is_up() => self.compare().await,
                event = events.recv() => match event {
                    Ok(event) => self.take_event(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.compare().await,
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                Some(done) = self.steps.join_next() => match done {
                    Ok((id, done)) => self.take_done(id, done).await,
                    Err(error) => tracing::error!(%error, "a step of the agent panicked"),
                },
                () = retry.notified() => self.retry_now(),
                () = tokio::time::sleep(Duration::from_millis(next_due as u64)) => self.take_due(),
            }
        }
        let last = async { while self.steps.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_STEPS, last).await.is_err() {
            tracing::warn!("steps of the agent were still under way at the end");
        }
    }

    /// Accepts a newer set: to the ledger first, then to work.
    async fn take_orders(&mut self, set: AssignmentSet) {
        let newer = self.set.as_ref().is_none_or(|old| set.generation > old.generation);
        if !newer && !self.unsaved {
            // The same set again wakes everything once after a start of the daemon.
            if self.set.as_ref().is_some_and(|old| old.generation == set.generation) {
                self.look_at_all();
            } else {
                tracing::warn!(generation = set.generation, "an older set of assignments was ignored");
            }
            return;
        }
        let ledger = self.parts.executor.ledger.clone();
        let old = self.set.take();
        let (stored, set, old) = {
            let job = move || (ledger.store_set(old.as_ref(), &set), set, old);
            match tokio::task::spawn_blocking(job).await {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        };
        self.unsaved = stored.is_err();
        if let Err(error) = stored {
            tracing::error!(error = chain(&error), "the node's orders could not be written to its ledger");
        }
        let before = std::mem::take(&mut self.orders);
        self.orders = set.assignments.iter().map(|order| (order.instance_id, order.clone())).collect();
        // An unsaved set is written whole next time: the ledger still holds the one before.
        self.set = if self.unsaved { old } else { Some(set) };
        let mut touched: Vec<InstanceId> =
            self.orders.iter().filter(|(id, order)| before.get(id) != Some(order)).map(|(id, _)| *id).collect();
        touched.extend(before.keys().filter(|id| !self.orders.contains_key(id)));
        // Removals first: they free what starts may need.
        touched.sort_by_key(|id| self.orders.get(id).is_some_and(|order| order.desired != Desired::Removed));
        for id in touched {
            if !self.orders.contains_key(&id) && !self.observed.contains_key(&id) {
                self.forget(id);
            }
            self.look_at(id);
        }
    }

    fn forget(&mut self, id: InstanceId) {
        self.memory.remove(&id);
        self.gone.remove(&id);
        if let Some(ports) = &mut self.ports {
            ports.close(id);
        }
    }

    fn runtime_is_up(&self) -> bool {
        matches!(*self.parts.executor.runtime.availability().borrow(), Availability::Up(_))
    }

    /// Compares everything with the runtime.
    async fn compare(&mut self) {
        if !self.runtime_is_up() {
            return;
        }
        let containers = match self.parts.executor.runtime.containers().await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the containers could not be listed");
                return;
            }
        };
        let mut seen: HashMap<_, _> = containers.iter().map(|c| (c.id, Observed { task: c.task })).collect();
        // What a step is changing right now is told by the step.
        for id in &self.busy {
            match self.observed.get(id) {
                Some(observed) => drop(seen.insert(*id, *observed)),
                None => drop(seen.remove(id)),
            }
        }
        self.observed = seen;
        if !std::mem::replace(&mut self.known, true) {
            self.clear_leftovers();
        }
        self.look_at_all();
        if let Some(ports) = &mut self.ports {
            ports.release(!self.orders.is_empty());
        }
    }

    /// Has what an earlier daemon (or containerd) did not get to delete deleted, where no process is to be seen.
    fn clear_leftovers(&mut self) {
        let idle = |(id, observed): (&InstanceId, &Observed)| (observed.task == TaskState::None).then_some(*id);
        let idle: Vec<_> = self.observed.iter().filter_map(idle).filter(|id| !self.busy.contains(id)).collect();
        for id in idle {
            self.step(id, move |executor| async move { executor.reap(id).await });
        }
    }

    fn look_at_all(&mut self) {
        let mut ids: HashSet<InstanceId> = self.orders.keys().copied().collect();
        ids.extend(self.observed.keys());
        for id in ids {
            self.look_at(id);
        }
    }

    fn take_event(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::TaskEnded { id, exit } => {
                // A process can end before its start was taken note of.
                if self.busy.contains(&id) {
                    self.early.insert(id, exit);
                }
                if let Some(observed) = self.observed.get_mut(&id) {
                    observed.task = TaskState::Ended(exit);
                    self.look_at(id);
                }
            }
            RuntimeEvent::OutOfMemory { id } => tracing::warn!(instance.id = %id, "ran out of memory"),
        }
    }

    fn take_due(&mut self) {
        let now = now_ms();
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id));
            self.look_at(id);
        }
    }

    fn retry_now(&mut self) {
        for memory in self.memory.values_mut() {
            if let InstanceState::BackOff { until_ms, .. } = &mut memory.state {
                *until_ms = 0;
            }
        }
        self.look_at_all();
    }

    /// Takes steps for one instance until one must be waited for.
    fn look_at(&mut self, id: InstanceId) {
        // Without the runtime nothing is known, and nothing can be done.
        if self.busy.contains(&id) || !self.known || !self.runtime_is_up() {
            return;
        }
        loop {
            let order = self.orders.get(&id).cloned();
            let observed = self.observed.get(&id).copied();
            let memory = self.memory.entry(id).or_default();
            match next_step(order.as_ref(), observed, memory, now_ms()) {
                Step::Rest => return,
                Step::Wait(until) => {
                    self.due.insert((until, id));
                    return;
                }
                Step::Reset => {
                    let epoch = order.map_or(0, |order| order.epoch);
                    *memory = Memory { epoch, ..Memory::default() };
                }
                Step::Adopt { pid } => {
                    let epoch = order.as_ref().map_or(0, |order| order.epoch);
                    *memory = Memory { epoch, state: InstanceState::Assigned, ..memory.clone() };
                    let at_ms = memory.started_ms.unwrap_or_else(now_ms);
                    if let Some(order) = &order {
                        self.open_ports(order);
                    }
                    self.claim_ports(id);
                    self.advance(id, Event::Started { pid, at_ms });
                }
                Step::SettleStopped => {
                    let exit = memory.last_exit;
                    if matches!(memory.state, InstanceState::Running { .. } | InstanceState::Starting) {
                        memory.state = InstanceState::Stopping;
                    }
                    if memory.state == InstanceState::Stopping {
                        let outcome = memory.outcome(None);
                        self.note(id, outcome);
                    }
                    self.close_ports(id);
                    self.advance(id, Event::Stopped { exit });
                }
                Step::Vanished => {
                    self.process_ended(id, Exit { code: None, at_ms: now_ms() });
                }
                Step::Gone => {
                    self.close_ports(id);
                    if self.gone.insert(id) {
                        self.report(id, None);
                    }
                    return;
                }
                Step::Start => return self.start(id, order, observed),
                Step::Stop => {
                    let grace = order.map_or(10_000, |order| order.container.stop_grace_ms);
                    if matches!(memory.state, InstanceState::Running { .. } | InstanceState::Starting) {
                        self.advance(id, Event::StopRequested);
                    }
                    return self.step(id, move |executor| async move { executor.stop(id, grace).await });
                }
                Step::Reap => return self.step(id, move |executor| async move { executor.reap(id).await }),
                Step::Remove => {
                    let grace = order.map_or(10_000, |order| order.container.stop_grace_ms);
                    let task = observed.map_or(TaskState::None, |observed| observed.task);
                    if matches!(memory.state, InstanceState::Running { .. } | InstanceState::Starting) {
                        self.advance(id, Event::StopRequested);
                    }
                    return self.step(id, move |executor| async move { executor.remove(id, task, grace).await });
                }
            }
        }
    }

    fn step<F, Fut>(&mut self, id: InstanceId, work: F)
    where
        F: FnOnce(Arc<Executor>) -> Fut,
        Fut: Future<Output = Done> + Send + 'static,
    {
        self.busy.insert(id);
        self.early.remove(&id);
        let work = work(Arc::clone(&self.parts.executor));
        self.steps.spawn(async move { (id, work.await) });
    }

    fn start(&mut self, id: InstanceId, order: Option<Assignment>, observed: Option<Observed>) {
        let Some(order) = order else { return };
        let memory = self.memory.entry(id).or_default();
        memory.started_ms = Some(now_ms());
        let outcome = memory.outcome(None);
        self.advance(id, Event::StartRequested);
        // Who holds its ports already (a restart) does not look for others on them.
        let check = match &order.container.network {
            NetworkOrder::Bridge { ports, .. } if self.ports.as_ref().is_some_and(|open| !open.is_open(id)) => {
                ports.clone()
            }
            _ => Vec::new(),
        };
        self.open_ports(&order);
        let ready = self.ports.as_ref().map(OpenPorts::ready);
        let bridged = matches!(order.container.network, NetworkOrder::Bridge { .. });
        self.step(id, move |executor| async move {
            for port in check {
                if let Err(taken) = executor.network.check_port_free(port).await {
                    return Done::StartFailed { reason: chain(&taken), exit_code: None };
                }
            }
            let ready = async {
                match ready {
                    Some(ready) if bridged => ready.await,
                    None if bridged => Err("this node has no container network".to_owned()),
                    _ => Ok(()),
                }
            };
            executor.start(&order, observed.map(|observed| observed.task), outcome, ready).await
        });
    }

    fn open_ports(&mut self, order: &Assignment) {
        if let (Some(open), NetworkOrder::Bridge { address, ports }) = (&mut self.ports, &order.container.network) {
            open.open(order.instance_id, *address, ports.clone());
        }
    }

    fn claim_ports(&mut self, id: InstanceId) {
        if let Some(ports) = &mut self.ports {
            ports.claim(id);
        }
    }

    fn close_ports(&mut self, id: InstanceId) {
        if let Some(ports) = &mut self.ports {
            ports.close(id);
        }
    }

    async fn take_done(&mut self, id: InstanceId, done: Done) {
        self.busy.remove(&id);
        match done {
            Done::Started { pid } => {
                let task = self.early.remove(&id).map_or(TaskState::Running { pid }, TaskState::Ended);
                self.observed.insert(id, Observed { task });
                self.claim_ports(id);
                self.advance(id, Event::Started { pid, at_ms: now_ms() });
            }
            Done::StartFailed { reason, exit_code } => {
                self.start_failed(id, reason, exit_code);
                // The container may have been made before the failure.
                self.compare().await;
            }
            Done::Ended { exit } => {
                self.observed.insert(id, Observed { task: TaskState::None });
                let wanted = self.orders.get(&id).is_some_and(|order| {
                    order.desired == Desired::Running
                        && self.memory.get(&id).is_some_and(|memory| memory.epoch == order.epoch)
                });
                let ran = self.memory.get(&id).is_some_and(|memory| match memory.state {
                    InstanceState::Starting | InstanceState::Running { .. } => true,
                    // After a start of the daemon: without an exit it was left by a start that was cut short.
                    InstanceState::Assigned => exit.is_some(),
                    InstanceState::Stopping
                    | InstanceState::Stopped { .. }
                    | InstanceState::BackOff { .. }
                    | InstanceState::Finished { .. } => false,
                });
                if wanted && ran {
                    self.process_ended(id, exit.unwrap_or(Exit { code: None, at_ms: now_ms() }));
                } else if let Some(memory) = self.memory.get_mut(&id) {
                    memory.last_exit = exit.or(memory.last_exit);
                }
            }
            Done::Removed => {
                self.observed.remove(&id);
                if !self.orders.contains_key(&id) {
                    self.forget(id);
                }
            }
            Done::Failed { reason } => {
                tracing::warn!(instance.id = %id, error = reason, "a container could not be stopped or removed and will be tried again");
                self.due.insert((now_ms() + AFTER_FAILURE_MS, id));
                return;
            }
        }
        self.look_at(id);
    }

    fn start_failed(&mut self, id: InstanceId, reason: String, exit_code: Option<i32>) {
        self.close_ports(id);
        let Some(order) = self.orders.get(&id).cloned() else { return };
        let memory = self.memory.entry(id).or_default();
        tracing::warn!(instance.id = %id, workload.id = %order.workload_id, reason, "an instance could not be started");
        if let Some(code) = exit_code {
            let exit = Exit { code: Some(code), at_ms: now_ms() };
            if judge(&order, memory, exit) == Verdict::StayDown {
                return self.finish(id, exit, Some(reason));
            }
        }
        let until_ms = now_ms() + back_off(memory);
        self.advance(id, Event::RetryAt { until_ms, reason });
    }

    /// The process of an instance that should run has ended.
    fn process_ended(&mut self, id: InstanceId, exit: Exit) {
        let Some(order) = self.orders.get(&id).cloned() else { return };
        let memory = self.memory.entry(id).or_default();
        match judge(&order, memory, exit) {
            Verdict::RestartAt(until_ms) => {
                metrics::counter!("toft_instance_restarts_total").increment(1);
                let reason = match exit.code {
                    Some(code) => format!("exited with code {code}"),
                    None => "its process vanished".to_owned(),
                };
                self.advance(id, Event::RetryAt { until_ms, reason });
            }
            Verdict::StayDown => self.finish(id, exit, None),
        }
    }

    fn finish(&mut self, id: InstanceId, exit: Exit, reason: Option<String>) {
        self.close_ports(id);
        let memory = self.memory.entry(id).or_default();
        let outcome = memory.outcome(Some(exit));
        self.note(id, outcome);
        self.advance(id, Event::Finished { exit, reason });
    }

    /// Writes down how an instance ended.
    fn note(&self, id: InstanceId, outcome: Outcome) {
        if let Err(error) = self.parts.executor.ledger.store_outcome(id, outcome) {
            tracing::error!(instance.id = %id, error = chain(&error), "an instance's end could not be written to the ledger");
        }
    }

    fn advance(&mut self, id: InstanceId, event: Event) {
        let memory = self.memory.entry(id).or_default();
        match memory.state.clone().advance(event) {
            Ok(state) => {
                memory.state = state.clone();
                self.report(id, Some(state));
            }
            Err(error) => tracing::error!(instance.id = %id, %error, "the agent saw an impossible move"),
        }
    }

    fn report(&self, id: InstanceId, state: Option<InstanceState>) {
        let memory = self.memory.get(&id).cloned().unwrap_or_default();
        self.parts.outbox.put(InstanceReport {
            instance_id: id,
            state,
            epoch: memory.epoch,
            restarts: memory.restarts,
            last_exit: memory.last_exit,
            at_ms: now_ms(),
        });
    }
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
