//! Finds the containerd to use, or sees to one of our own.

use std::{path::PathBuf, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{Hinted, directories::Directories};
use crate::{
    agent::runtime::{
        containerd::{ContainerdConfig, ContainerdRuntime},
        supervisor::{ContainerdSupervisor, SupervisorError, USUAL_SOCKETS, find_binary, find_running},
    },
    config::Config,
};

/// The containerd to use.
pub(super) struct Found {
    config: ContainerdConfig,
    /// Who sees to it, when it is ours.
    pub(super) supervisor: Option<Arc<ContainerdSupervisor>>,
}

/// The configured one; for the machine's own appliance a running one; else a private one from the installed binary.
pub(super) async fn find(config: &Config, directories: &Directories) -> anyhow::Result<Found> {
    let usual: Vec<PathBuf> = USUAL_SOCKETS.iter().map(PathBuf::from).collect();
    let running = match &config.runtime.containerd {
        Some(address) => Some(address.clone()),
        // An appliance that started a private containerd keeps it: its containers are there.
        None if config.paths.private || directories.containerd().exists() => None,
        None => find_running(&usual).await,
    };
    let (address, supervisor) = match running {
        Some(address) => (address, None),
        None => {
            let binary = find_binary().ok_or(SupervisorError::NotInstalled).map_err(hinted)?;
            let supervisor = ContainerdSupervisor::new(&directories.containerd(), binary).map_err(hinted)?;
            (supervisor.address().to_owned(), Some(Arc::new(supervisor)))
        }
    };
    let mut containerd = ContainerdConfig::at(address);
    containerd.cgroup_parent = directories.cgroup_parent();
    containerd.execs = directories.execs();
    containerd.attach = directories.attach();
    Ok(Found { config: containerd, supervisor })
}

fn hinted(error: SupervisorError) -> Hinted {
    let hint = error.hint();
    Hinted::new(error, hint)
}

/// Connects to it; the future keeps the connection.
pub(super) fn connect(
    found: &Found,
    cancel: CancellationToken,
) -> anyhow::Result<(Arc<ContainerdRuntime>, impl Future<Output = ()> + Send + 'static)> {
    Ok(ContainerdRuntime::start(found.config.clone(), cancel)?)
}
