//! Tasks: the process of a container, owned by a shim of its own that outlives both the daemon and containerd.

use std::fmt::Write as _;

use containerd_client::{
    services::v1::{CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, StartRequest, WaitRequest},
    types::v1::{Process, Status},
};
use toft_model::{ids::InstanceId, instance::Exit};

use super::{
    Shared,
    client::{QUICK, SLOW, call},
    containers,
    events::exit_of,
    oom, root,
    shims::{self, Which},
    signals,
    stdio::{self, Paths, Stdio},
};
use crate::agent::runtime::{LoggerCommand, RuntimeError};

const PREPARING: &str = "preparing the process";
const REMOVING: &str = "removing the process";

/// Prepares the process and gives its pid.
pub(super) async fn create(shared: &Shared, id: InstanceId, logger: &LoggerCommand) -> Result<u32, RuntimeError> {
    let _starting = root::Starting::begin(shared, id)?;
    let client = &shared.client;
    let rootfs = containers::mounts(shared, id).await?.ok_or(RuntimeError::NotFound { id })?;
    let kind = stdio::kind(shared, id).await?;
    let pipes = Stdio::of(&shared.config.attach, id);
    let paths = match kind {
        None => {
            let output = logger_uri(logger)?;
            Paths { stdin: String::new(), stdout: output.clone(), stderr: output }
        }
        // Those of a process that is there stay as they are.
        Some(_) if get(shared, id).await?.is_some() => return Err(RuntimeError::Exists { id }),
        Some(kind) => pipes.make(kind, logger).map_err(|error| RuntimeError::Failed {
            doing: PREPARING,
            reason: format!("its pipes could not be made: {error}"),
        })?,
    };
    shared.starved().remove(&id);
    shared.inputs().remove(&id);
    let request = client.request(CreateTaskRequest {
        container_id: id.to_string(),
        rootfs,
        terminal: kind.is_some_and(|kind| kind.tty),
        stdin: paths.stdin,
        stdout: paths.stdout,
        stderr: paths.stderr,
        ..Default::default()
    });
    let refusal = match call(PREPARING, SLOW, client.tasks().create(request)).await {
        Ok(answer) => return Ok(answer.pid),
        Err(refusal) if refusal.exists() => return Err(RuntimeError::Exists { id }),
        Err(refusal) => refusal,
    };
    if kind.is_some() {
        pipes.abandon();
    }
    match refusal.not_found() {
        true => Err(RuntimeError::NotFound { id }),
        false => Err(refusal.as_start_failure().unwrap_or_else(|| refusal.into())),
    }
}

/// Starts the prepared process.
pub(super) async fn start(shared: &Shared, id: InstanceId) -> Result<(), RuntimeError> {
    let client = &shared.client;
    let request = client.request(StartRequest { container_id: id.to_string(), exec_id: String::new() });
    match call("starting the process", SLOW, client.tasks().start(request)).await {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.not_found() => Err(RuntimeError::NotFound { id }),
        Err(refusal) => Err(refusal.as_start_failure().unwrap_or_else(|| refusal.into())),
    }
}

/// Sends a signal; SIGKILL goes to every process of the container.
pub(super) async fn signal(shared: &Shared, id: InstanceId, signal: i32) -> Result<(), RuntimeError> {
    const SIGNALLING: &str = "signalling the process";
    let client = &shared.client;
    let number = u32::try_from(signal)
        .map_err(|_| RuntimeError::Failed { doing: SIGNALLING, reason: format!("{signal} is no signal") })?;
    let request = client.request(KillRequest {
        container_id: id.to_string(),
        exec_id: String::new(),
        signal: number,
        all: signal == signals::KILL,
    });
    let Err(refusal) = call(SIGNALLING, SLOW, client.tasks().kill(request)).await else { return Ok(()) };
    match get(shared, id).await? {
        None => Err(RuntimeError::NotFound { id }),
        Some(process) if process.status() == Status::Stopped || refusal.not_found() => Ok(()),
        Some(_) => Err(refusal.into()),
    }
}

