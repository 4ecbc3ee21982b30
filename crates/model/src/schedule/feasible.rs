//! Which node can take an instance, and why another cannot.

use std::{collections::HashSet, net::Ipv4Addr};

use crate::{
    instance::{ContainerOrder, NetworkOrder, PublishedPort},
    state::NodeRow,
    workload::{NetworkMode, PortSpec, Protocol, WorkloadSpec},
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
}

impl Claims {
    /// What an instance with this network holds is held from now on.
    pub(crate) fn add(&mut self, network: &NetworkOrder) {
        self.instances += 1;
        if let NetworkOrder::Bridge { address, ports } = network {
            self.addresses.insert(*address);
            self.ports.extend(ports.iter().map(|port| (port.host, port.protocol)));
        }
    }

    /// Whether `network` claims something that is held already.
    pub(crate) fn conflict(&self, network: &NetworkOrder) -> bool {
        let NetworkOrder::Bridge { address, ports } = network else { return false };
        self.addresses.contains(address) || ports.iter().any(|port| self.ports.contains(&(port.host, port.protocol)))
    }

    /// How many instances hold them.
    pub(super) fn instances(&self) -> usize {
        self.instances
    }
}

/// The complete order for an instance of `spec` on `node` beside what is claimed there, or why there can be none.
pub(super) fn fit(spec: &WorkloadSpec, node: &NodeRow, claims: &Claims) -> Result<ContainerOrder, String> {
    if !pinned_to(spec, node) {
        return Err("the specification names another node".into());
    }
    if let Some(memory) = spec.resources.memory_bytes.filter(|memory| *memory > node.inventory.memory_bytes) {
        return Err(format!(
            "{} of memory are wanted and it has {}",
            crate::units::format_bytes(memory),
            crate::units::format_bytes(node.inventory.memory_bytes)
        ));
    }
    let network = match spec.network {
        NetworkMode::Host => NetworkOrder::Host,
        NetworkMode::None => NetworkOrder::None,
        NetworkMode::Bridge => bridge(spec, node, claims)?,
    };
    Ok(ContainerOrder::of(spec, network))
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
    Ok(NetworkOrder::Bridge { address, ports })
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
        secrets,
    } = order;
    pinned_to(spec, node)
        && network_serves(network, spec, node)
        && *image == spec.image
        && *pull_policy == spec.pull_policy
        && *entrypoint == spec.entrypoint
        && *command == spec.command
        && *env == spec.env
        && *secrets == spec.secrets
        && *resources == spec.resources
        && *restart == spec.restart_policy()
        && *stop_grace_ms == spec.stop_grace_ms
}

fn network_serves(order: &NetworkOrder, spec: &WorkloadSpec, node: &NodeRow) -> bool {
    match (order, spec.network) {
        (NetworkOrder::Host, NetworkMode::Host) | (NetworkOrder::None, NetworkMode::None) => true,
        (NetworkOrder::Bridge { address, ports }, NetworkMode::Bridge) => {
            // A node that lost its network may get it back; one that has another needs other addresses.
            node.inventory.subnet.is_none_or(|subnet| subnet.contains(*address))
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
