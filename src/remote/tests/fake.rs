//! A node without a machine.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use toft_model::{
    exec::{AttachOrder, ExecInput, ExecOrder, ExecOutput},
    files::{FileKind, FileStat, FilesWritten},
    ids::{InstanceId, NodeId},
    image::{ImageRef, NodeImage},
    log::{LogLine, LogQuery, LogStream},
    mesh::view::{MeshSeen, PingRow},
    name::Name,
    node::{DiskFacts, NodeFacts},
    pull::PullProgress,
    series::{Line, Measure, Series, Span, Subject},
    usage::{Process, Room, Usage},
};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::control::{
    ControlError, ErrorKind,
    node_access::{
        ArchiveReader, GoneInstance, ImagePull, LogLines, NodeAccess, PullStep, PullSteps,
        attach::NodeAttach,
        exec::{ExecRefused, ExecSession, NodeExec},
        files::{ArchiveBytes, NodeFiles, PathInside},
        mesh::NodeMesh,
        series::NodeSeries,
        usage::{NodeUsage, RunningInstance},
        volumes::{BackupStream, NodeVolumes, RestoredVolume, VolumeFacts, VolumeHere},
    },
};

/// Bytes of the archive that is read.
pub(super) const ARCHIVE: usize = 3 << 20;

pub(super) fn instance(number: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(number))
}

/// A node without a machine.
#[derive(Default)]
pub(super) struct Fake {
    /// Processes that run.
    pub(super) running: Arc<AtomicUsize>,
    /// Signals that came to them.
    pub(super) signals: Arc<AtomicUsize>,
}

pub(super) fn no(kind: ErrorKind) -> ControlError {
    ControlError::new(kind, "it cannot be had").hint("ask for something else").field("path")
}

pub(super) fn order(command: &str) -> ExecOrder {
    let env = BTreeMap::from([("A".to_owned(), "b c".to_owned())]);
    ExecOrder { command: vec![command.to_owned()], env, user: None, dir: None, stdin: true, terminal: None }
}

/// What was sent comes back.
pub(super) fn echo(running: &Arc<AtomicUsize>, signals: &Arc<AtomicUsize>, endless: bool) -> ExecSession {
    let (input, mut from_user) = mpsc::channel(4);
    let (to_user, output) = mpsc::channel(4);
    let (running, signals) = (Arc::clone(running), Arc::clone(signals));
    running.fetch_add(1, Ordering::SeqCst);
    tokio::spawn(async move {
        let answers = async {
            while let Some(said) = from_user.recv().await {
                let told = match said {
                    ExecInput::Bytes(bytes) if bytes == b"error" => ExecOutput::Stderr(bytes),
                    ExecInput::Bytes(bytes) => ExecOutput::Stdout(bytes),
                    ExecInput::Resize(size) => ExecOutput::Stdout(format!("{size:?}").into_bytes()),
                    ExecInput::Signal(number) => {
                        signals.fetch_add(1, Ordering::SeqCst);
                        ExecOutput::Taken(number as u64)
                    }
                    ExecInput::Detach => ExecOutput::Lost("detached".into()),
                    ExecInput::End => ExecOutput::Exited(130),
                };
                let over = matches!(told, ExecOutput::Exited(_) | ExecOutput::Lost(_));
                if to_user.send(told).await.is_err() || over {
                    return;
                }
            }
        };
        let floods = async {
            while endless && to_user.send(ExecOutput::Stdout(vec![b'x'; 32 << 10])).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = answers => {}
            () = floods => {}
            () = to_user.closed() => {}
        }
        running.fetch_sub(1, Ordering::SeqCst);
    });
    ExecSession { input, output }
}

#[async_trait]
impl NodeExec for Fake {
    async fn exec(&self, _: InstanceId, order: ExecOrder) -> Result<ExecSession, ExecRefused> {
        match order.command[0].as_str() {
            "missing" => Err(ExecRefused { error: no(ErrorKind::Invalid), exit_code: Some(127) }),
            command => Ok(echo(&self.running, &self.signals, command == "endless")),
        }
    }
}

#[async_trait]
impl NodeAttach for Fake {
    async fn attach(&self, target: InstanceId, order: AttachOrder) -> Result<ExecSession, ControlError> {
        if target == instance(2) {
            self.running.fetch_add(1, Ordering::SeqCst);
            let _gone = Gone(Arc::clone(&self.running));
            // Its process does not come.
            return std::future::pending().await;
        }
        if order.lossless { Err(no(ErrorKind::Conflict)) } else { Ok(echo(&self.running, &self.signals, false)) }
    }
}