/// Removes an ended or merely prepared process. The shim answers after the logger has ended.
pub(super) async fn delete(shared: &Shared, id: InstanceId) -> Result<Option<Exit>, RuntimeError> {
    // A shim can outlive its process when a removal was cut short. containerd shows no process then, but keeps the name
    // until it is asked to delete it.
    let status = get(shared, id).await?.map(|process| process.status());
    match status {
        None | Some(Status::Stopped) => {}
        // A shim that hangs answers neither this nor its deletion. Once it has ended, containerd cleans up behind it.
        Some(Status::Unknown) => end_hung_shim(shared, id, Which::All).await,
        Some(Status::Created) => {
            signal(shared, id, signals::KILL).await?;
            if !wait(shared, id).await? {
                return Ok(None);
            }
        }
        Some(Status::Running | Status::Paused | Status::Pausing) => {
            return Err(RuntimeError::Failed { doing: REMOVING, reason: format!("the process of `{id}` still runs") });
        }
    }
    let out_of_memory = oom::killed(shared, id);
    let pipes = Stdio::of(&shared.config.attach, id);
    if status.is_some() {
        pipes.written(id).await;
    }
    let deleted = delete_ended(shared, id, status.is_some(), out_of_memory).await;
    if deleted.is_ok() {
        pipes.remove();
    }
    deleted
}

/// `known`: whether containerd shows the process.
async fn delete_ended(
    shared: &Shared,
    id: InstanceId,
    known: bool,
    out_of_memory: bool,
) -> Result<Option<Exit>, RuntimeError> {
    let client = &shared.client;
    let request = client.request(DeleteTaskRequest { container_id: id.to_string() });
    match call(REMOVING, SLOW, client.tasks().delete(request)).await {
        Ok(_) if !known => Ok(None),
        Ok(answer) => {
            let exit = exit_of(answer.exit_status, answer.exited_at);
            // A program that ends well has coped with the loss of a helper.
            Ok(Some(Exit { out_of_memory: out_of_memory && exit.code != Some(0), ..exit }))
        }
        Err(refusal) if refusal.not_found() => {
            // It may hang all the same, unknown to containerd; unless containerd is still about to clean up.
            if !known {
                end_hung_shim(shared, id, Which::GivenUp).await;
            }
            Ok(None)
        }
        // The shim died in between; containerd cleans up behind it.
        Err(refusal) => match get(shared, id).await? {
            None => Ok(None),
            Some(_) => Err(refusal.into()),
        },
    }
}

async fn end_hung_shim(shared: &Shared, id: InstanceId, which: Which) {
    let namespace = shared.config.namespace.clone();
    let ended = tokio::task::spawn_blocking(move || shims::end_idle(&namespace, id, which)).await;
    if ended.is_ok_and(|count| count > 0) {
        tracing::warn!(instance.id = %id, "a shim of containerd that hung was ended");
    }
}

pub(super) async fn get(shared: &Shared, id: InstanceId) -> Result<Option<Process>, RuntimeError> {
    let client = &shared.client;
    let request = client.request(GetRequest { container_id: id.to_string(), exec_id: String::new() });
    match call("looking at the process", QUICK, client.tasks().get(request)).await {
        Ok(answer) => Ok(answer.process),
        Err(refusal) if refusal.not_found() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Waits for the end of a killed process; `false` when it is gone altogether.
async fn wait(shared: &Shared, id: InstanceId) -> Result<bool, RuntimeError> {
    let client = &shared.client;
    let request = client.request(WaitRequest { container_id: id.to_string(), exec_id: String::new() });
    match call(REMOVING, SLOW, client.tasks().wait(request)).await {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.not_found() => Ok(false),
        Err(refusal) => Err(refusal.into()),
    }
}

/// The address under which the shim starts the logger: `binary:///path?key=value&...`.
fn logger_uri(logger: &LoggerCommand) -> Result<String, RuntimeError> {
    let refuse = || RuntimeError::Failed {
        doing: PREPARING,
        reason: format!("the logger's path `{}` is not absolute", logger.program.display()),
    };
    if !logger.program.is_absolute() {
        return Err(refuse());
    }
    let mut uri = "binary://".to_owned();
    escape(&mut uri, logger.program.to_str().ok_or_else(refuse)?, "/");
    for (i, (key, value)) in logger.args.iter().enumerate() {
        uri.push(if i == 0 { '?' } else { '&' });
        escape(&mut uri, key, "");
        uri.push('=');
        escape(&mut uri, value, "");
    }
    Ok(uri)
}

/// Appends `text`, everything but plain letters, digits and `keep` as `%XX`.
fn escape(uri: &mut String, text: &str, keep: &str) {
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte);
        if plain {
            uri.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loggers_arguments_are_escaped() {
        let logger = LoggerCommand {
            program: "/opt/my tools/logger".into(),
            args: vec![("dir".into(), "/var/lib/a&b".into()), ("max".into(), "1".into())],
        };
        assert_eq!(logger_uri(&logger).unwrap(), "binary:///opt/my%20tools/logger?dir=%2Fvar%2Flib%2Fa%26b&max=1");
        assert!(logger_uri(&LoggerCommand { program: "logger".into(), args: Vec::new() }).is_err());
    }
}
