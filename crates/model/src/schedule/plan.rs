//! Walks the workloads and decides.

use std::collections::{BTreeMap, HashMap};

use super::{
    feasible::{fit, serves},
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
    let mut residents: HashMap<NodeId, Vec<InstanceRow>> = HashMap::new();
    let mut by_workload: HashMap<WorkloadId, Vec<&InstanceRow>> = HashMap::new();
    for instance in &snapshot.instances {
        residents.entry(instance.node_id).or_default().push(instance.clone());
        by_workload.entry(instance.workload_id).or_default().push(instance);
    }
    for workload in &snapshot.workloads {
        let existing = by_workload.remove(&workload.id).unwrap_or_default();
        let mut missing = Vec::new();
        order_existing(workload, &existing, &mut missing, &mut plan.changes);
        let mut reason = None;
        for ordinal in missing {
            match choose(&workload.spec, &snapshot.nodes, &residents) {
                Ok((node_id, container)) => {
                    let placement = Placement {
                        instance_id: mint(),
                        workload_id: workload.id,
                        generation: workload.generation,
                        ordinal,
                        node_id,
                        container,
                    };
                    residents.entry(node_id).or_default().push(resident(&placement, workload.epoch));
                    plan.placements.push(placement);
                }
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
    let mut residents: HashMap<NodeId, Vec<InstanceRow>> = HashMap::new();
    for instance in &snapshot.instances {
        residents.entry(instance.node_id).or_default().push(instance.clone());
    }
    choose(spec, &snapshot.nodes, &residents).err()
}

/// Orders for the instances a workload has, and the ordinals it lacks.
fn order_existing(
    workload: &WorkloadRow,
    existing: &[&InstanceRow],
    missing: &mut Vec<u32>,
    changes: &mut Vec<InstanceChange>,
) {
    let mut held = BTreeMap::new();
    for instance in existing {
        held.insert(instance.ordinal, ());
        let wanted = instance.ordinal < workload.spec.replicas && serves(&instance.container, &workload.spec);
        let desired = if wanted { workload.desired } else { Desired::Removed };
        let change = InstanceChange { instance_id: instance.id, desired, epoch: workload.epoch };
        if instance.desired != Desired::Removed && (instance.desired != desired || instance.epoch != workload.epoch) {
            changes.push(change);
        }
    }
    if workload.desired == Desired::Running {
        missing.extend((0..workload.spec.replicas).filter(|ordinal| !held.contains_key(ordinal)));
    }
}

fn choose(
    spec: &WorkloadSpec,
    nodes: &[NodeRow],
    residents: &HashMap<NodeId, Vec<InstanceRow>>,
) -> Result<(NodeId, ContainerOrder), String> {
    let mut best = None;
    let mut reasons = Vec::new();
    for node in nodes {
        let beside = residents.get(&node.id).map(Vec::as_slice).unwrap_or_default();
        match fit(spec, node, beside) {
            Ok(order) => {
                let key = rank::key(node.id, beside.len());
                if best.as_ref().is_none_or(|(least, _, _)| key < *least) {
                    best = Some((key, node.id, order));
                }
            }
            Err(why) => reasons.push(format!("{}: {why}", node.name)),
        }
    }
    match best {
        Some((_, node_id, order)) => Ok((node_id, order)),
        None if nodes.is_empty() => Err("no node has registered yet".into()),
        None => Err(reasons.join("; ")),
    }
}

fn resident(placement: &Placement, epoch: u64) -> InstanceRow {
    InstanceRow {
        id: placement.instance_id,
        workload_id: placement.workload_id,
        ordinal: placement.ordinal,
        node_id: placement.node_id,
        desired: Desired::Running,
        epoch,
        container: placement.container.clone(),
        report: None,
        created_at_ms: 0,
    }
}
