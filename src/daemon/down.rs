//! Ends an appliance whole: daemon, containers, network, private containerd. State and data stay.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use futures_util::{StreamExt, stream};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use toft_model::ids::InstanceId;
use tokio_util::sync::CancellationToken;

use super::{Hinted, directories::Directories, mesh, runtime, tasks::Tasks};
use crate::{
    agent::{
        network::{
            Network,
            kernel::{KernelNetwork, KernelNetworkConfig},
        },
        runtime::{Availability, Runtime, RuntimeError, RuntimeEvent, TaskState},
        secrets::SecretFiles,
        volumes::Volumes,
    },
    config::Config,
    observe::chain,
};

/// Longest wait for the daemon to end.
const DAEMON_END: Duration = Duration::from_secs(30);
/// Longest wait for containerd to answer.
const RUNTIME_START: Duration = Duration::from_secs(15);
/// Time containers have between the stop signal and the kill.
const GRACE: Duration = Duration::from_secs(10);
/// Longest wait for a killed process to be seen as ended.
const AFTER_KILL: Duration = Duration::from_secs(5);
/// Containers ended at once.
const AT_ONCE: usize = 8;

/// What becomes of the containers.
pub(super) enum Fate {
    /// They go, with their files.
    Removed,
    /// Their processes end, each in its own time or else in the usual; containers and files stay.
    Stopped(HashMap<InstanceId, Duration>),
}

/// Ends it and gives the number of containers ended.
pub async fn down(config: Config) -> anyhow::Result<usize> {
    end_daemon(&config).await?;
    if !config.paths.data.exists() {
        return Ok(0);
    }
    let directories = Directories::prepare(&config.paths)?;
    let ended = end_containers(&config, &directories, Fate::Removed).await;
    let names = directories.network_names();
    let network = KernelNetwork::new(KernelNetworkConfig {
        bridge: names.bridge,
        table: names.table,
        mesh: mesh::interface(&config, &directories),
    });
    let removed = network.remove_all().await;
    let mesh = toft_mesh::remove_interface(&mesh::interface(&config, &directories)).await;
    directories.remove_traces();
    let ended = ended?;
    Volumes::unmount_all(&directories.volumes(), &directories.mounts()).context("unmounting volumes")?;
    SecretFiles::remove_all(&directories.secrets()).context("removing secrets from memory")?;
    remove_cgroup(Path::new("/sys/fs/cgroup"), &directories.cgroup_parent());
    removed.context("removing the container network")?;
    mesh.context("removing the mesh interface")?;
    Ok(ended)
}

async fn end_daemon(config: &Config) -> anyhow::Result<()> {
    let Some(pid) = running(&config.paths.run.join("toft.pid")) else { return Ok(()) };
    kill(pid, Signal::SIGTERM).context("asking the daemon to end")?;
    let deadline = tokio::time::Instant::now() + DAEMON_END;
    let mut look = tokio::time::interval(Duration::from_millis(50));
    while lives(pid) {
        if tokio::time::Instant::now() > deadline {
            let error =
                anyhow::anyhow!("the daemon (process {pid}) did not end within {} seconds", DAEMON_END.as_secs());
            return Err(Hinted {
                hint: format!("look at its log, or end it with `kill -9 {pid}`"),
                source: error.into(),
            }
            .into());
        }
        look.tick().await;
    }
    Ok(())
}

/// Whether a process still does anything. One that ended stays in the table until its parent takes note, which may be
/// never.
fn lives(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the name, which stands in parentheses and may hold any.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X' | 'x'))
}

/// The process of a pid file, if it is a toft.
pub(super) fn running(pid_file: &Path) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = command.split(|byte| *byte == 0);
    let program = words.next()?;
    (program.ends_with(b"toft") && words.next() == Some(b"up")).then(|| Pid::from_raw(pid))
}

/// Removes the control group that held the containers' own, from version 2 or from every hierarchy of version 1.
fn remove_cgroup(mounts: &Path, name: &str) {
    let mut hierarchies = vec![mounts.to_owned()];
    if !mounts.join("cgroup.controllers").exists() {
        let entries = fs::read_dir(mounts).into_iter().flatten().flatten();
        hierarchies.extend(entries.map(|entry| entry.path()));
    }
    for group in hierarchies.iter().map(|hierarchy: &PathBuf| hierarchy.join(name)) {
        match fs::remove_dir(&group) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                tracing::warn!(%error, "`{}` could not be removed", group.display());
            }
            _ => {}
        }
    }
}

