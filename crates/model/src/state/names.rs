//! What the names of workloads lead to.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use rusqlite::Connection;

use super::{
    Followed,
    follow::{id_of, rows},
    tables::{InstanceRow, WorkloadRow},
};
use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
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

/// What the names lead to, as the tables say: all rows are read once, and then only those that were written.
pub struct Names {
    /// By row. Workloads in other networks than toft's have no names there.
    workloads: HashMap<i64, NamedOrder>,
    /// By row, those that have addresses.
    instances: HashMap<i64, Placed>,
}

/// An instance with an address, and what it is of.
struct Placed {
    workload_id: WorkloadId,
    id: InstanceId,
    instance: NamedInstance,
}

impl Placed {
    fn of(row: &InstanceRow) -> Option<Self> {
        Some(Self { workload_id: row.workload_id, id: row.id, instance: named(row)? })
    }
}

/// What a workload says of its names.
struct NamedOrder {
    id: WorkloadId,
    name: Name,
    deployment: Option<Name>,
    networks: BTreeSet<NetworkName>,
}

impl NamedOrder {
    fn of(row: WorkloadRow) -> Option<Self> {
        (row.spec.network == NetworkMode::Bridge).then(|| Self {
            id: row.id,
            networks: NetworkName::of(row.spec.deployment.as_ref(), &row.spec.networks),
            name: row.spec.name,
            deployment: row.spec.deployment,
        })
    }
}

impl Names {
    /// The tables that names are read of.
    pub const TABLES: [Followed; 2] = [Followed::Workloads, Followed::Instances];

    /// Reads all rows.
    pub fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut orders = HashMap::new();
        for row in WorkloadRow::all(connection)? {
            orders.extend(NamedOrder::of(row).map(|order| (order.id, order)));
        }
        let mut placed = HashMap::new();
        for row in InstanceRow::all(connection)? {
            placed.extend(Placed::of(&row).map(|placed| (row.id, placed)));
        }
        let workloads = rows(connection, "SELECT rowid, id FROM workloads", |row| row.get(1))?;
        let instances = rows(connection, "SELECT rowid, id FROM instances", |row| row.get(1))?;
        Ok(Self {
            workloads: workloads.into_iter().filter_map(|(row, id)| Some((row, orders.remove(&id)?))).collect(),
            instances: instances.into_iter().filter_map(|(row, id)| Some((row, placed.remove(&id)?))).collect(),
        })
    }

    /// Reads the rows that were written since: new, changed or gone, as they are now.
    pub fn follow(&mut self, connection: &Connection, written: &BTreeSet<(Followed, i64)>) -> rusqlite::Result<()> {
        for (table, row) in written {
            match table {
                Followed::Workloads => {
                    self.workloads.remove(row);
                    let id = id_of(connection, "SELECT id FROM workloads WHERE rowid = ?1", *row, |row| row.get(0))?;
                    let now = id.map(|id| WorkloadRow::by_id(connection, id)).transpose()?.flatten();
                    self.workloads.extend(now.and_then(NamedOrder::of).map(|order| (*row, order)));
                }
                Followed::Instances => {
                    self.instances.remove(row);
                    let id = id_of(connection, "SELECT id FROM instances WHERE rowid = ?1", *row, |row| row.get(0))?;
                    let Some(now) = id.map(|id| InstanceRow::by_id(connection, id)).transpose()?.flatten() else {
                        continue;
                    };
                    self.instances.extend(Placed::of(&now).map(|placed| (*row, placed)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// For a node: every workload by name, those that share a network with one of its instances with all their instances
    /// that it can reach, the others with its own.
    pub fn of(&self, node_id: NodeId, reach: impl Fn(Ipv4Addr) -> bool) -> Vec<NamedWorkload> {
        let here = self.instances.values().filter(|placed| placed.instance.node_id == node_id);
        let near: BTreeSet<&NetworkName> = here.flat_map(|placed| &placed.instance.networks).collect();
        let all: HashSet<WorkloadId> = self
            .workloads
            .values()
            .filter(|order| order.networks.iter().any(|network| near.contains(network)))
            .map(|order| order.id)
            .collect();
        let mut of_workload: HashMap<WorkloadId, Vec<&Placed>> = HashMap::new();
        for placed in self.instances.values() {
            let own = placed.instance.node_id == node_id;
            if own || (all.contains(&placed.workload_id) && reach(placed.instance.address)) {
                of_workload.entry(placed.workload_id).or_default().push(placed);
            }
        }
        let name = |order: &NamedOrder| {
            let mut instances = of_workload.remove(&order.id).unwrap_or_default();
            instances.sort_by_key(|placed| (placed.instance.ordinal, placed.id));
            NamedWorkload {
                name: order.name.clone(),
                deployment: order.deployment.clone(),
                networks: order.networks.clone(),
                instances: instances.into_iter().map(|placed| placed.instance.clone()).collect(),
            }
        };
        let mut named: Vec<NamedWorkload> = self.workloads.values().map(name).collect();
        named.sort_by(|one, other| one.name.cmp(&other.name));
        named
    }
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
