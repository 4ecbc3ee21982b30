//! Asks another node.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use serde::de::DeserializeOwned;
use toft_model::{
    exec::{AttachOrder, ExecOrder, ExecOutput},
    files::{FileStat, FilesWritten},
    ids::{InstanceId, NodeId},
    image::{ImageRef, NodeImage},
    log::{LogLine, LogQuery, LogStream},
    mesh::view::{MeshSeen, PingRow},
    name::Name,
    node::NodeFacts,
    series::{Series, Span, Subject},
    usage::{Process, Room, Usage},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{io::ReaderStream, sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Status, Streaming};

use super::{
    LARGEST, PART, WAITING,
    question::{Opening, Question, json, not_understood, parse, refused},
    session::{output, said, up},
};
use crate::{
    consensus::{Handle, network::MemberChannel},
    control::{
        ControlError, ErrorKind,
        node_access::{
            ArchiveReader, GoneInstance, ImagePull, LogLines, NodeAccess, OtherNodes, PullStep, PullSteps,
            attach::NodeAttach,
            exec::{ExecRefused, ExecSession, NodeExec},
            files::{ArchiveBytes, NodeFiles, PathInside},
            mesh::NodeMesh,
            series::NodeSeries,
            usage::{NodeUsage, RunningInstance},
            volumes::{BackupStream, NodeVolumes, RestoredVolume, VolumeFacts, VolumeHere},
        },
    },
    wire::node::{
        self as wire, Answer, Down, End, Up, answer, down::Part as Told, node_client::NodeClient, up::Part as Said,
    },
};

/// Longest wait for the answer to a question.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for what is asked of many nodes at a time.
const SHORT: Duration = Duration::from_secs(3);

/// The other nodes.
pub struct FarNodes {
    members: Handle,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl FarNodes {
    /// The other members. What was begun ends with `cancel`.
    pub fn new(members: Handle, cancel: CancellationToken) -> Self {
        Self { members, tasks: TaskTracker::new(), cancel }
    }
}

impl OtherNodes for FarNodes {
    fn node(&self, node: NodeId, name: &Name) -> Result<Arc<dyn NodeAccess>, ControlError> {
        let channel = self.members.channel_to(&node).map_err(|why| {
            ControlError::new(ErrorKind::Unavailable, format!("node `{name}` cannot be reached: {why}"))
                .hint("`toft node ls` shows how it is")
        })?;
        let (tasks, cancel) = (self.tasks.clone(), self.cancel.clone());
        Ok(Arc::new(FarNode { name: name.clone(), channel, tasks, cancel }))
    }
}

/// One of them.
struct FarNode {
    name: Name,
    channel: MemberChannel,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

type Ups = BoxStream<'static, Up>;

impl FarNode {
    fn client(&self) -> NodeClient<MemberChannel> {
        NodeClient::new(self.channel.clone()).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST)
    }

    /// What a call that failed before anything was answered means.
    fn failed(&self, status: &Status) -> ControlError {
        let name = &self.name;
        match status.code() {
            Code::ResourceExhausted => {
                ControlError::new(ErrorKind::Unavailable, format!("node `{name}` is busy: {}", status.message()))
                    .hint("try again when some of that is done")
            }
            Code::Unimplemented => {
                ControlError::new(ErrorKind::Conflict, format!("node `{name}` does not know what it is asked"))
                    .hint("run the same version of toft on both; `toft node ls` shows which they have")
            }
            Code::OutOfRange => {
                ControlError::new(ErrorKind::TooLarge, format!("what node `{name}` answers is too large"))
            }
            Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition => {
                let message = format!("node `{name}` refuses: {}", status.message());
                ControlError::new(ErrorKind::Unavailable, message).hint("`toft cluster status` shows who is a member")
            }
            _ => ControlError::new(ErrorKind::Unavailable, format!("node `{name}` cannot be reached"))
                .hint("`toft node ls` shows how it is; try again when it is back"),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, question: Question, patience: Duration) -> Result<T, ControlError> {
        let question = wire::Question { json: json(&question)? };
        let mut client = self.client();
        let answer = tokio::time::timeout(patience, client.ask(Request::new(question))).await.map_err(|_| {
            let message = format!("node `{}` did not answer within {} s", self.name, patience.as_secs());
            ControlError::new(ErrorKind::Unavailable, message).hint("`toft node ls` shows how it is")
        })?;
        match answer.map_err(|status| self.failed(&status))?.into_inner() {
            Answer { answer: Some(answer::Answer::Json(json)) } => parse(&json),
            Answer { answer: Some(answer::Answer::Refusal(json)) } => Err(refused(&json).error),
            Answer { answer: None } => Err(not_understood()),
        }
    }

    /// Begins something that lasts; gives the first answer and what follows.
    async fn open<T: DeserializeOwned>(&self, opening: Opening, ups: Ups) -> Result<(T, Downs), ExecRefused> {
        let question = up(Said::Question(wire::Question { json: json(&opening)? }));
        let ups: Ups = stream::iter([question]).chain(ups).boxed();
        let streaming = self.client().talk(Request::new(Upward(ups))).await;
        let mut streaming = streaming.map_err(|status| self.failed(&status))?.into_inner();
        let first = streaming.message().await.map_err(|_| went_away(&self.name))?;
        match first.and_then(|down| down.part) {
            Some(Told::Json(json)) => {
                Ok((parse(&json)?, Downs { name: self.name.clone(), streaming: Some(streaming) }))
            }
            Some(Told::Refusal(json)) => Err(refused(&json)),
            _ => Err(went_away(&self.name).into()),
        }
    }

    /// The same for what sends an archive, and has one answer.
    async fn send<T: DeserializeOwned>(&self, opening: Opening, archive: ArchiveReader) -> Result<T, ControlError> {
        let parts = ReaderStream::with_capacity(archive, PART);
        let ups = stream::unfold(Some(parts), async |parts| {
            let mut parts = parts?;
            match parts.next().await {
                Some(Ok(part)) => Some((up(Said::Content(part.into())), Some(parts))),
                // Without its end the other side knows that it broke off.
                Some(Err(_)) => None,
                None => Some((up(Said::End(End {})), None)),
            }
        });
        self.open(opening, ups.boxed()).await.map(|(answer, _)| answer).map_err(|refused| refused.error)
    }

    /// A process that runs on the other node.
    async fn session(&self, opening: Opening) -> Result<ExecSession, ExecRefused> {
        let (input, from_user) = mpsc::channel(WAITING);
        let ups = ReceiverStream::new(from_user).map(said).boxed();
        let ((), mut downs) = self.open::<()>(opening, ups).await?;
        let (to_user, of_process) = mpsc::channel(WAITING);
        let cancel = self.cancel.clone();
        let name = self.name.clone();
        self.tasks.spawn(async move {
            let carry = async {
                loop {
                    let next = match downs.next().await {
                        Some(Ok(part)) => output(part),
                        Some(Err(error)) => Some(ExecOutput::Lost(error.message)),
                        None => None,
                    };
                    let next = next.unwrap_or_else(|| ExecOutput::Lost(format!("node `{name}` went away")));
                    let over = matches!(next, ExecOutput::Exited(_) | ExecOutput::Lost(_));
                    if to_user.send(next).await.is_err() || over {
                        return;
                    }
                }
            };
            tokio::select! {
                () = carry => {}
                // Nobody is there any more. The call ends with this task, and with it what was begun.
                () = to_user.closed() => {}
                () = cancel.cancelled() => {
                    drop(to_user.try_send(ExecOutput::Lost("toft is stopping on this node".to_owned())));
                }
            }
        });
        Ok(ExecSession { input, output: of_process })
    }
}

/// What goes up, as a type with a name: of what a box holds the compiler does not prove that a call may hold it.
struct Upward(Ups);

impl Stream for Upward {
    type Item = Up;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Up>> {
        self.0.poll_next_unpin(context)
    }
}

fn went_away(name: &Name) -> ControlError {
    ControlError::new(ErrorKind::Unavailable, format!("node `{name}` went away")).hint("`toft node ls` shows how it is")
}

/// What comes from the other node.
struct Downs {
    name: Name,
    streaming: Option<Streaming<Down>>,
}

impl Downs {
    /// The next part; an error is the last.
    async fn next(&mut self) -> Option<Result<Told, ControlError>> {
        let streaming = self.streaming.as_mut()?;
        let part = match streaming.message().await {
            Ok(Some(Down { part: Some(Told::Refusal(json)) })) => Err(refused(&json).error),
            Ok(Some(Down { part: Some(part) })) => Ok(part),
            Ok(Some(Down { part: None })) => Err(not_understood()),
            Ok(None) => {
                self.streaming = None;
                return None;
            }
            Err(_) => Err(went_away(&self.name)),
        };
        if part.is_err() {
            self.streaming = None;
        }
        Some(part)
    }

    fn parts(self) -> BoxStream<'static, Result<Told, ControlError>> {
        stream::unfold(self, async |mut downs| Some((downs.next().await?, downs))).boxed()
    }

    /// The bytes of an archive.
    fn bytes(self) -> BoxStream<'static, io::Result<Bytes>> {
        let bytes = |part| match part {
            Ok(Told::Content(bytes)) => Ok(Bytes::from(bytes)),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(io::Error::other(error)),
        };
        self.parts().map(bytes).boxed()
    }
}

#[async_trait]
impl NodeExec for FarNode {
    async fn exec(&self, instance: InstanceId, order: ExecOrder) -> Result<ExecSession, ExecRefused> {
        self.session(Opening::Exec { instance, order }).await
    }
}

#[async_trait]
impl NodeAttach for FarNode {
    async fn attach(&self, instance: InstanceId, order: AttachOrder) -> Result<ExecSession, ControlError> {
        self.session(Opening::Attach { instance, order }).await.map_err(|refused| refused.error)
    }
}

#[async_trait]
impl NodeFiles for FarNode {
    async fn file_stat(&self, path: PathInside) -> Result<FileStat, ControlError> {
        self.ask(Question::FileStat(path), PATIENCE).await
    }

    async fn read_files(&self, path: PathInside) -> Result<(FileStat, ArchiveBytes), ControlError> {
        let opened = self.open(Opening::ReadFiles(path), stream::empty().boxed()).await;
        opened.map(|(stat, downs)| (stat, downs.bytes())).map_err(|refused| refused.error)
    }

    async fn write_files(
        &self,
        path: PathInside,
        archive: ArchiveReader,
        keep_owner: bool,
    ) -> Result<FilesWritten, ControlError> {
        self.send(Opening::WriteFiles { path, keep_owner }, archive).await
    }
}

#[async_trait]
impl NodeMesh for FarNode {
    async fn mesh_seen(&self) -> Result<MeshSeen, ControlError> {
        self.ask(Question::MeshSeen, SHORT).await
    }

    async fn mesh_ping(&self, packets: u32) -> Result<Vec<PingRow>, ControlError> {
        self.ask(Question::MeshPing { packets }, PATIENCE).await
    }
}

#[async_trait]
impl NodeUsage for FarNode {
    async fn usage(
        &self,
        instances: Vec<RunningInstance>,
        pss: bool,
    ) -> Result<Vec<(InstanceId, Usage)>, ControlError> {
        self.ask(Question::Usage { instances, pss }, if pss { PATIENCE } else { SHORT }).await
    }

    async fn processes(&self, instance: RunningInstance) -> Result<Vec<Process>, ControlError> {
        self.ask(Question::Processes(instance), PATIENCE).await
    }
}

#[async_trait]
impl NodeSeries for FarNode {
    async fn series(&self, subject: Subject, span: Span) -> Result<Series, ControlError> {
        self.ask(Question::Series { subject, span }, SHORT).await
    }
}

#[async_trait]
impl NodeVolumes for FarNode {
    async fn volume_facts(&self, names: Vec<Name>) -> Result<BTreeMap<Name, VolumeFacts>, ControlError> {
        self.ask(Question::VolumeFacts { names }, SHORT).await
    }

    async fn back_up_volume(&self, volume: VolumeHere) -> Result<BackupStream, ControlError> {
        let opened = self.open::<()>(Opening::BackUp(volume), stream::empty().boxed()).await;
        opened.map(|((), downs)| downs.bytes()).map_err(|refused| refused.error)
    }

    async fn restore_volume(
        &self,
        volume: VolumeHere,
        backup: ArchiveReader,
        replace: bool,
    ) -> Result<RestoredVolume, ControlError> {
        self.send(Opening::Restore { volume, replace }, backup).await
    }
}

#[async_trait]
impl NodeAccess for FarNode {
    async fn logs(
        &self,
        instance: InstanceId,
        query: LogQuery,
        ended: CancellationToken,
    ) -> Result<LogLines, ControlError> {
        let ups = stream::once(async move {
            ended.cancelled_owned().await;
            up(Said::End(End {}))
        })
        .boxed();
        let opened = self.open::<()>(Opening::Logs { instance, query }, ups).await;
        let ((), downs) = opened.map_err(|refused| refused.error)?;
        let lines = |part| match part {
            Ok(Told::Lines(lines)) => lines.lines.into_iter().map(|line| Ok(line_of(line))).collect(),
            Ok(_) => Vec::new(),
            Err(error) => vec![Err(error)],
        };
        Ok(downs.parts().map(lines).flat_map(stream::iter).boxed())
    }

    async fn gone_logs(&self, workload: Option<&Name>) -> Result<Vec<GoneInstance>, ControlError> {
        self.ask(Question::GoneLogs { workload: workload.cloned() }, SHORT).await
    }

    async fn facts(&self) -> Result<NodeFacts, ControlError> {
        self.ask(Question::Facts, SHORT).await
    }

    async fn images(&self) -> Result<Vec<NodeImage>, ControlError> {
        self.ask(Question::Images, PATIENCE).await
    }

    async fn import_image(
        &self,
        archive: ArchiveReader,
        name: Option<ImageRef>,
    ) -> Result<Vec<NodeImage>, ControlError> {
        self.send(Opening::Import { name }, archive).await
    }

    async fn pull_image(&self, image: ImageRef) -> Result<PullSteps, ControlError> {
        let opened = self.open::<()>(Opening::Pull { image }, stream::empty().boxed()).await;
        let ((), downs) = opened.map_err(|refused| refused.error)?;
        let step = |part| match part {
            Ok(Told::Json(json)) => parse(&json).unwrap_or_else(PullStep::Failed),
            Ok(_) => PullStep::Failed(not_understood()),
            Err(error) => PullStep::Failed(error),
        };
        Ok(downs.parts().map(step).boxed())
    }

    async fn image_pulls(&self) -> Result<Vec<ImagePull>, ControlError> {
        self.ask(Question::ImagePulls, SHORT).await
    }

    async fn remove_image(&self, image: ImageRef) -> Result<bool, ControlError> {
        self.ask(Question::RemoveImage { image }, PATIENCE).await
    }

    async fn image_room(&self) -> Result<Room, ControlError> {
        self.ask(Question::ImageRoom, SHORT).await
    }
}

fn line_of(line: wire::Line) -> LogLine {
    let wire::Line { at_ns, errors, text, partial } = line;
    let stream = if errors { LogStream::Stderr } else { LogStream::Stdout };
    LogLine { at_ns, stream, text, partial }
}
