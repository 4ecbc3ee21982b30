//! What is left on a node that is drained, and why.

use serde::{Deserialize, Serialize};

use super::{
    board::{Ask, Board},
    choose::choose,
    expression,
    feasible::serves,
    snapshot::Snapshot,
    standing::{is_up, moves},
};
use crate::{
    ids::NodeId,
    instance::{Desired, InstanceState},
    state::{InstanceRow, WorkloadRow},
    workload::{Rollout, WorkloadKind},
};

/// How far an instance is from leaving its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RemainingState {
    /// It stops, or its successor is on its way.
    Moving,
    /// No other node takes it.
    Stuck,
    /// A job that is left to end.
    Finishing,
    /// Nothing of it runs; it stays.
    Down,
}

/// An instance that is still on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Remaining {
    /// The instance.
    pub instance: String,
    /// How far it is.
    pub state: RemainingState,
    /// What it waits for.
    pub why: String,
}

/// What is still on a node, by name. A node on which everything is [`RemainingState::Down`] is empty.
pub fn remaining(snapshot: &Snapshot, node: NodeId) -> Vec<Remaining> {
    let environment = expression::environment();
    let expression = snapshot.placement.expression.as_deref();
    let expression = expression.and_then(|text| environment.compile_expression(text).ok());
    let mut board = Board::of(snapshot);
    let mut remaining = Vec::new();
    for instance in snapshot.instances.iter().filter(|instance| instance.node_id == node) {
        let Some(workload) = snapshot.workloads.iter().find(|one| one.id == instance.workload_id) else { continue };
        let (state, why) = told(snapshot, workload, instance).unwrap_or_else(|| {
            match choose(Ask::of(workload), instance.ordinal, &mut board, expression.as_ref()) {
                Ok((at, _)) => (RemainingState::Moving, format!("a successor will start on {}", board.nodes[at].name)),
                Err(nowhere) => (RemainingState::Stuck, nowhere.0),
            }
        });
        let instance = format!("{}-{}", workload.spec.name, instance.ordinal);
        remaining.push(Remaining { instance, state, why });
    }
    remaining.sort_by(|one, other| one.instance.cmp(&other.instance));
    remaining
}

/// What can be said of it without looking for a place.
fn told(snapshot: &Snapshot, workload: &WorkloadRow, instance: &InstanceRow) -> Option<(RemainingState, String)> {
    let state = instance.report.as_ref().and_then(|report| report.state.as_ref());
    if instance.desired == Desired::Removed && instance.lost {
        return Some((RemainingState::Down, "its node is down, and its place is given to another".into()));
    }
    if instance.desired == Desired::Removed {
        return Some((RemainingState::Moving, "it is stopping".into()));
    }
    if instance.desired == Desired::Stopped || matches!(state, Some(InstanceState::Finished { .. })) {
        return Some((RemainingState::Down, "nothing of it runs".into()));
    }
    if workload.spec.kind == WorkloadKind::Job && !instance.lost {
        return Some((RemainingState::Finishing, "a job, which is left to end".into()));
    }
    if !moves(workload, instance) {
        return Some((RemainingState::Moving, "it is stopping".into()));
    }
    let Some(why) = of_successor(snapshot, workload, instance) else {
        return waits_for_its_turn(snapshot, workload, instance);
    };
    Some((RemainingState::Moving, why))
}

/// How far the successor is that an instance has on another node, if it has one.
pub(super) fn of_successor(snapshot: &Snapshot, workload: &WorkloadRow, instance: &InstanceRow) -> Option<String> {
    let is_successor = |other: &&InstanceRow| {
        other.workload_id == workload.id
            && other.ordinal == instance.ordinal
            && other.node_id != instance.node_id
            && other.desired == Desired::Running
    };
    let successor = snapshot.instances.iter().find(is_successor)?;
    let there = snapshot
        .nodes
        .iter()
        .find(|node| node.id == successor.node_id)
        .map_or("another node", |node| node.name.as_str());
    Some(match successor.report.as_ref().and_then(|report| report.state.as_ref()) {
        _ if is_up(&workload.spec, successor) => format!("its successor runs on {there}"),
        Some(InstanceState::BackOff { reason, .. }) => format!("its successor on {there} does not run: {reason}"),
        Some(InstanceState::Running { .. }) => format!("its successor on {there} is not healthy yet"),
        _ => format!("its successor starts on {there}"),
    })
}

/// What an instance of an earlier specification waits for.
fn waits_for_its_turn(
    snapshot: &Snapshot,
    workload: &WorkloadRow,
    instance: &InstanceRow,
) -> Option<(RemainingState, String)> {
    let node = snapshot.nodes.iter().find(|node| node.id == instance.node_id)?;
    if serves(&instance.container, &workload.spec, node) {
        return None;
    }
    let (generation, name) = (workload.generation, &workload.spec.name);
    match &workload.rollout {
        Rollout::Failed { reason } => Some((
            RemainingState::Stuck,
            format!(
                "it is of an earlier generation, and generation {generation} failed ({reason}); `toft rollback {name}` or \
                 another update lets it move"
            ),
        )),
        Rollout::Rolling | Rollout::Done => {
            Some((RemainingState::Moving, format!("it waits for its turn to be replaced by generation {generation}")))
        }
    }
}
