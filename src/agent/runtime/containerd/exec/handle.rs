//! A process of a task: the container's own, or one beside it.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use containerd_client::services::v1::{CloseIoRequest, KillRequest, ResizePtyRequest, WaitRequest};
use toft_model::{exec::TerminalSize, ids::InstanceId};

use super::{AWAY, PAUSE, WAITING, failed};
use crate::agent::runtime::{
    RuntimeError,
    containerd::{
        Shared,
        client::{SLOW, call},
        errors::Refusal,
    },
    exec::ProcessHandle,
};

/// Where a process is found.
pub(in crate::agent::runtime::containerd) struct Handle {
    pub(in crate::agent::runtime::containerd) shared: Arc<Shared>,
    pub(in crate::agent::runtime::containerd) id: InstanceId,
    /// Its name within the task; empty for the container's own.
    pub(in crate::agent::runtime::containerd) exec_id: String,
}

impl Handle {
    pub(super) fn told(&self, refusal: Refusal) -> RuntimeError {
        if let Some(error) = refusal.as_start_failure() {
            return error;
        }
        let ended = refusal.not_found() || refusal.text().contains("stopped") || refusal.text().contains("not running");
        if ended { RuntimeError::NotRunning { id: self.id } } else { refusal.into() }
    }

    /// Asks again for as long as containerd is away, but not for ever.
    pub(super) async fn insist<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, Refusal>>,
    {
        let mut since = None;
        loop {
            match ask().await {
                Err(refusal) if refusal.unreached() => {
                    if since.get_or_insert_with(tokio::time::Instant::now).elapsed() > AWAY {
                        return Err(refusal);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }
}

#[async_trait]
impl ProcessHandle for Handle {
    async fn resize(&self, size: TerminalSize) -> Result<(), RuntimeError> {
        let client = &self.shared.client;
        let request = client.request(ResizePtyRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.clone(),
            width: size.columns.into(),
            height: size.rows.into(),
        });
        match call("giving a terminal its size", SLOW, client.tasks().resize_pty(request)).await {
            Ok(()) => Ok(()),
            // It may have ended already.
            Err(refusal) if !refusal.unreached() => Ok(()),
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        const SIGNALLING: &str = "signalling a process in a container";
        let client = &self.shared.client;
        let number = u32::try_from(signal).map_err(|_| failed(SIGNALLING, format!("{signal} is no signal")))?;
        let request = client.request(KillRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.clone(),
            signal: number,
            all: false,
        });
        match call(SIGNALLING, SLOW, client.tasks().kill(request)).await {
            Ok(()) => Ok(()),
            Err(refusal) if refusal.not_found() || refusal.text().contains("already finished") => Ok(()),
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn close_input(&self) -> Result<(), RuntimeError> {
        let client = &self.shared.client;
        let request = client.request(CloseIoRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.clone(),
            stdin: true,
        });
        match call("closing the input of a process", SLOW, client.tasks().close_io(request)).await {
            Err(refusal) if !refusal.not_found() => Err(refusal.into()),
            _ => Ok(()),
        }
    }

    async fn wait(&self) -> Result<i32, RuntimeError> {
        let client = &self.shared.client;
        let ask = || {
            let message = WaitRequest { container_id: self.id.to_string(), exec_id: self.exec_id.clone() };
            let request = client.request(message);
            // However long it runs: who waits gives up by dropping this.
            async move { client.tasks().wait(request).await.map_err(|status| Refusal::new(WAITING, &status)) }
        };
        let answer = self.insist(ask).await?.into_inner();
        i32::try_from(answer.exit_status).map_err(|_| failed(WAITING, "its exit code makes no sense".to_owned()))
    }
}
