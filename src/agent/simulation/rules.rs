//! What a world at rest owes its users. Every rule is written here once more, by the words of the problem and not with
//! the product's own functions.

use std::collections::BTreeSet;

use toft_model::{
    ids::NodeId,
    instance::{Desired, InstanceState, NetworkOrder},
    node::{Availability, NodeHealth},
    schedule::Snapshot,
    state::{InstanceRow, NodeRow, WorkloadRow, query_assignments, query_snapshot},
    workload::{NetworkMode, OnNodeLoss, RestartPolicy, Rollout, WorkloadKind, WorkloadSpec},
};

use super::{machine::Machine, world::World};
use crate::agent::runtime::TaskState;

/// `Err` tells what is not as it should be.
pub(super) fn at_rest(world: &World) -> Result<(), String> {
    let snapshot = query_snapshot(&world.cluster.connection).unwrap();
    for (name, asked) in &world.cluster.asked {
        let row = snapshot.workloads.iter().find(|row| row.spec.name == *name);
        match (asked.desired, row) {
            (Desired::Removed, None) => {}
            // What is on a lost node is told to go when it returns.
            (Desired::Removed, Some(row)) => {
                let mut own = snapshot.instances.iter().filter(|one| one.workload_id == row.id).peekable();
                if own.peek().is_none() || !own.all(|one| is_lost(one.node_id, &snapshot)) {
                    return Err(format!("`{name}` was removed and is still in the state"));
                }
            }
            (_, None) => return Err(format!("`{name}` was asked for and is not in the state")),
            (desired, Some(row)) => {
                if row.desired != desired || row.spec != asked.spec {
                    return Err(format!("`{name}` is not what its user asked for last"));
                }
                copies(row, &snapshot)?;
            }
        }
    }
    if snapshot.workloads.len() > world.cluster.asked.len() {
        return Err("there is a workload that nobody asked for".into());
    }
    let twins: BTreeSet<_> = snapshot.instances.iter().map(|row| (row.workload_id, row.ordinal)).collect();
    // On a node that is lost, or to one, a move has its end when the node returns.
    let moves = |row: &InstanceRow| {
        row.moves_to.as_ref().is_some_and(|order| !is_lost(order.node_id, &snapshot))
            && !is_lost(row.node_id, &snapshot)
    };
    if snapshot.instances.iter().any(moves) && twins.len() == snapshot.instances.len() {
        return Err("an order to move has no end, although no successor is on its way".into());
    }
    for row in &snapshot.instances {
        let machine = world.machines.iter().find(|machine| machine.id == row.node_id).ok_or("an unknown node")?;
        if machine.lost.is_none() {
            told_truly(row, machine)?;
        }
    }
    for machine in world.machines.iter().filter(|machine| machine.lost.is_some()) {
        if snapshot.nodes.iter().any(|node| node.id == machine.id && node.health != NodeHealth::Fenced) {
            return Err(format!("{} is lost, and nobody says so", machine.name));
        }
    }
    for machine in world.machines.iter().filter(|machine| machine.lost.is_none()) {
        nothing_else(world, machine, &snapshot.instances)?;
    }
    Ok(())
}