/// Counts one that is gone.
struct Gone(Arc<AtomicUsize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) fn stat() -> FileStat {
    FileStat {
        name: "häuser".into(),
        kind: FileKind::Link,
        size_bytes: u64::MAX,
        mode: 0o755,
        modified_at_ms: -1,
        target: Some("/x".into()),
    }
}

pub(super) fn archive() -> ArchiveBytes {
    let parts = (0..ARCHIVE / (1 << 20)).map(|i| Ok(Bytes::from(vec![i as u8; 1 << 20])));
    stream::iter(parts).boxed()
}

pub(super) async fn whole(bytes: ArchiveBytes) -> io::Result<Vec<u8>> {
    let parts: Vec<_> = bytes.collect().await;
    Ok(parts.into_iter().collect::<io::Result<Vec<Bytes>>>()?.concat())
}

#[async_trait]
impl NodeFiles for Fake {
    async fn file_stat(&self, path: PathInside) -> Result<FileStat, ControlError> {
        if path.follow { Err(no(ErrorKind::NotFound)) } else { Ok(stat()) }
    }

    async fn read_files(&self, path: PathInside) -> Result<(FileStat, ArchiveBytes), ControlError> {
        let broken = stream::iter([Err(io::Error::other("the disk is on fire"))]);
        match path.path.as_str() {
            "/absent" => Err(no(ErrorKind::NotFound)),
            "/broken" => Ok((stat(), archive().take(1).chain(broken).boxed())),
            _ => Ok((stat(), archive())),
        }
    }

    async fn write_files(
        &self,
        path: PathInside,
        mut archive: ArchiveReader,
        keep_owner: bool,
    ) -> Result<FilesWritten, ControlError> {
        if path.path == "/full" {
            return Err(no(ErrorKind::DiskFull));
        }
        let mut bytes = Vec::new();
        let read = archive.read_to_end(&mut bytes).await;
        read.map_err(|error| ControlError::new(ErrorKind::Invalid, error.to_string()))?;
        Ok(FilesWritten { entries: u64::from(keep_owner), bytes: bytes.len() as u64 })
    }
}

pub(super) fn seen() -> MeshSeen {
    MeshSeen {
        address: Some("10.210.1.1".parse().unwrap()),
        device: None,
        listen_port: Some(51820),
        mtu: Some(1420),
        version: "0.1.0".into(),
        peers: Vec::new(),
    }
}

#[async_trait]
impl NodeMesh for Fake {
    async fn mesh_seen(&self) -> Result<MeshSeen, ControlError> {
        Ok(seen())
    }

    async fn mesh_ping(&self, packets: u32) -> Result<Vec<PingRow>, ControlError> {
        let node_id = NodeId(Uuid::from_u128(7));
        Ok(vec![PingRow { node_id, sent: packets, round_trips_us: vec![1; packets as usize] }])
    }
}

#[async_trait]
impl NodeUsage for Fake {
    async fn usage(&self, _: Vec<RunningInstance>, pss: bool) -> Result<Vec<(InstanceId, Usage)>, ControlError> {
        if pss { Err(no(ErrorKind::Internal)) } else { Ok(Vec::new()) }
    }

    async fn processes(&self, _: RunningInstance) -> Result<Vec<Process>, ControlError> {
        Err(no(ErrorKind::Forbidden))
    }
}

#[async_trait]
impl NodeSeries for Fake {
    async fn series(&self, subject: Subject, span: Span) -> Result<Series, ControlError> {
        let mean = vec![Some(span.points as f32), None];
        let line = |measure: &Measure| Line { measure: *measure, mean: mean.clone(), peak: mean.clone() };
        let lines = subject.measures().iter().map(line).collect();
        Ok(Series { since_ms: span.since_ms, step_ms: 10, lines })
    }
}

#[async_trait]
impl NodeVolumes for Fake {
    async fn volume_facts(&self, names: Vec<Name>) -> Result<BTreeMap<Name, VolumeFacts>, ControlError> {
        let facts = VolumeFacts { size_bytes: Some(7), path: Some("/v".into()) };
        Ok(names.into_iter().map(|name| (name, facts.clone())).collect())
    }

    async fn back_up_volume(&self, _: VolumeHere) -> Result<BackupStream, ControlError> {
        Ok(stream::repeat_with(|| Ok(Bytes::from(vec![7; 1 << 16]))).boxed())
    }

    async fn restore_volume(
        &self,
        _: VolumeHere,
        mut backup: ArchiveReader,
        replace: bool,
    ) -> Result<RestoredVolume, ControlError> {
        let mut bytes = Vec::new();
        let read = backup.read_to_end(&mut bytes).await;
        read.map_err(|error| ControlError::new(ErrorKind::Invalid, error.to_string()))?;
        Ok(RestoredVolume { entries: u64::from(replace), bytes: bytes.len() as u64 })
    }
}

