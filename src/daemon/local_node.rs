//! This node as control sees it: its images, logs and ports, and the way its reports take.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use toft_model::{
    gpu::GpuFacts,
    ids::{InstanceId, NodeId},
    image::{ImageRef, NodeImage},
    instance::{InstanceReport, PublishedPort},
    log::LogQuery,
    name::Name,
    node::NodeFacts,
    pull::PullProgress,
    usage::Room,
    workload::PortSpec,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

mod attach;
mod exec;
mod files;
mod mesh;
mod series;
mod usage;
mod volumes;

pub(super) use attach::Attached;
pub(super) use exec::Execs;

use super::{machine::Dress, mesh::MeshEye, volume_moves::Progresses};
use crate::{
    agent::{
        attach::Audience,
        facts,
        gpu::GpuWatch,
        host,
        image::{FailedPull, PullError, PullErrorKind, Pulls, TagWord},
        logs::{self, Reading, Wanted},
        meter::Meter,
        network::check_free,
        report::ReportSink,
        retention,
        runtime::{Availability, Image, Runtime, RuntimeError},
        volumes::Volumes,
    },
    consensus::Handle,
    control::{
        ControlError, ErrorKind,
        node_access::{ArchiveReader, GoneInstance, ImagePull, LogLines, NodeAccess, OwnNode, PullStep, PullSteps},
        ops::Ops,
    },
    observe::chain,
    series::Store,
};

/// Time between two steps of a pull that are told.
const PULL_PACE: Duration = Duration::from_millis(200);

/// This node.
pub(super) struct LocalNode {
    runtime: Arc<dyn Runtime>,
    logs_dir: PathBuf,
    retry: Arc<Notify>,
    node_id: NodeId,
    pulls: Pulls,
    volumes: Volumes,
    cancel: CancellationToken,
    execs: Execs,
    attached: Attached,
    meter: Meter,
    copies: files::Copies,
    gpus: GpuWatch,
    mesh: MeshEye,
    series: Store,
    dress: Option<Dress>,
    /// Volumes that move here, and the way to ask other nodes for theirs.
    moves: Option<(Progresses, Handle)>,
}

impl LocalNode {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        logs_dir: PathBuf,
        retry: Arc<Notify>,
        (node_id, pulls, volumes, gpus): (NodeId, Pulls, Volumes, GpuWatch),
        mesh: MeshEye,
        cancel: CancellationToken,
    ) -> Self {
        let meter = Meter::new(Arc::clone(&runtime), host::memory_bytes());
        Self {
            meter,
            copies: Default::default(),
            runtime,
            logs_dir,
            retry,
            node_id,
            pulls,
            volumes,
            cancel,
            execs: Execs::default(),
            attached: Attached::default(),
            gpus,
            mesh,
            series: Store::in_memory(),
            dress: None,
            moves: None,
        }
    }

    /// Says how far volumes are that move.
    pub(super) fn with_moves(self, progresses: Progresses, state: Handle) -> Self {
        Self { moves: Some((progresses, state)), ..self }
    }

    /// Keeps what is measured in `series`, and says of the machine what `dress` makes of it.
    pub(super) fn with_series(self, series: Store, dress: Option<Dress>) -> Self {
        Self { series, dress, ..self }
    }

    /// The processes run inside its containers.
    pub(super) fn execs(&self) -> Execs {
        self.execs.clone()
    }

    /// Who is attached to its containers.
    pub(super) fn audience(&self) -> Audience {
        self.attached.audience.clone()
    }

    /// The way this node's reports take.
    pub(super) fn sink(&self, ops: Ops) -> Arc<dyn ReportSink> {
        Arc::new(Sink { ops, node_id: self.node_id })
    }
}

struct Sink {
    ops: Ops,
    node_id: NodeId,
}

#[async_trait]
impl ReportSink for Sink {
    async fn report(&self, reports: Vec<InstanceReport>) -> Result<(), String> {
        self.ops.report_instances(self.node_id, reports).await.map_err(|e| chain(&e))
    }
}

