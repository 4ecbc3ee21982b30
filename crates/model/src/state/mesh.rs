//! Where the nodes find each other.

use rusqlite::Connection;

use super::{
    Applied, Refusal, RefusalKind, Reply,
    tables::{MeshRow, RemovedNodeRow, SubnetRow},
};
use crate::{ids::NodeId, mesh::MeshNode, node::Subnet};

/// A node as the others look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSight {
    /// The node.
    pub node_id: NodeId,
    /// What it tells of itself.
    pub mesh: MeshNode,
    /// The network that is behind it.
    pub subnet: Subnet,
}

/// Every node that has a network and an end of the mesh, by node.
pub fn query_mesh(connection: &Connection) -> rusqlite::Result<Vec<MeshSight>> {
    let subnets = SubnetRow::all(connection)?;
    let of = |node_id| subnets.iter().find(|row| row.node_id == node_id).map(|row| row.subnet);
    let rows = MeshRow::all(connection)?.into_iter();
    Ok(rows
        .filter_map(|MeshRow { node_id, mesh, .. }| Some(MeshSight { node_id, mesh, subnet: of(node_id)? }))
        .collect())
}

/// Takes what a node tells of itself. A key is one node's only.
pub(super) fn announce(
    connection: &Connection,
    node_id: NodeId,
    mesh: &MeshNode,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    if let Err(invalid) = mesh.check() {
        let message = format!("mesh.{}: {}", invalid.field, invalid.message);
        return Ok(Err(Refusal { kind: RefusalKind::Invalid, message, hint: invalid.hint }));
    }
    // What a node said before it was removed may come later.
    if RemovedNodeRow::has(connection, node_id)? {
        return Ok(Ok(Reply::Done));
    }
    let rows = MeshRow::all(connection)?;
    if rows.iter().any(|row| row.node_id == node_id && row.mesh == *mesh) {
        return Ok(Ok(Reply::Done));
    }
    let own: Vec<_> = std::iter::once(mesh.key).chain(mesh.next_key).collect();
    let others = rows.iter().filter(|row| row.node_id != node_id);
    let mut theirs = others.flat_map(|row| std::iter::once(row.mesh.key).chain(row.mesh.next_key));
    if let Some(key) = theirs.find(|key| own.contains(key)) {
        return Ok(Err(Refusal {
            kind: RefusalKind::Exists,
            message: format!("the mesh key {key} is another node's"),
            hint: "remove the folder `mesh` in the data directory of the machine that was copied".into(),
        }));
    }
    MeshRow { node_id, mesh: mesh.clone(), at_ms }.save(connection)?;
    Ok(Ok(Reply::Done))
}
