//! A cluster in memory: a database, a counter instead of a clock and ids, and nodes that do as they are told.

use std::collections::{BTreeMap, HashMap, HashSet};

use rusqlite::{Connection, types::ValueRef};
use uuid::Uuid;

use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{Assignment, Desired, Exit, InstanceReport, InstanceState, NetworkOrder},
    node::{Inventory, NodeHealth},
    schedule::{Change, Plan, Scheduler, Snapshot, plan, starts_first},
    state::{
        Applied, Command, InstanceRow, NodeRow, Placement, PowerAction, PutMode, RefusalKind, Reply, WorkloadRow,
        apply, query_assignments, query_snapshot,
    },
    workload::{UpdateOrder, WorkloadSpec},
};

/// How a node answers an order to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Runs,
    BacksOff,
    Finishes,
}

pub(crate) struct Cluster {
    pub(crate) connection: Connection,
    /// Every command that was applied, with its index as position.
    pub(crate) history: Vec<Command>,
    minted: u128,
    /// What each node told last of each instance.
    told: HashMap<InstanceId, InstanceReport>,
    /// Whether users ever said something of a node or moved something: instances may then have successors beside them.
    configured: bool,
    /// Time that passed without a command, in milliseconds.
    pub(crate) waited_ms: i64,
    /// A scheduler that is kept, and the state that it knows.
    kept: Option<(Snapshot, Scheduler)>,
}

/// What makes `after` of `before`.
fn changes(before: &Snapshot, after: &Snapshot) -> Vec<Change> {
    fn by<K: Eq + std::hash::Hash, R>(rows: &[R], key: impl Fn(&R) -> K) -> HashMap<K, &R> {
        rows.iter().map(|row| (key(row), row)).collect()
    }
    let mut changes = Vec::new();
    let known = by(&before.instances, |row| row.id);
    let news = after.instances.iter().filter(|row| known.get(&row.id) != Some(row));
    changes.extend(news.map(|row| Change::Instance(Box::new(row.clone()))));
    let now = by(&after.instances, |row| row.id);
    let gone = before.instances.iter().filter(|row| !now.contains_key(&row.id));
    changes.extend(gone.map(|row| Change::NoInstance(row.id)));
    let now = by(&after.workloads, |row| row.id);
    let gone = before.workloads.iter().filter(|row| !now.contains_key(&row.id));
    changes.extend(gone.map(|row| Change::NoWorkload(row.id)));
    let known = by(&before.workloads, |row| row.id);
    let news = after.workloads.iter().filter(|row| known.get(&row.id) != Some(row));
    changes.extend(news.map(|row| Change::Workload(Box::new(row.clone()))));
    let now = by(&after.volumes, |row| row.name.clone());
    let gone = before.volumes.iter().filter(|row| !now.contains_key(&row.name));
    changes.extend(gone.map(|row| Change::NoVolume(row.name.clone())));
    let known = by(&before.volumes, |row| row.name.clone());
    let news = after.volumes.iter().filter(|row| known.get(&row.name) != Some(row));
    changes.extend(news.map(|row| Change::Volume(Box::new(row.clone()))));
    let known = by(&before.nodes, |row| row.id);
    let news = after.nodes.iter().filter(|row| known.get(&row.id) != Some(row));
    changes.extend(news.map(|row| Change::Node(Box::new(row.clone()))));
    if before.placement != after.placement {
        changes.push(Change::Placement(Box::new(after.placement.clone())));
    }
    changes
}

pub(crate) fn spec(name: &str, image: &str) -> WorkloadSpec {
    let mut spec = WorkloadSpec::new(name.parse().unwrap(), image.parse().unwrap());
    // Time stands nearly still here.
    (spec.update.order, spec.update.healthy_ms) = (Some(UpdateOrder::StopFirst), 0);
    spec
}