#[async_trait]
impl NodeAccess for LocalNode {
    async fn logs(
        &self,
        instance: InstanceId,
        query: LogQuery,
        ended: CancellationToken,
    ) -> Result<LogLines, ControlError> {
        let dir = self.logs_dir.join(instance.to_string());
        let (sender, receiver) = mpsc::channel(8);
        let follow = query.follow.then_some(ended);
        let grep = query.grep.as_deref().map(logs::pattern).transpose().map_err(|why| {
            ControlError::new(ErrorKind::Invalid, format!("the regular expression cannot be used: {why}"))
                .field("grep")
                .hint("write it as in Rust's `regex` crate, such as `error|warn` or `(?i)timeout`")
        })?;
        let wanted = Wanted { since_ns: query.since_ns, until_ns: query.until_ns, grep };
        let reading = Reading { tail: query.tail, wanted, follow };
        let cancel = self.cancel.clone();
        // Read as the lines are asked for: the reader is part of the stream, not a task of its own.
        let reader = async move {
            let read = cancel.run_until_cancelled(logs::read(dir, reading, sender)).await;
            match read {
                Some(Err(error)) => {
                    Some(Err(ControlError::new(ErrorKind::Internal, format!("the logs could not be read: {error}"))))
                }
                Some(Ok(())) | None => None,
            }
        };
        let reader = stream::once(reader).filter_map(async |outcome| outcome);
        let lines = ReceiverStream::new(receiver).flat_map(|lines| stream::iter(lines.into_iter().map(Ok)));
        Ok(stream::select(lines, reader).boxed())
    }

    async fn gone_logs(&self, workload: Option<&Name>) -> Result<Vec<GoneInstance>, ControlError> {
        let (dir, workload) = (self.logs_dir.clone(), workload.cloned());
        let found = tokio::task::spawn_blocking(move || retention::gone(&dir, workload.as_ref())).await;
        let found = found.map_err(std::io::Error::other).flatten().map_err(|error| {
            ControlError::new(ErrorKind::Internal, format!("the logs that are kept could not be looked up: {error}"))
        })?;
        let told = |gone: retention::Gone| {
            let retention::Gone { id, instance, workload, gone_at_ms, bytes } = gone;
            GoneInstance { id, name: instance, workload, gone_at_ms, bytes }
        };
        Ok(found.into_iter().map(told).collect())
    }

    async fn facts(&self) -> Result<NodeFacts, ControlError> {
        let runtime = match &*self.runtime.availability().borrow() {
            Availability::Up(version) => version.clone(),
            Availability::Down(_) => String::new(),
        };
        let data = self.logs_dir.parent().unwrap_or(&self.logs_dir);
        let looked = facts::look(runtime, data, self.gpus()).await;
        let mut facts = looked.map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        if let Some(dress) = &self.dress {
            dress(&mut facts);
        }
        Ok(facts)
    }

    async fn images(&self) -> Result<Vec<NodeImage>, ControlError> {
        Ok(self.runtime.images().await.map_err(refused)?.into_iter().map(told).collect())
    }

    async fn import_image(
        &self,
        archive: ArchiveReader,
        name: Option<ImageRef>,
    ) -> Result<Vec<NodeImage>, ControlError> {
        let images = self.runtime.import_image(archive, name.as_ref()).await.map_err(refused)?;
        // Instances may be waiting for just this image.
        self.retry.notify_one();
        Ok(images.into_iter().map(told).collect())
    }

    async fn pull_image(&self, image: ImageRef) -> Result<PullSteps, ControlError> {
        let status = self.pulls.begin(&image, TagWord::RegistryOrNode).map_err(not_pulled)?;
        let retry = Arc::clone(&self.retry);
        let steps = stream::unfold((Some(status), image), move |(status, image)| {
            let retry = Arc::clone(&retry);
            async move {
                let mut status = status?;
                // Not each of the many small steps.
                let ended = status.wait_for(|status| status.end.is_some());
                if let Ok(Err(_)) = tokio::time::timeout(PULL_PACE, ended).await {
                    let stopped = ControlError::new(ErrorKind::Unavailable, "toft is being stopped");
                    return Some((PullStep::Failed(stopped), (None, image)));
                }
                let newest = status.borrow().clone();
                match newest.end {
                    None => Some((PullStep::Progress(newest.progress), (Some(status), image))),
                    Some(Err(error)) => Some((PullStep::Failed(not_pulled(error)), (None, image))),
                    Some(Ok(pulled)) => {
                        // Instances may be waiting for just this image.
                        retry.notify_one();
                        Some((PullStep::Done(told(pulled)), (None, image)))
                    }
                }
            }
        });
        Ok(steps.boxed())
    }

