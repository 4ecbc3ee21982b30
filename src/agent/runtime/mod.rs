//! What the agent needs of a container runtime. [`containerd`] is the real one, [`fake`] stands beside it for tests
//! of everything above; both pass the same conformance tests.
//!
//! A container here is a root filesystem plus a configuration, named by its instance id; a task is its running
//! process. Containers outlive their tasks, and both outlive the daemon.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use async_trait::async_trait;
use toft_model::{
    ids::InstanceId,
    image::ImageRef,
    instance::Exit,
    usage::Room,
    workload::{ProcessSpec, Resources},
};
use tokio::sync::{broadcast, watch};

use super::{
    gpu::cdi::Edits,
    image::{PullError, PullReporter, Repository},
};

pub mod attach;
pub mod blobs;
pub mod containerd;
pub mod exec;
pub mod fake;
pub mod root;
pub mod supervisor;
pub mod usage;

/// How the process' network namespace is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// Shared with the host.
    Host,
    /// A new one; who wants more than loopback in it configures it between `create_task` and `start_task`.
    New,
}

/// What a container is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Id of the container.
    pub id: InstanceId,
    /// Image, which must be there.
    pub image: ImageRef,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    /// Environment, added to the image's.
    pub env: BTreeMap<String, String>,
    /// Host name inside.
    pub hostname: String,
    /// Network namespace.
    pub network: NetworkNamespace,
    /// Limits.
    pub resources: Resources,
    /// How the process runs. Its hostname and hosts are in `hostname` and `files` already.
    pub process: ProcessSpec,
    /// The first process, which starts the command with its arguments; it must be among `files`.
    pub init: Option<PathBuf>,
    /// Stored with the container and given back by [`Runtime::containers`].
    pub labels: BTreeMap<String, String>,
    /// Files and folders to bind read-only into the container: path inside -> path on the host (`/etc/hosts`,
    /// `/run/secrets`). They must be there when a task is created.
    pub files: BTreeMap<PathBuf, PathBuf>,
    /// Volumes, and files and folders of the node. They must be there when a task is created.
    pub mounts: Vec<HostMount>,
    /// What its GPUs need.
    pub edits: Edits,
}

impl ContainerSpec {
    /// One that runs a command of an image and asks for nothing else: a network namespace of its own, no limits, nothing
    /// mounted.
    pub fn plain(id: InstanceId, image: ImageRef, command: &[&str]) -> Self {
        Self {
            id,
            image,
            entrypoint: None,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: BTreeMap::new(),
            hostname: "box".to_owned(),
            network: NetworkNamespace::New,
            resources: Resources::default(),
            process: ProcessSpec::default(),
            init: None,
            labels: BTreeMap::new(),
            files: BTreeMap::new(),
            mounts: Vec::new(),
            edits: Edits::default(),
        }
    }
}

/// Something of the node that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// Path on the node.
    pub source: PathBuf,
    /// Path inside.
    pub target: PathBuf,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// State of a container's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// There is none (never started, deleted, or lost with a reboot).
    None,
    /// Prepared, not started: [`Runtime::create_task`] was the last call.
    Created {
        /// Process id on the host; its namespaces exist.
        pid: u32,
    },
    /// It runs.
    Running {
        /// Process id on the host.
        pid: u32,
    },
    /// It ended and was not yet deleted.
    Ended(Exit),
}

/// A container as the runtime has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: InstanceId,
    /// Image it was made from.
    pub image: String,
    /// Labels of its [`ContainerSpec`].
    pub labels: BTreeMap<String, String>,
    /// Its process.
    pub task: TaskState,
}

/// An image in the runtime's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Complete reference.
    pub name: String,
    /// Digest of the manifest or index the name stands for, `sha256:...`.
    pub digest: String,
    /// Compressed size of this platform's manifest, config and layers in bytes.
    pub size_bytes: u64,
    /// When it was made known to the runtime, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// Platform of the usable manifest, `linux/amd64`.
    pub platform: String,
}

/// What the runtime tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's main process ended.
    TaskEnded {
        /// The container.
        id: InstanceId,
        /// How.
        exit: Exit,
    },
    /// The kernel killed a process of the container for want of memory.
    OutOfMemory {
        /// The container.
        id: InstanceId,
    },
}

/// Whether the runtime answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// It answers; its name and version (`containerd 1.6.20`).
    Up(String),
    /// It does not; why.
    Down(String),
}

