//! `workloads`: what users ask to run.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{from_json, name, to_json};
use crate::{
    ids::WorkloadId,
    instance::Desired,
    name::Name,
    workload::{Rollout, WorkloadSpec},
};

/// One row of `workloads`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRow {
    /// Id.
    pub id: WorkloadId,
    /// Counts the specifications written under this id, from 1.
    pub generation: u64,
    /// The specification, which holds the name.
    pub spec: WorkloadSpec,
    /// What the user wants of it.
    pub desired: Desired,
    /// Counts starts and restarts asked for of all instances; no instance that shall run stays behind it.
    pub epoch: u64,
    /// Why instances wait for a place, if any do.
    pub pending: Option<String>,
    /// When the name was first written.
    pub created_at_ms: i64,
    /// When it was last changed by a user.
    pub updated_at_ms: i64,
    /// How far the specification has reached the instances.
    #[serde(default)]
    pub rollout: Rollout,
}

const COLUMNS: &str = "id, generation, spec, desired, epoch, pending, created_at_ms, updated_at_ms, rollout";

impl WorkloadRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            generation: row.get(1)?,
            spec: from_json(row.get_ref(2)?.as_str()?)?,
            desired: row.get(3)?,
            epoch: row.get(4)?,
            pending: row.get(5)?,
            created_at_ms: row.get(6)?,
            updated_at_ms: row.get(7)?,
            rollout: from_json(row.get_ref(8)?.as_str()?)?,
        })
    }

    /// The name of every workload, in order.
    pub fn names(connection: &Connection) -> rusqlite::Result<Vec<Name>> {
        let mut names = connection.prepare_cached("SELECT name FROM workloads ORDER BY name")?;
        names.query_map([], |row| super::name(row, 0))?.collect()
    }

    /// Every workload, by name.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM workloads ORDER BY name"))?
            .query_map([], Self::read)?
            .collect()
    }

    /// At most `limit` workloads whose names come after `after`, by name.
    pub fn page(connection: &Connection, after: Option<&str>, limit: usize) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM workloads WHERE name > ?1 ORDER BY name LIMIT ?2"))?
            .query_map(params![after.unwrap_or_default(), limit], Self::read)?
            .collect()
    }

    /// The workload of that name.
    pub fn named(connection: &Connection, name: &Name) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM workloads WHERE name = ?1"))?
            .query_row([name.as_str()], Self::read)
            .optional()
    }

    /// The workload of that id.
    pub fn by_id(connection: &Connection, id: WorkloadId) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM workloads WHERE id = ?1"))?
            .query_row([id], Self::read)
            .optional()
    }

    /// The workloads with constraints on what is beside them, and a few others.
    pub fn shy(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection.prepare_cached(&Self::shy_query())?.query_map([], Self::read)?.collect()
    }

    /// Each plan asks, so an index has them.
    pub(in super::super) fn shy_query() -> String {
        format!(
            "SELECT {COLUMNS} FROM workloads INDEXED BY workloads_shy
             WHERE instr(lower(spec), '\"workload ') > 0"
        )
    }

    /// What the user wants of the workload of that id, and its epoch; without reading the specification.
    pub fn order_of(connection: &Connection, id: WorkloadId) -> rusqlite::Result<Option<(Desired, u64)>> {
        connection
            .prepare_cached("SELECT desired, epoch FROM workloads WHERE id = ?1")?
            .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    }

    /// The name of the workload of that id; without reading the specification.
    pub fn name_of(connection: &Connection, id: WorkloadId) -> rusqlite::Result<Option<Name>> {
        connection
            .prepare_cached("SELECT name FROM workloads WHERE id = ?1")?
            .query_row([id], |row| name(row, 0))
            .optional()
    }

    /// Writes the row, new or changed.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO workloads (id, name, generation, spec, desired, epoch, pending, created_at_ms, updated_at_ms, rollout)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (id) DO UPDATE SET generation = ?3, spec = ?4, desired = ?5, epoch = ?6, pending = ?7,
                     updated_at_ms = ?9, rollout = ?10",
            )?
            .execute(params![
                self.id,
                self.spec.name.as_str(),
                self.generation,
                to_json(&self.spec)?,
                self.desired,
                self.epoch,
                self.pending,
                self.created_at_ms,
                self.updated_at_ms,
                to_json(&self.rollout)?
            ])?;
        Ok(())
    }

    /// Notes why instances of `id` wait, or that none does. `true` when that is news.
    pub fn set_pending(connection: &Connection, id: WorkloadId, reason: Option<&str>) -> rusqlite::Result<bool> {
        let changed = connection
            .prepare_cached("UPDATE workloads SET pending = ?2 WHERE id = ?1 AND pending IS NOT ?2")?
            .execute(params![id, reason])?;
        Ok(changed > 0)
    }

    /// Deletes the row, and its versions.
    pub fn delete(connection: &Connection, id: WorkloadId) -> rusqlite::Result<()> {
        super::VersionRow::forget(connection, id)?;
        connection.prepare_cached("DELETE FROM workloads WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}
