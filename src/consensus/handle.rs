//! What other rooms see of consensus.

use std::{sync::Arc, time::Duration};

use openraft::error::{CheckIsLeaderError, RaftError};
use rusqlite::Connection;
use serde_json::value::to_raw_value;
use toft_model::{
    ids::RequestId,
    state::{Command, Refusal, Reply, Request},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    propose::Proposal,
    space::Space,
    state_machine::{ReadError, Readers, StateMachine},
    types::{Fatal, MemberId, Raft},
};

/// Longest wait for a command to be applied.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the newest state.
const LATEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest command, as JSON.
const LARGEST: usize = 1 << 20;

/// Why a command was not applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// The state says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk is full, but for a reserve.
    #[error("no space is left on the disk that holds the state")]
    DiskFull,
    /// The command is larger than the log takes.
    #[error("the command has {bytes} bytes; at most {LARGEST} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The log or the database failed; the daemon is about to end.
    #[error("the state could not be written: {0}")]
    Storage(String),
    /// The daemon is shutting down.
    #[error("the appliance is shutting down")]
    Closed,
    /// The members that answer are no majority.
    #[error("the cluster has no leader now")]
    NoLeader,
    /// No answer came; the command may still be applied.
    #[error("the state did not answer within {} seconds", PROPOSE_TIMEOUT.as_secs())]
    Timeout,
}

impl ProposeError {
    pub(super) fn of_fatal(error: &Fatal) -> Self {
        match error {
            Fatal::Stopped => Self::Closed,
            Fatal::StorageError(_) | Fatal::Panicked => Self::Storage(error.to_string()),
        }
    }
}

/// Why it is not certain that this member has the newest state.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotCurrent {
    /// The members that answer are no majority.
    #[error("the cluster has no leader now, so this node cannot tell whether its state is the newest")]
    NoLeader,
    /// The daemon is shutting down.
    #[error("the appliance is shutting down")]
    Closed,
}

/// Propose, read, watch.
#[derive(Clone)]
pub struct Handle {
    raft: Raft,
    member_id: MemberId,
    readers: Arc<Readers>,
    applied: watch::Receiver<u64>,
    proposals: mpsc::Sender<Proposal>,
    space: Arc<Space>,
}

impl Handle {
    pub(super) fn new(
        raft: Raft,
        member_id: MemberId,
        state: &StateMachine,
        proposals: mpsc::Sender<Proposal>,
        space: Space,
    ) -> Self {
        let (readers, applied) = (Arc::clone(state.readers()), state.applied());
        Self { raft, member_id, readers, applied, proposals, space: Arc::new(space) }
    }

    /// Applies a command. When this returns `Ok`, a majority of the members has it on disk and reads here see it.
    pub async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        self.propose_as(RequestId(Uuid::now_v7()), command).await
    }

    /// The same for a request that has an id already: when it was applied before, it is answered and not applied again.
    pub async fn propose_as(&self, id: RequestId, command: Command) -> Result<Reply, ProposeError> {
        if !self.space.takes(&command) {
            return Err(ProposeError::DiskFull);
        }
        let request = to_raw_value(&Request::new(id, command)).map_err(|e| ProposeError::Storage(e.to_string()))?;
        let bytes = request.get().len();
        if bytes > LARGEST {
            return Err(ProposeError::TooLarge { bytes });
        }
        let (answer, reply) = oneshot::channel();
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let exchange = async {
            let proposal = Proposal { request, deadline, answer };
            self.proposals.send(proposal).await.map_err(|_| ProposeError::Closed)?;
            reply.await.map_err(|_| ProposeError::Closed)?
        };
        let applied = tokio::time::timeout_at(deadline, exchange).await.map_err(|_| ProposeError::Timeout)??;
        Ok(applied?)
    }

    /// Runs `question` on a read-only connection. It sees every command this member has applied: all that were
    /// acknowledged through this handle, and those of others a moment later.
    pub async fn read<T, F>(&self, question: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.readers.read(question).await
    }

    /// Waits until reads here see everything that was acknowledged anywhere before the call.
    pub async fn catch_up(&self) -> Result<(), NotCurrent> {
        if self.stands_alone() {
            return Ok(());
        }
        let check = tokio::time::timeout(LATEST_TIMEOUT, self.raft.ensure_linearizable()).await;
        match check {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::Fatal(_))) => Err(NotCurrent::Closed),
            Ok(Err(RaftError::APIError(
                CheckIsLeaderError::ForwardToLeader(_) | CheckIsLeaderError::QuorumNotEnough(_),
            )))
            | Err(_) => Err(NotCurrent::NoLeader),
        }
    }

    /// A leader that is the only voter: what it has applied is all there is.
    fn stands_alone(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let mut voters = metrics.membership_config.voter_ids();
        metrics.current_leader == Some(self.member_id)
            && voters.next() == Some(self.member_id)
            && voters.next().is_none()
    }

    /// The index of the last applied entry; changes with each.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }
}