pub(super) fn line(at_ns: i64, text: &str) -> LogLine {
    let stream = if at_ns % 2 == 0 { LogStream::Stdout } else { LogStream::Stderr };
    LogLine { at_ns, stream, text: text.to_owned(), partial: at_ns % 3 == 0 }
}

pub(super) fn image() -> NodeImage {
    NodeImage {
        name: "docker.io/library/web:latest".into(),
        digest: "sha256:0".into(),
        size_bytes: 1,
        created_at_ms: 2,
        platform: "linux/amd64".into(),
    }
}

#[async_trait]
impl NodeAccess for Fake {
    async fn logs(&self, of: InstanceId, query: LogQuery, ended: CancellationToken) -> Result<LogLines, ControlError> {
        if query.grep.is_some() {
            return Err(no(ErrorKind::Invalid));
        }
        let past = (0..100).map(|at| Ok(line(at, &"ü".repeat(at as usize))));
        let past = stream::iter(past.collect::<Vec<_>>());
        if of == instance(3) {
            return Ok(past.chain(stream::iter([Err(no(ErrorKind::Internal))])).boxed());
        }
        if !query.follow {
            return Ok(past.boxed());
        }
        let last = stream::once(async move {
            ended.cancelled().await;
            Ok(line(1_000, "the last"))
        });
        Ok(past.chain(last).boxed())
    }

    async fn gone_logs(&self, workload: Option<&Name>) -> Result<Vec<GoneInstance>, ControlError> {
        let workload = workload.cloned().unwrap_or_else(|| "all".parse().unwrap());
        Ok(vec![GoneInstance { id: instance(1), name: "web-0".into(), workload, gone_at_ms: 5, bytes: 6 }])
    }

    async fn facts(&self) -> Result<NodeFacts, ControlError> {
        let disk = DiskFacts {
            path: "/".into(),
            device: "x".into(),
            file_system: "ext4".into(),
            size_bytes: 1,
            free_bytes: 1,
        };
        Ok(NodeFacts {
            cpus: 1,
            cpu_model: String::new(),
            load: [0.25, 0.5, 1.0],
            memory_bytes: 1,
            memory_available_bytes: 1,
            swap_bytes: 0,
            swap_used_bytes: 0,
            disk,
            temperatures: Vec::new(),
            gpus: Vec::new(),
            os: String::new(),
            kernel: String::new(),
            arch: String::new(),
            runtime: String::new(),
            isolation: Vec::new(),
            version: String::new(),
            booted_at_ms: 0,
        })
    }

    async fn images(&self) -> Result<Vec<NodeImage>, ControlError> {
        Ok(vec![image()])
    }

    async fn import_image(
        &self,
        mut archive: ArchiveReader,
        _: Option<ImageRef>,
    ) -> Result<Vec<NodeImage>, ControlError> {
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).await.map_err(|_| no(ErrorKind::Invalid))?;
        Ok(vec![NodeImage { size_bytes: bytes.len() as u64, ..image() }])
    }

    async fn pull_image(&self, image: ImageRef) -> Result<PullSteps, ControlError> {
        let progress = PullProgress { image: image.as_str().to_owned(), layers: Vec::new(), by_word_of: None };
        let last = PullStep::Failed(no(ErrorKind::NotFound));
        Ok(stream::iter([PullStep::Progress(progress), PullStep::Done(self::image()), last]).boxed())
    }

    async fn image_pulls(&self) -> Result<Vec<ImagePull>, ControlError> {
        let failure = Some((9, no(ErrorKind::Unavailable)));
        Ok(vec![ImagePull { progress: PullProgress::default(), failure }])
    }

    async fn remove_image(&self, _: ImageRef) -> Result<bool, ControlError> {
        Ok(true)
    }

    async fn image_room(&self) -> Result<Room, ControlError> {
        Ok(Room { used_bytes: 1, free_bytes: 2, used_files: 3, free_files: 4 })
    }
}

pub(super) fn path(path: &str) -> PathInside {
    PathInside { instance: instance(1), path: path.to_owned(), follow: false }
}

pub(super) fn web() -> ImageRef {
    "web".parse().unwrap()
}

pub(super) fn volume() -> VolumeHere {
    let order = toft_model::volume::VolumeOrder { born: 1, options: Default::default() };
    VolumeHere { name: "data".parse().unwrap(), order, secrets: BTreeMap::new() }
}
