//! The machine under a node: the real one, or one that is made up.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use toft_model::node::NodeFacts;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{addresses, directories::Directories, identity::Identity, mesh, runtime, tasks::Tasks};
use crate::{
    agent::{
        gpu::{
            GpuWatch, Offence, Places, Watcher,
            cdi::{Injector, MpsPlaces},
            kernel_log::KernelLog,
        },
        host::Host,
        network::{
            Network,
            kernel::{KernelNetwork, KernelNetworkConfig},
        },
        pulse::{KernelPulse, Pulse},
        runtime::{Runtime, supervisor::ContainerdSupervisor},
    },
    config::Config,
    consensus::Handle,
    embedded,
};

/// What a node stands on.
pub(super) struct Machine {
    /// Who the node is, with the network of its containers.
    pub(super) identity: Identity,
    /// What it is besides: cores, memory, kernel.
    pub(super) host: Host,
    pub(super) runtime: Arc<dyn Runtime>,
    /// Who sees to the runtime, when it is ours.
    pub(super) supervisor: Option<Arc<ContainerdSupervisor>>,
    pub(super) network: Arc<dyn Network>,
    /// Whether containers can ask the bridge's address for names.
    pub(super) answers_names: bool,
    /// The program that keeps what containers write.
    pub(super) logger: PathBuf,
    pub(super) watcher: Watcher,
    pub(super) gpus: GpuWatch,
    pub(super) offences: mpsc::Receiver<Offence>,
    /// Gives containers their GPUs.
    pub(super) injector: Injector,
    /// Tells what it does.
    pub(super) pulse: Box<dyn Pulse>,
    /// What it says of itself, if that is made up.
    pub(super) dress: Option<Dress>,
}

/// Changes what a node tells of its machine.
pub(super) type Dress = Arc<dyn Fn(&mut NodeFacts) + Send + Sync>;

impl Machine {
    /// This one, with its containerd, its kernel's network and its cards.
    pub(super) async fn real(
        config: &Config,
        (directories, tasks, cancel): (&Directories, &mut Tasks, &CancellationToken),
        state: &Handle,
    ) -> anyhow::Result<Self> {
        let logger = embedded::install_logger(&directories.programs()).context("writing the logger program")?;
        let found = runtime::find(config, directories).await?;
        let (containerd, watching) = runtime::connect(&found, cancel.clone())?;
        tasks.spawn("containerd connection", watching);
        let supervisor = found.supervisor;
        if let Some(supervisor) = supervisor.clone() {
            let stop = cancel.clone();
            tasks.spawn("containerd supervisor", async move { supervisor.run(stop).await });
        }
        let names = directories.network_names();
        let mesh = mesh::interface(config, directories);
        let kernel = KernelNetwork::new(KernelNetworkConfig { bridge: names.bridge, table: names.table, mesh });
        let used = addresses::used(&kernel).await;
        let identity = addresses::settle(config, directories, used, state).await?;
        let places = Places { nvml: config.gpu.nvml.clone(), ..Places::default() };
        let watcher = Watcher::new(places.drivers(), &places.proc, &directories.cgroup_parent());
        let (watcher, gpus, offences) = watcher.context("beginning to look at the GPUs")?;
        let watcher = watcher.with_kernel_log(KernelLog::open(&places.kernel_log));
        let mps = MpsPlaces { pipes: config.gpu.mps_pipe_dir.clone(), logs: config.gpu.mps_log_dir.clone() };
        let injector = Injector::new(config.gpu.cdi_dirs.clone(), gpus.clone()).with_mps(mps);
        Ok(Self {
            identity,
            host: Host::look(),
            runtime: containerd,
            supervisor,
            network: Arc::new(kernel),
            answers_names: true,
            logger,
            watcher,
            gpus,
            offences,
            injector,
            pulse: Box::new(KernelPulse::new(directories.data())),
            dress: None,
        })
    }
}
