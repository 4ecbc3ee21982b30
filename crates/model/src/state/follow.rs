//! A scheduler that follows the tables: it reads all rows once, and then only those that were written.

use std::collections::{BTreeSet, HashMap};

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    query_snapshot,
    tables::{InstanceRow, NodeRow, VolumeRow, WorkloadRow, placement_settings},
};
use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    name::Name,
    schedule::{Change, Scheduler},
};

/// A table that the scheduler depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Followed {
    /// `nodes`.
    Nodes,
    /// `node_settings`.
    NodeSettings,
    /// `node_health`.
    NodeHealth,
    /// `gpus`.
    Gpus,
    /// `workloads`.
    Workloads,
    /// `instances`.
    Instances,
    /// `volumes`.
    Volumes,
    /// `placement`.
    Placement,
}

impl Followed {
    const ALL: [Self; 8] = [
        Self::Nodes,
        Self::NodeSettings,
        Self::NodeHealth,
        Self::Gpus,
        Self::Workloads,
        Self::Instances,
        Self::Volumes,
        Self::Placement,
    ];

    /// The table of that name; `None` when the scheduler does not depend on it.
    pub fn named(table: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|followed| followed.table() == table)
    }

    fn table(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::NodeSettings => "node_settings",
            Self::NodeHealth => "node_health",
            Self::Gpus => "gpus",
            Self::Workloads => "workloads",
            Self::Instances => "instances",
            Self::Volumes => "volumes",
            Self::Placement => "placement",
        }
    }
}

/// The scheduler, and which rows it knows by what SQLite calls them.
pub struct Follower {
    scheduler: Scheduler,
    workloads: HashMap<i64, WorkloadId>,
    instances: HashMap<i64, InstanceId>,
    volumes: HashMap<i64, Name>,
}

impl Follower {
    /// Reads all rows.
    pub fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let scheduler = Scheduler::of(&query_snapshot(connection)?);
        Ok(Self {
            scheduler,
            workloads: rows(connection, "SELECT rowid, id FROM workloads", |row| row.get(1))?,
            instances: rows(connection, "SELECT rowid, id FROM instances", |row| row.get(1))?,
            volumes: rows(connection, "SELECT rowid, name FROM volumes", |row| super::tables::name(row, 1))?,
        })
    }

    /// Reads the rows that were written since: new, changed or gone, as they are now.
    pub fn follow(&mut self, connection: &Connection, written: &BTreeSet<(Followed, i64)>) -> rusqlite::Result<()> {
        let mut nodes = BTreeSet::new();
        for (table, row) in written {
            match table {
                Followed::Nodes | Followed::NodeSettings | Followed::NodeHealth | Followed::Gpus => {
                    match node_of(connection, *table, *row)? {
                        Some(node) => drop(nodes.insert(node)),
                        // What users said of some node or card is said no more, and nobody knows which.
                        None => {
                            *self = Self::read(connection)?;
                            return Ok(());
                        }
                    }
                }
                Followed::Workloads => self.follow_workload(connection, *row)?,
                Followed::Instances => self.follow_instance(connection, *row)?,
                Followed::Volumes => self.follow_volume(connection, *row)?,
                Followed::Placement => {
                    self.scheduler.apply(Change::Placement(Box::new(placement_settings(connection)?)));
                }
            }
        }
        for id in nodes {
            if let Some(node) = NodeRow::by_id(connection, id)? {
                self.scheduler.apply(Change::Node(Box::new(node)));
            }
        }
        Ok(())
    }

    fn follow_workload(&mut self, connection: &Connection, row: i64) -> rusqlite::Result<()> {
        let now = id_of(connection, "SELECT id FROM workloads WHERE rowid = ?1", row, |row| row.get(0))?;
        if let Some(gone) = self.workloads.remove(&row).filter(|before| Some(*before) != now) {
            self.scheduler.apply(Change::NoWorkload(gone));
        }
        let Some(id) = now else { return Ok(()) };
        self.workloads.insert(row, id);
        if let Some(workload) = WorkloadRow::by_id(connection, id)? {
            self.scheduler.apply(Change::Workload(Box::new(workload)));
        }
        Ok(())
    }

    fn follow_instance(&mut self, connection: &Connection, row: i64) -> rusqlite::Result<()> {
        let now = id_of(connection, "SELECT id FROM instances WHERE rowid = ?1", row, |row| row.get(0))?;
        if let Some(gone) = self.instances.remove(&row).filter(|before| Some(*before) != now) {
            self.scheduler.apply(Change::NoInstance(gone));
        }
        let Some(id) = now else { return Ok(()) };
        self.instances.insert(row, id);
        if let Some(instance) = InstanceRow::by_id(connection, id)? {
            self.scheduler.apply(Change::Instance(Box::new(instance)));
        }
        Ok(())
    }

    fn follow_volume(&mut self, connection: &Connection, row: i64) -> rusqlite::Result<()> {
        let select = "SELECT name FROM volumes WHERE rowid = ?1";
        let now = id_of(connection, select, row, |row| super::tables::name(row, 0))?;
        if let Some(gone) = self.volumes.remove(&row).filter(|before| Some(before) != now.as_ref()) {
            self.scheduler.apply(Change::NoVolume(gone));
        }
        let Some(name) = now else { return Ok(()) };
        if let Some(volume) = VolumeRow::named(connection, &name)? {
            self.scheduler.apply(Change::Volume(Box::new(volume)));
        }
        self.volumes.insert(row, name);
        Ok(())
    }

    /// The scheduler.
    pub fn scheduler(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }
}

pub(super) fn rows<T>(
    connection: &Connection,
    select: &str,
    read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<HashMap<i64, T>> {
    connection.prepare_cached(select)?.query_map([], |row| Ok((row.get(0)?, read(row)?)))?.collect()
}

pub(super) fn id_of<T>(
    connection: &Connection,
    select: &str,
    row: i64,
    read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    connection.prepare_cached(select)?.query_row(params![row], read).optional()
}

pub(super) fn node_of(connection: &Connection, table: Followed, row: i64) -> rusqlite::Result<Option<NodeId>> {
    let column = if table == Followed::Nodes { "id" } else { "node_id" };
    let select = format!("SELECT {column} FROM {} WHERE rowid = ?1", table.table());
    id_of(connection, &select, row, |row| row.get(0))
}