pub(crate) fn inventory(subnet: Option<&str>) -> Inventory {
    Inventory {
        cpus: 4,
        memory_bytes: 8 << 30,
        kernel: "6.1".into(),
        os: "Debian 13".into(),
        arch: "x86_64".into(),
        version: "0.1.0".into(),
        runtime: "2.0".into(),
        subnet: subnet.map(|subnet| subnet.parse().unwrap()),
        subnet6: None,
        isolation: Vec::new(),
        gpus: Vec::new(),
    }
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "foreign_keys", "ON").unwrap();
        crate::state::migrate(&mut connection).unwrap();
        Self {
            connection,
            history: Vec::new(),
            minted: 0,
            told: HashMap::new(),
            configured: false,
            waited_ms: 0,
            kept: None,
        }
    }

    /// A cluster with one node, `box`.
    pub(crate) fn of_one() -> (Self, NodeId) {
        let mut cluster = Self::new();
        let node_id = cluster.register("box", Some("10.210.0.0/24"));
        (cluster, node_id)
    }

    pub(crate) fn now_ms(&self) -> i64 {
        1_000 + self.waited_ms + self.history.len() as i64
    }

    pub(crate) fn mint(&mut self) -> Uuid {
        self.minted += 1;
        Uuid::from_u128(self.minted)
    }

    /// Applies one command and checks what holds for every command: a refusal writes nothing, whoever rolls back or
    /// not, and the rules that tie the tables together hold afterwards.
    pub(crate) fn try_apply(&mut self, command: Command) -> Applied {
        let index = self.history.len() as u64 + 1;
        let before = self.connection.total_changes();
        let applied = apply(&self.connection, index, &command).unwrap();
        let moves = matches!(
            command,
            Command::ConfigureNode { .. } | Command::MoveInstances { .. } | Command::NoteNodes { .. }
        );
        self.configured |= moves;
        if let (Command::CommitPlan { placements, .. }, Ok(_)) = (&command, &applied) {
            self.assert_not_overbooked(placements);
        }
        match &applied {
            Ok(_) => {
                crate::state::ClusterRow::advance(&self.connection, index, "here").unwrap();
                self.history.push(command);
            }
            Err(refusal) => {
                assert_eq!(self.connection.total_changes(), before, "a refusal wrote something: {refusal}");
                assert!(!refusal.message.is_empty() && !refusal.hint.is_empty());
            }
        }
        self.assert_sound();
        applied
    }

    pub(crate) fn apply(&mut self, command: Command) -> Reply {
        self.try_apply(command).unwrap()
    }

    pub(crate) fn refused(&mut self, command: Command) -> RefusalKind {
        self.try_apply(command).unwrap_err().kind
    }

    /// Registers a node; its id follows from its name, so that it can register again.
    pub(crate) fn register(&mut self, name: &str, subnet: Option<&str>) -> NodeId {
        self.register_with(name, inventory(subnet))
    }

    pub(crate) fn register_with(&mut self, name: &str, inventory: Inventory) -> NodeId {
        let node_id = node_id(name);
        let name = name.parse().unwrap();
        let at_ms = self.now_ms();
        self.apply(Command::RegisterNode { node_id, name, labels: BTreeMap::new(), inventory, at_ms });
        node_id
    }

    /// A user says something of a node, as the API would take it.
    pub(crate) fn configure(&mut self, name: &str, changes: &str) {
        let changes = serde_json::from_str(changes).unwrap();
        let (name, at_ms) = (name.parse().unwrap(), self.now_ms());
        self.apply(Command::ConfigureNode { name, changes, at_ms });
    }

    /// A user says something about where work goes, as the API would take it.
    pub(crate) fn configure_placement(&mut self, changes: &str) {
        let changes = serde_json::from_str(changes).unwrap();
        let at_ms = self.now_ms();
        self.apply(Command::ConfigurePlacement { changes, at_ms });
    }

    pub(crate) fn put_command(&mut self, spec: WorkloadSpec, mode: PutMode) -> Command {
        let workload_id = WorkloadId(self.mint());
        Command::PutWorkload { workload_id, spec: Box::new(spec), mode, at_ms: self.now_ms() }
    }

    pub(crate) fn put(&mut self, spec: WorkloadSpec) -> WorkloadRow {
        let command = self.put_command(spec, PutMode::Replace { if_generation: None });
        let Reply::Workload(row) = self.apply(command) else { panic!("no workload was answered") };
        *row
    }

    /// The leader says whether it hears of a node.
    pub(crate) fn hear(&mut self, name: &str, health: NodeHealth) {
        let at_ms = self.now_ms();
        self.apply(Command::NoteNodes { nodes: vec![(node_id(name), health)], at_ms });
    }

    pub(crate) fn power(&mut self, name: &str, action: PowerAction) -> WorkloadRow {
        let at_ms = self.now_ms();
        let Reply::Workload(row) = self.apply(Command::PowerWorkload { name: name.parse().unwrap(), action, at_ms })
        else {
            panic!("no workload was answered")
        };
        *row
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let at_ms = self.now_ms();
        self.apply(Command::RemoveWorkload { name: name.parse().unwrap(), at_ms });
    }

    /// What the scheduler would do now.
    pub(crate) fn think(&mut self) -> Plan {
        let now_ms = self.now_ms();
        let snapshot = Snapshot { now_ms, ..query_snapshot(&self.connection).unwrap() };
        let first = self.minted;
        let decided = plan(&snapshot, &mut || InstanceId(self.mint()));
        let last = std::mem::replace(&mut self.minted, first);
        // The same by who was there all along and learns only what changed.
        // A node that is gone is learnt of by reading all.
        let gone = |known: &(Snapshot, Scheduler)| {
            known.0.nodes.iter().any(|node| !snapshot.nodes.iter().any(|now| now.id == node.id))
        };
        let kept = self.kept.take().filter(|known| !gone(known));
        let mut kept = kept.unwrap_or_else(|| (Snapshot::default(), Scheduler::of(&Snapshot::default())));
        for change in changes(&kept.0, &snapshot) {
            kept.1.apply(change);
        }
        let again = kept.1.plan(now_ms, &mut || InstanceId(self.mint()));
        assert_eq!((&decided, last), (&again, self.minted), "one state gave two plans");
        self.kept = Some((snapshot, kept.1));
        decided
    }

    /// Commits `decided`; gives how many placements were made and dropped.
    pub(crate) fn commit(&mut self, decided: Plan) -> (usize, usize) {
        let Plan { placements, changes, pending, rollouts, preemptions, unmoved, .. } = decided;
        let at_ms = self.now_ms();
        match self.apply(Command::CommitPlan { placements, changes, pending, rollouts, preemptions, unmoved, at_ms }) {
            Reply::Plan { placed, dropped } => (placed, dropped),
            other => panic!("a plan was answered with {other:?}"),
        }
    }

    /// Plans and commits once; gives how many instances were placed.
    pub(crate) fn schedule(&mut self) -> usize {
        let decided = self.think();
        self.commit(decided).0
    }

    pub(crate) fn report(&mut self, node_id: NodeId, reports: Vec<InstanceReport>) {
        let at_ms = self.now_ms();
        self.apply(Command::ReportInstances { node_id, reports, at_ms });
    }

    /// The node carries out the orders that `picks` selects and tells what came of it. `true` when there was news.
    pub(crate) fn node_acts(&mut self, node: NodeId, outcome: Outcome, picks: impl Fn(usize) -> bool) -> bool {
        let set = query_assignments(&self.connection, node).unwrap().unwrap();
        let at_ms = self.now_ms();
        let mut news = Vec::new();
        for (_, assignment) in set.assignments.iter().enumerate().filter(|(i, _)| picks(*i)) {
            let report = carry_out(assignment, self.told.get(&assignment.instance_id), outcome, at_ms);
            if let Some(report) = report {
                self.told.insert(report.instance_id, report.clone());
                news.push(report);
            }
        }
        if news.is_empty() {
            return false;
        }
        self.report(node, news);
        true
    }

    /// Plans and lets every node act until nothing moves; gives the number of rounds it took.
    pub(crate) fn settle(&mut self) -> usize {
        // Rollouts replace one after the other, each in a few rounds.
        for round in 0..200 {
            let decided = self.think();
            let mut moved = !decided.is_empty();
            if moved {
                let (_, dropped) = self.commit(decided);
                assert_eq!(dropped, 0, "a plan committed at once held stale placements");
            }
            for node in NodeRow::all(&self.connection).unwrap() {
                moved |= self.node_acts(node.id, Outcome::Runs, |_| true);
            }
            if !moved {
                return round;
            }
        }
        panic!("the cluster does not come to rest:\n{}", dump(&self.connection));
    }

    pub(crate) fn instances(&self) -> Vec<InstanceRow> {
        InstanceRow::all(&self.connection).unwrap()
    }

    pub(crate) fn only_instance(&self) -> InstanceRow {
        let mut all = self.instances();
        assert_eq!(all.len(), 1, "{all:#?}");
        all.remove(0)
    }

    pub(crate) fn workload(&self, name: &str) -> Option<WorkloadRow> {
        WorkloadRow::named(&self.connection, &name.parse().unwrap()).unwrap()
    }

    /// The story so far, oldest first: `subject: message`.
    pub(crate) fn story(&self) -> Vec<String> {
        let events = crate::state::query_events(&self.connection, None, None, u32::MAX).unwrap();
        events.into_iter().rev().map(|event| format!("{}: {}", event.subject, event.message)).collect()
    }

    /// Nobody was placed where what he asks for was not left.
    fn assert_not_overbooked(&self, placements: &[Placement]) {
        let (nodes, instances) = (NodeRow::all(&self.connection).unwrap(), self.instances());
        let usual = crate::state::placement_settings(&self.connection).unwrap();
        for placement in placements {
            let Some(placed) = instances.iter().find(|one| one.id == placement.instance_id) else { continue };
            let node = nodes.iter().find(|node| node.id == placed.node_id).unwrap();
            let there: Vec<_> =
                instances.iter().filter(|one| one.node_id == node.id).map(|one| &one.container).collect();
            let wanted = &placed.container.resources;
            if wanted.cpu_reserved_millis.is_some() {
                let sum: u32 = there.iter().filter_map(|order| order.resources.cpu_reserved_millis).sum();
                let percent = node.settings.cpu_percent.unwrap_or(usual.cpu_percent);
                assert!(sum <= node.inventory.cpus * 10 * percent, "CPU of {} is given twice", node.name);
            }
            if wanted.memory_reserved_bytes.is_some() {
                let sum: u64 = there.iter().filter_map(|order| order.resources.memory_reserved_bytes).sum();
                let percent = u64::from(node.settings.memory_percent.unwrap_or(usual.memory_percent));
                assert!(
                    sum <= node.inventory.memory_bytes / 100 * percent + percent,
                    "memory of {} is given twice",
                    node.name
                );
            }
            for hold in &placed.container.gpus {
                let card = node.inventory.gpus.iter().find(|card| card.id == hold.gpu).expect("a card of its node");
                let shares = there.iter().flat_map(|order| &order.gpus).filter(|other| other.gpu == hold.gpu);
                let sum: u32 = shares.filter_map(|share| share.vram_mib).sum();
                assert!(
                    card.sick.is_none() && sum + card.outside_mib <= card.memory_mib,
                    "memory of a card is given twice"
                );
            }
        }
    }

    /// The rules that hold after every command.
    fn assert_sound(&self) {
        let workloads = WorkloadRow::all(&self.connection).unwrap();
        let nodes = NodeRow::all(&self.connection).unwrap();
        // A copy on a node that is down ends there when it is back.
        let lost = |instance: &InstanceRow| {
            let node = nodes.iter().find(|node| node.id == instance.node_id);
            node.is_some_and(|node| matches!(node.health, NodeHealth::Down | NodeHealth::Fenced))
        };
        let mut claims = HashSet::new();
        let mut ordinals = HashSet::new();
        let (mut live, mut heard) = (HashMap::<_, u32>::new(), HashMap::<_, u32>::new());
        let mut cards = HashMap::<_, (u32, u32)>::new();
        for instance in self.instances() {
            let workload = workloads.iter().find(|workload| workload.id == instance.workload_id);
            assert!(workload.is_some(), "an instance belongs to no workload");
            let copy = (instance.workload_id, instance.ordinal);
            let alone = ordinals.insert(copy);
            let beside = workload.is_some_and(|workload| starts_first(&workload.spec));
            assert!(alone || beside || self.configured, "an ordinal exists twice");
            if instance.desired != Desired::Removed {
                let heard = heard.entry(copy).or_insert(0);
                *heard += u32::from(!lost(&instance));
                assert!(*heard <= 2, "an ordinal has more than one successor");
                let count = live.entry(copy).or_insert(0);
                *count += 1;
                let exclusive = workload.is_some_and(|workload| workload.spec.exclusive);
                // One of an older specification may not know yet that it is exclusive.
                assert!(*count == 1 || !exclusive || !instance.container.exclusive, "what is exclusive exists twice");
            }
            for hold in &instance.container.gpus {
                let card = cards.entry((instance.node_id, hold.gpu.clone())).or_insert((0, 0));
                match hold.vram_mib {
                    None => card.0 += 1,
                    Some(_) => card.1 += 1,
                }
                assert!(matches!(card, (0, _) | (1, 0)), "a whole card has two holders");
            }
            let NetworkOrder::Bridge { address, ports, .. } = &instance.container.network else { continue };
            let claim = format!("{} {address}", instance.node_id);
            assert!(claims.insert(claim.clone()), "an address was given twice: {claim}");
            for port in ports {
                let claim = format!("{} {}/{}", instance.node_id, port.host, port.protocol);
                assert!(claims.insert(claim.clone()), "a host port was given twice: {claim}");
            }
        }
        for workload in workloads {
            let forgotten = workload.desired == Desired::Removed && !ordinals.iter().any(|(id, _)| *id == workload.id);
            assert!(!forgotten, "a removed workload without instances is still there");
        }
    }
}

