//! `cluster`: one row that says which cluster this is and how far its history was applied.

use rusqlite::{Connection, params};

use crate::ids::ClusterId;

/// The row of `cluster`. What consensus writes there is text to the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterRow {
    /// The cluster; none before it is founded.
    pub cluster_id: Option<ClusterId>,
    /// Index of the last log entry applied.
    pub applied_index: u64,
    /// The same as a position in the log; none before the cluster is founded.
    pub applied_position: Option<String>,
    /// The members; none before the cluster is founded.
    pub membership: Option<String>,
}

impl ClusterRow {
    /// Reads it.
    pub fn load(connection: &Connection) -> rusqlite::Result<Self> {
        connection
            .prepare_cached("SELECT cluster_id, applied_index, applied_position, membership FROM cluster WHERE id = 1")?
            .query_row([], |row| {
                Ok(Self {
                    cluster_id: row.get(0)?,
                    applied_index: row.get(1)?,
                    applied_position: row.get(2)?,
                    membership: row.get(3)?,
                })
            })
    }

    /// Writes it.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "UPDATE cluster SET cluster_id = ?1, applied_index = ?2, applied_position = ?3, membership = ?4 WHERE id = 1",
            )?
            .execute(params![self.cluster_id, self.applied_index, self.applied_position, self.membership])?;
        Ok(())
    }

    /// Notes how far the log was applied.
    pub fn advance(connection: &Connection, index: u64, position: &str) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE cluster SET applied_index = ?1, applied_position = ?2 WHERE id = 1")?
            .execute(params![index, position])?;
        Ok(())
    }

    /// Notes the members.
    pub fn set_membership(connection: &Connection, membership: &str) -> rusqlite::Result<()> {
        connection.prepare_cached("UPDATE cluster SET membership = ?1 WHERE id = 1")?.execute([membership])?;
        Ok(())
    }
}

/// Index of the last log entry applied.
pub fn applied_index(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("SELECT applied_index FROM cluster WHERE id = 1")?.query_row([], |row| row.get(0))
}
