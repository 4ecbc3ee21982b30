//! What commands are made of.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{ContainerOrder, Desired},
    workload::Rollout,
};

/// A turn of the move of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum MoveTurn {
    /// A copy is there: who uses the volume stops, so that the rest can follow.
    Hold,
    /// All of it is there and was compared: the volume lies there now.
    Settle,
    /// It cannot be carried out: the volume stays.
    Fail {
        /// Why.
        reason: String,
    },
}

/// What may exist before a specification is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum PutMode {
    /// The name must be free.
    Create,
    /// Whatever is there is replaced; with a number, only if it still has that generation.
    Replace {
        /// Generation the user saw.
        if_generation: Option<u64>,
    },
}

/// What a user can do to a workload that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Run it; what finished runs again.
    Start,
    /// Bring its processes down and keep its containers.
    Stop,
    /// End and start its processes.
    Restart,
}

/// A new instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Its id.
    pub instance_id: InstanceId,
    /// The workload.
    pub workload_id: WorkloadId,
    /// Generation of the specification it was made from.
    pub generation: u64,
    /// Which copy, from 0.
    pub ordinal: u32,
    /// Where.
    pub node_id: NodeId,
    /// What it is made of.
    pub container: ContainerOrder,
}

/// A changed order for an instance that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceChange {
    /// The instance.
    pub instance_id: InstanceId,
    /// What shall become of it.
    pub desired: Desired,
    /// Epoch of the order.
    pub epoch: u64,
}

/// A rollout that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutChange {
    /// The workload.
    pub workload_id: WorkloadId,
    /// Generation of the specification that was rolled out.
    pub generation: u64,
    /// How it ended.
    pub rollout: Rollout,
}

/// An instance that makes room for one of a workload with a higher priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preemption {
    /// Who goes.
    pub instance_id: InstanceId,
    /// For which workload.
    pub by: WorkloadId,
    /// Generation of the specification that it was decided for.
    pub generation: u64,
}

/// An instance that a user wants on another node. It is refused when the instance is not as the user saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceMove {
    /// The instance.
    pub instance_id: InstanceId,
    /// Generation of its workload's specification.
    pub generation: u64,
    /// Where it is.
    pub from: NodeId,
    /// Where it is to be.
    pub to: NodeId,
}

/// An instance that stays where it is, although a user wanted it moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmoved {
    /// The instance.
    pub instance_id: InstanceId,
    /// Where it was to be moved.
    pub to: NodeId,
    /// Why it is not.
    pub reason: String,
}
