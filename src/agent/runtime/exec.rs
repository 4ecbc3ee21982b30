//! Processes that are run inside a container beside its own.

use std::sync::Arc;

use async_trait::async_trait;
use toft_model::{
    exec::{ExecOrder, TerminalSize},
    ids::InstanceId,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::RuntimeError;

/// A process that was started, and its streams.
pub struct Exec {
    /// Its standard input, or the keyboard of its terminal, if the order asked for it.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its standard output, or what its terminal shows. It ends when no process holds it any more.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error; none with a terminal.
    pub errors: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// The process. Whoever has it calls [`ExecProcess::remove`] at the end, whatever happened.
    pub process: Arc<dyn ExecProcess>,
}

/// What can be done with a process while it runs.
#[async_trait]
pub trait ProcessHandle: Send + Sync {
    /// Gives its terminal another size.
    async fn resize(&self, size: TerminalSize) -> Result<(), RuntimeError>;

    /// Sends it a signal, by number. One that has ended is no error.
    async fn signal(&self, signal: i32) -> Result<(), RuntimeError>;

    /// Lets it read the end of its input; to be called when [`Exec::input`] is closed.
    async fn close_input(&self) -> Result<(), RuntimeError>;

    /// Waits for its end and gives its exit code: 128 and the signal's number if a signal ended it.
    async fn wait(&self) -> Result<i32, RuntimeError>;
}

/// A process beside a container's own.
#[async_trait]
pub trait ExecProcess: ProcessHandle {
    /// Kills it with everything it started, unless it has ended by itself, and removes every trace of it.
    async fn remove(&self);
}

/// The part of a runtime that runs processes inside containers.
#[async_trait]
pub trait ExecRuntime {
    /// Starts a process in a container that runs. `order` is valid. Refusals: [`RuntimeError::NotRunning`];
    /// [`RuntimeError::StartFailed`] for a command, user or directory that is not in the container.
    async fn exec(&self, id: InstanceId, order: &ExecOrder) -> Result<Exec, RuntimeError>;
}
