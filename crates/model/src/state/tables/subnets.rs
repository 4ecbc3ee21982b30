//! `subnets`: the network that each node gives its containers.

use rusqlite::{Connection, params};

use super::text;
use crate::{ids::NodeId, node::Subnet};

/// One row of `subnets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetRow {
    /// The node.
    pub node_id: NodeId,
    /// Its network.
    pub subnet: Subnet,
}

impl SubnetRow {
    /// Every claim, by node.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached("SELECT node_id, subnet FROM subnets ORDER BY node_id")?
            .query_map([], |row| Ok(Self { node_id: row.get(0)?, subnet: text(row, 1)? }))?
            .collect()
    }

    /// Writes the claim; it replaces the node's earlier one.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO subnets (node_id, subnet) VALUES (?1, ?2) ON CONFLICT (node_id) DO UPDATE SET subnet = ?2",
            )?
            .execute(params![self.node_id, self.subnet.to_string()])?;
        Ok(())
    }
}
