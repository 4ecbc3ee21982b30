//! The dashboard with a state of its own, the scheduler, and a node whose reports the test writes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use toft_model::{
    exec::{AttachOrder, ExecOrder},
    files::{FileStat, FilesWritten},
    gpu::{Gpu, GpuFacts, GpuMeasured},
    ids::{InstanceId, NodeId},
    image::{ImageRef, NodeImage},
    instance::{Exit, InstanceReport, InstanceState},
    log::{LogLine, LogQuery, LogStream},
    mesh::view::{MeshSeen, PingRow},
    name::Name,
    node::{DiskFacts, Inventory, NodeFacts, Temperature},
    pull::PullProgress,
    series::{Line, Measure, Series, Span, Subject},
    state::{PutMode, WorkloadView},
    usage::{Process, Room, Usage},
    workload::{PortSpec, WorkloadSpec},
};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use crate::{
    consensus::{
        self, Opened,
        types::{FOUNDER, Member},
    },
    control::{
        ControlError, ErrorKind,
        loops::schedule,
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
        ops::{Ops, now_ms},
    },
    dashboard::router_until,
    enroll::Keys,
};

/// Longest wait for anything a test waits for.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// A node that runs nothing.
#[derive(Default)]
pub(super) struct FakeNode {
    pub(super) trouble: Mutex<Option<String>>,
    pub(super) images: Mutex<Vec<NodeImage>>,
    pub(super) pulls: Mutex<Vec<ImagePull>>,
    pub(super) pulls_moved: watch::Sender<u64>,
    pub(super) cards: Mutex<Vec<GpuFacts>>,
    gone: Mutex<Vec<GoneInstance>>,
    written: Mutex<BTreeMap<InstanceId, Output>>,
    id: OnceLock<NodeId>,
}

/// What an instance wrote, and who follows it.
#[derive(Default)]
struct Output {
    lines: Vec<LogLine>,
    followers: Option<broadcast::Sender<LogLine>>,
}

impl FakeNode {
    pub(super) fn write(&self, instance: InstanceId, stream: LogStream, text: &str) {
        let mut written = self.written.lock().unwrap();
        let last = written.values().filter_map(|output| Some(output.lines.last()?.at_ns)).max().unwrap_or(0);
        let at_ns = (now_ms() * 1_000_000).max(last + 1);
        let Output { lines, followers } = written.entry(instance).or_default();
        let line = LogLine { at_ns, stream, text: text.into(), partial: false };
        lines.push(line.clone());
        if let Some(followers) = followers {
            drop(followers.send(line));
        }
    }

    /// Puts a pull in the place of the image's other one.
    pub(super) fn set_pull(&self, pull: ImagePull) {
        let mut pulls = self.pulls.lock().unwrap();
        pulls.retain(|other| other.progress.image != pull.progress.image);
        pulls.push(pull);
        self.pulls_moved.send_modify(|count| *count += 1);
    }

    /// An instance that wrote a line and went so many milliseconds ago.
    pub(super) fn let_go(&self, instance: &str, workload: &str, ago_ms: i64, text: &str) {
        let (id, workload) = (InstanceId(Uuid::new_v4()), workload.parse().unwrap());
        self.write(id, LogStream::Stdout, text);
        let name = instance.to_owned();
        self.gone.lock().unwrap().push(GoneInstance { id, name, workload, gone_at_ms: now_ms() - ago_ms, bytes: 4096 });
    }

    pub(super) fn add_image(&self, name: &str, size_bytes: u64) {
        self.images.lock().unwrap().push(NodeImage {
            name: name.into(),
            digest: format!("sha256:{}", "3f5c".repeat(16)),
            size_bytes,
            created_at_ms: now_ms() - 3 * 3_600_000,
            platform: "linux/amd64".into(),
        });
    }
}

#[async_trait]
impl NodeAttach for FakeNode {
    async fn attach(&self, _: InstanceId, _: AttachOrder) -> Result<ExecSession, ControlError> {
        Err(ControlError::new(ErrorKind::Conflict, "nothing runs here"))
    }
}

#[async_trait]
impl NodeExec for FakeNode {
    async fn exec(&self, _: InstanceId, _: ExecOrder) -> Result<ExecSession, ExecRefused> {
        Err(ControlError::new(ErrorKind::Conflict, "nothing runs here").into())
    }
}

#[async_trait]
impl NodeUsage for FakeNode {
    async fn usage(&self, asked: Vec<RunningInstance>, _: bool) -> Result<Vec<(InstanceId, Usage)>, ControlError> {
        let used = |instance: RunningInstance| {
            let usage = Usage {
                cpu_percent: 12.34,
                cpu_ns: 1,
                memory_bytes: 48 << 20,
                memory_limit_bytes: 256 << 20,
                memory_pss_bytes: None,
                received_bytes: None,
                sent_bytes: None,
                read_bytes: None,
                written_bytes: None,
                pids: 3,
                pressure: None,
            };
            (instance.id, usage)
        };
        Ok(asked.into_iter().map(used).collect())
    }

