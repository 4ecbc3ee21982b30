//! `workload_versions`: the specifications that a workload has had.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{from_json, to_json};
use crate::{
    ids::WorkloadId,
    workload::{Rollout, VersionCause, WorkloadSpec},
};

/// One row of `workload_versions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// The workload.
    pub workload_id: WorkloadId,
    /// Its generation when this was written.
    pub generation: u64,
    /// The specification.
    pub spec: WorkloadSpec,
    /// Why it was written.
    pub cause: VersionCause,
    /// How far it came.
    pub rollout: Rollout,
    /// When it was written.
    pub at_ms: i64,
}

/// Versions kept of each workload, the newest among them.
const KEPT: u32 = 10;

const COLUMNS: &str = "workload_id, generation, spec, cause, rollout, at_ms";

impl VersionRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            workload_id: row.get(0)?,
            generation: row.get(1)?,
            spec: from_json(row.get_ref(2)?.as_str()?)?,
            cause: from_json(row.get_ref(3)?.as_str()?)?,
            rollout: from_json(row.get_ref(4)?.as_str()?)?,
            at_ms: row.get(5)?,
        })
    }

    /// Those of a workload, the newest first.
    pub fn of_workload(connection: &Connection, id: WorkloadId) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM workload_versions WHERE workload_id = ?1 ORDER BY generation DESC"
            ))?
            .query_map([id], Self::read)?
            .collect()
    }

    /// That of a generation.
    pub fn of_generation(connection: &Connection, id: WorkloadId, generation: u64) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM workload_versions WHERE workload_id = ?1 AND generation = ?2"
            ))?
            .query_row(params![id, generation], Self::read)
            .optional()
    }

    /// The newest, and the newest before it that reached every instance.
    pub fn newest_and_good(connection: &Connection, id: WorkloadId) -> rusqlite::Result<(Option<Self>, Option<Self>)> {
        let mut versions = Self::of_workload(connection, id)?.into_iter();
        let newest = versions.next();
        Ok((newest, versions.find(|version| version.rollout == Rollout::Done)))
    }

    /// Writes the row. What is older than the newest that are kept goes, but for the newest of it that reached every
    /// instance when none of the kept did.
    pub fn add(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO workload_versions (workload_id, generation, spec, cause, rollout, at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                self.workload_id,
                self.generation,
                to_json(&self.spec)?,
                to_json(&self.cause)?,
                to_json(&self.rollout)?,
                self.at_ms
            ])?;
        connection
            .prepare_cached(
                "DELETE FROM workload_versions WHERE workload_id = ?1
                     AND generation NOT IN (SELECT generation FROM workload_versions WHERE workload_id = ?1
                                            ORDER BY generation DESC LIMIT ?2)
                     AND generation IS NOT (SELECT MAX(generation) FROM workload_versions
                                            WHERE workload_id = ?1 AND rollout = ?3)",
            )?
            .execute(params![self.workload_id, KEPT, to_json(&Rollout::Done)?])?;
        Ok(())
    }

    /// Notes how far the newest version of a workload came.
    pub fn set_rollout(connection: &Connection, id: WorkloadId, rollout: &Rollout) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "UPDATE workload_versions SET rollout = ?2 WHERE workload_id = ?1
                     AND generation = (SELECT MAX(generation) FROM workload_versions WHERE workload_id = ?1)",
            )?
            .execute(params![id, to_json(rollout)?])?;
        Ok(())
    }

    /// Deletes those of a workload.
    pub fn forget(connection: &Connection, id: WorkloadId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM workload_versions WHERE workload_id = ?1")?.execute([id])?;
        Ok(())
    }
}
