//! The way back: a member that others cannot reach, behind a router, calls them, and they call it through its own call.
//!
//! Who has heard of no leader for a while opens a stream to each member it knows. Whoever wants to speak with it and gets no
//! connection to its address takes that stream for one: TLS goes through it as through TCP, with the same certificates on both
//! sides, so what passes is as safe, and nobody is believed more than before.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, future::ready};
use tokio::{
    io::{AsyncRead, AsyncWrite, Join, join},
    net::TcpStream,
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{
    either::Either,
    io::{CopyToBytes, SinkWriter, StreamReader},
    sync::PollSender,
};
use tonic::{Status, Streaming};

use super::super::types::MemberId;
use crate::wire::peer::Piece;

/// Pieces that wait to be sent; whoever writes more waits.
const PIECES: usize = 16;
/// How long an address is tried alone while there is a way back.
const ALONE: Duration = Duration::from_millis(200);

/// Bytes in both directions.
pub(super) type Pipe = Join<Pin<Box<dyn AsyncRead + Send>>, Pin<Box<dyn AsyncWrite + Send>>>;

/// A pipe that reads what comes in, with the stream of what is written into it.
pub(super) fn pipe(inward: Streaming<Piece>) -> (Pipe, ReceiverStream<Piece>) {
    let (sender, outward) = mpsc::channel(PIECES);
    let read = inward.map(|piece| piece.map(|piece| Bytes::from(piece.content)).map_err(io::Error::other));
    let sink = PollSender::new(sender)
        .sink_map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        .with(|content: Bytes| ready(Ok::<_, io::Error>(Piece { content: content.to_vec() })));
    let write = SinkWriter::new(CopyToBytes::new(sink));
    (join(Box::pin(StreamReader::new(read)), Box::pin(write)), ReceiverStream::new(outward))
}

/// An answer with the pieces of a pipe.
pub(super) type Pieces = futures_util::stream::Map<ReceiverStream<Piece>, fn(Piece) -> Result<Piece, Status>>;

/// The pieces as a call answers them.
pub(super) fn answered(outward: ReceiverStream<Piece>) -> Pieces {
    outward.map(Ok as fn(Piece) -> Result<Piece, Status>)
}

/// The ways back that members have opened and nobody has taken yet: one of each, the newest.
#[derive(Default)]
pub(super) struct Backs {
    open: Mutex<HashMap<MemberId, Pipe>>,
    came: Notify,
}

impl Backs {
    /// A member can be spoken with through `pipe`.
    pub(super) fn offer(&self, id: MemberId, pipe: Pipe) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, pipe);
        self.came.notify_waiters();
    }

    /// Closes the ways back to members that were removed.
    pub(super) fn forget(&self, gone: &BTreeSet<MemberId>) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| !gone.contains(id));
    }

    fn take(&self, id: MemberId) -> Option<Pipe> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    async fn wait(&self, id: MemberId) -> Pipe {
        loop {
            let came = self.came.notified();
            if let Some(pipe) = self.take(id) {
                return pipe;
            }
            came.await;
        }
    }

    /// A connection to `address`, or through the way back of member `id` if that one gives none.
    pub(super) async fn connect(&self, id: MemberId, address: &str) -> io::Result<Either<TcpStream, Pipe>> {
        let dial = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Either::Left(stream))
        };
        let mut dial = std::pin::pin!(dial);
        match tokio::time::timeout(ALONE, &mut dial).await {
            Ok(Err(error)) => return self.take(id).map(Either::Right).ok_or(error),
            Ok(connected) => return connected,
            Err(_) => {}
        }
        tokio::select! {
            connected = &mut dial => connected,
            pipe = self.wait(id) => Ok(Either::Right(pipe)),
        }
    }
}
