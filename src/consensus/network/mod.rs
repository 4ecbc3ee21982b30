//! The way to the other members: gRPC over TLS, with certificates of the cluster on both sides.

mod calls;
mod peers;
mod server;

use std::sync::Arc;

use openraft::{
    AnyError, OptionalSend, RaftNetwork, RaftNetworkFactory,
    error::{NetworkError, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};

pub(super) use peers::Peers;
pub use peers::{CallError, SERVER_NAME, Transport};
pub(super) use server::serve;
pub use server::{Admission, Admitted};

use super::{
    log_store::{Ahead, Stalled},
    types::{Fatal, Member, MemberId, Snapshot, Types, Vote},
};

/// What the members say is numbered; a member refuses to speak another number.
pub const PROTOCOL: u32 = 1;

/// Makes the ways.
pub(super) struct Network {
    pub(super) peers: Arc<Peers>,
    /// This member's own log.
    pub(super) log: Arc<Ahead>,
}

/// The way to one member.
pub(super) struct Way {
    peers: Arc<Peers>,
    log: Arc<Ahead>,
    id: MemberId,
    member: Member,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, id: MemberId, member: &Member) -> Way {
        let (peers, log) = (Arc::clone(&self.peers), Arc::clone(&self.log));
        Way { peers, log, id, member: member.clone() }
    }
}

type Failure = RPCError<MemberId, Member, RaftError<MemberId>>;

impl Way {
    fn failure(&self, error: CallError) -> Failure {
        match error {
            // Asked again only after a pause.
            CallError::NoAddress | CallError::NotConnected(_) | CallError::Unreachable(_) | CallError::Refused(_) => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
            CallError::Failed(_) => RPCError::Network(NetworkError::new(&error)),
        }
    }
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, Failure> {
        // An answer may count as one member's consent to all that the request speaks of, and this member consents with
        // it: both must have it on their disks.
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let stalled = |error: Stalled| RPCError::Unreachable(Unreachable::new(&error));
        self.log.check().map_err(stalled)?;
        let answer = self.peers.append(self.id, &self.member, &request).await.map_err(|e| self.failure(e))?;
        self.log.until_flushed(last.map_or(0, |last| last.index)).await.map_err(stalled)?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new_with_node(self.id, self.member.clone(), error)))
    }

    async fn vote(&mut self, request: VoteRequest<MemberId>, _: RPCOption) -> Result<VoteResponse<MemberId>, Failure> {
        let answer = self.peers.vote(self.id, &self.member, &request).await.map_err(|e| self.failure(e))?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new_with_node(self.id, self.member.clone(), error)))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<MemberId>, StreamingError<Types, Fatal>> {
        let send = self.peers.snapshot(self.id, &self.member, vote, &snapshot);
        let answer = tokio::select! {
            answer = tokio::time::timeout(option.hard_ttl(), send) => answer,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        match answer {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(fatal))) => {
                Err(StreamingError::RemoteError(RemoteError::new_with_node(self.id, self.member.clone(), fatal)))
            }
            Ok(Err(error)) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
            Err(_) => {
                let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the snapshot took too long");
                Err(StreamingError::Network(NetworkError::from(AnyError::new(&late))))
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new([50, 100, 200].into_iter().chain(std::iter::repeat(400)).map(std::time::Duration::from_millis))
    }
}