    async fn processes(&self, _: RunningInstance) -> Result<Vec<Process>, ControlError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl NodeSeries for FakeNode {
    async fn series(&self, subject: Subject, span: Span) -> Result<Series, ControlError> {
        let count = 12;
        let mean: Vec<Option<f32>> = (0..count).map(|place| (place != 1).then_some(place as f32 + 0.5)).collect();
        let line = |measure: &Measure| Line { measure: *measure, mean: mean.clone(), peak: mean.clone() };
        let lines = subject.measures().iter().map(line).collect();
        Ok(Series { since_ms: span.since_ms, step_ms: (span.until_ms - span.since_ms) / 12, lines })
    }
}

#[async_trait]
impl NodeFiles for FakeNode {
    async fn file_stat(&self, _: PathInside) -> Result<FileStat, ControlError> {
        Err(ControlError::new(ErrorKind::Conflict, "nothing runs here"))
    }

    async fn read_files(&self, _: PathInside) -> Result<(FileStat, ArchiveBytes), ControlError> {
        Err(ControlError::new(ErrorKind::Conflict, "nothing runs here"))
    }

    async fn write_files(&self, _: PathInside, _: ArchiveReader, _: bool) -> Result<FilesWritten, ControlError> {
        Err(ControlError::new(ErrorKind::Conflict, "nothing runs here"))
    }
}

#[async_trait]
impl NodeVolumes for FakeNode {
    async fn volume_facts(&self, names: Vec<Name>) -> Result<BTreeMap<Name, VolumeFacts>, ControlError> {
        let facts = |name: Name| {
            let path = Some(format!("/var/lib/toft/volumes/{name}/_data"));
            (name, VolumeFacts { size_bytes: Some(5 << 20), path })
        };
        Ok(names.into_iter().map(facts).collect())
    }

    async fn back_up_volume(&self, _: VolumeHere) -> Result<BackupStream, ControlError> {
        Ok(stream::empty().boxed())
    }

    async fn restore_volume(&self, _: VolumeHere, _: ArchiveReader, _: bool) -> Result<RestoredVolume, ControlError> {
        Ok(RestoredVolume { entries: 0, bytes: 0 })
    }
}

#[async_trait]
impl NodeAccess for FakeNode {
    async fn logs(
        &self,
        instance: InstanceId,
        query: LogQuery,
        ended: CancellationToken,
    ) -> Result<LogLines, ControlError> {
        let mut written = self.written.lock().unwrap();
        let Output { lines, followers } = written.entry(instance).or_default();
        let grep = query.grep.as_deref().map(|grep| regex::Regex::new(grep).unwrap());
        let wanted = |line: &&LogLine| {
            query.since_ns.is_none_or(|since| line.at_ns >= since)
                && grep.as_ref().is_none_or(|grep| grep.is_match(&line.text))
        };
        let mut past: Vec<_> = lines.iter().filter(wanted).cloned().collect();
        past.drain(..past.len().saturating_sub(query.tail.unwrap_or(usize::MAX)));
        let past = stream::iter(past.into_iter().map(Ok));
        if !query.follow {
            return Ok(past.boxed());
        }
        let receiver = followers.get_or_insert_with(|| broadcast::channel(1_000).0).subscribe();
        let next = stream::unfold(receiver, |mut receiver| async { Some((Ok(receiver.recv().await.ok()?), receiver)) });
        Ok(past.chain(next.boxed().take_until(ended.cancelled_owned())).boxed())
    }

    async fn gone_logs(&self, workload: Option<&Name>) -> Result<Vec<GoneInstance>, ControlError> {
        let gone = self.gone.lock().unwrap();
        Ok(gone.iter().filter(|gone| workload.is_none_or(|name| gone.workload == *name)).cloned().collect())
    }

    async fn facts(&self) -> Result<NodeFacts, ControlError> {
        Ok(NodeFacts {
            cpus: 16,
            cpu_model: "Ryzen <9>".into(),
            load: [0.5, 1.0, 2.25],
            memory_bytes: 64 << 30,
            memory_available_bytes: 48 << 30,
            swap_bytes: 8 << 30,
            swap_used_bytes: 0,
            disk: DiskFacts {
                path: "/var/lib/toft".into(),
                device: "/dev/nvme0n1p2".into(),
                file_system: "ext4".into(),
                size_bytes: 900 << 30,
                free_bytes: 300 << 30,
            },
            temperatures: vec![Temperature { sensor: "k10temp Tctl".into(), celsius: 51.5 }],
            gpus: self.gpus(),
            os: "Debian GNU/Linux 13 (trixie)".into(),
            kernel: "6.12.9-amd64".into(),
            arch: "x86_64".into(),
            runtime: "containerd 2.1.4".into(),
            isolation: vec!["runc 1.2.6".into()],
            version: "0.1.0".into(),
            // Whoever looks may have looked at the clock a moment before.
            booted_at_ms: now_ms() - 3 * 86_400_000 - 3_600_000,
        })
    }

