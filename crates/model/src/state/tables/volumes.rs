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
    /// The order to bring it to another node, carried out or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<VolumeMove>,
}

/// The order to bring a volume's data to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMove {
    /// Where to.
    pub to: NodeId,
    /// What tells the data there from that which lies here, and from that of other orders: [`VolumeRow::born`] once it lies
    /// there.
    pub born: u64,
    /// How far it is.
    #[serde(flatten)]
    pub phase: MovePhase,
    /// When it was ordered.
    pub at_ms: i64,
}

/// How far an order to move a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum MovePhase {
    /// It is copied; who uses it goes on.
    Copying,
    /// Nobody uses it: instances that do stop, and none starts.
    Held,
    /// It was given up, and the volume stays where it is.
    Failed {
        /// Why.
        reason: String,
    },
}

impl VolumeMove {
    /// Whether it is carried out, rather than given up.
    pub fn is_under_way(&self) -> bool {
        match self.phase {
            MovePhase::Copying | MovePhase::Held => true,
            MovePhase::Failed { .. } => false,
        }
    }
}

const COLUMNS: &str = "name, born, node_id, options, labels, created_at_ms, moving";

impl VolumeRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: name(row, 0)?,
            born: row.get(1)?,
            node_id: row.get(2)?,
            options: from_json(row.get_ref(3)?.as_str()?)?,
            labels: from_json(row.get_ref(4)?.as_str()?)?,
            created_at_ms: row.get(5)?,
            moving: row.get_ref(6)?.as_str_or_null()?.map(from_json).transpose()?,
        })
    }

    /// The volumes that are ordered to a node and not given up.
    pub fn moving_to(connection: &Connection, node_id: NodeId) -> rusqlite::Result<Vec<Self>> {
        let ordered = connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM volumes WHERE moving IS NOT NULL ORDER BY name"))?
            .query_map([], Self::read)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let there =
            |row: &Self| row.moving.as_ref().is_some_and(|moving| moving.to == node_id && moving.is_under_way());
        Ok(ordered.into_iter().filter(there).collect())
    }

    /// Writes how far the order to move a volume is; `None` when there is none any more.
    pub fn set_move(connection: &Connection, name: &Name, moving: Option<&VolumeMove>) -> rusqlite::Result<()> {
        let moving = moving.map(to_json).transpose()?;
        connection
            .prepare_cached("UPDATE volumes SET moving = ?2 WHERE name = ?1")?
            .execute(params![name.as_str(), moving])?;
        Ok(())
    }

    /// The volume lies where it was ordered to; what lay at its former place is to be deleted.
    pub fn arrive(&self, connection: &Connection, moving: &VolumeMove) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE volumes SET node_id = ?2, born = ?3, moving = NULL WHERE name = ?1")?
            .execute(params![self.name.as_str(), moving.to, moving.born])?;
        if let Some(from) = self.node_id {
            Self::to_be_deleted(connection, &self.name, self.born, from)?;
        }
        Ok(())
    }

    /// A node is to delete data of that volume, which is of no use any more.
    pub fn to_be_deleted(connection: &Connection, name: &Name, born: u64, node_id: NodeId) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT INTO removed_volumes (name, born, node_id) VALUES (?1, ?2, ?3)")?
            .execute(params![name.as_str(), born, node_id])?;
        Ok(())
    }

    /// The name of every volume, in order.
    pub fn names(connection: &Connection) -> rusqlite::Result<Vec<Name>> {
        let mut names = connection.prepare_cached("SELECT name FROM volumes ORDER BY name")?;
        names.query_map([], |row| super::name(row, 0))?.collect()
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
                "INSERT INTO volumes (name, born, node_id, options, labels, created_at_ms, moving)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                self.name.as_str(),
                self.born,
                self.node_id,
                to_json(&self.options)?,
                to_json(&self.labels)?,
                self.created_at_ms,
                self.moving.as_ref().map(to_json).transpose()?
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
            Self::to_be_deleted(connection, &self.name, self.born, node_id)?;
        }
        if let Some(moving) = self.moving.as_ref().filter(|moving| moving.is_under_way()) {
            Self::to_be_deleted(connection, &self.name, moving.born, moving.to)?;
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
