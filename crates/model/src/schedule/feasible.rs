//! What the instances of a node hold, what is left for one more, and whether one is what its user asks for.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::Ipv4Addr,
};

use super::{
    board::Board,
    gpus::{self, Cards, GpuClaims},
    obstacle::Obstacle,
    policy::Capacity,
    rules,
};
use crate::{
    gpu::GpuHold,
    ids::{NodeId, WorkloadId},
    instance::{ContainerOrder, NetworkOrder, PublishedPort},
    name::Name,
    node::{Availability, NodeHealth, Subnet, TaintEffect},
    state::{Holding, MovePhase, NodeRow, VolumeRow},
    workload::{Isolation, Mount, NetworkMode, PortSpec, Protocol, Resources, WorkloadSpec},
};

/// Host ports given to mappings that name none; below the kernel's own ephemeral range. An instance that holds another
/// for such a mapping is replaced (the user gave up the port once named), so narrowing the range moves instances.
const FREE_PORTS: std::ops::Range<u16> = 20_000..30_000;

/// What the instances of one node hold, those on their way out included.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    instances: usize,
    copies: HashMap<WorkloadId, u32>,
    addresses: BTreeSet<Ipv4Addr>,
    ports: HashSet<(u16, Protocol)>,
    cpu_millis: u64,
    memory_bytes: u64,
    gpus: GpuClaims,
}

impl Claims {
    /// What an instance of `workload` with these holds is held from now on.
    pub(crate) fn add(
        &mut self,
        workload: WorkloadId,
        network: &NetworkOrder,
        resources: &Resources,
        gpus: &[GpuHold],
    ) {
        let address = match network {
            NetworkOrder::Bridge { address, .. } => Some(*address),
            NetworkOrder::Host | NetworkOrder::None => None,
        };
        let Resources { cpu_reserved_millis, memory_reserved_bytes, .. } = *resources;
        let holding =
            Holding { workload_id: workload, cpu_reserved_millis, memory_reserved_bytes, address, has_more: true };
        self.hold(&holding);
        self.hold_more(network, gpus);
    }

    /// What an instance holds beside ports and GPUs is held from now on.
    pub(crate) fn hold(&mut self, holding: &Holding) {
        self.instances += 1;
        *self.copies.entry(holding.workload_id).or_default() += 1;
        self.cpu_millis += holding.cpu_reserved_millis.map_or(0, u64::from);
        self.memory_bytes = self.memory_bytes.saturating_add(holding.memory_reserved_bytes.unwrap_or(0));
        self.addresses.extend(holding.address);
    }

    /// So are these ports and GPUs.
    pub(crate) fn hold_more(&mut self, network: &NetworkOrder, gpus: &[GpuHold]) {
        self.gpus.add(gpus);
        if let NetworkOrder::Bridge { ports, .. } = network {
            self.ports.extend(ports.iter().map(|port| (port.host, port.protocol)));
        }
    }

    /// Whether `order` claims something that `node`, of which `capacity` can be reserved, has no more.
    pub(crate) fn conflict(&self, order: &ContainerOrder, node: &NodeRow, capacity: Capacity) -> bool {
        let reserved =
            self.cpu(&order.resources, capacity).is_some() || self.memory(&order.resources, capacity).is_some();
        if reserved || !self.gpus.allow(&order.gpus, Cards::of(node)) {
            return true;
        }
        let NetworkOrder::Bridge { address, ports, .. } = &order.network else { return false };
        self.addresses.contains(address) || ports.iter().any(|port| self.ports.contains(&(port.host, port.protocol)))
    }

    /// Whether the CPU that `wanted` reserves is not left.
    pub(super) fn cpu(&self, wanted: &Resources, capacity: Capacity) -> Option<Obstacle> {
        let left = capacity.cpu_millis.saturating_sub(self.cpu_millis);
        let wanted = wanted.cpu_reserved_millis.map_or(0, u64::from);
        (wanted > left).then_some(Obstacle::Cpu { wanted, left })
    }

