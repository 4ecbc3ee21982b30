//! Answers what other members ask of this node.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde::Serialize;
use toft_model::{ids::InstanceId, log::LogStream};
use tokio_util::{io::StreamReader, sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Request, Response, Status, Streaming};

use super::{
    CALLS, LARGEST, LINES, PART,
    question::{Opening, Question, json, parse, refusal},
    session::{down, input, told},
};
use crate::{
    consensus::{network::Caller, types::MemberId},
    control::{
        ControlError, ErrorKind,
        node_access::{
            ArchiveReader, LogLines, NodeAccess,
            exec::{ExecRefused, ExecSession},
        },
    },
    wire::node::{
        Answer, Down, Line, Lines, Up, answer,
        down::Part,
        node_server::{Node, NodeServer},
        up::Part as Said,
    },
};

/// Longest wait for the question of a call.
const QUESTION: Duration = Duration::from_secs(10);

/// What members are answered by.
#[derive(Clone)]
pub struct NodeDoor {
    node: Arc<dyn NodeAccess>,
    cancel: CancellationToken,
    calls: Arc<Mutex<HashMap<MemberId, usize>>>,
}

/// The place of one call.
struct Place {
    calls: Arc<Mutex<HashMap<MemberId, usize>>>,
    caller: MemberId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = calls.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                calls.remove(&self.caller);
            }
        }
    }
}

type Downs = BoxStream<'static, Result<Down, Status>>;

impl NodeDoor {
    /// Answers with what `node` has, until `cancel`.
    pub fn new(node: Arc<dyn NodeAccess>, cancel: CancellationToken) -> Self {
        Self { node, cancel, calls: Arc::default() }
    }

    /// The service.
    pub fn service(self) -> NodeServer<Self> {
        NodeServer::new(self).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST)
    }

    fn enter<T>(&self, request: &Request<T>) -> Result<Place, Status> {
        let Some(Caller { member_id: caller, .. }) = request.extensions().get().copied() else {
            return Err(Status::unauthenticated("a certificate of the cluster is needed"));
        };
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry(caller).or_default();
        if *count >= CALLS {
            return Err(Status::resource_exhausted(format!("{CALLS} calls from there are under way already")));
        }
        *count += 1;
        Ok(Place { calls: Arc::clone(&self.calls), caller })
    }

    async fn answer(&self, question: Question) -> Result<Vec<u8>, ControlError> {
        let node = &self.node;
        match question {
            Question::Facts => json(&node.facts().await?),
            Question::GoneLogs { workload } => json(&node.gone_logs(workload.as_ref()).await?),
            Question::Images => json(&node.images().await?),
            Question::ImagePulls => json(&node.image_pulls().await?),
            Question::RemoveImage { image } => json(&node.remove_image(image).await?),
            Question::ImageRoom => json(&node.image_room().await?),
            Question::FileStat(path) => json(&node.file_stat(path).await?),
            Question::Usage { instances, pss } => json(&node.usage(instances, pss).await?),
            Question::Processes(instance) => json(&node.processes(instance).await?),
            Question::VolumeFacts { names } => json(&node.volume_facts(names).await?),
            Question::MeshSeen => json(&node.mesh_seen().await?),
            Question::MeshPing { packets } => json(&node.mesh_ping(packets).await?),
            Question::Series { subject, span } => json(&node.series(subject, span).await?),
        }
    }

    async fn open(&self, opening: Opening, ups: Streaming<Up>) -> Result<Downs, ExecRefused> {
        let node = &self.node;
        Ok(match opening {
            Opening::Exec { instance, order } => {
                order.validate().map_err(ControlError::from)?;
                session(node.exec(instance, order).await?, ups)
            }
            Opening::Attach { instance, order } => {
                order.validate().map_err(ControlError::from)?;
                session(node.attach(instance, order).await?, ups)
            }
            Opening::Logs { instance, query } => self.logs(instance, query, ups).await?,
            Opening::ReadFiles(path) => {
                let (stat, archive) = node.read_files(path).await?;
                stream::iter([first(&stat)?]).chain(archive.flat_map(parts)).boxed()
            }
            Opening::BackUp(volume) => {
                let backup = node.back_up_volume(volume).await?;
                stream::iter([first(&())?]).chain(backup.flat_map(parts)).boxed()
            }
            Opening::WriteFiles { path, keep_owner } => only(&node.write_files(path, archive(ups), keep_owner).await?)?,
            Opening::Restore { volume, replace } => only(&node.restore_volume(volume, archive(ups), replace).await?)?,
            Opening::Import { name } => only(&node.import_image(archive(ups), name).await?)?,
            Opening::Pull { image } => {
                let steps = node.pull_image(image).await?;
                let told = steps.map(|step| first(&step).unwrap_or_else(|error| last(error.into())));
                stream::iter([first(&())?]).chain(told).boxed()
            }
        })
    }

    async fn logs(
        &self,
        instance: InstanceId,
        query: toft_model::log::LogQuery,
        mut ups: Streaming<Up>,
    ) -> Result<Downs, ControlError> {
        let ended = CancellationToken::new();
        let lines = self.node.logs(instance, query, ended.clone()).await?;
        // Who reads says when the instance has ended; it is the one who knows.
        let told = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok(Some(Up { part })) = ups.message().await {
                if matches!(part, Some(Said::End(_))) {
                    ended.cancel();
                }
            }
        }));
        let begun = first(&())?;
        Ok(held(stream::iter([begun]).chain(lines_of(lines)).boxed(), told))
    }

    async fn begin(&self, ups: &mut Streaming<Up>) -> Result<Opening, ControlError> {
        let none = || ControlError::new(ErrorKind::Invalid, "the first message is no question");
        let asked = tokio::time::timeout(QUESTION, ups.message()).await.map_err(|_| none())?;
        match asked.ok().flatten().and_then(|message| message.part) {
            Some(Said::Question(question)) => parse(&question.json),
            _ => Err(none()),
        }
    }
}

