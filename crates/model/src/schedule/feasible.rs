//! Which node can take an instance, and why another cannot.

use std::{collections::HashSet, net::Ipv4Addr};

use crate::{
    instance::{ContainerOrder, NetworkOrder, PublishedPort},
    state::{InstanceRow, NodeRow},
    workload::{NetworkMode, PortSpec, Protocol, WorkloadSpec},
};

/// Host ports given to mappings that name none; below the kernel's own ephemeral range.
const FREE_PORTS: std::ops::Range<u16> = 20_000..30_000;

/// What two instances on one node cannot share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// A host port.
    Port(u16, Protocol),
    /// An address.
    Address(Ipv4Addr),
}

/// The first thing `order` claims that a resident of the same node holds already.
pub fn conflict(order: &ContainerOrder, residents: &[InstanceRow]) -> Option<Conflict> {
    let NetworkOrder::Bridge { address, ports } = &order.network else { return None };
    let (addresses, taken) = claims(residents);
    if addresses.contains(address) {
        return Some(Conflict::Address(*address));
    }
    ports
        .iter()
        .find(|port| taken.contains(&(port.host, port.protocol)))
        .map(|port| Conflict::Port(port.host, port.protocol))
}

fn claims(residents: &[InstanceRow]) -> (HashSet<Ipv4Addr>, HashSet<(u16, Protocol)>) {
    let mut addresses = HashSet::new();
    let mut taken = HashSet::new();
    for resident in residents {
        if let NetworkOrder::Bridge { address, ports } = &resident.container.network {
            addresses.insert(*address);
            taken.extend(ports.iter().map(|port| (port.host, port.protocol)));
        }
    }
    (addresses, taken)
}

/// The complete order for an instance of `spec` on `node` beside `residents`, or why there can be none.
pub(super) fn fit(spec: &WorkloadSpec, node: &NodeRow, residents: &[InstanceRow]) -> Result<ContainerOrder, String> {
    if spec.node.as_ref().is_some_and(|wanted| *wanted != node.name) {
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
        NetworkMode::Bridge => bridge(spec, node, residents)?,
    };
    Ok(ContainerOrder::of(spec, network))
}

fn bridge(spec: &WorkloadSpec, node: &NodeRow, residents: &[InstanceRow]) -> Result<NetworkOrder, String> {
    let subnet = node.inventory.subnet.ok_or("it has no container network")?;
    let (addresses, taken) = claims(residents);
    // The first address is the bridge's, the last the broadcast address.
    let address = (2..subnet.size() - 1)
        .filter_map(|offset| subnet.nth(offset))
        .find(|address| !addresses.contains(address))
        .ok_or_else(|| format!("every address of {subnet} is in use"))?;
    let mut ports = Vec::with_capacity(spec.ports.len());
    for PortSpec { host, container, protocol } in &spec.ports {
        let free = |port: &u16| {
            let own = ports.iter().any(|own: &PublishedPort| own.host == *port && own.protocol == *protocol);
            let asked = spec.ports.iter().any(|other| other.host == Some(*port) && other.protocol == *protocol);
            !own && !asked && !taken.contains(&(*port, *protocol))
        };
        let host = match host {
            Some(port) if taken.contains(&(*port, *protocol)) => {
                return Err(format!("host port {port}/{protocol} is in use"));
            }
            Some(port) => *port,
            None => FREE_PORTS.clone().find(free).ok_or("no host port is free")?,
        };
        ports.push(PublishedPort { host, container: *container, protocol: *protocol });
    }
    Ok(NetworkOrder::Bridge { address, ports })
}

/// Whether an instance under `order` is what `spec` asks for.
pub(super) fn serves(order: &ContainerOrder, spec: &WorkloadSpec) -> bool {
    let network = match (&order.network, spec.network) {
        (NetworkOrder::Host, NetworkMode::Host) | (NetworkOrder::None, NetworkMode::None) => true,
        (NetworkOrder::Bridge { ports, .. }, NetworkMode::Bridge) => {
            ports.len() == spec.ports.len()
                && ports.iter().zip(&spec.ports).all(|(have, want)| {
                    have.container == want.container
                        && have.protocol == want.protocol
                        && want.host.is_none_or(|host| host == have.host)
                })
        }
        _ => false,
    };
    network && *order == ContainerOrder::of(spec, order.network.clone())
}