    async fn images(&self) -> Result<Vec<NodeImage>, ControlError> {
        Ok(self.images.lock().unwrap().clone())
    }

    async fn import_image(&self, _: ArchiveReader, _: Option<ImageRef>) -> Result<Vec<NodeImage>, ControlError> {
        Ok(Vec::new())
    }

    async fn pull_image(&self, image: ImageRef) -> Result<PullSteps, ControlError> {
        let progress = PullProgress { image: image.as_str().to_owned(), ..PullProgress::default() };
        self.set_pull(ImagePull { progress, failure: None });
        Ok(stream::empty().boxed())
    }

    async fn image_pulls(&self) -> Result<Vec<ImagePull>, ControlError> {
        Ok(self.pulls())
    }

    async fn remove_image(&self, image: ImageRef) -> Result<bool, ControlError> {
        let mut images = self.images.lock().unwrap();
        let before = images.len();
        images.retain(|known| known.name != image.as_str());
        Ok(images.len() < before)
    }

    async fn image_room(&self) -> Result<Room, ControlError> {
        Ok(Room { used_bytes: 1, free_bytes: 9, used_files: 1, free_files: 9 })
    }
}

#[async_trait]
impl NodeMesh for FakeNode {
    async fn mesh_seen(&self) -> Result<MeshSeen, ControlError> {
        Err(ControlError::new(ErrorKind::Conflict, "nothing runs here"))
    }

    async fn mesh_ping(&self, _: u32) -> Result<Vec<PingRow>, ControlError> {
        Err(ControlError::new(ErrorKind::Conflict, "nothing runs here"))
    }
}

impl OwnNode for FakeNode {
    fn node_id(&self) -> Option<NodeId> {
        self.id.get().copied()
    }

    fn port_taken_outside(&self, port: PortSpec) -> Option<String> {
        (port.host == Some(22)).then(|| "host port 22/tcp is taken by another program".into())
    }

    fn runtime_trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap().clone()
    }

    fn gpus(&self) -> Vec<GpuFacts> {
        self.cards.lock().unwrap().clone()
    }

    fn pulling(&self, image: &ImageRef) -> Option<PullProgress> {
        let pulls = self.pulls.lock().unwrap();
        pulls.iter().map(|pull| &pull.progress).find(|progress| progress.image == image.as_str()).cloned()
    }

    fn pulls(&self) -> Vec<ImagePull> {
        self.pulls.lock().unwrap().clone()
    }

    fn pulls_moved(&self) -> watch::Receiver<u64> {
        self.pulls_moved.subscribe()
    }
}

/// What the dashboard answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(super) fn shows(&self, text: &str) -> &Self {
        assert!(self.text.contains(text), "`{text}` is missing in:\n{}", self.text);
        self
    }

    #[track_caller]
    pub(super) fn hides(&self, text: &str) -> &Self {
        assert!(!self.text.contains(text), "`{text}` is in:\n{}", self.text);
        self
    }
}

/// The dashboard and everything below it.
pub(super) struct House {
    pub(super) ops: Ops,
    pub(super) app: Router,
    pub(super) node: Arc<FakeNode>,
    pub(super) shutdown: CancellationToken,
    node_id: NodeId,
    _dir: tempfile::TempDir,
}

