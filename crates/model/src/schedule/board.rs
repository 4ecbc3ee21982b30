//! What a round of planning moves its pieces on: the nodes, and who is on each, those placed in this round included.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use super::{
    feasible::{Claims, Homes},
    policy::{Capacity, PlacementSettings},
    rules,
    snapshot::Snapshot,
};
use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{ContainerOrder, InstanceState},
    name::Name,
    state::{InstanceRow, NodeRow, WorkloadRow},
    workload::{Attribute, Rule, WorkloadSpec},
};

/// One instance on a node.
#[derive(Debug, Clone)]
pub(super) struct Resident<'a> {
    /// Its id; none when it was placed in this round.
    pub(super) instance: Option<InstanceId>,
    pub(super) workload: WorkloadId,
    pub(super) ordinal: u32,
    pub(super) order: Cow<'a, ContainerOrder>,
    /// It was ordered to go, and holds what it holds until its node says that it is gone.
    pub(super) leaving: bool,
}

/// A node and who is on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seat<'a> {
    pub(super) residents: Vec<Resident<'a>>,
    pub(super) claims: Claims,
}

/// An instance that looks for a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) id: WorkloadId,
    pub(super) spec: &'a WorkloadSpec,
}

impl<'a> Ask<'a> {
    pub(super) fn of(workload: &'a WorkloadRow) -> Self {
        Self { id: workload.id, spec: &workload.spec }
    }
}

/// The board.
pub(super) struct Board<'a> {
    pub(super) nodes: &'a [NodeRow],
    pub(super) settings: &'a PlacementSettings,
    pub(super) homes: Homes<'a>,
    pub(super) seats: Vec<Seat<'a>>,
    index: HashMap<NodeId, usize>,
    pub(super) workloads: HashMap<WorkloadId, &'a WorkloadRow>,
    names: HashMap<&'a str, WorkloadId>,
    /// Workloads that want some others not beside them.
    shy: Vec<&'a WorkloadRow>,
    /// Images of which something runs, node by node.
    images: Vec<HashSet<&'a str>>,
}

impl<'a> Board<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let nodes = &snapshot.nodes[..];
        let is_shy = |workload: &&WorkloadRow| {
            workload.spec.placement.constraints.iter().any(|rule| rule.attribute == Attribute::Workload)
        };
        let mut board = Self {
            nodes,
            settings: &snapshot.placement,
            homes: Homes::of(&snapshot.volumes),
            seats: vec![Seat::default(); nodes.len()],
            index: nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect(),
            workloads: snapshot.workloads.iter().map(|workload| (workload.id, workload)).collect(),
            names: snapshot.workloads.iter().map(|workload| (workload.spec.name.as_str(), workload.id)).collect(),
            shy: snapshot.workloads.iter().filter(is_shy).collect(),
            images: vec![HashSet::new(); nodes.len()],
        };
        for instance in &snapshot.instances {
            let Some(at) = board.position(instance.node_id) else { continue };
            let order = Cow::Borrowed(&instance.container);
            let leaving = instance.desired == crate::instance::Desired::Removed;
            if has_image(instance) {
                board.images[at].insert(instance.container.image.as_str());
            }
            let (instance, workload, ordinal) = (Some(instance.id), instance.workload_id, instance.ordinal);
            board.sit(at, Resident { instance, workload, ordinal, order, leaving });
        }
        board
    }

    /// Where the node of that id is among the nodes.
    pub(super) fn position(&self, node: NodeId) -> Option<usize> {
        self.index.get(&node).copied()
    }

    /// Somebody is on the node from now on.
    pub(super) fn sit(&mut self, at: usize, resident: Resident<'a>) {
        let seat = &mut self.seats[at];
        claim(&mut seat.claims, &resident);
        seat.residents.push(resident);
    }

    /// The instance was ordered to go.
    pub(super) fn leave(&mut self, node: NodeId, instance: InstanceId) {
        let Some(at) = self.position(node) else { return };
        if let Some(found) = self.seats[at].residents.iter_mut().find(|resident| resident.instance == Some(instance)) {
            found.leaving = true;
        }
    }

    /// What is held on a node by those that `stays` picks.
    pub(super) fn claims_of(&self, at: usize, stays: impl Fn(&Resident<'a>) -> bool) -> Claims {
        let mut claims = Claims::default();
        self.seats[at]
            .residents
            .iter()
            .filter(|resident| stays(resident))
            .for_each(|resident| claim(&mut claims, resident));
        claims
    }

    /// The priority of a workload; the lowest of one that is gone.
    pub(super) fn priority(&self, workload: WorkloadId) -> u32 {
        self.workloads.get(&workload).map_or(0, |workload| workload.spec.placement.priority)
    }

    /// What people call an instance.
    pub(super) fn name_of(&self, resident: &Resident<'_>) -> String {
        let workload = self.workloads.get(&resident.workload).map_or("?", |workload| workload.spec.name.as_str());
        format!("{workload}-{}", resident.ordinal)
    }

    pub(super) fn capacity(&self, at: usize) -> Capacity {
        self.settings.capacity(&self.nodes[at])
    }

    /// Whether an instance of the workload of that name is among `claims`.
    pub(super) fn beside(&self, claims: &Claims, name: &str) -> bool {
        self.names.get(name.to_ascii_lowercase().as_str()).is_some_and(|id| claims.copies(*id) > 0)
    }

    /// The workload among `claims` that wants none of `ask` beside it, with its rule.
    pub(super) fn kept_off(&self, ask: Ask<'_>, claims: &Claims) -> Option<(&'a Name, &'a Rule)> {
        self.shy.iter().filter(|other| other.id != ask.id && claims.copies(other.id) > 0).find_map(|other| {
            let mut rules = other.spec.placement.constraints.iter();
            rules.find(|rule| rules::keeps_off(rule, &ask.spec.name)).map(|rule| (&other.spec.name, rule))
        })
    }

    /// Whether something of the image runs on the node.
    pub(super) fn has_image(&self, at: usize, image: &str) -> bool {
        self.images[at].contains(image)
    }
}

fn claim(claims: &mut Claims, resident: &Resident<'_>) {
    let order = &resident.order;
    claims.add(resident.workload, &order.network, &order.resources, &order.gpus);
}

/// Whether its process ran, for which its image had to be on the node.
fn has_image(instance: &InstanceRow) -> bool {
    let state = instance.report.as_ref().and_then(|report| report.state.as_ref());
    matches!(state, Some(InstanceState::Running { .. } | InstanceState::Finished { reason: None, .. }))
}
