//! What a round of planning moves its pieces on: the nodes, and who is on each, those placed in this round included.

mod rows;
mod tried;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Deref,
    sync::Arc,
};

use super::{
    feasible::{Claims, Homes},
    gpus::Cards,
    index::Index,
    outlook::Outlook,
    place::{self, Fleet},
    policy::{Capacity, PlacementSettings, Term, Weights},
    rules,
    snapshot::Snapshot,
};
use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{ContainerOrder, Desired, InstanceState},
    name::Name,
    state::{InstanceRow, NodeRow, WorkloadRow},
    workload::{Mount, Rule, WorkloadSpec},
};

/// The order of an instance: that of its row, or one that was decided in this round.
#[derive(Debug, Clone)]
pub(super) enum Order {
    Row(Arc<InstanceRow>),
    New(Arc<ContainerOrder>),
}

impl Deref for Order {
    type Target = ContainerOrder;

    fn deref(&self) -> &ContainerOrder {
        match self {
            Self::Row(row) => &row.container,
            Self::New(order) => order,
        }
    }
}

/// One instance on a node.
#[derive(Debug, Clone)]
pub(super) struct Resident {
    /// Its id; none when it was placed in this round.
    pub(super) instance: Option<InstanceId>,
    pub(super) workload: WorkloadId,
    pub(super) ordinal: u32,
    /// Of its workload; the lowest when that is gone.
    pub(super) priority: u32,
    pub(super) order: Order,
    /// It was ordered to go, and holds what it holds until its node says that it is gone.
    pub(super) leaving: bool,
}

impl Resident {
    fn of(row: Arc<InstanceRow>, priority: u32) -> Self {
        Self {
            instance: Some(row.id),
            workload: row.workload_id,
            ordinal: row.ordinal,
            priority,
            leaving: row.desired == Desired::Removed,
            order: Order::Row(row),
        }
    }

    /// Rows are in the order in which a snapshot has them.
    fn place(&self) -> (bool, WorkloadId, u32, Option<InstanceId>) {
        (self.instance.is_none(), self.workload, self.ordinal, self.instance)
    }
}

/// A node and who is on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seat {
    /// Rows first, by workload, ordinal and id; then those of this round.
    pub(super) residents: Vec<Resident>,
    pub(super) claims: Claims,
    /// What is left of its cards.
    pub(super) deck: Vec<place::Card>,
    /// What its cards count as; empty until they are looked at.
    kinds: Vec<place::Kind>,
    /// Whether its network has an address for one more.
    pub(super) has_address: bool,
    /// How much can be reserved.
    pub(super) capacity: Capacity,
}

/// An instance that looks for a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) id: WorkloadId,
    /// Which of its specifications it is.
    pub(super) generation: u64,
    pub(super) spec: &'a WorkloadSpec,
}

impl<'a> Ask<'a> {
    pub(super) fn of(workload: &'a WorkloadRow) -> Self {
        Self { id: workload.id, generation: workload.generation, spec: &workload.spec }
    }
}

/// Stands for a change that is none of a node's.
const NO_NODE: u32 = u32::MAX;

/// What was tried on the board and can be taken back.
#[derive(Debug)]
enum Tried {
    Sat(usize),
    Left(usize, InstanceId),
    Settled(Name),
}

/// The board. Rows are put on it and taken off it; a round tries something on it and takes that back in the end.
pub(super) struct Board {
    pub(super) nodes: Vec<Arc<NodeRow>>,
    pub(super) settings: PlacementSettings,
    pub(super) homes: Homes,
    pub(super) seats: Vec<Seat>,
    pub(super) workloads: HashMap<WorkloadId, Arc<WorkloadRow>>,
    pub(super) fleet: Fleet,
    pub(super) outlook: Outlook,
    pub(super) index: Index,
    /// The highest price of a node and the most watts.
    pub(super) dearest: (f64, u32),
    weights: Weights,
    positions: HashMap<NodeId, usize>,
    by_name: BTreeMap<Name, usize>,
    names: HashMap<String, WorkloadId>,
    /// Workloads that want some others not beside them.
    shy: BTreeMap<Name, Arc<WorkloadRow>>,
    /// How many copies of each workload are on which nodes.
    copies: HashMap<WorkloadId, BTreeMap<usize, u32>>,
    /// On which nodes how many instances of an image ran.
    images: HashMap<String, BTreeMap<usize, u32>>,
    /// How many instances there are of each priority.
    priorities: BTreeMap<u32, usize>,
    /// The number of the last change of where each volume lies.
    homes_moved: HashMap<Name, u64>,
    /// Nodes from which somebody goes, and some from which nobody does any more.
    leaving: BTreeSet<usize>,
    tried: Vec<Tried>,
    /// Nodes on which something changed, oldest first; the first entry is change number `forgotten`.
    touched: Vec<u32>,
    forgotten: u64,
    /// The number of the last change that is none of a single node's.
    upheaval: u64,
    /// Seats whose rows changed.
    stale: HashSet<usize>,
    /// Nodes or settings changed.
    stale_nodes: bool,
}

