//! Says for itself, by the words of the problem, which node could take what.

use crate::{
    gpu::GpuAmount,
    instance::{Desired, NetworkOrder},
    node::{Availability, TaintEffect},
    schedule::Snapshot,
    state::{InstanceRow, NodeRow, WorkloadRow},
    workload::{Mount, NetworkMode, WorkloadKind, WorkloadSpec},
};

fn tolerates(spec: &WorkloadSpec, key: &str) -> bool {
    spec.placement.tolerations.iter().any(|toleration| toleration.key.as_deref().is_none_or(|own| own == key))
}

fn zone(node: &NodeRow) -> Option<&str> {
    node.settings.labels.get("zone").map(String::as_str)
}

/// Whether the constraints that the tests know hold; `there` says who is on the node.
fn constraints_hold(spec: &WorkloadSpec, node: &NodeRow, there: &dyn Fn(&str) -> bool) -> bool {
    spec.placement.constraints.iter().all(|rule| match rule.to_string().as_str() {
        "node.labels.zone == a" => zone(node) == Some("a"),
        "node.labels.zone != a" => zone(node) != Some("a"),
        other => match other.strip_prefix("workload != ") {
            Some(name) => !there(name),
            None => panic!("the oracle does not know `{other}`"),
        },
    })
}

/// Whether `node` could take one more copy, if nobody was there whose priority is below `least`.
pub(super) fn could_take(snapshot: &Snapshot, node: &NodeRow, workload: &WorkloadRow, least: u32) -> bool {
    let spec = &workload.spec;
    let row_of =
        |instance: &&InstanceRow| snapshot.workloads.iter().find(|row| row.id == instance.workload_id).unwrap();
    let stays = |instance: &&InstanceRow| row_of(instance).spec.placement.priority >= least;
    let own: Vec<&InstanceRow> =
        snapshot.instances.iter().filter(|instance| instance.node_id == node.id).filter(stays).collect();
    let used = spec.mounts.iter().filter_map(Mount::volume);
    let mut homes = used.filter_map(|used| snapshot.volumes.iter().find(|volume| volume.name == used.name)?.node_id);
    if homes.any(|home| home != node.id) || node.settings.availability != Availability::Active {
        return false;
    }
    let keeps_off = |effect| matches!(effect, TaintEffect::NoSchedule | TaintEffect::NoExecute);
    if node.settings.taints.iter().any(|taint| keeps_off(taint.effect) && !tolerates(spec, &taint.key)) {
        return false;
    }
    let there = |name: &str| own.iter().any(|instance| row_of(instance).spec.name.as_str() == name);
    let wants_it_away = |instance: &&InstanceRow| {
        let row = row_of(instance);
        let rule = format!("workload != {}", spec.name);
        row.id != workload.id && row.spec.placement.constraints.iter().any(|other| other.to_string() == rule)
    };
    if !constraints_hold(spec, node, &there) || own.iter().any(wants_it_away) {
        return false;
    }
    let copies = own.iter().filter(|instance| instance.workload_id == workload.id).count();
    if spec.placement.max_per_node.is_some_and(|most| copies >= most as usize) {
        return false;
    }
    let memory = own.iter().filter_map(|instance| instance.container.resources.memory_reserved_bytes).sum::<u64>();
    let percent = u64::from(node.settings.memory_percent.unwrap_or(snapshot.placement.memory_percent));
    let all = node.inventory.memory_bytes * percent / 100;
    if spec.resources.memory_reserved_bytes.is_some_and(|wanted| memory + wanted > all) {
        return false;
    }
    let cpu = own.iter().filter_map(|instance| instance.container.resources.cpu_reserved_millis).sum::<u32>();
    let percent = node.settings.cpu_percent.unwrap_or(snapshot.placement.cpu_percent);
    if spec
        .resources
        .cpu_reserved_millis
        .is_some_and(|wanted| cpu + wanted > node.inventory.cpus * 1_000 * percent / 100)
    {
        return false;
    }
    let pinned_elsewhere = spec.node.as_ref().is_some_and(|name| *name != node.name);
    let too_big = spec.resources.memory_bytes.is_some_and(|wanted| wanted > node.inventory.memory_bytes);
    if pinned_elsewhere || too_big || !has_cards(spec, node, &own) {
        return false;
    }
    has_network(spec, node, &own)
}

fn has_cards(spec: &WorkloadSpec, node: &NodeRow, there: &[&InstanceRow]) -> bool {
    let Some(wanted) = &spec.gpus else { return true };
    let well = node.inventory.gpus.iter().filter(|card| card.sick.is_none());
    let held = |card: &crate::gpu::Gpu| {
        let holds = there.iter().flat_map(|instance| &instance.container.gpus);
        holds.filter(|hold| hold.gpu == card.id).map(|hold| hold.vram_mib).collect::<Vec<_>>()
    };
    match wanted.amount {
        GpuAmount::Cards(count) => well.filter(|card| held(card).is_empty()).count() >= count as usize,
        GpuAmount::Share(mib) => well.into_iter().any(|card| {
            let held = held(card);
            !held.contains(&None) && held.iter().flatten().sum::<u32>() + mib <= card.memory_mib
        }),
        GpuAmount::All => panic!("the oracle does not know it"),
    }
}

fn has_network(spec: &WorkloadSpec, node: &NodeRow, there: &[&InstanceRow]) -> bool {
    if spec.network != NetworkMode::Bridge {
        return true;
    }
    let Some(subnet) = node.inventory.subnet else { return false };
    let (mut addresses, mut ports) = (Vec::new(), Vec::new());
    for instance in there {
        if let NetworkOrder::Bridge { address, ports: published, .. } = &instance.container.network {
            addresses.push(*address);
            ports.extend(published.iter().map(|port| (port.host, port.protocol)));
        }
    }
    let free = (2..subnet.size() - 1).any(|offset| !addresses.contains(&subnet.nth(offset).unwrap()));
    free && spec.ports.iter().all(|port| port.host.is_none_or(|host| !ports.contains(&(host, port.protocol))))
}

/// An instance is on no node that it is to leave, unless no other could take it; and where it is, its rules hold.
pub(super) fn assert_moved(snapshot: &Snapshot, workload: &WorkloadRow, instance: &InstanceRow) {
    let node = snapshot.nodes.iter().find(|node| node.id == instance.node_id).unwrap();
    let spec = &workload.spec;
    if workload.desired == Desired::Running {
        assert!(constraints_hold(spec, node, &|_| false), "a constraint does not hold where it runs");
    }
    let drives_out =
        node.settings.taints.iter().any(|taint| taint.effect == TaintEffect::NoExecute && !tolerates(spec, &taint.key));
    let leaves = node.settings.availability == Availability::Draining || drives_out;
    let finished = instance
        .report
        .as_ref()
        .and_then(|report| report.state.as_ref())
        .is_some_and(|state| state.as_str() == "finished");
    if leaves && spec.kind == WorkloadKind::Service && workload.desired == Desired::Running && !finished {
        let other = snapshot.nodes.iter().find(|other| other.id != node.id && could_take(snapshot, other, workload, 0));
        assert!(other.is_none(), "{} could take {} from {}", other.unwrap().name, spec.name, node.name);
    }
}
