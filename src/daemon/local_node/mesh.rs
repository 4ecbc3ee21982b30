//! This node's end of the mesh, as control asks for it.

use async_trait::async_trait;
use toft_model::mesh::view::{MeshSeen, PingRow};

use super::LocalNode;
use crate::control::{ControlError, node_access::mesh::NodeMesh};

#[async_trait]
impl NodeMesh for LocalNode {
    async fn mesh_seen(&self) -> Result<MeshSeen, ControlError> {
        Ok(self.mesh.seen())
    }

    async fn mesh_ping(&self, packets: u32) -> Result<Vec<PingRow>, ControlError> {
        self.mesh.ping(packets).await
    }
}
