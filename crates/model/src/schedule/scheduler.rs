//! The scheduler that is kept from plan to plan: it learns what changed, and decides on the whole.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    board::Board,
    expression,
    plan::{Plan, Round},
    rollout::Succession,
    snapshot::Snapshot,
    standing::{Losses, Standing},
    time::Time,
};
use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    name::Name,
    schedule::PlacementSettings,
    state::{InstanceChange, InstanceRow, NodeRow, Unmoved, VolumeRow, WorkloadRow},
    workload::Rollout,
};

/// A row that is new, changed or gone.
#[derive(Debug, Clone)]
pub enum Change {
    /// A node. None is ever taken away: when one is removed, the scheduler is made anew.
    Node(Box<NodeRow>),
    /// A workload.
    Workload(Box<WorkloadRow>),
    /// A workload that is gone.
    NoWorkload(WorkloadId),
    /// An instance.
    Instance(Box<InstanceRow>),
    /// An instance that is gone.
    NoInstance(InstanceId),
    /// A volume.
    Volume(Box<VolumeRow>),
    /// A volume that is gone.
    NoVolume(Name),
    /// What the cluster says about placement.
    Placement(Box<PlacementSettings>),
}

/// What a workload needs.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) existing: Vec<Arc<InstanceRow>>,
    /// New orders.
    pub(super) changes: Vec<InstanceChange>,
    /// Ordinals without an instance.
    pub(super) missing: Vec<u32>,
    /// Those that are to leave their node and have no successor yet.
    pub(super) moving: Vec<Arc<InstanceRow>>,
    /// Those that were ordered to another node, and have no successor yet.
    pub(super) ordered: Vec<Arc<InstanceRow>>,
    /// Those that were ordered to another node, and stay.
    pub(super) unmoved: Vec<Unmoved>,
    /// Whether some copy is on its way out or just being replaced.
    pub(super) under_way: bool,
    /// Those of an older specification that get a successor now.
    pub(super) outdated: Vec<(Arc<InstanceRow>, Succession)>,
    /// How the rollout ended, when it did.
    pub(super) ended: Option<Rollout>,
    /// When time alone changes what is to be done, in milliseconds since 1970.
    pub(super) wake_at_ms: Option<i64>,
    /// That it had no place, after so many changes of the board, and why.
    pub(super) refused: Option<(u64, String)>,
}

impl Needs {
    fn of(workload: &WorkloadRow, existing: Vec<Arc<InstanceRow>>, board: &Board, time: Time<'_>) -> Self {
        let rows: Vec<&InstanceRow> = existing.iter().map(Arc::as_ref).collect();
        let nodes = rows.iter().filter_map(|row| board.position(row.node_id));
        let nodes: HashMap<NodeId, &NodeRow> = nodes.map(|at| (board.nodes[at].id, board.nodes[at].as_ref())).collect();
        let losses = Losses::of(&workload.spec, |volume| board.homes.is_local(volume));
        let standing = Standing::of(workload, &rows, &nodes, (losses, time));
        let missing = standing.missing(workload);
        let kept = |row: &InstanceRow| existing.iter().find(|one| one.id == row.id).map(Arc::clone);
        let moving = standing.moving.iter().filter_map(|row| kept(row)).collect();
        let outdated = standing.outdated.iter().filter_map(|(row, how)| Some((kept(row)?, *how))).collect();
        let ordered = standing.ordered.iter().filter_map(|row| kept(row)).collect();
        let Standing { changes, ended, wake_at_ms, unmoved, under_way, .. } = standing;
        Self {
            changes,
            missing,
            moving,
            ordered,
            unmoved,
            under_way,
            outdated,
            ended,
            wake_at_ms,
            existing,
            refused: None,
        }
    }

    fn nothing(&self) -> bool {
        let Self {
            existing: _,
            changes,
            missing,
            moving,
            ordered,
            unmoved,
            under_way: _,
            outdated,
            ended,
            wake_at_ms,
            refused: _,
        } = self;
        changes.is_empty()
            && missing.is_empty()
            && moving.is_empty()
            && ordered.is_empty()
            && unmoved.is_empty()
            && outdated.is_empty()
            && ended.is_none()
            && wake_at_ms.is_none()
    }
}

/// Who decides what should run where. The same rows give the same plan, in whatever order they came.
pub struct Scheduler {
    board: Board,
    instances: HashMap<InstanceId, Arc<InstanceRow>>,
    of_workload: HashMap<WorkloadId, BTreeMap<(u32, InstanceId), Arc<InstanceRow>>>,
    /// Instances on nodes that have not been seen.
    lost: HashMap<NodeId, HashSet<InstanceId>>,
    /// Workloads that need something or wait.
    busy: HashMap<WorkloadId, Needs>,
    /// Workloads to be looked at again.
    stale: HashSet<WorkloadId>,
    /// How far nodes' clocks are ahead of the one by which it plans, in milliseconds.
    ahead_ms: BTreeMap<NodeId, i64>,
}

