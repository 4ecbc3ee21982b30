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
use futures_util::{SinkExt, StreamExt, future::ready, stream::FuturesUnordered};
use socket2::SockRef;
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

/// The ways back that members have opened and nobody has taken yet: one of each, the newest. And where members answer beside the
/// address that they told.
#[derive(Default)]
pub(super) struct Backs {
    open: Mutex<HashMap<MemberId, Pipe>>,
    came: Notify,
    beside: Mutex<HashMap<MemberId, Vec<String>>>,
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
        self.beside.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| !gone.contains(id));
    }

    /// Says where members answer beside the address that they told: at a port that networks let through which let out nothing
    /// else.
    pub(super) fn set_beside(&self, all: impl IntoIterator<Item = (MemberId, Vec<String>)>) {
        self.beside.lock().unwrap_or_else(PoisonError::into_inner).extend(all);
    }

    /// The other addresses of a member.
    pub(super) fn beside(&self, id: MemberId) -> Vec<String> {
        self.beside.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned().unwrap_or_default()
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

    /// A connection to `address`; or, if that one gives none, to another address of member `id` or through its way back.
    pub(super) async fn connect(&self, id: MemberId, address: &str) -> io::Result<Either<TcpStream, Pipe>> {
        let mut dial = std::pin::pin!(dial(address));
        let beside = self.beside(id);
        match tokio::time::timeout(ALONE, &mut dial).await {
            Ok(Err(error)) => {
                return match self.take(id) {
                    Some(pipe) => Ok(Either::Right(pipe)),
                    None => first_of(&beside).await.map(Either::Left).ok_or(error),
                };
            }
            Ok(connected) => return connected.map(Either::Left),
            Err(_) => {}
        }
        let other = async {
            match first_of(&beside).await {
                Some(stream) => stream,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            connected = &mut dial => connected.map(Either::Left),
            pipe = self.wait(id) => Ok(Either::Right(pipe)),
            stream = other => Ok(Either::Left(stream)),
        }
    }
}

/// Most bytes that the kernel holds and has not begun to send. What is in its hands cannot be overtaken: behind a large request on a
/// narrow line the word that the leader is there would come too late.
const UNSENT: u32 = 16 << 10;

async fn dial(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT)?;
    Ok(stream)
}

/// The first connection that one of the addresses gives, all tried at once.
async fn first_of(addresses: &[String]) -> Option<TcpStream> {
    let mut dials: FuturesUnordered<_> = addresses.iter().map(|address| dial(address)).collect();
    while let Some(dialled) = dials.next().await {
        if let Ok(stream) = dialled {
            return Some(stream);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// An address at which nobody answers, and one at which somebody does.
    async fn addresses() -> (String, TcpListener, String) {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = open.local_addr().unwrap().to_string();
        (gone, open, address)
    }

    #[tokio::test]
    async fn another_address_is_taken_when_the_one_that_was_told_gives_no_connection() {
        let (gone, _open, there) = addresses().await;
        let backs = Backs::default();
        let refused = backs.connect(7, &gone).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        backs.set_beside([(7, vec![gone.clone(), there.clone()]), (8, vec![gone.clone()])]);
        let Ok(Either::Left(stream)) = backs.connect(7, &gone).await else { panic!("no connection") };
        assert_eq!(stream.peer_addr().unwrap().to_string(), there);
        assert!(backs.connect(8, &gone).await.is_err(), "the other address is another member's");
        // Nobody answers there, and nobody refuses: it lies behind a wall.
        let walled = "192.0.2.1:7444";
        if let Ok(Ok(Either::Left(stream))) =
            tokio::time::timeout(Duration::from_secs(5), backs.connect(7, walled)).await
        {
            assert_eq!(stream.peer_addr().unwrap().to_string(), there);
        } else {
            panic!("the other address is not waited for");
        }
        backs.forget(&[7].into());
        assert!(backs.connect(7, &gone).await.is_err(), "who was removed is not remembered");
    }
}
