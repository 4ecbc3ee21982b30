//! `mesh_nodes`: where and with which key each node is found.

use rusqlite::{Connection, params};

use super::{from_json, to_json};
use crate::{ids::NodeId, mesh::MeshNode};

/// One row of `mesh_nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshRow {
    /// The node.
    pub node_id: NodeId,
    /// Its end of the mesh.
    pub mesh: MeshNode,
    /// When it told so.
    pub at_ms: i64,
}

impl MeshRow {
    /// Every node's, by node.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached("SELECT node_id, mesh, at_ms FROM mesh_nodes ORDER BY node_id")?
            .query_map([], |row| {
                let mesh = from_json(row.get_ref(1)?.as_str()?)?;
                Ok(Self { node_id: row.get(0)?, mesh, at_ms: row.get(2)? })
            })?
            .collect()
    }

    /// Writes the row; it replaces the node's earlier one.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO mesh_nodes (node_id, mesh, at_ms) VALUES (?1, ?2, ?3)
                 ON CONFLICT (node_id) DO UPDATE SET mesh = ?2, at_ms = ?3",
            )?
            .execute(params![self.node_id, to_json(&self.mesh)?, self.at_ms])?;
        Ok(())
    }
}
