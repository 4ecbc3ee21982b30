//! Which node can take an instance, and why another cannot.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};

use super::gpus::{self, Cards, GpuClaims};
use crate::{
    gpu::GpuHold,
    ids::NodeId,
    instance::{ContainerOrder, NetworkOrder, PublishedPort},
    name::Name,
    state::{NodeRow, VolumeRow},
    workload::{Isolation, Mount, NetworkMode, PortSpec, Protocol, Resources, WorkloadSpec},
};

/// Host ports given to mappings that name none; below the kernel's own ephemeral range. An instance that holds another
/// for such a mapping is replaced (the user gave up the port once named), so narrowing the range moves instances.
const FREE_PORTS: std::ops::Range<u16> = 20_000..30_000;

/// What the instances of one node hold, those on their way out included.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    instances: usize,
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<(u16, Protocol)>,
    cpu_millis: u64,
    memory_bytes: u64,
    gpus: GpuClaims,
}

impl Claims {
    /// What an instance with these holds is held from now on.
    pub(crate) fn add(&mut self, network: &NetworkOrder, resources: &Resources, gpus: &[GpuHold]) {
        self.instances += 1;
        self.gpus.add(gpus);
        self.cpu_millis += resources.cpu_reserved_millis.map_or(0, u64::from);
        self.memory_bytes = self.memory_bytes.saturating_add(resources.memory_reserved_bytes.unwrap_or(0));
        if let NetworkOrder::Bridge { address, ports, .. } = network {
            self.addresses.insert(*address);
            self.ports.extend(ports.iter().map(|port| (port.host, port.protocol)));
        }
    }

    /// Whether `order` claims something that `node` has no more.
    pub(crate) fn conflict(&self, order: &ContainerOrder, node: &NodeRow) -> bool {
        if self.reserve(&order.resources, node).is_err() || !self.gpus.allow(&order.gpus, Cards::of(node)) {
            return true;
        }
        let NetworkOrder::Bridge { address, ports, .. } = &order.network else { return false };
        self.addresses.contains(address) || ports.iter().any(|port| self.ports.contains(&(port.host, port.protocol)))
    }

    /// Whether what `wanted` reserves is left on `node`; else why not.
    fn reserve(&self, wanted: &Resources, node: &NodeRow) -> Result<(), String> {
        if let Some(millis) = wanted.cpu_reserved_millis {
            let left = (u64::from(node.inventory.cpus) * 1000).saturating_sub(self.cpu_millis);
            if u64::from(millis) > left {
                let cores = |millis: u64| millis as f64 / 1000.0;
                let (wanted, left) = (cores(millis.into()), cores(left));
                return Err(format!("{wanted} cores are to be reserved and {left} are left"));
            }
        }
        if let Some(bytes) = wanted.memory_reserved_bytes {
            let left = node.inventory.memory_bytes.saturating_sub(self.memory_bytes);
            if bytes > left {
                let (wanted, left) = (crate::units::format_bytes(bytes), crate::units::format_bytes(left));
                return Err(format!("{wanted} of memory are to be reserved and {left} are left"));
            }
        }
        Ok(())
    }

    /// How many instances hold them.
    pub(super) fn instances(&self) -> usize {
        self.instances
    }
}

/// Where the data of volumes lies. What is not in it can be used on any node, and a local volume then lies there.
#[derive(Debug, Default)]
pub(super) struct Homes<'a> {
    nodes: HashMap<&'a Name, NodeId>,
    everywhere: HashSet<&'a Name>,
}

impl<'a> Homes<'a> {
    pub(super) fn of(volumes: &'a [VolumeRow]) -> Self {
        let nodes = volumes.iter().filter_map(|volume| Some((&volume.name, volume.node_id?))).collect();
        let remote = volumes.iter().filter(|volume| volume.options.is_remote());
        Self { nodes, everywhere: remote.map(|volume| &volume.name).collect() }
    }

    /// An instance of `spec` is placed on `node`.
    pub(super) fn settle(&mut self, spec: &'a WorkloadSpec, node: NodeId) {
        for volume in spec.mounts.iter().filter_map(Mount::volume) {
            if !self.everywhere.contains(&volume.name) {
                self.nodes.entry(&volume.name).or_insert(node);
            }
        }
    }

