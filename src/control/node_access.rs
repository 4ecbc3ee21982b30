//! What operations ask of a node directly, because it is no shared state: its images, its logs, its ports.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use toft_model::{
    gpu::GpuFacts,
    ids::{InstanceId, NodeId},
    image::{ImageRef, NodeImage},
    log::{LogLine, LogQuery},
    name::Name,
    node::NodeFacts,
    pull::PullProgress,
    usage::Room,
    workload::PortSpec,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ControlError;

pub mod attach;
pub mod exec;
pub mod files;
pub mod mesh;
pub mod series;
pub mod usage;
pub mod volumes;

/// Lines as they come.
pub type LogLines = BoxStream<'static, Result<LogLine, ControlError>>;
/// What becomes of a pull, until its end.
pub type PullSteps = BoxStream<'static, PullStep>;

/// One step of a pull. The last one tells how it ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullStep {
    /// It goes on.
    Progress(PullProgress),
    /// The image is there.
    Done(NodeImage),
    /// It failed.
    Failed(ControlError),
}

/// A pull of a node that is under way, or failed a short while ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePull {
    /// How far it is.
    pub progress: PullProgress,
    /// When it failed, in milliseconds since 1970, and why.
    pub failure: Option<(i64, ControlError)>,
}

/// An instance that is gone and whose logs are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneInstance {
    /// Its id.
    pub id: InstanceId,
    /// What people called it.
    pub name: String,
    /// Whose instance it was.
    pub workload: Name,
    /// When it went, in milliseconds since 1970.
    pub gone_at_ms: i64,
    /// Bytes of its logs.
    pub bytes: u64,
}

/// Bytes of an archive as they arrive.
pub type ArchiveReader = Box<dyn tokio::io::AsyncRead + Send + Unpin>;

/// A node that can be asked.
#[async_trait]
pub trait NodeAccess:
    attach::NodeAttach
    + exec::NodeExec
    + files::NodeFiles
    + mesh::NodeMesh
    + series::NodeSeries
    + usage::NodeUsage
    + volumes::NodeVolumes
    + Send
    + Sync
    + 'static
{
    /// What an instance wrote, oldest first. Instances that never wrote give nothing. With `query.follow` the lines go on
    /// until `ended` is cancelled, and then to the end of what is written.
    async fn logs(
        &self,
        instance: InstanceId,
        query: LogQuery,
        ended: CancellationToken,
    ) -> Result<LogLines, ControlError>;

    /// The instances of a workload, or of all, that are gone from this node and whose logs are kept, oldest first.
    async fn gone_logs(&self, workload: Option<&Name>) -> Result<Vec<GoneInstance>, ControlError>;

    /// What the node's machine is and has now.
    async fn facts(&self) -> Result<NodeFacts, ControlError>;

    /// The images in the node's store.
    async fn images(&self) -> Result<Vec<NodeImage>, ControlError>;

    /// Imports an archive. `name` names an image whose archive carries no name.
    async fn import_image(
        &self,
        archive: ArchiveReader,
        name: Option<ImageRef>,
    ) -> Result<Vec<NodeImage>, ControlError>;

    /// Pulls an image from its registry, or joins a pull under way.
    async fn pull_image(&self, image: ImageRef) -> Result<PullSteps, ControlError>;

    /// The node's pulls: those under way, then those that failed a short while ago.
    async fn image_pulls(&self) -> Result<Vec<ImagePull>, ControlError>;

    /// Removes an image's name; `false` when there was none.
    async fn remove_image(&self, image: ImageRef) -> Result<bool, ControlError>;

    /// Room on the disk of the images.
    async fn image_room(&self) -> Result<Room, ControlError>;
}

/// The node that this process is.
pub trait OwnNode: NodeAccess {
    /// Which node it is; none for one that runs nothing.
    fn node_id(&self) -> Option<NodeId>;

    /// Why `port` cannot be published on this node, if a process outside toft holds it.
    fn port_taken_outside(&self, port: PortSpec) -> Option<String>;

    /// Why no container can be started now, if that is so.
    fn runtime_trouble(&self) -> Option<String>;

    /// The node's GPUs as they were seen last, seconds ago at most.
    fn gpus(&self) -> Vec<GpuFacts>;

    /// How far the pull of an image is.
    fn pulling(&self, image: &ImageRef) -> Option<PullProgress>;

    /// The node's pulls: those under way, then those that failed a short while ago.
    fn pulls(&self) -> Vec<ImagePull>;

    /// Moves when a pull of the node begins or ends.
    fn pulls_moved(&self) -> watch::Receiver<u64>;
}

/// The other nodes of the cluster.
pub trait OtherNodes: Send + Sync + 'static {
    /// A node that can be asked. Whether it answers shows when it is; `name` is what it is called then.
    fn node(&self, node: NodeId, name: &Name) -> Result<Arc<dyn NodeAccess>, ControlError>;
}
