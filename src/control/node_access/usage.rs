//! What a node's containers use.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use toft_model::{
    ids::InstanceId,
    usage::{Process, Usage},
};

use crate::control::ControlError;

/// An instance that was running when the node last said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningInstance {
    /// Its id.
    pub id: InstanceId,
    /// Process id of its main process on the node.
    pub pid: u32,
}

/// The part of a node that measures its containers.
#[async_trait]
pub trait NodeUsage {
    /// What instances use; those that do not run any more are left out. With `pss`, their shares of memory too.
    async fn usage(&self, instances: Vec<RunningInstance>, pss: bool)
    -> Result<Vec<(InstanceId, Usage)>, ControlError>;

    /// The processes of an instance, by id.
    async fn processes(&self, instance: RunningInstance) -> Result<Vec<Process>, ControlError>;
}
