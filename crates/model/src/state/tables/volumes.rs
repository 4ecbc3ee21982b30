//! `volumes`: data that outlives containers, and `removed_volumes`: what a node is to delete of it.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{from_json, name, to_json};
use crate::{ids::NodeId, name::Name, volume::VolumeOptions};

/// One row of `volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRow {
    /// Unique in the cluster.
    pub name: Name,
    /// Tells it from an earlier volume of the same name: the index of the command that made it.
    pub born: u64,
    /// Where its data lies; none while nobody used it, and for data on a server.
    pub node_id: Option<NodeId>,
    /// What it is.
    pub options: VolumeOptions,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at_ms: i64,
}

const COLUMNS: &str = "name, born, node_id, options, labels, created_at_ms";

impl VolumeRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: name(row, 0)?,
            born: row.get(1)?,
            node_id: row.get(2)?,
            options: from_json(row.get_ref(3)?.as_str()?)?,
            labels: from_json(row.get_ref(4)?.as_str()?)?,
            created_at_ms: row.get(5)?,
        })
    }

    /// Every volume, by name.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM volumes ORDER BY name"))?
            .query_map([], Self::read)?
            .collect()
    }

    /// The volume of that name.
    pub fn named(connection: &Connection, name: &Name) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM volumes WHERE name = ?1"))?
            .query_row([name.as_str()], Self::read)
            .optional()
    }

    /// How many there are.
    pub fn count(connection: &Connection) -> rusqlite::Result<u64> {
        connection.prepare_cached("SELECT COUNT(*) FROM volumes")?.query_row([], |row| row.get(0))
    }

    /// Writes a new row.
    pub fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO volumes (name, born, node_id, options, labels, created_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                self.name.as_str(),
                self.born,
                self.node_id,
                to_json(&self.options)?,
                to_json(&self.labels)?,
                self.created_at_ms
            ])?;
        Ok(())
    }

    /// Says where its data lies.
    pub fn bind(connection: &Connection, name: &Name, node_id: NodeId) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE volumes SET node_id = ?2 WHERE name = ?1")?
            .execute(params![name.as_str(), node_id])?;
        Ok(())
    }

    /// Deletes the row; `node_id`'s data is to be deleted.
    pub fn delete(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM volumes WHERE name = ?1")?.execute([self.name.as_str()])?;
        if let Some(node_id) = self.node_id {
            connection
                .prepare_cached("INSERT INTO removed_volumes (name, born, node_id) VALUES (?1, ?2, ?3)")?
                .execute(params![self.name.as_str(), self.born, node_id])?;
        }
        Ok(())
    }

    /// The newest removed volume of that name whose data may be there still.
    pub fn newest_removed(connection: &Connection, name: &Name) -> rusqlite::Result<Option<u64>> {
        connection
            .prepare_cached("SELECT MAX(born) FROM removed_volumes WHERE name = ?1")?
            .query_row([name.as_str()], |row| row.get(0))
    }

    /// What a node is to delete: names with their `born`.
    pub fn removed_on(connection: &Connection, node_id: NodeId) -> rusqlite::Result<Vec<(Name, u64)>> {
        connection
            .prepare_cached("SELECT name, born FROM removed_volumes WHERE node_id = ?1 ORDER BY name, born")?
            .query_map([node_id], |row| Ok((name(row, 0)?, row.get(1)?)))?
            .collect()
    }

    /// Takes note that a node deleted a removed volume's data.
    pub fn forget(connection: &Connection, node_id: NodeId, name: &Name, born: u64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("DELETE FROM removed_volumes WHERE name = ?1 AND born = ?2 AND node_id = ?3")?
            .execute(params![name.as_str(), born, node_id])?;
        Ok(())
    }
}
