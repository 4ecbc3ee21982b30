//! What the names of workloads lead to.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use rusqlite::Connection;

use super::tables::{InstanceRow, WorkloadRow};
use crate::{
    ids::{NodeId, WorkloadId},
    instance::{Desired, InstanceState, NetworkOrder},
    name::Name,
    workload::{Health, NetworkMode, NetworkName},
};

/// A workload whose instances have addresses of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedWorkload {
    /// Its name.
    pub name: Name,
    /// The workloads it belongs to.
    pub deployment: Option<Name>,
    /// The networks it is in.
    pub networks: BTreeSet<NetworkName>,
    /// Its instances that can be reached, by ordinal.
    pub instances: Vec<NamedInstance>,
}

/// An instance with an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedInstance {
    /// Where it is.
    pub node_id: NodeId,
    /// Which copy, from 0.
    pub ordinal: u32,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub address6: Option<Ipv6Addr>,
    /// The networks it is in, which are other than its workload's when it is about to be replaced.
    pub networks: BTreeSet<NetworkName>,
    /// Whether it runs, shall go on running, and does not fail its health check.
    pub serves: bool,
}

/// Every workload that shares a network with an instance of one node, with all its instances, wherever they are; and every
/// instance of that node.
pub fn query_names(connection: &Connection, node_id: NodeId) -> rusqlite::Result<Vec<NamedWorkload>> {
    let mut here = InstanceRow::of_node(connection, node_id)?;
    here.sort_by_key(|instance| instance.ordinal);
    let here: Vec<(WorkloadId, NamedInstance)> =
        here.iter().filter_map(|row| Some((row.workload_id, named(row)?))).collect();
    let near: BTreeSet<&NetworkName> = here.iter().flat_map(|(_, instance)| &instance.networks).collect();
    let mut found = Vec::new();
    for row in WorkloadRow::all(connection)?.into_iter().filter(|row| row.spec.network == NetworkMode::Bridge) {
        let networks = NetworkName::of(row.spec.deployment.as_ref(), &row.spec.networks);
        let instances = if networks.iter().any(|network| near.contains(network)) {
            InstanceRow::of_workload(connection, row.id)?.iter().filter_map(named).collect()
        } else {
            here.iter().filter(|(of, _)| *of == row.id).map(|(_, instance)| instance.clone()).collect()
        };
        found.push(NamedWorkload { networks, instances, name: row.spec.name, deployment: row.spec.deployment });
    }
    Ok(found)
}

fn named(row: &InstanceRow) -> Option<NamedInstance> {
    let NetworkOrder::Bridge { address, address6, .. } = &row.container.network else { return None };
    let report = row.report.as_ref();
    let runs = matches!(report.and_then(|report| report.state.as_ref()), Some(InstanceState::Running { .. }));
    let healthy = row.container.health.is_none() || report.and_then(|report| report.health) == Some(Health::Healthy);
    Some(NamedInstance {
        node_id: row.node_id,
        ordinal: row.ordinal,
        address: *address,
        address6: *address6,
        networks: NetworkName::of(row.container.deployment.as_ref(), &row.container.networks),
        serves: runs && healthy && !row.lost && row.desired == Desired::Running,
    })
}
