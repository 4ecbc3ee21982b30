//! `nodes`: the machines of the cluster.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{from_json, name, to_json};
use crate::{
    gpu::GpuSettingsOf,
    ids::NodeId,
    name::Name,
    node::{Availability, Inventory, NodeHealth, NodeSettings},
};

/// One row of `nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Id.
    pub id: NodeId,
    /// Name.
    pub name: Name,
    /// Labels of its configuration file.
    pub labels: BTreeMap<String, String>,
    /// What it has.
    pub inventory: Inventory,
    /// When it last registered.
    pub registered_at_ms: i64,
    /// Index of the last command that changed its assignments.
    pub assignments_generation: u64,
    /// What users say of its cards; rows of their own, which [`NodeRow::save`] leaves alone.
    pub gpus: GpuSettingsOf,
    /// What users say of it; no part of what [`Self::save`] writes.
    pub settings: NodeSettings,
    /// Whether the others hear of it; no part of what [`Self::save`] writes.
    pub health: NodeHealth,
    /// Since when, in milliseconds since 1970; `None`: since it is known.
    pub health_since_ms: Option<i64>,
}

const SELECT: &str = "SELECT id, name, labels, inventory, registered_at_ms, assignments_generation, (
        SELECT json_group_object(gpu, json_object('policy', policy, 'cordoned', json(iif(cordoned, 'true', 'false'))))
        FROM gpus WHERE gpus.node_id = id
    ), settings, health, since_ms FROM nodes
    LEFT JOIN node_settings ON node_settings.node_id = id LEFT JOIN node_health ON node_health.node_id = id";

impl NodeRow {
    /// What it draws in watts: what its cards measure and what users say of the rest; where no card tells, what users say of all.
    pub fn watts(&self) -> Option<u32> {
        match self.inventory.gpu_watts() {
            Some(cards) => Some(cards.saturating_add(self.settings.base_watts.unwrap_or(0))),
            None => self.settings.watts,
        }
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            name: name(row, 1)?,
            labels: from_json(row.get_ref(2)?.as_str()?)?,
            inventory: from_json(row.get_ref(3)?.as_str()?)?,
            registered_at_ms: row.get(4)?,
            assignments_generation: row.get(5)?,
            gpus: from_json(row.get_ref(6)?.as_str()?)?,
            settings: row.get_ref(7)?.as_str_or_null()?.map(from_json).transpose()?.unwrap_or_default(),
            health: row.get::<_, Option<NodeHealth>>(8)?.unwrap_or_default(),
            health_since_ms: row.get(9)?,
        })
    }

    /// Where it stands, in one word: `away`, `unreachable` or `down` when it is not heard of, else what its users say: `ready`,
    /// `cordoned` or `draining`.
    pub fn state(&self) -> &'static str {
        match (self.health, self.settings.availability) {
            (NodeHealth::Ready, Availability::Active) => "ready",
            (NodeHealth::Ready, other) => other.as_str(),
            (NodeHealth::Fenced, _) => NodeHealth::Down.as_str(),
            (other, _) => other.as_str(),
        }
    }

    /// Every node, by name.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection.prepare_cached(&format!("{SELECT} ORDER BY name"))?.query_map([], Self::read)?.collect()
    }

    /// The name of every node.
    pub fn names(connection: &Connection) -> rusqlite::Result<HashMap<NodeId, Name>> {
        connection
            .prepare_cached("SELECT id, name FROM nodes")?
            .query_map([], |row| Ok((row.get(0)?, name(row, 1)?)))?
            .collect()
    }

    /// The node of that id.
    pub fn by_id(connection: &Connection, id: NodeId) -> rusqlite::Result<Option<Self>> {
        connection.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?.query_row([id], Self::read).optional()
    }

    /// Every node, by what the others hear of it.
    pub fn healths(connection: &Connection) -> rusqlite::Result<BTreeMap<NodeId, NodeHealth>> {
        connection
            .prepare_cached("SELECT id, health FROM nodes LEFT JOIN node_health ON node_id = id")?
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, Option<NodeHealth>>(1)?.unwrap_or_default())))?
            .collect()
    }

    /// Id of the node of that name.
    pub fn id_of(connection: &Connection, name: &Name) -> rusqlite::Result<Option<NodeId>> {
        connection
            .prepare_cached("SELECT id FROM nodes WHERE name = ?1")?
            .query_row([name.as_str()], |row| row.get(0))
            .optional()
    }

    /// Writes the row, new or changed; the generation of an existing row stays.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO nodes (id, name, labels, inventory, registered_at_ms, assignments_generation)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (id) DO UPDATE SET name = ?2, labels = ?3, inventory = ?4, registered_at_ms = ?5",
            )?
            .execute(params![
                self.id,
                self.name.as_str(),
                to_json(&self.labels)?,
                to_json(&self.inventory)?,
                self.registered_at_ms,
                self.assignments_generation
            ])?;
        Ok(())
    }

    /// Deletes the node and what is said of it; its instances and volumes are gone before.
    pub fn delete(connection: &Connection, id: NodeId) -> rusqlite::Result<()> {
        for sql in [
            "DELETE FROM removed_volumes WHERE node_id = ?1",
            "DELETE FROM node_settings WHERE node_id = ?1",
            "DELETE FROM node_health WHERE node_id = ?1",
            "DELETE FROM mesh_nodes WHERE node_id = ?1",
            "UPDATE volumes SET moving = NULL WHERE moving ->> 'to' = ?1",
            "UPDATE instances SET moves_to = NULL, moves_turn = NULL WHERE moves_to = ?1",
            "DELETE FROM gpus WHERE node_id = ?1",
            "DELETE FROM subnets WHERE node_id = ?1",
            "DELETE FROM nodes WHERE id = ?1",
        ] {
            connection.prepare_cached(sql)?.execute([id])?;
        }
        Ok(())
    }

    /// Writes what users say of it.
    pub fn save_settings(connection: &Connection, id: NodeId, settings: &NodeSettings) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO node_settings (node_id, settings) VALUES (?1, ?2)
                 ON CONFLICT (node_id) DO UPDATE SET settings = ?2",
            )?
            .execute(params![id, to_json(settings)?])?;
        Ok(())
    }

    /// Writes whether the others hear of it.
    pub fn save_health(connection: &Connection, id: NodeId, health: NodeHealth, since_ms: i64) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO node_health (node_id, health, since_ms) VALUES (?1, ?2, ?3)
                 ON CONFLICT (node_id) DO UPDATE SET health = ?2, since_ms = ?3",
            )?
            .execute(params![id, health, since_ms])?;
        Ok(())
    }

    /// Its label of that key: what users say goes before its configuration file. Labels that begin with `toft/` are made of
    /// its inventory.
    pub fn label(&self, key: &str) -> Option<String> {
        if key.starts_with(NodeSettings::BUILT_IN) {
            return self.inventory.labels().remove(key);
        }
        self.settings.labels.get(key).or_else(|| self.labels.get(key)).cloned()
    }

    /// All its labels but those that are made of its inventory.
    pub fn given_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.extend(self.settings.labels.clone());
        labels
    }

    /// Notes that the command at `index` changed the node's assignments.
    pub fn touch_assignments(connection: &Connection, id: NodeId, index: u64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE nodes SET assignments_generation = ?2 WHERE id = ?1")?
            .execute(params![id, index])?;
        Ok(())
    }
}
