//! A command in a container that runs, for its exit code and the first words it says.

use std::{path::PathBuf, time::Duration};

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use prost_types::Any;
use serde_json::Value;
use toft_model::ids::InstanceId;
use tokio::{io::AsyncReadExt, net::unix::pipe};
use uuid::Uuid;

use super::{
    Shared,
    client::{QUICK, SLOW, call},
    containers, signals,
};
use crate::agent::runtime::{RanInside, RuntimeError};

const RUNNING: &str = "running a command in the container";
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Output that is kept; the rest is read and forgotten, so that the command never waits for a reader.
const MOST_OUTPUT: usize = 4096;

/// A folder that goes when nobody needs it any more.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: what is left in the folder of temporary files is small and nobody's.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `command` as the container's own process would, at most for `limit`, then kills it.
pub(super) async fn run(
    shared: &Shared,
    id: InstanceId,
    command: &[String],
    limit: Duration,
) -> Result<RanInside, RuntimeError> {
    let spec = containers::spec(shared, id).await?.ok_or(RuntimeError::NotFound { id })?;
    let process = process(&spec, command)?;
    let exec_id = format!("check-{}", Uuid::new_v4().simple());
    let folder = Folder(std::env::temp_dir().join(format!("toft-{exec_id}")));
    let (fifo, mut output) = open_output(&folder).map_err(|error| failed(error.to_string()))?;
    let client = &shared.client;
    let container_id = id.to_string();
    let request = client.request(ExecProcessRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        stdout: fifo.clone(),
        stderr: fifo,
        spec: Some(Any { type_url: PROCESS_TYPE.to_owned(), value: process }),
        ..Default::default()
    });
    call(RUNNING, SLOW, client.tasks().exec(request)).await?;
    let ran = async {
        let request = client.request(StartRequest { container_id: container_id.clone(), exec_id: exec_id.clone() });
        if let Err(refusal) = call(RUNNING, SLOW, client.tasks().start(request)).await {
            return Err(refusal.as_start_failure().unwrap_or_else(|| refusal.into()));
        }
        let request = client.request(WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() });
        let mut tasks = client.tasks();
        let wait = call(RUNNING, limit, tasks.wait(request));
        let mut kept = Vec::new();
        let exit = tokio::select! {
            exit = wait => exit,
            () = read(&mut output, &mut kept) => return Err(failed("its output broke off".to_owned())),
        };
        drain(&mut output, &mut kept);
        let exit_code = i32::try_from(exit?.exit_status).unwrap_or(i32::MAX);
        Ok(RanInside { exit_code, output: String::from_utf8_lossy(&kept).into_owned() })
    };
    let ran = ran.await;
    if ran.is_err() {
        let request = client.request(KillRequest {
            container_id: container_id.clone(),
            exec_id: exec_id.clone(),
            signal: signals::KILL as u32,
            all: false,
        });
        // It may have ended, or never begun.
        if call(RUNNING, QUICK, client.tasks().kill(request)).await.is_ok() {
            let request = client.request(WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() });
            let _ = call(RUNNING, QUICK, client.tasks().wait(request)).await;
        }
    }
    let request = client.request(DeleteProcessRequest { container_id, exec_id });
    match call(RUNNING, QUICK, client.tasks().delete_process(request)).await {
        Err(refusal) if !refusal.not_found() => {
            tracing::debug!(instance.id = %id, "a command's end was not cleared away")
        }
        _ => {}
    }
    ran
}

/// The container's process with another command.
fn process(spec: &[u8], command: &[String]) -> Result<Vec<u8>, RuntimeError> {
    let mut spec: Value = serde_json::from_slice(spec).map_err(|error| failed(error.to_string()))?;
    let mut process = spec["process"].take();
    process["args"] = command.into();
    process["terminal"] = false.into();
    serde_json::to_vec(&process).map_err(|error| failed(error.to_string()))
}

fn open_output(folder: &Folder) -> std::io::Result<(String, pipe::Receiver)> {
    std::fs::create_dir(&folder.0)?;
    let path = folder.0.join("output");
    mkfifo(&path, Mode::from_bits_truncate(0o600))?;
    // Open for writing, too: the end of one writer is not the end of the output.
    let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path)?;
    Ok((path.display().to_string(), receiver))
}

/// Reads on for ever; ends only when reading fails.
async fn read(output: &mut pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(count) = output.read(&mut buffer).await {
        keep(kept, &buffer[..count]);
    }
}

/// Takes what is there already.
fn drain(output: &mut pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.try_read(&mut buffer) {
        keep(kept, &buffer[..count]);
        if kept.len() >= MOST_OUTPUT {
            return;
        }
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(&bytes[..bytes.len().min(MOST_OUTPUT - kept.len())]);
}

fn failed(reason: String) -> RuntimeError {
    RuntimeError::Failed { doing: RUNNING, reason }
}