impl Scheduler {
    /// Of all rows.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut scheduler = Self {
            board: Board::new(snapshot.placement.clone()),
            instances: HashMap::with_capacity(snapshot.instances.len()),
            of_workload: HashMap::with_capacity(snapshot.workloads.len()),
            lost: HashMap::new(),
            busy: HashMap::new(),
            stale: HashSet::new(),
            ahead_ms: BTreeMap::new(),
        };
        for node in &snapshot.nodes {
            scheduler.apply(Change::Node(Box::new(node.clone())));
        }
        for workload in &snapshot.workloads {
            scheduler.apply(Change::Workload(Box::new(workload.clone())));
        }
        for instance in &snapshot.instances {
            scheduler.apply(Change::Instance(Box::new(instance.clone())));
        }
        for volume in &snapshot.volumes {
            scheduler.apply(Change::Volume(Box::new(volume.clone())));
        }
        scheduler
    }

    /// Learns of one row.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Node(node) => self.put_node(*node),
            Change::Workload(workload) => {
                self.stale.insert(workload.id);
                self.board.put_workload(Arc::from(workload));
            }
            Change::NoWorkload(id) => {
                self.board.remove_workload(id);
                self.busy.remove(&id);
                self.stale.remove(&id);
            }
            Change::Instance(instance) => self.put_instance(Arc::from(instance)),
            Change::NoInstance(id) => self.remove_instance(id),
            Change::Volume(volume) => self.board.put_volume(&volume),
            Change::NoVolume(name) => self.board.remove_volume(&name),
            Change::Placement(settings) => self.board.put_settings(*settings),
        }
    }

    fn put_node(&mut self, mut node: NodeRow) {
        // They move with every order, and nothing here depends on them.
        (node.assignments_generation, node.registered_at_ms) = (0, 0);
        let id = node.id;
        if let Some(at) = self.board.position(id) {
            if *self.board.nodes[at] == node {
                return;
            }
            self.stale.extend(self.board.seats[at].residents.iter().map(|resident| resident.workload));
        }
        self.board.put_node(node);
        for instance in self.lost.remove(&id).into_iter().flatten() {
            if let Some(row) = self.instances.get(&instance) {
                self.stale.insert(row.workload_id);
                self.board.put_instance(Arc::clone(row));
            }
        }
    }

    fn put_instance(&mut self, row: Arc<InstanceRow>) {
        self.stale.insert(row.workload_id);
        let place = |row: &InstanceRow| (row.node_id, row.workload_id, row.ordinal);
        let before = self.instances.insert(row.id, Arc::clone(&row));
        if let Some(before) = before.filter(|before| place(before) != place(&row)) {
            self.drop_instance(&before);
        }
        self.of_workload.entry(row.workload_id).or_default().insert((row.ordinal, row.id), Arc::clone(&row));
        if self.board.position(row.node_id).is_none() {
            self.lost.entry(row.node_id).or_default().insert(row.id);
            return;
        }
        self.board.put_instance(row);
    }

    fn remove_instance(&mut self, id: InstanceId) {
        if let Some(row) = self.instances.remove(&id) {
            self.drop_instance(&row);
        }
    }

    fn drop_instance(&mut self, row: &InstanceRow) {
        self.stale.insert(row.workload_id);
        if let Some(of) = self.of_workload.get_mut(&row.workload_id) {
            of.remove(&(row.ordinal, row.id));
            if of.is_empty() {
                self.of_workload.remove(&row.workload_id);
            }
        }
        if let Some(lost) = self.lost.get_mut(&row.node_id) {
            lost.remove(&row.id);
        }
        self.board.remove_instance(row);
    }

    /// Says how far nodes' clocks are ahead of the one by which it plans, in milliseconds; of those that are not named, nothing
    /// worth a word.
    pub fn set_clocks(&mut self, ahead_ms: BTreeMap<NodeId, i64>) {
        self.ahead_ms = ahead_ms;
    }

    /// Decides what should change, at `now_ms` in milliseconds since 1970. `mint` gives fresh instance ids.
    pub fn plan(&mut self, now_ms: i64, mint: &mut dyn FnMut() -> InstanceId) -> Plan {
        self.board.refresh();
        self.look_again(now_ms);
        let environment = expression::environment();
        // It was read before it was written to the state.
        let expression = self.board.settings.expression.clone();
        let expression = expression.as_deref().and_then(|text| environment.compile_expression(text).ok());
        let mut busy: Vec<(Arc<WorkloadRow>, &mut Needs)> = self
            .busy
            .iter_mut()
            .filter_map(|(id, needs)| Some((Arc::clone(self.board.workloads.get(id)?), needs)))
            .collect();
        busy.sort_by(|(one, _), (other, _)| one.spec.name.cmp(&other.spec.name));
        let mark = self.board.mark();
        let plan = Plan::default();
        let mut round = Round { board: &mut self.board, plan, expression: expression.as_ref(), mint };
        for (workload, needs) in &busy {
            round.begin(workload, needs);
        }
        // The most important first; the rest by name.
        busy.sort_by_key(|(workload, _)| Reverse(workload.spec.placement.priority));
        for (workload, needs) in &mut busy {
            round.place(workload, needs);
        }
        round.move_ordered(&busy);
        let plan = round.plan;
        // Only rows say what is.
        self.board.take_back(mark);
        plan
    }

    /// Looks at those workloads of which something changed, and those that time changes.
    fn look_again(&mut self, now_ms: i64) {
        let in_time =
            |(id, needs): (&WorkloadId, &Needs)| (needs.wake_at_ms.is_some() || needs.ended.is_some()).then_some(*id);
        let mut stale: BTreeSet<WorkloadId> = self.stale.drain().collect();
        stale.extend(self.busy.iter().filter_map(in_time));
        for id in stale {
            let Some(workload) = self.board.workloads.get(&id) else { continue };
            let existing = self.of_workload.get(&id).into_iter().flatten().map(|(_, row)| Arc::clone(row)).collect();
            let needs = Needs::of(workload, existing, &self.board, Time { now_ms, ahead_ms: &self.ahead_ms });
            if needs.nothing() && workload.pending.is_none() {
                self.busy.remove(&id);
            } else {
                self.busy.insert(id, needs);
            }
        }
    }
}