pub(crate) fn node_id(name: &str) -> NodeId {
    let number = name.bytes().fold(0u128, |sum, byte| sum << 8 | u128::from(byte));
    NodeId(Uuid::from_u128(number << 64))
}

/// A report that says nothing but where the instance stands.
pub(crate) fn report(row: &InstanceRow, state: Option<InstanceState>) -> InstanceReport {
    InstanceReport {
        instance_id: row.id,
        state,
        epoch: row.epoch,
        restarts: 0,
        last_exit: None,
        health: None,
        warning: None,
        at_ms: 5,
        sequence: 0,
    }
}

fn carry_out(
    assignment: &Assignment,
    told: Option<&InstanceReport>,
    outcome: Outcome,
    at_ms: i64,
) -> Option<InstanceReport> {
    let up_to_date = told.is_some_and(|told| told.epoch >= assignment.epoch);
    let state = told.and_then(|told| told.state.as_ref());
    let next = match (assignment.desired, state) {
        (Desired::Removed, _) => None,
        (Desired::Stopped, Some(InstanceState::Stopped { .. })) if up_to_date => return None,
        (Desired::Stopped, _) => Some(InstanceState::Stopped { exit: None }),
        (Desired::Running, Some(InstanceState::Running { .. } | InstanceState::Finished { .. })) if up_to_date => {
            return None;
        }
        (Desired::Running, _) => Some(match outcome {
            Outcome::Runs => InstanceState::Running { pid: 7, since_ms: at_ms },
            Outcome::BacksOff => InstanceState::BackOff { until_ms: at_ms + 1_000, reason: "exited".into() },
            Outcome::Finishes => InstanceState::Finished { exit: Exit::new(Some(0), at_ms), reason: None },
        }),
    };
    Some(InstanceReport {
        instance_id: assignment.instance_id,
        state: next,
        epoch: assignment.epoch,
        restarts: 0,
        last_exit: None,
        health: None,
        warning: None,
        at_ms,
        sequence: 0,
    })
}

/// Every row of every table as text, in the order of the row ids.
pub(crate) fn dump(connection: &Connection) -> String {
    let mut out = String::new();
    let mut tables = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
    let tables: Vec<String> = tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for table in tables {
        out.push_str(&format!("-- {table}\n"));
        let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY rowid")).unwrap();
        let width = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let cells: Vec<String> = (0..width)
                .map(|i| match row.get_ref(i).unwrap() {
                    ValueRef::Null => "NULL".to_owned(),
                    ValueRef::Integer(number) => number.to_string(),
                    ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                    ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                    other => panic!("a column holds {other:?}"),
                })
                .collect();
            out.push_str(&cells.join(" | "));
            out.push('\n');
        }
    }
    out
}