impl Board {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut board = Self::new(snapshot.placement.clone());
        snapshot.nodes.iter().for_each(|node| board.put_node(node.clone()));
        snapshot.workloads.iter().for_each(|workload| board.put_workload(Arc::new(workload.clone())));
        snapshot.instances.iter().for_each(|instance| board.put_instance(Arc::new(instance.clone())));
        snapshot.volumes.iter().for_each(|volume| board.put_volume(volume));
        board.refresh();
        board
    }

    /// Without rows.
    pub(super) fn new(settings: PlacementSettings) -> Self {
        Self {
            nodes: Vec::new(),
            settings,
            homes: Homes::default(),
            seats: Vec::new(),
            workloads: HashMap::new(),
            fleet: Fleet::new(place::Policy::Balanced, &place::Mix::default(), 0),
            outlook: Outlook::default(),
            index: Index::default(),
            dearest: (0.0, 0),
            weights: [0; Term::ALL.len()],
            positions: HashMap::new(),
            by_name: BTreeMap::new(),
            names: HashMap::new(),
            shy: BTreeMap::new(),
            copies: HashMap::new(),
            images: HashMap::new(),
            priorities: BTreeMap::new(),
            homes_moved: HashMap::new(),
            leaving: BTreeSet::new(),
            tried: Vec::new(),
            touched: Vec::new(),
            forgotten: 0,
            upheaval: 0,
            stale: HashSet::new(),
            stale_nodes: true,
        }
    }

    fn count(&mut self, at: usize, resident: &Resident, more: bool) {
        self.count_priority(resident.priority, more);
        count(self.copies.entry(resident.workload).or_default(), at, more);
        if self.copies.get(&resident.workload).is_some_and(BTreeMap::is_empty) {
            self.copies.remove(&resident.workload);
        }
        self.count_image(at, resident, more);
    }

    fn count_priority(&mut self, priority: u32, more: bool) {
        let count = self.priorities.entry(priority).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.priorities.remove(&priority);
        }
    }

    /// Whether anybody has a lower priority.
    pub(super) fn has_lower(&self, priority: u32) -> bool {
        self.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < priority)
    }

    fn count_image(&mut self, at: usize, resident: &Resident, more: bool) {
        if !has_image(resident) {
            return;
        }
        let image = resident.order.image.as_str();
        match self.images.get_mut(image) {
            Some(known) => count(known, at, more),
            None if more => drop(self.images.insert(image.to_owned(), BTreeMap::from([(at, 1)]))),
            None => {}
        }
        if self.images.get(image).is_some_and(BTreeMap::is_empty) {
            self.images.remove(image);
        }
    }

    /// A node as the engine sees it, beside those who hold `claims` there.
    pub(super) fn engine_node(&self, at: usize, claims: &Claims) -> place::Node {
        let (all, held) = (self.seats[at].capacity, claims.reserved());
        let millis = |millis: u64| u32::try_from(millis).unwrap_or(u32::MAX);
        let seat = &self.seats[at];
        let cards = match std::ptr::eq(claims, &seat.claims) {
            true => seat.deck.clone(),
            false => claims.gpus().deck(Cards::of(&self.nodes[at]), &seat.kinds),
        };
        place::Node {
            cpu_millis: millis(all.cpu_millis),
            cpu_free: millis(all.cpu_millis.saturating_sub(held.cpu_millis)),
            memory_bytes: all.memory_bytes,
            memory_free: all.memory_bytes.saturating_sub(held.memory_bytes),
            slots: u32::MAX,
            slots_free: u32::MAX - claims.instances() as u32,
            cards,
        }
    }

    /// What is left on a node changed, or who goes from it.
    fn touch(&mut self, at: usize) {
        self.note_change(at as u32);
    }

    /// A change of a node, or of [`NO_NODE`].
    fn note_change(&mut self, node: u32) {
        self.touched.push(node);
        if self.touched.len() > 4 * self.nodes.len() + 1024 {
            let half = self.touched.len() / 2;
            self.touched.drain(..half);
            self.forgotten += half as u64;
            self.homes_moved.retain(|_, at| *at >= self.forgotten);
        }
    }

    /// Something changed that may concern every node.
    pub(super) fn upheave(&mut self) {
        self.upheaval = self.now() + 1;
        self.note_change(NO_NODE);
    }

    /// How many changes there were.
    pub(super) fn now(&self) -> u64 {
        self.forgotten + self.touched.len() as u64
    }

    /// The nodes that changed for an instance of `spec` since there were so many changes; `None` when all may have.
    pub(super) fn touched_since(&self, then: u64, spec: &WorkloadSpec) -> Option<impl Iterator<Item = u32>> {
        let mut volumes = spec.mounts.iter().filter_map(Mount::volume);
        let moved = volumes.any(|volume| self.homes_moved.get(&volume.name).is_some_and(|at| *at > then));
        (then >= self.upheaval && !moved)
            .then(|| self.touched.get(then.checked_sub(self.forgotten)? as usize..))
            .flatten()
            .map(|touched| touched.iter().copied().filter(|node| *node != NO_NODE))
    }

    /// How much a term counts.
    pub(super) fn weight(&self, term: Term) -> i32 {
        self.weights[term as usize]
    }

    /// Where the node of that id is among the nodes.
    pub(super) fn position(&self, node: NodeId) -> Option<usize> {
        self.positions.get(&node).copied()
    }

    /// Where the node of that name is.
    pub(super) fn named(&self, node: &Name) -> Option<usize> {
        self.by_name.get(node).copied()
    }

    /// The nodes' places, by name.
    pub(super) fn in_order(&self) -> impl Iterator<Item = usize> {
        self.by_name.values().copied()
    }

    /// What is held on a node by those that `stays` picks.
    pub(super) fn claims_of(&self, at: usize, stays: impl Fn(&Resident) -> bool) -> Claims {
        let mut claims = Claims::default();
        let staying = self.seats[at].residents.iter().filter(|resident| stays(resident));
        staying.for_each(|resident| claim(&mut claims, resident));
        claims
    }

    /// The priority of a workload; the lowest of one that is gone.
    pub(super) fn priority(&self, workload: WorkloadId) -> u32 {
        self.workloads.get(&workload).map_or(0, |workload| workload.spec.placement.priority)
    }

    /// What people call an instance.
    pub(super) fn name_of(&self, resident: &Resident) -> String {
        let workload = self.workloads.get(&resident.workload).map_or("?", |workload| workload.spec.name.as_str());
        format!("{workload}-{}", resident.ordinal)
    }

    /// The workload of that name, however it is written.
    pub(super) fn workload_named(&self, name: &str) -> Option<WorkloadId> {
        self.names.get(name.to_ascii_lowercase().as_str()).copied()
    }

    /// Whether an instance of the workload of that name is among `claims`.
    pub(super) fn beside(&self, claims: &Claims, name: &str) -> bool {
        self.workload_named(name).is_some_and(|id| claims.copies(id) > 0)
    }

    /// The workload among `claims` that wants none of `ask` beside it, with its rule.
    pub(super) fn kept_off(&self, ask: Ask<'_>, claims: &Claims) -> Option<(&Name, &Rule)> {
        self.shy.values().filter(|other| other.id != ask.id && claims.copies(other.id) > 0).find_map(|other| {
            let mut rules = other.spec.placement.constraints.iter();
            rules.find(|rule| rules::keeps_off(rule, &ask.spec.name)).map(|rule| (&other.spec.name, rule))
        })
    }

    /// The nodes that have copies of a workload, with how many.
    pub(super) fn copies_of(&self, workload: WorkloadId) -> Option<&BTreeMap<usize, u32>> {
        self.copies.get(&workload)
    }

    /// The nodes on which something of the image ran.
    pub(super) fn images_of(&self, image: &str) -> Option<&BTreeMap<usize, u32>> {
        self.images.get(image)
    }

    /// Whether something of the image ran on the node.
    pub(super) fn has_image(&self, at: usize, image: &str) -> bool {
        self.images.get(image).is_some_and(|nodes| nodes.contains_key(&at))
    }
}

fn count(nodes: &mut BTreeMap<usize, u32>, at: usize, more: bool) {
    let count = nodes.entry(at).or_default();
    *count = if more { *count + 1 } else { count.saturating_sub(1) };
    if *count == 0 {
        nodes.remove(&at);
    }
}

fn claim(claims: &mut Claims, resident: &Resident) {
    let order = &resident.order;
    claims.add(resident.workload, &order.network, &order.resources, &order.gpus);
}

/// Whether its process ran, for which its image had to be on the node.
fn has_image(resident: &Resident) -> bool {
    let Order::Row(row) = &resident.order else { return false };
    let state = row.report.as_ref().and_then(|report| report.state.as_ref());
    matches!(state, Some(InstanceState::Running { .. } | InstanceState::Finished { reason: None, .. }))
}
