//! The one task that asks the [`Keeper`] what follows from the news, and does it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use toft_model::{
    ids::InstanceId,
    instance::{Assignment, AssignmentSet, ContainerOrder, NetworkOrder},
    name::Name,
    node::{Subnet, Subnet6},
    secret::SealedSecret,
    workload::NetworkName,
};
use tokio::{
    sync::{Notify, broadcast, mpsc, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    execute::{Done, Executor, Start},
    gpu::Offence,
    health::{self, Answer},
    keeper::{Effect, Incoming, Keeper, Lease, Work},
    ledger::{Outcome, Remembered},
    network::{NetworkConfig, Others},
    ports::{OpenPorts, Share},
    report::Outbox,
    runtime::{Availability, RuntimeEvent, TaskState},
};
use crate::observe::chain;

/// How often everything is compared with the runtime, events or not.
const RESYNC: Duration = Duration::from_secs(30);
/// Answers of health checks that wait to be heard.
const ANSWERS_WAITING: usize = 64;
/// Longest wait for steps under way when the daemon stops.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// What the agent is told once.
pub struct AgentConfig {
    /// The network of this node's containers, if it has one.
    pub subnet: Option<Subnet>,
    /// Their IPv6 network, if they have one.
    pub subnet6: Option<Subnet6>,
    /// Port where the containers' questions for names are answered, if they are.
    pub names_port: Option<u16>,
    /// The containers of the other nodes.
    pub others: watch::Receiver<Others>,
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
    /// Whether the cluster's leader hears of this node.
    pub lease: watch::Receiver<Lease>,
    /// Since when it was over when the daemon started, in milliseconds since 1970, if it was.
    pub lease_was_over_ms: Option<i64>,
    /// Instances that hold more of a GPU than their share.
    pub offences: mpsc::Receiver<Offence>,
}

/// The agent.
pub struct Agent {
    parts: AgentParts,
    ports: Option<OpenPorts>,
    keeper: Keeper,
    steps: JoinSet<(InstanceId, Done)>,
    /// Orders that are being started, and what tells their steps that they no longer stand.
    starting: BTreeMap<InstanceId, (Assignment, CancellationToken)>,
    watches: JoinSet<()>,
    watched: HashMap<InstanceId, AbortHandle>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
}

impl Agent {
    /// An agent and the task that keeps its network; the daemon owns both futures ([`Agent::run`] is the other).
    pub fn new(
        config: AgentConfig,
        parts: AgentParts,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let network = Arc::clone(&parts.executor.network);
        let nobody = |subnet| NetworkConfig {
            names_port: config.names_port,
            subnet6: config.subnet6,
            ..NetworkConfig::new(subnet)
        };
        let (ports, apply) =
            config.subnet.map(|subnet| OpenPorts::new(nobody(subnet), network, config.others, cancel.clone())).unzip();
        let mut keeper = Keeper::new(config.remembered);
        keeper.lease_was_over(parts.lease_was_over_ms);
        let agent = Self {
            parts,
            ports,
            keeper,
            steps: JoinSet::new(),
            starting: BTreeMap::new(),
            watches: JoinSet::new(),
            watched: HashMap::new(),
            answers: mpsc::channel(ANSWERS_WAITING),
        };
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
        let mut lease = self.parts.lease.clone();
        lease.mark_changed();
        let retry = Arc::clone(&self.parts.retry);
        let mut resync = tokio::time::interval_at(tokio::time::Instant::now() + RESYNC, RESYNC);
        assignments.mark_changed();
        availability.mark_changed();
        loop {
            let next_due = self.keeper.next_due_ms().unwrap_or(i64::MAX).saturating_sub(now_ms()).clamp(0, 3_600_000);
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
                    if up { self.compare().await } else { self.keeper.runtime_was_away() }
                }
                changed = lease.changed() => {
                    if changed.is_err() { break }
                    let now = *lease.borrow_and_update();
                    if now == Lease::Over {
                        // What is on its way to a start has to end as well.
                        let exclusive = self.starting.values().filter(|(order, _)| order.container.exclusive);
                        exclusive.for_each(|(_, unwanted)| unwanted.cancel());
                    }
                    self.keeper().lease_is(now, now_ms());
                }
                _ = resync.tick() => self.compare().await,
                event = events.recv() => match event {
                    Ok(RuntimeEvent::TaskEnded { id, exit }) => self.keeper().task_ended(id, exit, now_ms()),
                    Ok(RuntimeEvent::OutOfMemory { id }) => tracing::warn!(instance.id = %id, "ran out of memory"),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.compare().await,
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                Some(done) = self.steps.join_next() => match done {
                    Ok((id, done)) => {
                        self.starting.remove(&id);
                        self.keeper().done(id, done, now_ms());
                    }
                    Err(error) => tracing::error!(%error, "a step of the agent panicked"),
                },
                Some(Answer { id, pid, outcome }) = self.answers.1.recv() => {
                    self.keeper().answered(id, pid, outcome, now_ms());
                }
                Some(_) = self.watches.join_next() => {}
                Some(offence) = self.parts.offences.recv() => self.hold_back(&offence),
                () = retry.notified() => self.keeper().retry_now(now_ms()),
                () = tokio::time::sleep(Duration::from_millis(next_due as u64)) => self.keeper().time_passed(now_ms()),
            }
            self.perform().await;
        }
        let last = async { while self.steps.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_STEPS, last).await.is_err() {
            tracing::warn!("steps of the agent were still under way at the end");
        }
    }

    /// The keeper, which knows whether the runtime answers right now.
    fn keeper(&mut self) -> &mut Keeper {
        let up = matches!(*self.parts.executor.runtime.availability().borrow(), Availability::Up(_));
        self.keeper.runtime_is(up);
        &mut self.keeper
    }

    /// Warns who holds more of a GPU than its share, and stops who goes on.
    fn hold_back(&mut self, offence: &Offence) {
        let Offence { instance, gpu, held_mib, share_mib, stop } = offence;
        if !stop {
            tracing::warn!(
                instance.id = %instance, %gpu, held_mib, share_mib,
                "an instance holds more of a GPU than its share and will be stopped unless it gives back"
            );
            let warning = format!(
                "holds {held_mib} MiB of GPU {gpu} and may hold {share_mib}; it is stopped unless it gives back"
            );
            self.keeper().warn_of_share(*instance, warning, now_ms());
        } else if self.keeper().over_share(*instance) {
            tracing::warn!(
                instance.id = %instance, %gpu, held_mib, share_mib,
                "an instance is stopped: it holds more of a GPU than its share"
            );
            // The state between its end and its next start may be over before it is told.
            let warning =
                format!("GpuOutOfMemory: holds {held_mib} MiB of GPU {gpu} and may hold {share_mib}; it is stopped");
            self.keeper().warn_of_share(*instance, warning, now_ms());
        }
    }

    /// Accepts a newer set: to the ledger first, then to work.
    async fn take_orders(&mut self, set: AssignmentSet) {
        match self.keeper.incoming(&set) {
            Incoming::Newer => {}
            // The same set again wakes everything once after a start of the daemon.
            Incoming::Again => return self.keeper().orders_stand(now_ms()),
            Incoming::Older => {
                return tracing::warn!(generation = set.generation, "an older set of assignments was ignored");
            }
        }
        let (stored, set) = self.store(set).await;
        for (id, (order, unwanted)) in &self.starting {
            if !set.assignments.iter().any(|newest| newest.instance_id == *id && newest == order) {
                unwanted.cancel();
            }
        }
        self.keeper().take_orders(set, stored, now_ms());
    }

    /// Writes a set into the ledger; `false` when that failed.
    async fn store(&self, set: AssignmentSet) -> (bool, AssignmentSet) {
        let ledger = self.parts.executor.ledger.clone();
        let saved = self.keeper.saved().cloned();
        let job = move || (ledger.store_set(saved.as_ref(), &set), set);
        let (stored, set) = match tokio::task::spawn_blocking(job).await {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        if let Err(error) = &stored {
            tracing::error!(error = chain(error), "the node's orders could not be written to its ledger");
        }
        (stored.is_ok(), set)
    }

    /// Compares everything with the runtime.
    async fn compare(&mut self) {
        if !matches!(*self.parts.executor.runtime.availability().borrow(), Availability::Up(_)) {
            return;
        }
        match self.parts.executor.runtime.containers().await {
            Ok(containers) => self.keeper().compare(containers.iter().map(|c| (c.id, c.task)), now_ms()),
            Err(error) => tracing::warn!(error = chain(&error), "the containers could not be listed"),
        }
    }

    /// Does what the keeper asks for, until it asks for nothing.
    async fn perform(&mut self) {
        loop {
            let effects = self.keeper.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Do { id, work } => self.step(id, work),
                    Effect::WriteSet => {
                        if let Some(set) = self.keeper.newest().cloned() {
                            let (written, _) = self.store(set).await;
                            self.keeper().set_written(written, now_ms());
                        }
                    }
                    Effect::Note { id, outcome } => self.note(id, outcome),
                    Effect::Report(report) => self.parts.outbox.put(report),
                    Effect::OpenPorts(order) => self.open_ports(&order),
                    Effect::ClaimPorts(id) => self.with_ports(|ports| ports.claim(id)),
                    Effect::ClosePorts(id) => self.with_ports(|ports| ports.close(id)),
                    Effect::ReleasePorts(anew) => self.with_ports(|ports| ports.release(anew)),
                    Effect::Watch { order, pid } => {
                        let id = order.instance_id;
                        let runtime = Arc::clone(&self.parts.executor.runtime);
                        let asks = health::watch(runtime, *order, pid, self.answers.0.clone());
                        if let Some(before) = self.watched.insert(id, self.watches.spawn(asks)) {
                            before.abort();
                        }
                    }
                    Effect::Unwatch(id) => {
                        if let Some(watch) = self.watched.remove(&id) {
                            watch.abort();
                        }
                    }
                    Effect::Compare(id) => {
                        self.compare().await;
                        self.keeper().look_at(id, now_ms());
                    }
                    Effect::Impossible(id, error) => {
                        tracing::error!(instance.id = %id, %error, "the agent saw an impossible move");
                    }
                }
            }
        }
    }

    fn step(&mut self, id: InstanceId, work: Work) {
        let executor = Arc::clone(&self.parts.executor);
        match work {
            Work::Start { order, existing, outcome } => self.start(*order, existing, outcome),
            Work::Stop { grace_ms } => drop(self.steps.spawn(async move { (id, executor.stop(id, grace_ms).await) })),
            Work::Reap => drop(self.steps.spawn(async move { (id, executor.reap(id).await) })),
            Work::Remove { task, grace_ms } => {
                self.steps.spawn(async move { (id, executor.remove(id, task, grace_ms).await) });
            }
        }
    }

    fn start(&mut self, order: Assignment, existing: Option<TaskState>, outcome: Outcome) {
        let id = order.instance_id;
        let executor = Arc::clone(&self.parts.executor);
        // Who holds its ports already (a restart) does not look for others on them.
        let check = match &order.container.network {
            NetworkOrder::Bridge { ports, .. } if self.ports.as_ref().is_some_and(|open| !open.is_open(id)) => {
                ports.clone()
            }
            _ => Vec::new(),
        };
        self.open_ports(&order);
        let secrets = self.secrets_of(&order);
        let unwanted = CancellationToken::new();
        self.starting.insert(id, (order.clone(), unwanted.clone()));
        let ready = self.ports.as_ref().map(OpenPorts::ready);
        let bridged = matches!(order.container.network, NetworkOrder::Bridge { .. });
        self.steps.spawn(async move {
            for port in check {
                if let Err(taken) = executor.network.check_port_free(port).await {
                    return (id, Done::StartFailed { reason: chain(&taken), exit_code: None });
                }
            }
            let ready = async {
                match ready {
                    Some(ready) if bridged => ready.await,
                    None if bridged => Err("this node has no container network".to_owned()),
                    _ => Ok(()),
                }
            };
            (id, executor.start(Start { assignment: order, existing, outcome, secrets, unwanted }, ready).await)
        });
    }

    /// The newest sealed values of the secrets that an order names.
    fn secrets_of(&self, order: &Assignment) -> BTreeMap<Name, SealedSecret> {
        let Some(set) = self.keeper.newest() else { return BTreeMap::new() };
        let names = order.container.secrets.iter().map(|mount| &mount.name);
        let of_volumes = order.volumes.values().filter_map(|volume| volume.options.secret.as_ref());
        names.chain(of_volumes).filter_map(|name| Some((name.clone(), set.secrets.get(name)?.clone()))).collect()
    }

    fn open_ports(&mut self, order: &Assignment) {
        let ContainerOrder { network, deployment, networks, .. } = &order.container;
        if let (Some(open), NetworkOrder::Bridge { address, ports, .. }) = (&mut self.ports, network) {
            let networks = NetworkName::of(deployment.as_ref(), networks);
            open.open(order.instance_id, Share { address: *address, ports: ports.clone(), networks });
        }
    }

    fn with_ports(&mut self, change: impl FnOnce(&mut OpenPorts)) {
        if let Some(ports) = &mut self.ports {
            change(ports);
        }
    }

    /// Writes down how an instance ended.
    fn note(&mut self, id: InstanceId, outcome: Outcome) {
        if let Err(error) = self.parts.executor.ledger.store_outcome(id, outcome) {
            tracing::error!(instance.id = %id, error = chain(&error), "an instance's end could not be written to the ledger");
            self.keeper().note_failed(id, outcome, now_ms());
        }
    }
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
