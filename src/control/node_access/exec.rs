//! Processes run inside an instance's container.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use toft_model::{
    exec::{ExecInput, ExecOrder, ExecOutput},
    ids::InstanceId,
};
use tokio::sync::mpsc;

use crate::control::ControlError;

/// A process that was started. Dropping both ways ends it.
pub struct ExecSession {
    /// What goes to the process.
    pub input: mpsc::Sender<ExecInput>,
    /// What comes from it; [`ExecOutput::Exited`] or [`ExecOutput::Lost`] is the last.
    pub output: mpsc::Receiver<ExecOutput>,
}

/// Why a process was not started.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRefused {
    /// Why.
    pub error: ControlError,
    /// What a shell exits with when a command is missing or cannot be executed; else nothing.
    pub exit_code: Option<i32>,
}

impl From<ControlError> for ExecRefused {
    fn from(error: ControlError) -> Self {
        Self { error, exit_code: None }
    }
}

/// The part of a node that runs processes inside its containers.
#[async_trait]
pub trait NodeExec {
    /// Starts a process in an instance of this node.
    async fn exec(&self, instance: InstanceId, order: ExecOrder) -> Result<ExecSession, ExecRefused>;
}
