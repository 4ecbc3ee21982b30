//! The way to the other members.

use openraft::{
    RaftNetwork, RaftNetworkFactory,
    error::{RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};

use super::types::{Fatal, Member, MemberId, Snapshot, Types, Vote};

/// Makes the ways.
pub(super) struct Network;

/// The way to one member.
pub(super) struct Way {
    to: String,
}

#[derive(Debug, thiserror::Error)]
#[error("member `{0}` has no address")]
struct NoAddress(String);

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, _: MemberId, member: &Member) -> Way {
        Way { to: member.name.to_string() }
    }
}

type Failure = RPCError<MemberId, Member, RaftError<MemberId>>;

impl Way {
    fn unreachable(&self) -> Unreachable {
        Unreachable::new(&NoAddress(self.to.clone()))
    }
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, Failure> {
        Err(self.unreachable().into())
    }

    async fn vote(&mut self, _: VoteRequest<MemberId>, _: RPCOption) -> Result<VoteResponse<MemberId>, Failure> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: Snapshot,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<MemberId>, StreamingError<Types, Fatal>> {
        Err(StreamingError::Unreachable(self.unreachable()))
    }
}
