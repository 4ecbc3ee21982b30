//! What the keeper wants done, and what it thinks of what arrives.

use toft_model::{
    ids::InstanceId,
    instance::{Assignment, IllegalMove, InstanceReport},
};

use super::super::{ledger::Outcome, runtime::TaskState};

/// What is to be done outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Take this step; [`super::Keeper::done`] is told what became of it. Never two at once for one instance.
    Do {
        /// The instance.
        id: InstanceId,
        /// The step.
        work: Work,
    },
    /// Write the newest set ([`super::Keeper::newest`]) into the ledger and tell [`super::Keeper::set_written`].
    WriteSet,
    /// Write this into the ledger; [`super::Keeper::note_failed`] is told when that fails.
    Note {
        /// The instance.
        id: InstanceId,
        /// What became of it.
        outcome: Outcome,
    },
    /// Tell the cluster.
    Report(InstanceReport),
    /// Publish the ports of an instance.
    OpenPorts(Box<Assignment>),
    /// Keep others from its ports: it runs.
    ClaimPorts(InstanceId),
    /// Publish its ports no more.
    ClosePorts(InstanceId),
    /// What is needed of the network is known for the first time; whether anything was ordered at all.
    ReleasePorts(bool),
    /// Ask process `pid` of this order again and again whether it works ([`super::Keeper::answered`](super::Keeper::answered)).
    Watch {
        /// The order.
        order: Box<Assignment>,
        /// The process.
        pid: u32,
    },
    /// Ask no more.
    Unwatch(InstanceId),
    /// Ask the runtime for all containers ([`super::Keeper::compare`]), then look at this instance.
    Compare(InstanceId),
    /// An instance saw what it cannot see: a mistake in this program.
    Impossible(InstanceId, IllegalMove),
}

/// A step for one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Start the process.
    Start {
        /// The order.
        order: Box<Assignment>,
        /// The container's task, if there is a container.
        existing: Option<TaskState>,
        /// To be in the ledger before the process starts.
        outcome: Outcome,
    },
    /// End the process and delete its task.
    Stop {
        /// Milliseconds between the stop signal and the kill.
        grace_ms: u32,
    },
    /// Delete the task of a process that ended.
    Reap,
    /// End the process and delete everything.
    Remove {
        /// The container's task.
        task: TaskState,
        /// Milliseconds between the stop signal and the kill.
        grace_ms: u32,
    },
}

/// What an arriving set of orders is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// To be written to the ledger and taken.
    Newer,
    /// Known already.
    Again,
    /// To be ignored.
    Older,
}