/// The right copies of the newest specification exist, or a true reason says why not.
fn copies(workload: &WorkloadRow, snapshot: &Snapshot) -> Result<(), String> {
    let name = &workload.spec.name;
    // Of those that are waited for, nobody knows that they are gone.
    let waited_for = workload.spec.on_node_loss == Some(OnNodeLoss::Wait);
    let gone = |row: &&InstanceRow| row.desired == Desired::Removed && is_lost(row.node_id, snapshot) && !waited_for;
    let own: Vec<_> = snapshot.instances.iter().filter(|row| row.workload_id == workload.id && !gone(row)).collect();
    let mut outdated = false;
    for row in own.iter().filter(|row| is_lost(row.node_id, snapshot)) {
        // Who is waited for has its place; the others have a successor, or there is none for it.
        let successor = own.iter().any(|other| other.ordinal == row.ordinal && other.id != row.id);
        let state = row.report.as_ref().and_then(|report| report.state.as_ref());
        let down = matches!(state, Some(InstanceState::Finished { .. } | InstanceState::Stopped { .. }));
        let waits = waited_for || down || workload.desired != Desired::Running;
        outdated |= !waits && !successor;
        let taker = snapshot.nodes.iter().find(|node| could_take(node, &workload.spec, snapshot, 0));
        if !waits
            && !successor
            && let Some(node) = taker
        {
            return Err(format!(
                "{name}-{} is lost, and has no successor although {} could take it",
                row.ordinal, node.name
            ));
        }
    }
    for row in own.iter().filter(|row| !is_lost(row.node_id, snapshot)) {
        // A copy that was started on its own is ahead.
        let behind = row.desired != workload.desired || row.epoch < workload.epoch;
        if behind || row.ordinal >= workload.spec.replicas {
            return Err(format!("{name}-{} has another order than its workload", row.ordinal));
        }
        let order = &row.container;
        let same = order.image == workload.spec.image
            && order.restart == workload.spec.restart_policy()
            && order.stop_grace_ms == workload.spec.stop_grace_ms;
        outdated |= !same;
        // Who was to go from a lost node and is waited for may still run there: no other comes beside it, nor after.
        let held = |other: &&InstanceRow| other.ordinal == row.ordinal && other.desired == Desired::Removed;
        let held = own.iter().any(|other| held(other) && is_lost(other.node_id, snapshot));
        // What works stays until its successor has a place, and when others failed.
        if !same && !held && workload.pending.is_none() && !matches!(workload.rollout, Rollout::Failed { .. }) {
            let (ordinal, rollout) = (row.ordinal, &workload.rollout);
            return Err(format!("{name}-{ordinal} is not made of the newest specification: {rollout:?}"));
        }
    }
    for row in own.iter().filter(|row| leaves(row, snapshot)) {
        let others = snapshot.nodes.iter().filter(|node| node.id != row.node_id);
        let waits = own.iter().any(|other| other.ordinal == row.ordinal && other.id != row.id);
        if !waits && let Some(node) = others.into_iter().find(|node| could_take(node, &workload.spec, snapshot, 0)) {
            return Err(format!("{name}-{} does not leave its node although {} could take it", row.ordinal, node.name));
        }
    }
    let missing = (0..workload.spec.replicas).filter(|n| own.iter().all(|row| row.ordinal != *n)).count();
    match (&workload.pending, workload.desired) {
        (None, Desired::Stopped) => Ok(()),
        (None, _) if missing == 0 => Ok(()),
        (None, _) => Err(format!("{missing} copies of `{name}` are missing without a reason")),
        (Some(reason), Desired::Running) if missing > 0 || outdated => {
            // Nobody less important could make room, either.
            let least = [0, workload.spec.placement.priority];
            let takes = |node: &&NodeRow| least.iter().any(|least| could_take(node, &workload.spec, snapshot, *least));
            match snapshot.nodes.iter().find(takes) {
                Some(node) => Err(format!("`{name}` waits although {} could take it: {reason}", node.name)),
                None => Ok(()),
            }
        }
        (Some(reason), _) => Err(format!("`{name}` does not wait, and yet: {reason}")),
    }
}

/// Whether a copy that runs is to leave its node: a service on one that is drained.
fn leaves(row: &InstanceRow, snapshot: &Snapshot) -> bool {
    let drained = |node: &NodeRow| node.id == row.node_id && node.settings.availability == Availability::Draining;
    let workload = snapshot.workloads.iter().find(|workload| workload.id == row.workload_id);
    let state = row.report.as_ref().and_then(|report| report.state.as_ref());
    // What was not replaced because others failed stays until its user says otherwise.
    let goes_on = |workload: &WorkloadRow| !matches!(workload.rollout, Rollout::Failed { .. });
    workload.is_some_and(|workload| workload.spec.kind == WorkloadKind::Service && goes_on(workload))
        && row.desired == Desired::Running
        && !matches!(state, Some(InstanceState::Finished { .. }))
        && snapshot.nodes.iter().any(drained)
}

/// Whether nobody hears of a node.
fn is_lost(node: NodeId, snapshot: &Snapshot) -> bool {
    snapshot.nodes.iter().any(|row| row.id == node && row.health.is_down())
}