impl House {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node_id = NodeId(Uuid::now_v7());
        let name = "attic".parse().unwrap();
        let founder = Member { node_id, name, ..Member::default() };
        let keys = Keys::load_or_make(&dir.path().join("cluster"), FOUNDER).unwrap();
        let files = consensus::Files::under(dir.path());
        let opened = consensus::open(&files, founder, keys.transport().clone()).await.unwrap();
        let Opened { handle: state, task, .. } = opened;
        let shutdown = CancellationToken::new();
        tokio::spawn(task);
        tokio::spawn(schedule::run(state.clone(), Box::new(BTreeMap::new), shutdown.clone()));
        let node = Arc::new(FakeNode { id: node_id.into(), ..FakeNode::default() });
        let ops = Ops::new(state, node.clone()).with_cluster_key(keys.cluster_key().clone());
        let app = router_until(ops.clone(), shutdown.clone());
        let inventory = Inventory {
            cpus: 16,
            memory_bytes: 64 << 30,
            kernel: "6.12.9-amd64".into(),
            os: "Debian GNU/Linux 13 (trixie)".into(),
            arch: "x86_64".into(),
            version: "0.1.0".into(),
            runtime: "containerd 2.1.4".into(),
            subnet: Some("10.210.0.0/24".parse().unwrap()),
            subnet6: None,
            isolation: Vec::new(),
            gpus: Vec::new(),
        };
        ops.register_node(node_id, "attic".parse().unwrap(), BTreeMap::new(), inventory).await.unwrap();
        Self { ops, app, node, shutdown, node_id, _dir: dir }
    }

    /// Gives the node a card.
    pub(super) async fn add_card(&self, card: Gpu) {
        let node = self.ops.node(&"attic".parse().unwrap()).await.unwrap();
        let mut inventory = node.inventory.clone();
        let place = inventory.gpus.len() as u32;
        inventory.gpus.push(card.clone());
        self.ops.register_node(self.node_id, node.name.clone(), BTreeMap::new(), inventory).await.unwrap();
        let measured = GpuMeasured { busy_percent: Some(0), ..GpuMeasured::default() };
        let (pci, driver, cuda) = (None, None, None);
        let facts = GpuFacts { gpu: card, place, pci, driver, cuda, measured, processes: Vec::new() };
        self.node.cards.lock().unwrap().push(facts);
    }

    pub(super) async fn ask(&self, request: Request<Body>) -> Answer {
        let answer = self.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path).header(header::HOST, "attic.lan:7443").body(Body::empty()).unwrap()).await
    }

    pub(super) async fn post(&self, path: &str, form: &str) -> Answer {
        let request = Request::post(path)
            .header(header::HOST, "attic.lan:7443")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::from(form.to_owned()));
        self.ask(request.unwrap()).await
    }

    /// Sends a form with files, as browsers do; gives each field's name and content.
    pub(super) async fn post_parts(&self, path: &str, fields: &[(&str, &[u8])]) -> Answer {
        let mut body = Vec::new();
        for (name, content) in fields {
            let file = if *name == "file" { "; filename=\"key.bin\"" } else { "" };
            body.extend(format!("--B\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
            body.extend_from_slice(content);
            body.extend(b"\r\n");
        }
        body.extend(b"--B--\r\n");
        let request = Request::post(path)
            .header(header::HOST, "attic.lan:7443")
            .header(header::CONTENT_TYPE, "multipart/form-data; boundary=B")
            .body(Body::from(body));
        self.ask(request.unwrap()).await
    }

    /// Writes a specification and waits until all its instances are placed.
    pub(super) async fn run(&self, name: &str, change: impl FnOnce(&mut WorkloadSpec)) -> WorkloadView {
        let mut spec = WorkloadSpec::new(name.parse().unwrap(), "toft/demo".parse().unwrap());
        change(&mut spec);
        self.ops.put_workload(spec, PutMode::Create).await.unwrap();
        self.until(name, |workload| {
            workload.row.pending.is_some() || workload.instances.len() == workload.row.spec.replicas as usize
        })
        .await
    }

    /// The same with every instance running.
    pub(super) async fn run_up(&self, name: &str, change: impl FnOnce(&mut WorkloadSpec)) -> WorkloadView {
        let workload = self.run(name, change).await;
        for ordinal in 0..workload.instances.len() {
            self.report(name, ordinal, InstanceState::Running { pid: 4_242, since_ms: now_ms() - 125_000 }, 0).await;
        }
        self.until(name, |_| true).await
    }

    pub(super) async fn report(&self, name: &str, ordinal: usize, state: InstanceState, restarts: u32) {
        let workload = self.ops.workload(&name.parse().unwrap()).await.unwrap();
        let row = &workload.instances[ordinal].row;
        let report = InstanceReport {
            instance_id: row.id,
            state: Some(state),
            epoch: row.epoch,
            restarts,
            last_exit: None,
            health: None,
            warning: None,
            at_ms: now_ms(),
            sequence: 0,
        };
        self.ops.report_instances(self.node_id, vec![report]).await.unwrap();
    }

    pub(super) async fn fail(&self, name: &str, code: i32) {
        let exit = Exit::new(Some(code), now_ms() - 60_000);
        self.report(name, 0, InstanceState::Finished { exit, reason: None }, 0).await;
    }

    pub(super) async fn until(&self, name: &str, reached: impl Fn(&WorkloadView) -> bool) -> WorkloadView {
        let name = name.parse().unwrap();
        let mut moved = self.ops.state().watch();
        let wait = async {
            loop {
                moved.mark_unchanged();
                let workload = self.ops.workload(&name).await.unwrap();
                if reached(&workload) {
                    return workload;
                }
                moved.changed().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("the workload did not get there")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
