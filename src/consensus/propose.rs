//! Gathers proposals: those that wait while a batch is on its way make the next one.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use openraft::error::{ClientWriteError, RaftError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use toft_model::state::Applied;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    handle::ProposeError,
    network::Peers,
    types::{Batch, Member, MemberId, Raft},
};

/// Most proposals in one batch.
const BATCH: usize = 512;
/// Most bytes in one batch; a larger proposal is alone in its batch.
const BATCH_BYTES: usize = 2 << 20;
/// Batches on their way at a time: while one is on its way to the disk, the next may wait behind it.
const FLIGHTS: usize = 2;
/// Wait before a batch without a leader is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Why the leader did not take a batch that another member handed on.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ForwardError {
    /// It does not lead any more.
    #[error("the member does not lead")]
    NotLeading,
    /// Its consensus has stopped.
    #[error("the leader's consensus has stopped: {0}")]
    Stopped(String),
}

impl ForwardError {
    pub(super) fn of(error: &RaftError<MemberId, ClientWriteError<MemberId, Member>>) -> Self {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Self::NotLeading,
            error => Self::Stopped(error.to_string()),
        }
    }
}

/// A request with the place its answer goes to.
pub(super) struct Proposal {
    pub(super) request: Box<RawValue>,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<Applied, ProposeError>>,
}

/// What batches take.
pub(super) struct Way {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    /// Index of the last entry that reads here see.
    pub(super) applied: watch::Receiver<u64>,
}

/// Runs until the last sender is gone.
pub(super) async fn run(way: Way, mut proposals: mpsc::Receiver<Proposal>) {
    let most = std::env::var("TOFT_FLIGHTS").map_or(FLIGHTS, |f| f.parse().unwrap());
    let mut flights = FuturesUnordered::new();
    let mut waiting = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            Some(()) = flights.next(), if !flights.is_empty() => {}
            received = proposals.recv_many(&mut waiting, BATCH), if flights.len() < most => {
                if received == 0 {
                    break;
                }
                for batch in cut(std::mem::take(&mut waiting)) {
                    flights.push(fly(&way, batch));
                }
            }
        }
    }
    while flights.next().await.is_some() {}
}

/// Cuts what waits into batches of bounded size.
fn cut(waiting: Vec<Proposal>) -> Vec<Vec<Proposal>> {
    let mut batches = Vec::with_capacity(1);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for proposal in waiting {
        let length = proposal.request.get().len();
        if bytes + length > BATCH_BYTES && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += length;
        batch.push(proposal);
    }
    batches.push(batch);
    batches
}

/// Brings one batch into the log and answers. Requests carry their id, so trying again is harmless.
async fn fly(way: &Way, proposals: Vec<Proposal>) {
    let Way { raft, peers, applied } = way;
    let deadline = proposals.iter().map(|proposal| proposal.deadline).max().unwrap_or_else(Instant::now);
    let (requests, answers): (Vec<_>, Vec<_>) = proposals.into_iter().map(|p| (p.request, p.answer)).unzip();
    let batch = Batch(Arc::new(requests));
    let outcome = loop {
        match raft.client_write(batch.clone()).await {
            Ok(written) => break Ok(written.data.0),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                if let (Some(id), Some(leader)) = (to.leader_id, to.leader_node) {
                    match peers.propose(id, &leader, &batch).await {
                        Ok(Ok((index, outcomes))) => {
                            // Whoever asked here reads here.
                            let mut applied = applied.clone();
                            drop(applied.wait_for(|applied| *applied >= index).await);
                            break Ok(outcomes.0);
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "a batch will be tried again"),
                        Err(error) => tracing::debug!(%error, "a batch will be tried again"),
                    }
                }
                if Instant::now() + RETRY >= deadline {
                    break Err(ProposeError::NoLeader);
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                break Err(ProposeError::Storage(error.to_string()));
            }
            Err(RaftError::Fatal(error)) => break Err(ProposeError::of_fatal(&error)),
        }
    };
    match outcome {
        Ok(outcomes) => {
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                // Whoever asked may have gone; the command is applied all the same.
                drop(answer.send(Ok(outcome)));
            }
        }
        Err(error) => {
            for answer in answers {
                drop(answer.send(Err(error.clone())));
            }
        }
    }
}
