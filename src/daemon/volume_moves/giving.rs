//! Gives a volume of this node to the node it is ordered to.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use toft_model::{name::Name, state::VolumeRow};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{ENTRIES, LARGEST, PIECE, Progresses, progress, to_wire};
use crate::{
    agent::volumes::{
        Reading, Volumes,
        moving::{Local, MoveError, Part, Source, Sum, Want},
    },
    consensus::{Handle, network::Caller},
    observe::chain,
    wire::volume_moves::{
        Bytes, Entries, FilePart, LookAnswer, ProgressAnswer, ProgressRequest, ReadRequest, SumStep, Volume, file_part,
        volume_moves_server::{VolumeMoves, VolumeMovesServer},
    },
};

/// Calls answered at a time that read the disk.
const AT_ONCE: usize = 6;
/// Most files asked for at once.
const MOST_WANTED: usize = 256;
/// Messages on their way.
const AHEAD: usize = 4;
/// Bytes of a list that are sent at once.
const LIST_BYTES: usize = 1 << 20;
/// Time between two signs of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// Largest question.
const LARGEST_QUESTION: usize = 2 << 20;

/// Gives the volumes of this node.
#[derive(Clone)]
pub(in super::super) struct Giver {
    pub(in super::super) state: Handle,
    pub(in super::super) node_id: toft_model::ids::NodeId,
    pub(in super::super) volumes: Volumes,
    pub(in super::super) progresses: Progresses,
    places: Arc<Semaphore>,
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

impl Giver {
    pub(in super::super) fn new(
        state: Handle,
        node_id: toft_model::ids::NodeId,
        volumes: Volumes,
        progresses: Progresses,
    ) -> Self {
        Self { state, node_id, volumes, progresses, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// As a service.
    pub(in super::super) fn service(self) -> VolumeMovesServer<Self> {
        VolumeMovesServer::new(self).max_decoding_message_size(LARGEST_QUESTION).max_encoding_message_size(LARGEST)
    }

    /// The folder of a volume that lies here and is ordered to the caller's node. It is not deleted while it is read.
    async fn open(&self, caller: Option<&Caller>, volume: Volume) -> Result<(OwnedFd, Reading), Status> {
        let Some(caller) = caller.copied() else { return Err(Status::unauthenticated("the caller is not known")) };
        let name: Name = volume.name.parse().map_err(|_| Status::invalid_argument("`name` is no name"))?;
        let asked = name.clone();
        // Before the order is looked at: once that is carried out, the data is deleted here.
        let reading = self.volumes.reading(&name);
        let row = self.state.read(move |connection| VolumeRow::named(connection, &asked)).await;
        let row = row.map_err(|error| Status::unavailable(chain(&error)))?;
        let ordered = row.filter(|row| {
            (row.born, row.node_id) == (volume.born, Some(self.node_id))
                && row.moving.as_ref().is_some_and(|moving| moving.to == caller.node_id)
        });
        let Some(row) = ordered else {
            return Err(Status::permission_denied(format!("volume `{name}` is not ordered from here to the caller")));
        };
        let volumes = self.volumes.clone();
        let opened = tokio::task::spawn_blocking(move || volumes.outgoing(&row.name, row.born)).await;
        let opened = opened.map_err(|error| Status::internal(error.to_string()))?;
        let opened = opened.map_err(|error| Status::unavailable(chain(&error)))?;
        Ok((opened, reading))
    }

    /// Works on a thread of its own; what it gives is sent as it is taken.
    fn answer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn FnMut(T) -> Result<(), MoveError>) -> Result<(), MoveError> + Send + 'static,
    ) -> Result<Response<Stream<T>>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| Status::resource_exhausted("it serves enough others now"))?;
        let (answers, receiver) = mpsc::channel(AHEAD);
        drop(tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut give = |answer| {
                answers.blocking_send(Ok(answer)).map_err(|_| MoveError::Source(io::ErrorKind::BrokenPipe.into()))
            };
            if let Err(error) = work(&mut give) {
                // Who has left does not want to know.
                drop(answers.blocking_send(Err(Status::unavailable(chain(&error)))));
            }
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[async_trait]
impl VolumeMoves for Giver {
    type ListStream = Stream<Entries>;
    type ReadStream = Stream<FilePart>;
    type SumStream = Stream<SumStep>;

    async fn look(&self, request: Request<Volume>) -> Result<Response<LookAnswer>, Status> {
        let caller = request.extensions().get::<Caller>().copied();
        let volume = request.into_inner();
        let name: Name = volume.name.parse().map_err(|_| Status::invalid_argument("`name` is no name"))?;
        let (_folder, _reading) = self.open(caller.as_ref(), volume).await?;
        let volumes = self.volumes.clone();
        let measured = tokio::task::spawn_blocking(move || volumes.measured(&name)).await;
        let measured = measured.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(LookAnswer { bytes: measured.map_err(|error| Status::unavailable(error.to_string()))? }))
    }

    async fn list(&self, request: Request<Volume>) -> Result<Response<Self::ListStream>, Status> {
        let caller = request.extensions().get::<Caller>().copied();
        let (folder, reading) = self.open(caller.as_ref(), request.into_inner()).await?;
        self.answer(move |give| {
            let (tree, _reading) = (Local::new(folder), reading);
            let (mut entries, mut bytes) = (Vec::with_capacity(ENTRIES), 0);
            tree.list(&mut |entry| {
                bytes += entry.path.len() + entry.attributes.iter().map(|(_, value)| value.len()).sum::<usize>();
                entries.push(to_wire(entry));
                if entries.len() >= ENTRIES || bytes >= LIST_BYTES {
                    bytes = 0;
                    give(Entries { entries: std::mem::take(&mut entries) })?;
                }
                Ok(())
            })?;
            if !entries.is_empty() {
                give(Entries { entries })?;
            }
            give(Entries { entries: Vec::new() })
        })
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let caller = request.extensions().get::<Caller>().copied();
        let ReadRequest { volume, wanted } = request.into_inner();
        if wanted.len() > MOST_WANTED {
            return Err(Status::invalid_argument(format!("at most {MOST_WANTED} files are given at once")));
        }
        let volume = volume.ok_or_else(|| Status::invalid_argument("`volume` is missing"))?;
        let (folder, reading) = self.open(caller.as_ref(), volume).await?;
        let wanted: Vec<Want> =
            wanted.into_iter().map(|want| Want { path: want.path, from: want.from, size: want.size_bytes }).collect();
        self.answer(move |give| {
            let (tree, _reading) = (Local::new(folder), reading);
            tree.read(&wanted, &mut |part| match part {
                Part::Bytes { offset, bytes } => {
                    for (at, piece) in (offset..).step_by(PIECE).zip(bytes.chunks(PIECE)) {
                        let bytes = Bytes { offset: at, data: piece.to_vec() };
                        give(FilePart { part: Some(file_part::Part::Bytes(bytes)) })?;
                    }
                    Ok(())
                }
                Part::End => give(FilePart { part: Some(file_part::Part::End(true)) }),
            })
        })
    }

    async fn sum(&self, request: Request<Volume>) -> Result<Response<Self::SumStream>, Status> {
        let caller = request.extensions().get::<Caller>().copied();
        let (folder, reading) = self.open(caller.as_ref(), request.into_inner()).await?;
        self.answer(move |give| {
            let _reading = reading;
            let mut told = std::time::Instant::now();
            let mut lost = false;
            let sum = Sum::of(folder.as_fd(), &mut |bytes| {
                if told.elapsed() >= SIGN_OF_LIFE {
                    told = std::time::Instant::now();
                    lost = give(SumStep { bytes, digest: None, entries: 0 }).is_err();
                }
                !lost
            })?;
            give(SumStep { bytes: sum.bytes, digest: Some(sum.digest.to_vec()), entries: sum.entries })
        })
    }

    async fn progress(&self, request: Request<ProgressRequest>) -> Result<Response<ProgressAnswer>, Status> {
        let name = request.into_inner().name;
        let name: Name = name.parse().map_err(|_| Status::invalid_argument("`name` is no name"))?;
        Ok(Response::new(self.progresses.of(&name).map(progress::to_wire).unwrap_or_default()))
    }
}
