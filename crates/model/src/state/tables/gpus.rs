//! `gpus`: what users say of cards.

use rusqlite::{Connection, params};

use super::text;
use crate::{
    gpu::{GpuId, GpuSettings},
    ids::NodeId,
};

/// One row of `gpus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuRow {
    /// The card's node.
    pub node_id: NodeId,
    /// The card.
    pub gpu: GpuId,
    /// What is said of it.
    pub settings: GpuSettings,
}

impl GpuRow {
    /// Every row, by node and card.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached("SELECT node_id, gpu, policy, cordoned FROM gpus ORDER BY node_id, gpu")?
            .query_map([], |row| {
                let settings = GpuSettings { policy: text(row, 2)?, cordoned: row.get(3)? };
                Ok(Self { node_id: row.get(0)?, gpu: text(row, 1)?, settings })
            })?
            .collect()
    }

    /// Writes the row, new or changed; the usual settings need none.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self { node_id, gpu, settings } = self;
        if *settings == GpuSettings::default() {
            connection
                .prepare_cached("DELETE FROM gpus WHERE node_id = ?1 AND gpu = ?2")?
                .execute(params![node_id, gpu.as_str()])?;
            return Ok(());
        }
        connection
            .prepare_cached(
                "INSERT INTO gpus (node_id, gpu, policy, cordoned) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (node_id, gpu) DO UPDATE SET policy = ?3, cordoned = ?4",
            )?
            .execute(params![node_id, gpu.as_str(), settings.policy.as_str(), settings.cordoned])?;
        Ok(())
    }
}
