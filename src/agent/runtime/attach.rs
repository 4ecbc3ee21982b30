//! The input, output and terminal of a container's own process, for those who attach to it.

use std::{io, sync::Arc};

use async_trait::async_trait;
use toft_model::{exec::AttachOrder, ids::InstanceId};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use super::{RuntimeError, exec::ProcessHandle};

/// What a container wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// To its standard output or its terminal.
    Stdout(Vec<u8>),
    /// To its standard error.
    Stderr(Vec<u8>),
    /// Nothing will follow: both streams are at their end.
    End,
}

/// What a container writes from the moment somebody attached.
#[async_trait]
pub trait Output: Send {
    /// The next, [`Written::End`] at last. `None` when it was cut off: the reader was too slow, or the logger died.
    async fn next(&mut self) -> io::Result<Option<Written>>;
}

/// A process that somebody is attached to. Dropping it is leaving.
pub struct Attachment {
    /// Its standard input, or the keyboard of its terminal. None without, or when it was ended. Dropping it does not end it.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Cancelled when somebody has ended the input: what is held of it must be dropped.
    pub input_ended: CancellationToken,
    /// What it writes.
    pub output: Box<dyn Output>,
    /// The process.
    pub process: Arc<dyn ProcessHandle>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether its input ends with those who send it.
    pub foreground: bool,
}

/// The part of a runtime that lets people attach to containers.
#[async_trait]
pub trait AttachRuntime {
    /// Attaches to a container whose process is prepared or runs; any number may. Refusals:
    /// [`RuntimeError::NotInteractive`], [`RuntimeError::NotRunning`].
    async fn attach(&self, id: InstanceId, order: &AttachOrder) -> Result<Attachment, RuntimeError>;
}
