//! Processes run inside containers: containerd adds a process to a task, and its shim passes the streams through named
//! pipes. A process outlives the daemon as its container does, so each has a directory with its pipes that names it, and
//! what a daemon that was killed left behind is ended by the next one.

mod handle;
mod pipes;
mod process;

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use containerd_client::{
    services::v1::{DeleteProcessRequest, ExecProcessRequest, GetRequest, StartRequest},
    types::v1::Status,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prost_types::Any;
use toft_model::{
    exec::{ExecOrder, TerminalSize},
    ids::InstanceId,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(super) use self::handle::Handle;
use self::pipes::Pipes;
use super::{
    ContainerdRuntime, Shared,
    client::{QUICK, SLOW, call},
    containers,
    errors::Refusal,
    shims, signals, tasks,
};
use crate::agent::runtime::{
    Availability, RuntimeError,
    exec::{Exec, ExecProcess, ExecRuntime, ProcessHandle},
};

const STARTING: &str = "starting a process in a container";
const WAITING: &str = "waiting for a process in a container";
const REMOVING: &str = "removing a process from a container";
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// How long containerd may be away before a process counts as lost, and the wait between two tries.
const AWAY: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// A process inside a container.
struct Inside {
    handle: Handle,
    pipes: Pipes,
}

#[async_trait]
impl ExecRuntime for ContainerdRuntime {
    async fn exec(&self, id: InstanceId, order: &ExecOrder) -> Result<Exec, RuntimeError> {
        let shared = &self.shared;
        let task = tasks::get(shared, id).await?;
        let pid = task.filter(|task| task.status() == Status::Running).ok_or(RuntimeError::NotRunning { id })?.pid;
        let record = containers::get(shared, &id.to_string()).await?.ok_or(RuntimeError::NotFound { id })?;
        let spec = process::build(record.spec.map(|spec| spec.value).unwrap_or_default(), order, pid).await?;
        let exec_id = Uuid::new_v4().simple().to_string();
        let made = Pipes::make(&shared.config.execs, id, &exec_id, order);
        let pipes = made.map_err(|error| failed(STARTING, format!("its pipes could not be made: {error}")))?;
        let opened = pipes.open_outputs().map_err(|error| failed(STARTING, error.to_string()))?;
        let client = &shared.client;
        let request = client.request(ExecProcessRequest {
            container_id: id.to_string(),
            stdin: pipes.input_path(),
            stdout: pipes.output_path(),
            stderr: pipes.errors_path(),
            terminal: order.terminal.is_some(),
            spec: Some(Any { type_url: PROCESS_TYPE.to_owned(), value: spec }),
            exec_id: exec_id.clone(),
        });
        // From here on it is removed whatever happens.
        let process = Arc::new(Inside { handle: Handle { shared: Arc::clone(shared), id, exec_id }, pipes });
        let started = async {
            call(STARTING, SLOW, client.tasks().exec(request)).await.map_err(|refusal| process.handle.told(refusal))?;
            let start =
                client.request(StartRequest { container_id: id.to_string(), exec_id: process.handle.exec_id.clone() });
            call(STARTING, SLOW, client.tasks().start(start)).await.map_err(|refusal| process.handle.told(refusal))?;
            if let Some(size) = order.terminal {
                process.resize(size).await?;
            }
            let unusable = |error: std::io::Error| failed(STARTING, format!("its pipes cannot be used: {error}"));
            let input = process.pipes.open_input().await.map_err(unusable)?;
            Ok::<_, RuntimeError>((input, opened.settle(&process.pipes).map_err(unusable)?))
        };
        match started.await {
            Ok((input, (output, errors))) => Ok(Exec {
                input: input.map(|input| Box::new(input) as _),
                output: Box::new(output),
                errors: errors.map(|errors| Box::new(errors) as _),
                process,
            }),
            Err(error) => {
                process.remove().await;
                // A container that ends just now fails in many ways.
                let runs = tasks::get(shared, id).await?.is_some_and(|task| task.status() == Status::Running);
                Err(if runs { error } else { RuntimeError::NotRunning { id } })
            }
        }
    }
}

impl Inside {
    /// Its pid on the host while it runs.
    async fn pid(&self) -> Result<Option<u32>, Refusal> {
        let client = &self.handle.shared.client;
        let ask = || {
            let message = GetRequest { container_id: self.handle.id.to_string(), exec_id: self.handle.exec_id.clone() };
            let request = client.request(message);
            async move { call("looking at a process in a container", QUICK, client.tasks().get(request)).await }
        };
        match self.handle.insist(ask).await {
            Ok(answer) => Ok(answer.process.filter(|found| found.status() != Status::Stopped).map(|found| found.pid)),
            Err(refusal) if refusal.not_found() => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Kills it and what it started, and waits for its end.
    async fn kill(&self, pid: u32) {
        let pid = i32::try_from(pid).unwrap_or(0);
        // Looked up before: once it has ended, nobody can tell any more whose children they were.
        let started = if pid > 0 { shims::descendants(pid) } else { Vec::new() };
        if let Err(error) = self.signal(signals::KILL).await {
            tracing::warn!(instance.id = %self.handle.id, %error, "a process in a container could not be killed");
        }
        for pid in started.into_iter().filter(|pid| shims::is_contained(*pid)) {
            // One that has ended by now is no trouble.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = tokio::time::timeout(QUICK, self.wait()).await;
    }

    async fn delete(&self) -> Result<(), Refusal> {
        if let Some(pid) = self.pid().await? {
            self.kill(pid).await;
        }
        let client = &self.handle.shared.client;
        let ask = || {
            let message =
                DeleteProcessRequest { container_id: self.handle.id.to_string(), exec_id: self.handle.exec_id.clone() };
            let request = client.request(message);
            async move { call(REMOVING, SLOW, client.tasks().delete_process(request)).await }
        };
        match self.handle.insist(ask).await {
            Err(refusal) if !refusal.not_found() => Err(refusal),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl ProcessHandle for Inside {
    async fn resize(&self, size: TerminalSize) -> Result<(), RuntimeError> {
        self.handle.resize(size).await
    }

    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        self.handle.signal(signal).await
    }

    async fn close_input(&self) -> Result<(), RuntimeError> {
        self.handle.close_input().await
    }

    async fn wait(&self) -> Result<i32, RuntimeError> {
        self.handle.wait().await
    }
}

#[async_trait]
impl ExecProcess for Inside {
    async fn remove(&self) {
        match self.delete().await {
            Ok(()) => self.pipes.remove(),
            // Its directory stays, by which the next daemon finds it.
            Err(refusal) => {
                let error = RuntimeError::from(refusal);
                tracing::warn!(instance.id = %self.handle.id, %error, "a process in a container could not be removed");
            }
        }
    }
}

/// What an earlier daemon left behind: container and process each. To be asked before the first process is started.
pub(super) fn left_behind(dir: &Path) -> Vec<(InstanceId, String)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let (id, exec_id) = name.split_once('.')?;
        Some((id.parse().ok()?, exec_id.to_owned()))
    };
    entries.filter_map(read).collect()
}

/// Ends what was left behind, as soon as containerd answers.
pub(super) async fn tidy(shared: Arc<Shared>, left: Vec<(InstanceId, String)>, stop: CancellationToken) {
    let mut availability = shared.availability.subscribe();
    let work = async {
        if left.is_empty() || availability.wait_for(|now| matches!(now, Availability::Up(_))).await.is_err() {
            return;
        }
        for (id, exec_id) in left {
            tracing::info!(instance.id = %id, "ending a process in a container that an earlier daemon left behind");
            let pipes = Pipes::of(&shared.config.execs, id, &exec_id);
            let handle = Handle { shared: Arc::clone(&shared), id, exec_id };
            Inside { handle, pipes }.remove().await;
        }
    };
    stop.run_until_cancelled(work).await;
}

fn failed(doing: &'static str, reason: String) -> RuntimeError {
    RuntimeError::Failed { doing, reason }
}
