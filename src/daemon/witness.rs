//! A node that runs nothing: it has the state, votes and answers questions.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use toft_model::{
    exec::{AttachOrder, ExecOrder},
    files::{FileStat, FilesWritten},
    gpu::GpuFacts,
    ids::{InstanceId, NodeId},
    image::{ImageRef, NodeImage},
    log::LogQuery,
    mesh::view::{MeshSeen, PingRow},
    name::Name,
    node::NodeFacts,
    pull::PullProgress,
    series::{Series, Span, Subject},
    usage::{Process, Room, Usage},
    workload::PortSpec,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    addresses,
    directories::Directories,
    identity::Identity,
    membership::MeshDoor,
    mesh::{self, Me, Mesh, MeshEye},
    node::backup_settings,
};
use crate::{
    agent::network::kernel::{KernelNetwork, KernelNetworkConfig},
    api::http::{ApiState, KeptPage, Readiness},
    backup::Backups,
    config::Config,
    consensus::Handle,
    control::{
        ControlError, ErrorKind,
        belonging::Belong,
        node_access::{
            ArchiveReader, GoneInstance, ImagePull, LogLines, NodeAccess, OwnNode, PullSteps,
            attach::NodeAttach,
            exec::{ExecRefused, ExecSession, NodeExec},
            files::{ArchiveBytes, NodeFiles, PathInside},
            mesh::NodeMesh,
            series::NodeSeries,
            usage::{NodeUsage, RunningInstance},
            volumes::{BackupStream, NodeVolumes, RestoredVolume, VolumeFacts, VolumeHere},
        },
        ops::Ops,
    },
    observe::metrics::Metrics,
    remote::FarNodes,
    seal::ClusterKey,
};

/// What the doors of a witness answer with.
pub(super) fn api(
    state: Handle,
    directories: &Directories,
    config: &Config,
    belonging: Arc<dyn Belong>,
    cluster_key: ClusterKey,
    (node, others): (Arc<Witness>, Arc<FarNodes>),
) -> anyhow::Result<ApiState> {
    let identity = Identity::load_or_make(directories)?;
    let backups = Backups::new(backup_settings(config, directories, &identity), state.clone());
    let ops = Ops::new(state, node)
        .with_others(others)
        .with_backups(backups)
        .with_belonging(belonging)
        .with_cluster_key(cluster_key);
    tracing::info!("this node is a witness: it votes and runs no workloads");
    Ok(ApiState { ops, metrics: Metrics::install(), readiness: Arc::new(AlwaysReady), kept: KeptPage::default() })
}

/// A witness has an end of the mesh too, with an address of its own: the first of a /24 that it claims as others do and
/// of which it uses nothing else. What it lacks is told, and keeps it from nothing else.
pub(super) async fn mesh(
    (config, directories): (Config, Directories),
    (state, door, eye): (Handle, Option<MeshDoor>, MeshEye),
    cancel: CancellationToken,
) {
    let joined = async {
        let names = directories.network_names();
        let interface = mesh::interface(&config, &directories);
        let kernel =
            KernelNetwork::new(KernelNetworkConfig { bridge: names.bridge, table: names.table, mesh: interface });
        let identity = addresses::settle(&config, &directories, addresses::used(&kernel).await, &state).await?;
        let me = addresses::in_mesh(&identity, &state).await?;
        let subnet6 = addresses::of_ipv6(&config, &identity, &state).await?;
        anyhow::Ok(Mesh::new(&config, &directories, (&state, door, eye), me.map(|me| Me { subnet6, ..me })).0)
    };
    match cancel.run_until_cancelled(async { if config.mesh.enabled { joined.await } else { Ok(None) } }).await {
        Some(Ok(Some(mesh))) => mesh.run(cancel).await,
        Some(Err(error)) => {
            tracing::error!("this witness has no mesh: {error:#}");
            cancel.cancelled().await;
        }
        Some(Ok(None)) | None => cancel.cancelled().await,
    }
}

/// What control asks of a witness: nothing but its end of the mesh.
pub(super) struct Witness(pub(super) MeshEye);

struct AlwaysReady;

impl Readiness for AlwaysReady {
    fn trouble(&self) -> Option<String> {
        None
    }
}