/// Ends all containers and gives their number.
pub(super) async fn end_containers(config: &Config, directories: &Directories, fate: Fate) -> anyhow::Result<usize> {
    let found = match runtime::find(config, directories).await {
        Ok(found) => found,
        // Without any containerd there is nothing of ours in it.
        Err(error) => {
            tracing::warn!(error = chain(error.as_ref()), "no container could be looked for");
            return Ok(0);
        }
    };
    let cancel = CancellationToken::new();
    let mut tasks = Tasks::default();
    let (containerd, watching) = runtime::connect(&found, cancel.clone())?;
    tasks.spawn("containerd connection", watching);
    if let Some(supervisor) = found.supervisor.clone() {
        let stop = cancel.clone();
        tasks.spawn("containerd supervisor", async move { supervisor.run(stop).await });
    }
    let mut availability = containerd.availability();
    let up = availability.wait_for(|now| matches!(now, Availability::Up(_)));
    tokio::time::timeout(RUNTIME_START, up)
        .await
        .context("containerd did not answer")?
        .context("containerd is gone")?;
    let containers = containerd.containers().await.context("listing the containers")?;
    let count = containers.len();
    let ends = stream::iter(containers).map(|container| end(&*containerd, container.id, container.task, &fate));
    // A machine that shuts down has no time to wait for one after the other.
    let at_once = if matches!(fate, Fate::Removed) { AT_ONCE } else { count.max(1) };
    let outcomes: Vec<Result<(), RuntimeError>> = ends.buffer_unordered(at_once).collect().await;
    cancel.cancel();
    tasks.join(Duration::from_secs(5)).await;
    if let Some(supervisor) = found.supervisor {
        supervisor.shut_down().await;
    }
    outcomes.into_iter().collect::<Result<(), _>>().context("ending the containers")?;
    Ok(count)
}

async fn end(runtime: &impl Runtime, id: InstanceId, task: TaskState, fate: &Fate) -> Result<(), RuntimeError> {
    let grace = match fate {
        Fate::Removed => GRACE,
        Fate::Stopped(own) => own.get(&id).copied().unwrap_or(GRACE),
    };
    let mut events = runtime.events();
    if matches!(task, TaskState::Running { .. }) {
        let polite = runtime.stop_signal(id).await.unwrap_or(nix::libc::SIGTERM);
        for (signal, patience) in [(polite, grace), (nix::libc::SIGKILL, AFTER_KILL)] {
            runtime.signal_task(id, signal).await?;
            let ended = async {
                while let Ok(event) = events.recv().await {
                    if matches!(event, RuntimeEvent::TaskEnded { id: other, .. } if other == id) {
                        break;
                    }
                }
            };
            if tokio::time::timeout(patience, ended).await.is_ok() {
                break;
            }
        }
    }
    runtime.delete_task(id).await?;
    match fate {
        Fate::Removed => runtime.delete_container(id).await,
        Fate::Stopped(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_does_not_live_though_nobody_took_note() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        assert!(lives(pid));
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while lives(pid) {
            assert!(std::time::Instant::now() < deadline, "it ended and was not waited for");
            std::thread::yield_now();
        }
        assert!(kill(pid, None).is_ok(), "it is still in the table");
        child.wait().unwrap();
        assert!(!lives(pid));
    }

    #[test]
    fn an_empty_control_group_goes_and_one_in_use_stays() {
        let mounts = tempfile::tempdir().unwrap();
        for group in ["memory/toft", "pids/toft/container", "toft"] {
            fs::create_dir_all(mounts.path().join(group)).unwrap();
        }
        remove_cgroup(mounts.path(), "toft");
        let left: Vec<_> =
            ["memory/toft", "pids/toft", "toft"].into_iter().filter(|path| mounts.path().join(path).exists()).collect();
        assert_eq!(left, ["pids/toft"]);
        fs::write(mounts.path().join("cgroup.controllers"), "").unwrap();
        fs::create_dir(mounts.path().join("toft")).unwrap();
        remove_cgroup(mounts.path(), "toft");
        assert!(!mounts.path().join("toft").exists());
    }
}