    /// Whether the memory that `wanted` reserves is not left.
    pub(super) fn memory(&self, wanted: &Resources, capacity: Capacity) -> Option<Obstacle> {
        let left = capacity.memory_bytes.saturating_sub(self.memory_bytes);
        let wanted = wanted.memory_reserved_bytes.unwrap_or(0);
        (wanted > left).then_some(Obstacle::Memory { wanted, left })
    }

    /// How much of the CPU, in thousandths of a core, and of the memory is reserved.
    pub(super) fn reserved(&self) -> Capacity {
        Capacity { cpu_millis: self.cpu_millis, memory_bytes: self.memory_bytes }
    }

    /// What is held of the cards.
    pub(super) fn gpus(&self) -> &GpuClaims {
        &self.gpus
    }

    /// How many of them are copies of `workload`.
    pub(crate) fn copies(&self, workload: WorkloadId) -> u32 {
        self.copies.get(&workload).copied().unwrap_or(0)
    }

    /// The first address of `subnet` that nobody holds.
    pub(super) fn address(&self, subnet: Subnet) -> Option<Ipv4Addr> {
        // The first address is the bridge's, the last the broadcast address.
        let mut held = self.addresses.range(subnet.nth(2)?..).peekable();
        let mut addresses = (2..subnet.size() - 1).filter_map(|offset| subnet.nth(offset));
        addresses.find(|address| held.next_if(|held| *held == address).is_none())
    }

    /// Whether [`Self::address`] finds one.
    pub(super) fn has_address(&self, subnet: Subnet) -> bool {
        self.addresses.len() < (subnet.size() as usize).saturating_sub(3) || self.address(subnet).is_some()
    }

    /// Whether somebody holds a host port.
    pub(super) fn has_port(&self, port: (u16, Protocol)) -> bool {
        self.ports.contains(&port)
    }

    /// How many instances hold them.
    pub(super) fn instances(&self) -> usize {
        self.instances
    }
}

/// Where the data of volumes lies. What is not in it can be used on any node, and a local volume then lies there.
#[derive(Debug, Clone, Default)]
pub(super) struct Homes {
    nodes: HashMap<Name, NodeId>,
    everywhere: HashSet<Name>,
    /// Those that nobody may use until they lie where they are ordered to.
    held: HashMap<Name, NodeId>,
}

impl Homes {
    /// A volume that is new or changed.
    pub(super) fn put(&mut self, volume: &VolumeRow) {
        self.forget(&volume.name);
        if let Some(node) = volume.node_id {
            self.nodes.insert(volume.name.clone(), node);
        }
        if volume.options.is_remote() {
            self.everywhere.insert(volume.name.clone());
        }
        if let Some(moving) = volume.moving.as_ref().filter(|moving| moving.phase == MovePhase::Held) {
            self.held.insert(volume.name.clone(), moving.to);
        }
    }

    /// A volume lies nowhere any more.
    pub(super) fn forget(&mut self, volume: &Name) {
        self.nodes.remove(volume);
        self.everywhere.remove(volume);
        self.held.remove(volume);
    }

    /// An instance of `spec` is placed on `node`; gives the volumes that lie there from now on.
    pub(super) fn settle(&mut self, spec: &WorkloadSpec, node: NodeId) -> Vec<Name> {
        let mut settled = Vec::new();
        for volume in spec.mounts.iter().filter_map(Mount::volume) {
            if !self.everywhere.contains(&volume.name) && !self.nodes.contains_key(&volume.name) {
                self.nodes.insert(volume.name.clone(), node);
                settled.push(volume.name.clone());
            }
        }
        settled
    }

    /// Whether the data of a volume lies on one node.
    pub(super) fn is_local(&self, volume: &Name) -> bool {
        !self.everywhere.contains(volume)
    }

    /// Where a volume lies.
    pub(super) fn of_volume(&self, volume: &Name) -> Option<NodeId> {
        self.nodes.get(volume).copied()
    }

