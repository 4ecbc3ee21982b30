//! Attaching to a container's own process.

use async_trait::async_trait;
use toft_model::{exec::AttachOrder, ids::InstanceId};

use super::exec::ExecSession;
use crate::control::ControlError;

/// The part of a node that lets clients attach to its containers.
#[async_trait]
pub trait NodeAttach {
    /// Attaches to an instance of this node as soon as its process is there, however long that takes. Dropping both ways of
    /// the session is leaving.
    async fn attach(&self, instance: InstanceId, order: AttachOrder) -> Result<ExecSession, ControlError>;
}
