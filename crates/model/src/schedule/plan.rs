//! Walks the workloads and decides.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    feasible::{Claims, Homes, fit, serves},
    rank,
    snapshot::Snapshot,
};
use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{ContainerOrder, Desired},
    state::{InstanceChange, InstanceRow, NodeRow, Placement, WorkloadRow},
    workload::WorkloadSpec,
};

/// What the scheduler decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// New instances.
    pub placements: Vec<Placement>,
    /// Changed orders.
    pub changes: Vec<InstanceChange>,
    /// Workloads whose reason to wait is news; `None` clears it.
    pub pending: Vec<(WorkloadId, Option<String>)>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.placements.is_empty() && self.changes.is_empty() && self.pending.is_empty()
    }
}

/// Decides what should change. `mint` gives fresh instance ids.
pub fn plan(snapshot: &Snapshot, mint: &mut dyn FnMut() -> InstanceId) -> Plan {
    let mut plan = Plan::default();
    let mut claims = claims(snapshot);
    let mut homes = Homes::of(&snapshot.volumes);
    let nodes: HashMap<NodeId, &NodeRow> = snapshot.nodes.iter().map(|node| (node.id, node)).collect();
    let mut by_workload: HashMap<WorkloadId, Vec<&InstanceRow>> = HashMap::new();
    for instance in &snapshot.instances {
        by_workload.entry(instance.workload_id).or_default().push(instance);
    }
    for workload in &snapshot.workloads {
        let existing = by_workload.remove(&workload.id).unwrap_or_default();
        plan.changes.extend(existing.iter().filter_map(|instance| order(workload, instance, &nodes)));
        let mut reason = None;
        for ordinal in missing(workload, &existing) {
            match choose(&workload.spec, &snapshot.nodes, &claims, &homes) {
                Ok((node_id, container)) => {
                    homes.settle(&workload.spec, node_id);
                    claims.entry(node_id).or_default().add(&container.network, &container.resources, &container.gpus);
                    plan.placements.push(Placement {
                        instance_id: mint(),
                        workload_id: workload.id,
                        generation: workload.generation,
                        ordinal,
                        node_id,
                        container,
                    });
                }
                // What has no place for this copy has none for the next.
                Err(why) => {
                    reason = Some(why);
                    break;
                }
            }
        }
        if reason != workload.pending {
            plan.pending.push((workload.id, reason));
        }
    }
    plan
}

/// Why an instance of `spec` can be placed on no node; `None` when one can take it.
pub fn why_nowhere(spec: &WorkloadSpec, snapshot: &Snapshot) -> Option<String> {
    choose(spec, &snapshot.nodes, &claims(snapshot), &Homes::of(&snapshot.volumes)).err()
}

fn claims(snapshot: &Snapshot) -> HashMap<NodeId, Claims> {
    let mut claims: HashMap<NodeId, Claims> = HashMap::new();
    for instance in &snapshot.instances {
        let order = &instance.container;
        claims.entry(instance.node_id).or_default().add(&order.network, &order.resources, &order.gpus);
    }
    claims
}

/// The new order for an instance that exists, if it needs one.
fn order(workload: &WorkloadRow, instance: &InstanceRow, nodes: &HashMap<NodeId, &NodeRow>) -> Option<InstanceChange> {
    if instance.desired == Desired::Removed {
        return None;
    }
    let serves = nodes.get(&instance.node_id).is_some_and(|node| serves(&instance.container, &workload.spec, node));
    let wanted = instance.ordinal < workload.spec.replicas && serves;
    let desired = if wanted { workload.desired } else { Desired::Removed };
    let change = InstanceChange { instance_id: instance.id, desired, epoch: workload.epoch };
    (instance.desired != desired || instance.epoch < workload.epoch).then_some(change)
}

/// The ordinals that have no instance. One that is on its way out still holds its own.
fn missing(workload: &WorkloadRow, existing: &[&InstanceRow]) -> Vec<u32> {
    if workload.desired != Desired::Running {
        return Vec::new();
    }
    let held: HashSet<u32> = existing.iter().map(|instance| instance.ordinal).collect();
    (0..workload.spec.replicas).filter(|ordinal| !held.contains(ordinal)).collect()
}

/// The best node that can take an instance of `spec`, with its order; else every node's reason.
fn choose(
    spec: &WorkloadSpec,
    nodes: &[NodeRow],
    claims: &HashMap<NodeId, Claims>,
    homes: &Homes<'_>,
) -> Result<(NodeId, ContainerOrder), String> {
    if nodes.is_empty() {
        return Err("no node has registered yet".into());
    }
    let nothing = Claims::default();
    let beside = |node: &NodeRow| claims.get(&node.id).unwrap_or(&nothing);
    let mut best_first: Vec<&NodeRow> = nodes.iter().collect();
    best_first.sort_by_key(|node| rank::key(node.id, beside(node).instances()));
    let mut reasons = BTreeMap::new();
    for node in best_first {
        match fit(spec, (node, nodes), beside(node), homes) {
            Ok(order) => return Ok((node.id, order)),
            Err(why) => drop(reasons.insert(&node.name, why)),
        }
    }
    let reasons: Vec<String> = reasons.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    Err(reasons.join("; "))
}
