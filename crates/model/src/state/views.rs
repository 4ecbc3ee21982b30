//! Nodes and workloads as those see them who look at all of them, again and again: all rows are read once, and then only
//! those that were written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use rusqlite::Connection;

use super::{
    Followed,
    follow::{id_of, node_of, rows},
    query::{WorkloadView, query_workloads, view},
    tables::{InstanceRow, NodeRow, WorkloadRow},
};
use crate::{
    ids::{NodeId, WorkloadId},
    name::Name,
};

/// All nodes and workloads, and which rows they are by what SQLite calls them.
pub struct Views {
    nodes: BTreeMap<Name, Arc<NodeRow>>,
    node_names: HashMap<NodeId, Name>,
    workloads: BTreeMap<Name, Arc<WorkloadView>>,
    workload_names: HashMap<WorkloadId, Name>,
    workload_rows: HashMap<i64, WorkloadId>,
    instance_rows: HashMap<i64, WorkloadId>,
}

impl Views {
    /// Reads all rows.
    pub fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let nodes = NodeRow::all(connection)?.into_iter().map(|node| (node.name.clone(), Arc::new(node)));
        let nodes: BTreeMap<_, _> = nodes.collect();
        let workloads = query_workloads(connection)?.into_iter();
        let workloads: BTreeMap<_, _> =
            workloads.map(|workload| (workload.row.spec.name.clone(), Arc::new(workload))).collect();
        Ok(Self {
            node_names: nodes.values().map(|node| (node.id, node.name.clone())).collect(),
            workload_names: workloads.values().map(|one| (one.row.id, one.row.spec.name.clone())).collect(),
            workload_rows: rows(connection, "SELECT rowid, id FROM workloads", |row| row.get(1))?,
            instance_rows: rows(connection, "SELECT rowid, workload_id FROM instances", |row| row.get(1))?,
            nodes,
            workloads,
        })
    }

    /// Reads the rows that were written since: new, changed or gone, as they are now.
    pub fn follow(&mut self, connection: &Connection, written: &BTreeSet<(Followed, i64)>) -> rusqlite::Result<()> {
        let (mut nodes, mut workloads) = (BTreeSet::new(), BTreeSet::new());
        for (table, row) in written {
            match table {
                Followed::Nodes | Followed::NodeSettings | Followed::NodeHealth | Followed::Gpus => {
                    match node_of(connection, *table, *row)? {
                        Some(node) => drop(nodes.insert(node)),
                        // Some node is gone, or less is said of it, and nobody knows which.
                        None => return self.read_again(connection),
                    }
                }
                Followed::Workloads => {
                    let now = id_of(connection, "SELECT id FROM workloads WHERE rowid = ?1", *row, |row| row.get(0))?;
                    workloads.extend(note(&mut self.workload_rows, *row, now));
                }
                Followed::Instances => {
                    let select = "SELECT workload_id FROM instances WHERE rowid = ?1";
                    let now = id_of(connection, select, *row, |row| row.get(0))?;
                    workloads.extend(note(&mut self.instance_rows, *row, now));
                }
                Followed::Volumes | Followed::Placement => {}
            }
        }
        for id in nodes {
            let Some(node) = NodeRow::by_id(connection, id)? else { return self.read_again(connection) };
            // Instances are told with the names of their nodes.
            if self.node_names.get(&id).is_some_and(|known| *known != node.name) {
                return self.read_again(connection);
            }
            self.node_names.insert(id, node.name.clone());
            self.nodes.insert(node.name.clone(), Arc::new(node));
        }
        // A name may be another's by now.
        for id in &workloads {
            if let Some(name) = self.workload_names.remove(id) {
                self.workloads.remove(&name);
            }
        }
        for id in workloads {
            if let Some(row) = WorkloadRow::by_id(connection, id)? {
                let instances = InstanceRow::of_workload(connection, id)?;
                let name = row.spec.name.clone();
                self.workload_names.insert(id, name.clone());
                self.workloads.insert(name, Arc::new(view(row, instances, &self.node_names)));
            }
        }
        Ok(())
    }

    fn read_again(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        *self = Self::read(connection)?;
        Ok(())
    }

    /// Every node, by name.
    pub fn nodes(&self) -> Vec<Arc<NodeRow>> {
        self.nodes.values().cloned().collect()
    }

    /// Every workload, by name.
    pub fn workloads(&self) -> Vec<Arc<WorkloadView>> {
        self.workloads.values().cloned().collect()
    }
}

/// Notes what a row is of now; gives what it was of, and what it is of.
fn note(known: &mut HashMap<i64, WorkloadId>, row: i64, now: Option<WorkloadId>) -> impl Iterator<Item = WorkloadId> {
    let before = match now {
        Some(now) => known.insert(row, now),
        None => known.remove(&row),
    };
    before.into_iter().chain(now)
}