    /// The volume that keeps an instance of `spec` off `node`.
    pub(super) fn missing(&self, spec: &WorkloadSpec, node: &NodeRow, board: &Board) -> Option<Obstacle> {
        let mut volumes = spec.mounts.iter().filter_map(Mount::volume);
        if let Some(volume) = volumes.find(|volume| self.held.contains_key(&volume.name)) {
            let to = self.held.get(&volume.name).and_then(|to| board.position(*to));
            let node = to.map_or("another node", |at| board.nodes[at].name.as_str()).to_owned();
            return Some(Obstacle::VolumeMoves { volume: volume.name.clone(), node });
        }
        let away = |mount: &&Mount| {
            let home = mount.volume().and_then(|volume| self.nodes.get(&volume.name));
            home.is_some_and(|home| *home != node.id)
        };
        let volume = spec.mounts.iter().find(away)?.volume()?;
        let home = board.position(*self.nodes.get(&volume.name)?);
        let home = home.map_or("another node", |at| board.nodes[at].name.as_str());
        Some(Obstacle::Volume { volume: volume.name.clone(), node: home.to_owned() })
    }
}

/// Whether `node` takes new work of `spec` at all: it is there, and its users do not say otherwise.
pub(crate) fn welcome(spec: &WorkloadSpec, node: &NodeRow) -> Result<(), Obstacle> {
    match node.health {
        NodeHealth::Ready => {}
        NodeHealth::Away => return Err(Obstacle::Away),
        NodeHealth::Unreachable => return Err(Obstacle::Unreachable),
        NodeHealth::Down | NodeHealth::Fenced => return Err(Obstacle::Down),
    }
    match node.settings.availability {
        Availability::Active => {}
        Availability::Cordoned => return Err(Obstacle::Cordoned),
        Availability::Draining => return Err(Obstacle::Draining),
    }
    let keeps_off = |effect: TaintEffect| matches!(effect, TaintEffect::NoSchedule | TaintEffect::NoExecute);
    let taint = node.settings.taints.iter().find(|taint| keeps_off(taint.effect) && !spec.placement.tolerates(taint));
    taint.map_or(Ok(()), |taint| Err(Obstacle::Taint { taint: taint.clone() }))
}

/// Whether what runs of `spec` on `node` is to move to another, as its users say.
pub(crate) fn moves_off(spec: &WorkloadSpec, node: &NodeRow) -> bool {
    let drives_out =
        |taint: &crate::node::Taint| taint.effect == TaintEffect::NoExecute && !spec.placement.tolerates(taint);
    node.settings.availability == Availability::Draining || node.settings.taints.iter().any(drives_out)
}

pub(super) fn has_isolation(node: &NodeRow, wanted: &Isolation) -> bool {
    let has = &node.inventory.isolation;
    // A node that does not tell runs containers all the same.
    has.iter().any(|name| name == wanted.as_str()) || (has.is_empty() && wanted.as_str() == Isolation::USUAL)
}

pub(super) fn pinned_to(spec: &WorkloadSpec, node: &NodeRow) -> bool {
    spec.node.as_ref().is_none_or(|wanted| *wanted == node.name)
}

/// The network of one more instance of `spec` on `node`.
pub(super) fn network(spec: &WorkloadSpec, node: &NodeRow, claims: &Claims) -> Result<NetworkOrder, Obstacle> {
    match spec.network {
        NetworkMode::Host => Ok(NetworkOrder::Host),
        NetworkMode::None => Ok(NetworkOrder::None),
        NetworkMode::Bridge => bridge(spec, node, claims),
    }
}