    /// Why an instance of `spec` cannot be on `node`; `nodes` are all there are.
    fn missing(&self, spec: &WorkloadSpec, node: &NodeRow, nodes: &[NodeRow]) -> Option<String> {
        let away = |mount: &&Mount| {
            let home = mount.volume().and_then(|volume| self.nodes.get(&volume.name));
            home.is_some_and(|home| *home != node.id)
        };
        let volume = spec.mounts.iter().find(away)?.volume()?;
        let home = self.nodes.get(&volume.name)?;
        let home = nodes.iter().find(|node| node.id == *home).map_or("another node", |node| node.name.as_str());
        Some(format!("volume `{}` lies on {home}", volume.name))
    }
}

/// The complete order for an instance of `spec` on `node`, one of `nodes`, beside what is claimed there, or why there can be none.
pub(super) fn fit(
    spec: &WorkloadSpec,
    (node, nodes): (&NodeRow, &[NodeRow]),
    claims: &Claims,
    homes: &Homes<'_>,
) -> Result<ContainerOrder, String> {
    if !pinned_to(spec, node) {
        return Err("the specification names another node".into());
    }
    if let Some(why) = homes.missing(spec, node, nodes) {
        return Err(why);
    }
    if let Some(memory) = spec.resources.memory_bytes.filter(|memory| *memory > node.inventory.memory_bytes) {
        return Err(format!(
            "{} of memory are wanted and it has {}",
            crate::units::format_bytes(memory),
            crate::units::format_bytes(node.inventory.memory_bytes)
        ));
    }
    claims.reserve(&spec.resources, node)?;
    if let Some(isolation) = spec.process.isolation.as_ref().filter(|wanted| !has_isolation(node, wanted)) {
        let has = node.inventory.isolation.join(", ");
        let has = if has.is_empty() { Isolation::USUAL } else { &has };
        return Err(format!("it has no runtime `{isolation}` (it has {has})"));
    }
    let gpus = match &spec.gpus {
        Some(wanted) => claims.gpus.choose(wanted, Cards::of(node))?,
        None => Vec::new(),
    };
    let network = match spec.network {
        NetworkMode::Host => NetworkOrder::Host,
        NetworkMode::None => NetworkOrder::None,
        NetworkMode::Bridge => bridge(spec, node, claims)?,
    };
    Ok(ContainerOrder { gpus, ..ContainerOrder::of(spec, network) })
}

fn has_isolation(node: &NodeRow, wanted: &Isolation) -> bool {
    let has = &node.inventory.isolation;
    // A node that does not tell runs containers all the same.
    has.iter().any(|name| name == wanted.as_str()) || (has.is_empty() && wanted.as_str() == Isolation::USUAL)
}

fn pinned_to(spec: &WorkloadSpec, node: &NodeRow) -> bool {
    spec.node.as_ref().is_none_or(|wanted| *wanted == node.name)
}

fn bridge(spec: &WorkloadSpec, node: &NodeRow, claims: &Claims) -> Result<NetworkOrder, String> {
    let subnet = node.inventory.subnet.ok_or("it has no container network")?;
    // The first address is the bridge's, the last the broadcast address.
    let address = (2..subnet.size() - 1)
        .filter_map(|offset| subnet.nth(offset))
        .find(|address| !claims.addresses.contains(address))
        .ok_or_else(|| format!("every address of {subnet} is in use"))?;
    let mut ports = Vec::with_capacity(spec.ports.len());
    for PortSpec { host, container, protocol } in &spec.ports {
        let free = |port: &u16| {
            let own = ports.iter().any(|own: &PublishedPort| own.host == *port && own.protocol == *protocol);
            let asked = spec.ports.iter().any(|other| other.host == Some(*port) && other.protocol == *protocol);
            !own && !asked && !claims.ports.contains(&(*port, *protocol))
        };
        let host = match host {
            Some(port) if claims.ports.contains(&(*port, *protocol)) => {
                return Err(format!("host port {port}/{protocol} is in use"));
            }
            Some(port) => *port,
            None => FREE_PORTS.clone().find(free).ok_or("no host port is free")?,
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
    } = order;
    pinned_to(spec, node)
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
        && gpus::serve(gpus, spec.gpus.as_ref(), &node.inventory.gpus)
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