fn nothing_here<T>() -> Result<T, ControlError> {
    Err(ControlError::new(ErrorKind::Conflict, "this node is a witness: it has no containers and no images")
        .hint("ask a node that runs workloads; `toft node ls` shows them"))
}

#[async_trait]
impl NodeAttach for Witness {
    async fn attach(&self, _: InstanceId, _: AttachOrder) -> Result<ExecSession, ControlError> {
        nothing_here()
    }
}

#[async_trait]
impl NodeExec for Witness {
    async fn exec(&self, _: InstanceId, _: ExecOrder) -> Result<ExecSession, ExecRefused> {
        Ok(nothing_here()?)
    }
}

#[async_trait]
impl NodeUsage for Witness {
    async fn usage(&self, _: Vec<RunningInstance>, _: bool) -> Result<Vec<(InstanceId, Usage)>, ControlError> {
        nothing_here()
    }

    async fn processes(&self, _: RunningInstance) -> Result<Vec<Process>, ControlError> {
        nothing_here()
    }
}

#[async_trait]
impl NodeFiles for Witness {
    async fn file_stat(&self, _: PathInside) -> Result<FileStat, ControlError> {
        nothing_here()
    }

    async fn read_files(&self, _: PathInside) -> Result<(FileStat, ArchiveBytes), ControlError> {
        nothing_here()
    }

    async fn write_files(&self, _: PathInside, _: ArchiveReader, _: bool) -> Result<FilesWritten, ControlError> {
        nothing_here()
    }
}

#[async_trait]
impl NodeSeries for Witness {
    async fn series(&self, _: Subject, _: Span) -> Result<Series, ControlError> {
        nothing_here()
    }
}

#[async_trait]
impl NodeVolumes for Witness {
    async fn volume_facts(&self, _: Vec<Name>) -> Result<BTreeMap<Name, VolumeFacts>, ControlError> {
        nothing_here()
    }

    async fn back_up_volume(&self, _: VolumeHere) -> Result<BackupStream, ControlError> {
        nothing_here()
    }

    async fn restore_volume(&self, _: VolumeHere, _: ArchiveReader, _: bool) -> Result<RestoredVolume, ControlError> {
        nothing_here()
    }
}

#[async_trait]
impl NodeAccess for Witness {
    async fn logs(&self, _: InstanceId, _: LogQuery, _: CancellationToken) -> Result<LogLines, ControlError> {
        nothing_here()
    }

    async fn gone_logs(&self, _: Option<&Name>) -> Result<Vec<GoneInstance>, ControlError> {
        nothing_here()
    }

    async fn facts(&self) -> Result<NodeFacts, ControlError> {
        nothing_here()
    }

    async fn images(&self) -> Result<Vec<NodeImage>, ControlError> {
        nothing_here()
    }

    async fn import_image(&self, _: ArchiveReader, _: Option<ImageRef>) -> Result<Vec<NodeImage>, ControlError> {
        nothing_here()
    }

    async fn pull_image(&self, _: ImageRef) -> Result<PullSteps, ControlError> {
        nothing_here()
    }

    async fn image_pulls(&self) -> Result<Vec<ImagePull>, ControlError> {
        nothing_here()
    }

    async fn remove_image(&self, _: ImageRef) -> Result<bool, ControlError> {
        nothing_here()
    }

    async fn image_room(&self) -> Result<Room, ControlError> {
        nothing_here()
    }
}

#[async_trait]
impl NodeMesh for Witness {
    async fn mesh_seen(&self) -> Result<MeshSeen, ControlError> {
        Ok(self.0.seen())
    }

    async fn mesh_ping(&self, packets: u32) -> Result<Vec<PingRow>, ControlError> {
        self.0.ping(packets).await
    }
}

impl OwnNode for Witness {
    fn node_id(&self) -> Option<NodeId> {
        None
    }

    fn port_taken_outside(&self, _: PortSpec) -> Option<String> {
        None
    }

    fn runtime_trouble(&self) -> Option<String> {
        None
    }

    fn gpus(&self) -> Vec<GpuFacts> {
        Vec::new()
    }

    fn pulling(&self, _: &ImageRef) -> Option<PullProgress> {
        None
    }

    fn pulls(&self) -> Vec<ImagePull> {
        Vec::new()
    }

    fn pulls_moved(&self) -> watch::Receiver<u64> {
        watch::Sender::default().subscribe()
    }
}
