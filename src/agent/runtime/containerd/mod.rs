//! The real runtime: containerd, 1.6 or newer, over its socket. Works in a namespace of its own and never touches
//! others. Uses only services that every version has: content, snapshots, diff, leases, images, containers, tasks,
//! events.
//!
//! [`ContainerdRuntime::start`] returns at once with the handle and a future that keeps watch over the connection for
//! as long as it is polled; calls made while containerd is away fail with [`RuntimeError::Unavailable`].

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use toft_model::{ids::InstanceId, image::ImageRef, instance::Exit, usage::Room};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{
    ArchiveReader, Availability, Container, ContainerSpec, Image, LoggerCommand, RanInside, Runtime, RuntimeError,
    RuntimeEvent,
};
use crate::agent::{
    gpu::cdi::Edits,
    image::{PullError, PullReporter, Repository},
};

mod attach;
mod client;
mod connection;
mod containers;
mod content;
mod errors;
mod events;
mod exec;
mod giving;
mod images;
mod import;
mod inside;
pub(crate) mod isolation;
mod layer;
mod media;
mod oom;
mod pull;
mod resolve;
mod root;
mod shims;
mod signals;
mod spec;
mod stdio;
mod tasks;
mod unpack;
mod usage;
mod users;

use self::{client::Mounts, connection::Session};

/// Whether containerd answers on `socket` within `limit`.
pub(crate) async fn answers(socket: &Path, limit: Duration) -> bool {
    let Ok(client) = client::Client::new(socket, "toft") else { return false };
    client::call("asking containerd for its version", limit, client.version().version(client.request(()))).await.is_ok()
}

/// Events kept for a slow listener.
const EVENTS_KEPT: usize = 1024;

/// Where containerd is and how it is used.
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    /// Its socket.
    pub address: PathBuf,
    /// Namespace of this appliance's images and containers.
    pub namespace: String,
    /// Control group under which every container has its own, without slashes at the ends.
    pub cgroup_parent: String,
    /// Directory for the pipes of processes run inside containers; nobody else may use it.
    pub execs: PathBuf,
    /// Directory for the pipes of containers with input or a terminal; nobody else may use it, and it stays where it is as
    /// long as there are such containers.
    pub attach: PathBuf,
}

impl ContainerdConfig {
    /// The usual names, at `address`.
    pub fn at(address: impl Into<PathBuf>) -> Self {
        Self {
            address: address.into(),
            namespace: "toft".to_owned(),
            cgroup_parent: "toft".to_owned(),
            execs: "/run/toft/execs".into(),
            attach: "/run/toft/attach".into(),
        }
    }
}

/// What the handle and the watching task have in common.
#[derive(Debug)]
struct Shared {
    config: ContainerdConfig,
    client: client::Client,
    host: spec::Host,
    session: watch::Sender<Option<Arc<Session>>>,
    availability: watch::Sender<Availability>,
    events: broadcast::Sender<RuntimeEvent>,
    resolved: resolve::ResolvedImages,
    pulls: pull::PullState,
    identities: users::Identities,
    mounts: Mutex<HashMap<InstanceId, Mounts>>,
    /// Containers that ran out of memory since their process was prepared.
    starved: Mutex<HashSet<InstanceId>>,
    uses: root::Uses,
    /// What containers have of their own, as far as known.
    kinds: Mutex<HashMap<InstanceId, Option<stdio::Kind>>>,
    /// Cancelled when the input of a container's process was ended.
    inputs: Mutex<HashMap<InstanceId, CancellationToken>>,
}

/// Our own notes among a container's labels.
const OWN_LABELS: &str = "toft.runtime/";

impl Shared {
    fn session(&self) -> Result<Arc<Session>, RuntimeError> {
        connection::session(&self.session, &self.availability)
    }

    fn starved(&self) -> MutexGuard<'_, HashSet<InstanceId>> {
        self.starved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kinds(&self) -> MutexGuard<'_, HashMap<InstanceId, Option<stdio::Kind>>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inputs(&self) -> MutexGuard<'_, HashMap<InstanceId, CancellationToken>> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mounts(&self) -> MutexGuard<'_, HashMap<InstanceId, Mounts>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// containerd as a [`Runtime`].
#[derive(Debug, Clone)]
pub struct ContainerdRuntime {
    shared: Arc<Shared>,
}

impl ContainerdRuntime {
    /// Makes the handle, and the future that must be polled for it to connect and to tell events. The future ends when
    /// `stop` is cancelled; tasks and containers go on.
    pub fn start(
        config: ContainerdConfig,
        stop: CancellationToken,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + 'static), RuntimeError> {
        let client = client::Client::new(&config.address, &config.namespace)?;
        let shared = Arc::new(Shared {
            availability: watch::Sender::new(Availability::Down(format!("connecting to {}", config.address.display()))),
            config,
            client,
            host: spec::Host::detect(),
            session: watch::Sender::new(None),
            events: broadcast::Sender::new(EVENTS_KEPT),
            resolved: Default::default(),
            pulls: Default::default(),
            identities: Default::default(),
            mounts: Default::default(),
            starved: Default::default(),
            uses: Default::default(),
            kinds: Default::default(),
            inputs: Default::default(),
        });
        let left = exec::left_behind(&shared.config.execs);
        let (connected, tidied) =
            (connection::run(shared.clone(), stop.clone()), exec::tidy(shared.clone(), left, stop));
        let watching = async move {
            tokio::join!(connected, tidied);
        };
        Ok((Arc::new(Self { shared }), watching))
    }
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    fn availability(&self) -> watch::Receiver<Availability> {
        self.shared.availability.subscribe()
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.shared.events.subscribe()
    }

    async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        containers::list(&self.shared).await
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        containers::create(&self.shared, spec).await
    }

    async fn edit_container(&self, id: InstanceId, edits: &Edits) -> Result<(), RuntimeError> {
        containers::edit(&self.shared, id, edits).await
    }

    async fn create_task(&self, id: InstanceId, logger: &LoggerCommand) -> Result<u32, RuntimeError> {
        tasks::create(&self.shared, id, logger).await
    }

    async fn start_task(&self, id: InstanceId) -> Result<(), RuntimeError> {
        tasks::start(&self.shared, id).await
    }

    async fn signal_task(&self, id: InstanceId, signal: i32) -> Result<(), RuntimeError> {
        tasks::signal(&self.shared, id, signal).await
    }

    async fn stop_signal(&self, id: InstanceId) -> Result<i32, RuntimeError> {
        containers::stop_signal(&self.shared, id).await
    }

    async fn delete_task(&self, id: InstanceId) -> Result<Option<Exit>, RuntimeError> {
        tasks::delete(&self.shared, id).await
    }

    async fn delete_container(&self, id: InstanceId) -> Result<(), RuntimeError> {
        containers::delete(&self.shared, id).await
    }

    async fn run_inside(&self, id: InstanceId, command: &[String], limit: Duration) -> Result<RanInside, RuntimeError> {
        inside::run(&self.shared, id, command, limit).await
    }

    async fn import_image(&self, archive: ArchiveReader, name: Option<&ImageRef>) -> Result<Vec<Image>, RuntimeError> {
        import::run(&self.shared, archive, name).await
    }

    async fn pull_image(&self, repository: &Repository, reporter: &PullReporter) -> Result<Image, PullError> {
        pull::run(&self.shared, repository, reporter).await
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        images::list(&self.shared).await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<bool, RuntimeError> {
        images::remove(&self.shared, image).await
    }

    async fn room(&self) -> Result<Room, RuntimeError> {
        images::room(&self.shared)
    }
}