    async fn image_pulls(&self) -> Result<Vec<ImagePull>, ControlError> {
        Ok(self.pulls())
    }

    async fn remove_image(&self, image: ImageRef) -> Result<bool, ControlError> {
        self.runtime.remove_image(&image).await.map_err(refused)
    }

    async fn image_room(&self) -> Result<Room, ControlError> {
        self.runtime.room().await.map_err(refused)
    }
}

impl OwnNode for LocalNode {
    fn node_id(&self) -> Option<NodeId> {
        Some(self.node_id)
    }

    fn port_taken_outside(&self, port: PortSpec) -> Option<String> {
        let port = PublishedPort { host: port.host?, container: port.container, protocol: port.protocol };
        check_free(port).err().map(|error| chain(&error))
    }

    fn runtime_trouble(&self) -> Option<String> {
        match &*self.runtime.availability().borrow() {
            Availability::Up(_) => None,
            Availability::Down(why) => Some(why.clone()),
        }
    }

    fn gpus(&self) -> Vec<GpuFacts> {
        self.gpus.borrow().as_ref().map(|sight| sight.facts()).unwrap_or_default()
    }

    fn pulling(&self, image: &ImageRef) -> Option<PullProgress> {
        self.pulls.progress(image)
    }

    fn pulls(&self) -> Vec<ImagePull> {
        let under_way = self.pulls.under_way().into_iter().map(|progress| ImagePull { progress, failure: None });
        let failed = self.pulls.failed().into_iter().map(|FailedPull { image, error, at_ms }| ImagePull {
            progress: PullProgress { image: image.as_str().to_owned(), ..PullProgress::default() },
            failure: Some((at_ms, not_pulled(error))),
        });
        under_way.chain(failed).collect()
    }

    fn pulls_moved(&self) -> watch::Receiver<u64> {
        self.pulls.watch()
    }
}

fn not_pulled(error: PullError) -> ControlError {
    let kind = match error.kind {
        PullErrorKind::NoSuchImage => ErrorKind::NotFound,
        PullErrorKind::Denied | PullErrorKind::Unusable => ErrorKind::Invalid,
        PullErrorKind::DiskFull => ErrorKind::DiskFull,
        PullErrorKind::Unreachable
        | PullErrorKind::Busy
        | PullErrorKind::BadAnswer
        | PullErrorKind::BadContent
        | PullErrorKind::RuntimeDown
        | PullErrorKind::Cancelled => ErrorKind::Unavailable,
        PullErrorKind::Runtime => ErrorKind::Internal,
    };
    let refused = ControlError::new(kind, error.to_string());
    match error.hint {
        Some(hint) => refused.hint(hint),
        None => refused,
    }
}

fn told(image: Image) -> NodeImage {
    let Image { name, digest, size_bytes, created_at_ms, platform } = image;
    NodeImage { name, digest, size_bytes, created_at_ms, platform }
}

fn refused(error: RuntimeError) -> ControlError {
    let message = chain(&error);
    match error {
        RuntimeError::Unavailable { .. } => ControlError::new(ErrorKind::Unavailable, message)
            .hint("toft goes on looking for it; try again in a moment"),
        RuntimeError::BadArchive { .. } => ControlError::new(ErrorKind::Invalid, message)
            .field("archive")
            .hint("send an OCI image layout as tar, or what `docker save` writes"),
        RuntimeError::ImageMissing { .. } | RuntimeError::NotFound { .. } => {
            ControlError::new(ErrorKind::NotFound, message)
        }
        RuntimeError::ImageUnusable { .. } => ControlError::new(ErrorKind::Invalid, message),
        RuntimeError::DiskFull { .. } => {
            ControlError::new(ErrorKind::DiskFull, message).hint("free some space and try again")
        }
        RuntimeError::NotRunning { .. } => {
            ControlError::new(ErrorKind::Conflict, message).hint("`toft ps` shows what runs")
        }
        RuntimeError::Exists { .. } | RuntimeError::NotInteractive { .. } => {
            ControlError::new(ErrorKind::Conflict, message)
        }
        RuntimeError::StartFailed { .. } | RuntimeError::Failed { .. } => {
            ControlError::new(ErrorKind::Internal, message)
        }
    }
}