/// Whether the node could take one more copy, if nobody was there whose priority is below `least`.
fn could_take(node: &NodeRow, spec: &WorkloadSpec, snapshot: &Snapshot, least: u32) -> bool {
    let priority = |row: &InstanceRow| {
        let workload = snapshot.workloads.iter().find(|workload| workload.id == row.workload_id);
        workload.map_or(0, |workload| workload.spec.placement.priority)
    };
    let there: Vec<_> =
        snapshot.instances.iter().filter(|row| row.node_id == node.id && priority(row) >= least).collect();
    if node.health.is_down() {
        return false;
    }
    let reserved: u32 = there.iter().filter_map(|row| row.container.resources.cpu_reserved_millis).sum();
    let wanted = spec.resources.cpu_reserved_millis.unwrap_or(0);
    if node.settings.availability != Availability::Active || (wanted > 0 && reserved + wanted > 4_000) {
        return false;
    }
    if spec.node.as_ref().is_some_and(|name| *name != node.name) {
        return false;
    }
    if spec.network != NetworkMode::Bridge {
        return true;
    }
    let Some(subnet) = node.inventory.subnet else { return false };
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for row in there {
        if let NetworkOrder::Bridge { address, ports: published, .. } = &row.container.network {
            addresses.insert(*address);
            ports.extend(published.iter().map(|port| (port.host, port.protocol.to_string())));
        }
    }
    let free = (2..subnet.size() - 1).any(|offset| !addresses.contains(&subnet.nth(offset).unwrap()));
    free && spec
        .ports
        .iter()
        .all(|port| port.host.is_none_or(|host| !ports.contains(&(host, port.protocol.to_string()))))
}

/// The report in the state says what the runtime has, and that is what was ordered.
fn told_truly(row: &InstanceRow, machine: &Machine) -> Result<(), String> {
    let id = row.id;
    let container = machine.containers.get(&id);
    let task = container.map_or(TaskState::None, |container| container.task);
    let report = row.report.as_ref().ok_or_else(|| format!("nothing was told of {id}"))?;
    let state = report.state.as_ref().ok_or_else(|| format!("{id} was told to be gone"))?;
    let wrong = || Err(format!("{id} is {task:?}, ordered {}, and told to be {state:?}", row.desired.as_str()));
    let as_ordered = match (row.desired, task, state) {
        (Desired::Running, TaskState::Running { pid }, InstanceState::Running { pid: told, .. }) => {
            let order = &container.ok_or("no container")?.order;
            // A process that is adopted without a note in the ledger counts for the newest epoch.
            order.container == row.container && pid == *told
        }
        (Desired::Running, TaskState::None, InstanceState::Finished { .. }) => {
            row.container.restart != RestartPolicy::Always
        }
        (Desired::Stopped, TaskState::None, InstanceState::Stopped { .. }) => true,
        _ => false,
    };
    if !as_ordered {
        return wrong();
    }
    if row.desired == Desired::Running && report.epoch != row.epoch {
        return Err(format!("{id} is in epoch {} and told to be in {}", row.epoch, report.epoch));
    }
    Ok(())
}

/// Ledger, runtime and published ports hold what the state ordered, and nothing else.
fn nothing_else(world: &World, machine: &Machine, instances: &[InstanceRow]) -> Result<(), String> {
    let name = &machine.name;
    let own: BTreeSet<_> = instances.iter().filter(|row| row.node_id == machine.id).map(|row| row.id).collect();
    if let Some(id) = machine.containers.keys().find(|id| !own.contains(id)) {
        return Err(format!("{name} has container {id}, which nobody wants"));
    }
    let set = query_assignments(&world.cluster.connection, machine.id).unwrap().ok_or("a node is not registered")?;
    let ordered: Vec<_> = set.assignments.iter().collect();
    let known: Vec<_> = machine.disk.assignments.values().collect();
    if machine.disk.generation != Some(set.generation) || known != ordered {
        return Err(format!("the ledger of {name} does not hold its orders"));
    }
    if let Some(id) = machine.disk.outcomes.keys().find(|id| !own.contains(id)) {
        return Err(format!("the ledger of {name} still speaks of {id}"));
    }
    let daemon = machine.daemon.as_ref().ok_or("a daemon is away")?;
    let running: BTreeSet<_> = machine
        .containers
        .iter()
        .filter(|(_, container)| {
            let bridged = matches!(container.order.container.network, NetworkOrder::Bridge { .. });
            bridged && matches!(container.task, TaskState::Running { .. })
        })
        .map(|(id, _)| *id)
        .collect();
    if daemon.open != running {
        return Err(format!("{name} publishes the ports of {:?} while {running:?} run", daemon.open));
    }
    Ok(())
}