#[async_trait]
impl Node for NodeDoor {
    async fn ask(&self, request: Request<crate::wire::node::Question>) -> Result<Response<Answer>, Status> {
        let _place = self.enter(&request)?;
        let answer = async { self.answer(parse(&request.get_ref().json)?).await };
        let answer = match self.cancel.run_until_cancelled(answer).await {
            Some(Ok(json)) => answer::Answer::Json(json),
            Some(Err(error)) => answer::Answer::Refusal(refusal(&error.into())),
            None => answer::Answer::Refusal(refusal(&stopping().into())),
        };
        Ok(Response::new(Answer { answer: Some(answer) }))
    }

    type TalkStream = Downs;

    async fn talk(&self, request: Request<Streaming<Up>>) -> Result<Response<Downs>, Status> {
        let place = self.enter(&request)?;
        let mut ups = request.into_inner();
        let opened = async {
            let opening = self.begin(&mut ups).await?;
            self.open(opening, ups).await
        };
        let downs = match self.cancel.run_until_cancelled(opened).await {
            Some(Ok(downs)) => downs,
            Some(Err(refused)) => stream::iter([last(refused)]).boxed(),
            None => stream::iter([last(stopping().into())]).boxed(),
        };
        Ok(Response::new(held(downs, place)))
    }
}

fn stopping() -> ControlError {
    ControlError::new(ErrorKind::Unavailable, "toft is stopping on that node")
}

fn first<T: Serialize>(value: &T) -> Result<Result<Down, Status>, ControlError> {
    Ok(Ok(down(Part::Json(json(value)?))))
}

fn last(refused: ExecRefused) -> Result<Down, Status> {
    Ok(down(Part::Refusal(refusal(&refused))))
}

fn only<T: Serialize>(value: &T) -> Result<Downs, ControlError> {
    Ok(stream::iter([first(value)?]).boxed())
}

/// A stream that keeps something for as long as it is there.
fn held<T: Send + 'static>(downs: Downs, kept: T) -> Downs {
    stream::unfold((downs, kept), async |(mut downs, kept)| Some((downs.next().await?, (downs, kept)))).boxed()
}

/// A process and who uses it. Both ways close when the call does.
fn session(session: ExecSession, mut ups: Streaming<Up>) -> Downs {
    let ExecSession { input: to_process, output } = session;
    // A way of its own: who does not read can still be heard.
    let pump = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok(Some(Up { part })) = ups.message().await {
            let Some(said) = part.and_then(input) else { continue };
            if to_process.send(said).await.is_err() {
                // It has ended; what it said last is still on its way.
                return std::future::pending().await;
            }
        }
    }));
    let begun = Ok(down(Part::Json(b"null".to_vec())));
    let outputs = stream::unfold((output, pump), async |(mut output, pump)| {
        let next = output.recv().await?;
        Some((Ok(told(next)), (output, pump)))
    });
    stream::iter([begun]).chain(outputs).boxed()
}

fn lines_of(lines: LogLines) -> Downs {
    let told = |chunk: Vec<Result<toft_model::log::LogLine, ControlError>>| {
        let mut downs = Vec::new();
        let mut lines = Vec::with_capacity(chunk.len());
        for line in chunk {
            match line {
                Ok(line) => lines.push(Line {
                    at_ns: line.at_ns,
                    errors: line.stream == LogStream::Stderr,
                    text: line.text,
                    partial: line.partial,
                }),
                Err(error) => {
                    downs.push(Ok(down(Part::Lines(Lines { lines: std::mem::take(&mut lines) }))));
                    downs.push(last(error.into()));
                }
            }
        }
        downs.push(Ok(down(Part::Lines(Lines { lines }))));
        stream::iter(downs)
    };
    lines.ready_chunks(LINES).flat_map(told).boxed()
}

/// Bytes of an archive in messages of bounded size.
fn parts(bytes: io::Result<Bytes>) -> Downs {
    match bytes {
        Ok(bytes) if bytes.len() <= PART => stream::iter([Ok(down(Part::Content(bytes.into())))]).boxed(),
        Ok(bytes) => {
            let parts = (0..bytes.len()).step_by(PART);
            let parts = parts.map(|at| Ok(down(Part::Content(bytes[at..bytes.len().min(at + PART)].to_vec()))));
            stream::iter(parts.collect::<Vec<_>>()).boxed()
        }
        Err(error) => {
            let error = ControlError::new(ErrorKind::Unavailable, error.to_string());
            stream::iter([last(error.into())]).boxed()
        }
    }
}

/// An archive that comes in. One that breaks off is not taken for a whole one.
fn archive(ups: Streaming<Up>) -> ArchiveReader {
    let parts = stream::unfold(Some(ups), async |ups| {
        let mut ups = ups?;
        match ups.message().await {
            Ok(Some(Up { part: Some(Said::Content(part)) })) => Some((Ok(Bytes::from(part)), Some(ups))),
            Ok(Some(Up { part: Some(Said::End(_)) })) => None,
            _ => Some((Err(io::Error::new(io::ErrorKind::UnexpectedEof, "what was sent broke off")), None)),
        }
    });
    Box::new(StreamReader::new(parts.boxed()))
}