fn bridge(spec: &WorkloadSpec, node: &NodeRow, claims: &Claims) -> Result<NetworkOrder, Obstacle> {
    let subnet = node.inventory.subnet.ok_or(Obstacle::NoNetwork)?;
    let address = claims.address(subnet).ok_or(Obstacle::Addresses { subnet })?;
    let mut ports = Vec::with_capacity(spec.ports.len());
    for PortSpec { host, container, protocol } in &spec.ports {
        let free = |port: &u16| {
            let own = ports.iter().any(|own: &PublishedPort| own.host == *port && own.protocol == *protocol);
            let asked = spec.ports.iter().any(|other| other.host == Some(*port) && other.protocol == *protocol);
            !own && !asked && !claims.ports.contains(&(*port, *protocol))
        };
        let host = match host {
            Some(port) if claims.ports.contains(&(*port, *protocol)) => {
                return Err(Obstacle::HostPort { port: *port, protocol: *protocol });
            }
            Some(port) => *port,
            None => FREE_PORTS.clone().find(free).ok_or(Obstacle::NoHostPort)?,
        };
        ports.push(PublishedPort { host, container: *container, protocol: *protocol });
    }
    let address6 = node.inventory.subnet6.map(|subnet6| subnet6.address(subnet, address));
    Ok(NetworkOrder::Bridge { address, address6, ports })
}

/// Whether an instance under `order` on `node` is what `spec` asks for. Memory is not looked at again: what runs may
/// run on.
pub fn serves(order: &ContainerOrder, spec: &WorkloadSpec, node: &NodeRow) -> bool {
    let ContainerOrder {
        image,
        pull_policy,
        entrypoint,
        command,
        env,
        resources,
        restart,
        stop_grace_ms,
        network,
        deployment,
        networks,
        secrets,
        mounts,
        process,
        health,
        gpus,
        exclusive,
    } = order;
    pinned_to(spec, node)
        && rules::suits(spec, node)
        && network_serves(network, spec, node)
        && *deployment == spec.deployment
        && *networks == spec.networks
        && *image == spec.image
        && *pull_policy == spec.pull_policy
        && *entrypoint == spec.entrypoint
        && *command == spec.command
        && *env == spec.env
        && *secrets == spec.secrets
        && *mounts == spec.mounts
        && *resources == spec.resources
        && *restart == spec.restart_policy()
        && *stop_grace_ms == spec.stop_grace_ms
        && *process == spec.process
        && *health == spec.health
        && *exclusive == spec.exclusive
        && gpus::serve(gpus, spec, &node.inventory.gpus)
}

/// Whether an instance under `order` on `node` can go on for a while, though its user wants another by now: it has lost
/// neither its address nor a card.
pub(super) fn outlives(order: &ContainerOrder, node: &NodeRow) -> bool {
    let has_address = match &order.network {
        NetworkOrder::Host | NetworkOrder::None => true,
        NetworkOrder::Bridge { address, .. } => node.inventory.subnet.is_none_or(|subnet| subnet.contains(*address)),
    };
    has_address && gpus::are_there(&order.gpus, &node.inventory.gpus)
}

fn network_serves(order: &NetworkOrder, spec: &WorkloadSpec, node: &NodeRow) -> bool {
    match (order, spec.network) {
        (NetworkOrder::Host, NetworkMode::Host) | (NetworkOrder::None, NetworkMode::None) => true,
        (NetworkOrder::Bridge { address, address6, ports }, NetworkMode::Bridge) => {
            let six = |subnet| node.inventory.subnet6.map(|subnet6| subnet6.address(subnet, *address));
            // A node that lost its network may get it back; one that has another needs other addresses.
            node.inventory.subnet.is_none_or(|subnet| subnet.contains(*address) && six(subnet) == *address6)
                && ports.len() == spec.ports.len()
                && ports.iter().zip(&spec.ports).all(|(have, want)| {
                    have.container == want.container
                        && have.protocol == want.protocol
                        && want.host.map_or_else(|| FREE_PORTS.contains(&have.host), |host| host == have.host)
                })
        }
        (NetworkOrder::Host | NetworkOrder::None | NetworkOrder::Bridge { .. }, _) => false,
    }
}
