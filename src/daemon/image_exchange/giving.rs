//! Gives other nodes what this one has: few blobs at a time, so that the node's own work does not suffer.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use toft_model::image::ImageRef;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::is_digest;
use crate::{
    agent::{
        image::MOST_DIGESTS,
        runtime::{Runtime, RuntimeError, blobs::BlobReader},
    },
    observe::chain,
    wire::blobs::{
        FindAnswer, FindRequest, Held, Piece, ReadRequest,
        blobs_server::{Blobs, BlobsServer},
    },
};

/// Blobs given at a time, to all other nodes together.
const AT_ONCE: usize = 4;
/// Callers that wait for their turn.
const MOST_WAITING: usize = 64;
/// Longest wait for a turn.
const TURN: Duration = Duration::from_secs(50);
/// Time between two signs of life for who waits.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// Who takes nothing for so long is given no more.
const STALLED: Duration = Duration::from_secs(30);
/// Bytes in one message.
const PIECE: usize = 256 << 10;
/// Messages on their way.
const AHEAD: usize = 2;
/// Blobs looked for at a time.
const LOOKS: usize = 8;
/// Largest question.
const LARGEST: usize = 256 << 10;

/// Gives what is in this node's runtime.
#[derive(Clone)]
pub(in super::super) struct Giver {
    runtime: Arc<dyn Runtime>,
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

type Answers = mpsc::Sender<Result<Piece, Status>>;

impl Giver {
    pub(in super::super) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { runtime, turns: Arc::new(Semaphore::new(AT_ONCE)), places: Arc::new(Semaphore::new(MOST_WAITING)) }
    }

    /// As a service.
    pub(in super::super) fn service(self) -> BlobsServer<Self> {
        BlobsServer::new(self).max_decoding_message_size(LARGEST)
    }

    /// A turn, if one is free or the caller waits for one; `None` when the caller has left.
    async fn turn(
        &self,
        free: Option<OwnedSemaphorePermit>,
        answers: &Answers,
    ) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if let Some(turn) = free {
            return Ok(Some(turn));
        }
        let Ok(_place) = self.places.try_acquire() else { return Err(busy()) };
        let mut turn = std::pin::pin!(Arc::clone(&self.turns).acquire_owned());
        let deadline = Instant::now() + TURN;
        while Instant::now() < deadline {
            match tokio::time::timeout(SIGN_OF_LIFE, &mut turn).await {
                Ok(turn) => return turn.map(Some).map_err(|_| busy()),
                Err(_) => {
                    if !send(answers, Ok(Piece { data: Vec::new() })).await {
                        return Ok(None);
                    }
                }
            }
        }
        Err(busy())
    }

    async fn give(self, request: ReadRequest, free: Option<OwnedSemaphorePermit>, answers: Answers) {
        let given = async {
            let Some(_turn) = self.turn(free, &answers).await? else { return Ok(()) };
            let blob = self.runtime.read_blob(&request.digest, request.from).await.map_err(|e| failed(&e))?;
            pass_on(blob, &answers).await
        };
        if let Err(status) = given.await {
            send(&answers, Err(status)).await;
        }
    }
}

/// Sends a blob until its end, or until the caller has left.
async fn pass_on(mut blob: BlobReader, answers: &Answers) -> Result<(), Status> {
    while let Some(piece) = blob.next().await {
        let piece = piece.map_err(|error| failed(&error))?;
        for part in piece.chunks(PIECE) {
            if !send(answers, Ok(Piece { data: part.to_vec() })).await {
                return Ok(());
            }
            metrics::counter!("toft_image_given_bytes_total").increment(part.len() as u64);
        }
    }
    Ok(())
}

/// `false` when nobody takes it.
async fn send(answers: &Answers, answer: Result<Piece, Status>) -> bool {
    matches!(tokio::time::timeout(STALLED, answers.send(answer)).await, Ok(Ok(())))
}

fn busy() -> Status {
    Status::resource_exhausted("it serves enough others now")
}

fn failed(error: &RuntimeError) -> Status {
    Status::unavailable(chain(error))
}

#[async_trait]
impl Blobs for Giver {
    async fn find(&self, request: Request<FindRequest>) -> Result<Response<FindAnswer>, Status> {
        let FindRequest { image, digests } = request.into_inner();
        if digests.len() > MOST_DIGESTS {
            return Err(Status::invalid_argument(format!("at most {MOST_DIGESTS} digests are looked for at once")));
        }
        if !digests.iter().all(|digest| is_digest(digest)) {
            return Err(Status::invalid_argument("`digests` holds something that is no digest"));
        }
        let named = match image.as_str() {
            "" => None,
            text => {
                let image: ImageRef = text.parse().map_err(|_| Status::invalid_argument("`image` is no reference"))?;
                self.runtime.named(&image).await.map_err(|error| failed(&error))?
            }
        };
        let held: Vec<Option<Held>> = stream::iter(digests)
            .map(|digest| async {
                let size = self.runtime.blob_size(&digest).await?;
                Ok(size.map(|size_bytes| Held { digest, size_bytes }))
            })
            .buffer_unordered(LOOKS)
            .try_collect()
            .await
            .map_err(|error: RuntimeError| failed(&error))?;
        Ok(Response::new(FindAnswer { named, held: held.into_iter().flatten().collect() }))
    }

    type ReadStream = ReceiverStream<Result<Piece, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        if !is_digest(&request.digest) {
            return Err(Status::invalid_argument("`digest` is no digest"));
        }
        let free = match Arc::clone(&self.turns).try_acquire_owned() {
            Ok(turn) => Some(turn),
            Err(TryAcquireError::NoPermits) if request.waits => None,
            Err(_) => return Err(busy()),
        };
        match self.runtime.blob_size(&request.digest).await.map_err(|error| failed(&error))? {
            None => return Err(Status::not_found("it is not here")),
            Some(size) if request.from >= size => {
                return Err(Status::out_of_range(format!("it has {size} bytes")));
            }
            Some(_) => {}
        }
        let (answers, receiver) = mpsc::channel(AHEAD);
        // It ends by itself soon after nobody takes anything any more.
        drop(tokio::spawn(self.clone().give(request, free, answers)));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
