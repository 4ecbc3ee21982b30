//! What a node sees of the mesh.

use async_trait::async_trait;
use toft_model::mesh::view::{MeshSeen, PingRow};

use crate::control::ControlError;

/// The part of a node that tells of its end of the mesh.
#[async_trait]
pub trait NodeMesh {
    /// What it sees now.
    async fn mesh_seen(&self) -> Result<MeshSeen, ControlError>;

    /// Sends so many packets to every other node of the mesh, one after the other, and tells what came back.
    async fn mesh_ping(&self, packets: u32) -> Result<Vec<PingRow>, ControlError>;
}