/// What a call to the runtime can fail with.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime cannot be reached; try again when it is back.
    #[error("the container runtime does not answer: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The image is not in the store.
    #[error("image `{image}` is not on this node")]
    ImageMissing {
        /// Complete reference.
        image: String,
    },
    /// The image cannot run here.
    #[error("image `{image}` cannot be used: {reason}")]
    ImageUnusable {
        /// Complete reference.
        image: String,
        /// Why.
        reason: String,
    },
    /// An archive could not be imported.
    #[error("the image archive is damaged or of an unknown kind: {reason}")]
    BadArchive {
        /// Why.
        reason: String,
    },
    /// The container or task is not there.
    #[error("container `{id}` is not there")]
    NotFound {
        /// The container.
        id: InstanceId,
    },
    /// The container or task is there already.
    #[error("container `{id}` is there already")]
    Exists {
        /// The container.
        id: InstanceId,
    },
    /// The container has no running process.
    #[error("container `{id}` does not run")]
    NotRunning {
        /// The container.
        id: InstanceId,
    },
    /// The container has neither input nor a terminal.
    #[error("container `{id}` has neither input nor a terminal")]
    NotInteractive {
        /// The container.
        id: InstanceId,
    },
    /// The disk is full.
    #[error("no space is left on the device while {doing}")]
    DiskFull {
        /// What was being done.
        doing: &'static str,
    },
    /// The process could not be started: the command is missing in the image, not executable, or the like.
    #[error("the process could not be started: {reason}")]
    StartFailed {
        /// Why, in the runtime's words made short.
        reason: String,
        /// What a shell would exit with: 126 when the command is there but cannot be executed, else 127.
        exit_code: i32,
    },
    /// Anything else.
    #[error("{doing} failed: {reason}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The runtime's words.
        reason: String,
    },
}

/// Bytes of an archive as they arrive.
pub type ArchiveReader = Box<dyn tokio::io::AsyncRead + Send + Unpin>;

/// Where a container's output goes: a program that the runtime starts beside each task, with the task's stdout and
/// stderr as descriptors 3 and 4, so that logging goes on while the daemon is away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggerCommand {
    /// Program.
    pub program: PathBuf,
    /// Its arguments as pairs, in no particular order.
    pub args: Vec<(String, String)>,
}

/// What became of a command in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RanInside {
    /// Its exit code.
    pub exit_code: i32,
    /// The first 4 KiB it wrote, to stdout and stderr together.
    pub output: String,
}

/// A container runtime.
#[async_trait]
pub trait Runtime:
    attach::AttachRuntime
    + blobs::BlobRuntime
    + exec::ExecRuntime
    + root::RootRuntime
    + usage::UsageRuntime
    + Send
    + Sync
    + 'static
{
    /// Whether it answers; changes as it dies and comes back.
    fn availability(&self) -> watch::Receiver<Availability>;

    /// What it tells by itself from now on. Events can be missed (a slow reader, a restart of either side): whoever
    /// listens also compares with [`Runtime::containers`] when the runtime comes back.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;

    /// Every container of this appliance with its process.
    async fn containers(&self) -> Result<Vec<Container>, RuntimeError>;

    /// Prepares root filesystem and configuration. The process does not exist yet.
    async fn create_container(&self, spec: &ContainerSpec) -> Result<(), RuntimeError>;

    /// Replaces [`ContainerSpec::edits`] of a container whose process is gone: its next process gets these. Where they cannot be
    /// made, what the container has stays. A container that was made without edits cannot get any.
    async fn edit_container(&self, id: InstanceId, edits: &Edits) -> Result<(), RuntimeError>;

    /// Prepares the process up to, not including, its start, and gives its pid: its namespaces exist.
    /// An ended task of the same container must be deleted before.
    async fn create_task(&self, id: InstanceId, logger: &LoggerCommand) -> Result<u32, RuntimeError>;

    /// Starts the prepared process.
    async fn start_task(&self, id: InstanceId) -> Result<(), RuntimeError>;

    /// Sends `signal` (a number) to the main process; with `SIGKILL` to all processes of the container. A process
    /// that has ended already is no error.
    async fn signal_task(&self, id: InstanceId, signal: i32) -> Result<(), RuntimeError>;

    /// The signal that asks this container to stop: the order's, else the image's `StopSignal`, else SIGTERM.
    async fn stop_signal(&self, id: InstanceId) -> Result<i32, RuntimeError>;

    /// Removes an ended (or merely prepared) task and gives how it ended, and whether memory was what it lacked. When it
    /// returns, the logger has written everything. A task that is not there gives `None`.
    async fn delete_task(&self, id: InstanceId) -> Result<Option<Exit>, RuntimeError>;

    /// Removes the container and its root filesystem; its task must be deleted. One that is not there is no error.
    async fn delete_container(&self, id: InstanceId) -> Result<(), RuntimeError>;

    /// Runs a command in a container that runs, as its own process would, and kills it after `limit`, which is an error.
    async fn run_inside(&self, id: InstanceId, command: &[String], limit: Duration) -> Result<RanInside, RuntimeError>;

    /// Imports an archive (an OCI image layout as tar, or what `docker save` writes; plain or gzip) and unpacks each image
    /// for this platform. `name` names an image whose archive carries no name. Either all images of the archive are
    /// usable afterwards, or the call fails and the store is as before.
    async fn import_image(&self, archive: ArchiveReader, name: Option<&ImageRef>) -> Result<Vec<Image>, RuntimeError>;

    /// Fetches an image from where it can be found and unpacks it for this platform. Either it is usable afterwards under its
    /// name, or the call fails and the name is as before.
    async fn pull_image(&self, repository: &Repository, reporter: &PullReporter) -> Result<Image, PullError>;

    /// Every image in the store.
    async fn images(&self) -> Result<Vec<Image>, RuntimeError>;

    /// Removes the name, and the content that nobody uses then. `false` when there was none.
    async fn remove_image(&self, image: &ImageRef) -> Result<bool, RuntimeError>;

    /// Room on the file system of images and containers.
    async fn room(&self) -> Result<Room, RuntimeError>;
}
