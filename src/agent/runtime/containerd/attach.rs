//! Attaching to a container's own process: its logger passes on what it writes, its pipe takes what is typed.

use std::{io, sync::Arc};

use async_trait::async_trait;
use containerd_client::types::v1::Status;
use toft_model::{
    exec::{AttachOrder, TerminalSize},
    ids::InstanceId,
};
use tokio::{io::AsyncReadExt, net::UnixStream};
use tokio_util::sync::CancellationToken;

use super::{
    ContainerdRuntime,
    exec::Handle,
    stdio::{self, Stdio},
    tasks,
};
use crate::agent::runtime::{
    RuntimeError,
    attach::{AttachRuntime, Attachment, Output, Written},
    exec::ProcessHandle,
};

const ATTACHING: &str = "attaching to a container";
/// Kinds of frames, as the logger sends them, and the most bytes of one.
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const END: u8 = 3;
const MOST_BYTES: u32 = 1 << 20;

#[async_trait]
impl AttachRuntime for ContainerdRuntime {
    async fn attach(&self, id: InstanceId, order: &AttachOrder) -> Result<Attachment, RuntimeError> {
        let shared = &self.shared;
        let kind = match stdio::kind(shared, id).await {
            Ok(kind) => kind.ok_or(RuntimeError::NotInteractive { id })?,
            // It may be about to be created.
            Err(RuntimeError::NotFound { .. }) => return Err(RuntimeError::NotRunning { id }),
            Err(error) => return Err(error),
        };
        match tasks::get(shared, id).await?.map(|task| task.status()) {
            Some(Status::Created | Status::Running | Status::Paused | Status::Pausing) => {}
            Some(Status::Stopped | Status::Unknown) | None => return Err(RuntimeError::NotRunning { id }),
        }
        let failed = |error: io::Error| RuntimeError::Failed { doing: ATTACHING, reason: error.to_string() };
        let pipes = Stdio::of(&shared.config.attach, id);
        let output = pipes.listen(if order.lossless { b'O' } else { b'o' }).await.map_err(failed)?;
        let ended = shared.inputs().entry(id).or_default().clone();
        let input = match kind.stdin && order.stdin && !ended.is_cancelled() {
            true => pipes.open_input().await.map_err(failed)?,
            false => None,
        };
        let handle = Handle { shared: Arc::clone(shared), id, exec_id: String::new() };
        if let Some(size) = order.terminal.filter(|_| kind.tty) {
            handle.resize(size).await?;
        }
        Ok(Attachment {
            input: input.map(|input| Box::new(input) as _),
            input_ended: ended.clone(),
            output: Box::new(Tap(output)),
            process: Arc::new(Own { handle, ended }),
            terminal: kind.tty,
            foreground: kind.foreground,
        })
    }
}

/// A connection to the logger.
struct Tap(UnixStream);

#[async_trait]
impl Output for Tap {
    async fn next(&mut self) -> io::Result<Option<Written>> {
        let kind = match self.0.read_u8().await {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = self.0.read_u32().await?;
        if length > MOST_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the logger sent a frame that is too long"));
        }
        let mut bytes = vec![0; length as usize];
        match self.0.read_exact(&mut bytes).await {
            Ok(_) => {}
            // Cut off in the middle.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        match kind {
            STDOUT => Ok(Some(Written::Stdout(bytes))),
            STDERR => Ok(Some(Written::Stderr(bytes))),
            END => Ok(Some(Written::End)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the logger sent a frame of an unknown kind")),
        }
    }
}

/// The container's own process.
struct Own {
    handle: Handle,
    ended: CancellationToken,
}

#[async_trait]
impl ProcessHandle for Own {
    async fn resize(&self, size: TerminalSize) -> Result<(), RuntimeError> {
        self.handle.resize(size).await
    }

    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        self.handle.signal(signal).await
    }

    async fn close_input(&self) -> Result<(), RuntimeError> {
        // The shim's end is not the last one while others hold theirs.
        self.ended.cancel();
        self.handle.close_input().await
    }

    async fn wait(&self) -> Result<i32, RuntimeError> {
        self.handle.wait().await
    }
}
