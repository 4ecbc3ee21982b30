//! Gathers proposals: those that wait while a batch is on its way make the next one. There is one batch on its way at a
//! time: what a batch costs hardly depends on its size, so two at a time would cost twice as much.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use openraft::error::{ClientWriteError, RaftError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use toft_model::state::{Applied, FIRST_FORMAT};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    edition,
    handle::ProposeError,
    leader::{Leader, Leadership},
    network::{CallError, Peers, members_now},
    types::{Batch, Member, MemberId, Outcomes, Raft},
};

/// Most proposals in one batch.
const BATCH: usize = 512;
/// Most bytes in one batch; a larger proposal is alone in its batch.
const BATCH_BYTES: usize = 2 << 20;
/// Longest wait for those who come together as a rule.
const GATHER: Duration = Duration::from_millis(1);
/// Wait before a batch without a leader is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Why the leader did not take a batch that another member handed on.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ForwardError {
    /// It did not lead, and wrote nothing down.
    #[error("the member does not lead")]
    NotLeading,
    /// Some member would not understand it; nothing was written down.
    #[error("not all members understand it")]
    NotUnderstood,
    /// It lost the lead after it may have written the batch down.
    #[error("the member has lost the lead")]
    Displaced,
    /// Its consensus has stopped.
    #[error("the leader's consensus has stopped: {0}")]
    Stopped(String),
}

impl ForwardError {
    pub(super) fn of(error: &RaftError<MemberId, ClientWriteError<MemberId, Member>>) -> Self {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Self::Displaced,
            error => Self::Stopped(error.to_string()),
        }
    }
}

/// Where a proposal is. Who waits may take it back for as long as no member may have written it down.
///
/// ```text
/// waiting <-> handed over
///    |
/// taken back
/// ```
#[derive(Clone, Default)]
pub(super) struct Stage(Arc<AtomicU8>);

impl Stage {
    const WAITING: u8 = 0;
    const HANDED_OVER: u8 = 1;
    const TAKEN_BACK: u8 = 2;

    fn advance(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// `true` when nobody will ever write it down.
    pub(super) fn take_back(&self) -> bool {
        self.advance(Self::WAITING, Self::TAKEN_BACK)
    }

    /// `false` when it was taken back.
    fn hand_over(&self) -> bool {
        self.advance(Self::WAITING, Self::HANDED_OVER)
    }

    /// Nobody has written it down after all.
    fn wait_again(&self) {
        self.advance(Self::HANDED_OVER, Self::WAITING);
    }
}

/// A request with the place its answer goes to.
pub(super) struct Proposal {
    pub(super) request: Box<RawValue>,
    /// What members have to understand to apply it.
    pub(super) format: u32,
    pub(super) deadline: Instant,
    pub(super) stage: Stage,
    pub(super) answer: oneshot::Sender<Result<Applied, ProposeError>>,
}

/// What batches take.
pub(super) struct Way {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) leadership: Leadership,
    /// Index of the last entry that reads here see.
    pub(super) applied: watch::Receiver<u64>,
}

/// Runs until the last sender is gone.
pub(super) async fn run(way: Way, mut proposals: mpsc::Receiver<Proposal>) {
    let mut waiting = Vec::with_capacity(BATCH);
    let mut crowd = Crowd::default();
    while proposals.recv_many(&mut waiting, BATCH).await > 0 {
        let patience = Instant::now() + GATHER;
        while waiting.len() < crowd.enough() {
            let (room, more) = (BATCH - waiting.len(), &mut waiting);
            match tokio::time::timeout_at(patience, proposals.recv_many(more, room)).await {
                Ok(received) if received > 0 => {}
                // They do not come, or nobody can any more.
                Ok(_) | Err(_) => break,
            }
        }
        let count = waiting.len();
        join_all(cut(std::mem::take(&mut waiting)).into_iter().map(|batch| fly(&way, batch))).await;
        crowd.answered(count, proposals.len());
    }
}

/// How many propose at the same time. Whoever was answered asks again as a rule, a moment later than those who waited
/// meanwhile: without patience the two would take turns for ever, in batches half as large.
#[derive(Debug, Default)]
struct Crowd {
    size: usize,
}

impl Crowd {
    /// So many are worth a batch: most of them. One is never asked to wait for itself.
    fn enough(&self) -> usize {
        (self.size * 3 / 4).min(BATCH)
    }

    /// So many were answered while so many came.
    fn answered(&mut self, answered: usize, waiting: usize) {
        self.size = (answered + waiting).max(self.size - self.size.div_ceil(4));
    }
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
async fn fly(way: &Way, mut proposals: Vec<Proposal>) {
    let deadline = proposals.iter().map(|proposal| proposal.deadline).max().unwrap_or_else(Instant::now);
    let outcome = loop {
        proposals = refuse_what_is_too_new(way, proposals);
        if let Some(leader) = way.leadership.now() {
            proposals.retain(|proposal| proposal.stage.hand_over());
            if proposals.is_empty() {
                return;
            }
            match tokio::time::timeout_at(deadline, hand_over(way, leader, &mut proposals)).await {
                Ok(Some(outcome)) => break outcome,
                Ok(None) => {}
                Err(_) => break Err(ProposeError::Timeout),
            }
        }
        if Instant::now() + RETRY >= deadline {
            // Those who gave up have taken theirs back already.
            proposals.retain(|proposal| proposal.stage.take_back());
            break Err(ProposeError::NoLeader);
        }
        tokio::time::sleep(RETRY).await;
        proposals.retain(|proposal| !proposal.answer.is_closed());
        if proposals.is_empty() {
            return;
        }
    };
    match outcome {
        Ok(Outcomes(outcomes)) => {
            for (proposal, outcome) in proposals.into_iter().zip(outcomes) {
                // Whoever asked may have gone; the command is applied all the same.
                drop(proposal.answer.send(Ok(outcome)));
            }
        }
        Err(error) => {
            for proposal in proposals {
                drop(proposal.answer.send(Err(error.clone())));
            }
        }
    }
}

/// Refuses what some member would not understand.
fn refuse_what_is_too_new(way: &Way, proposals: Vec<Proposal>) -> Vec<Proposal> {
    if proposals.iter().all(|proposal| proposal.format == FIRST_FORMAT) {
        return proposals;
    }
    let (members, me) = (members_now(&way.raft), way.raft.metrics().borrow().id);
    let understood = |proposal: Proposal| {
        let Some(member) = edition::who_lacks(&members, me, proposal.format) else { return Some(proposal) };
        let (node, version) = (member.name.clone(), member.edition.version.clone());
        if proposal.stage.take_back() {
            drop(proposal.answer.send(Err(ProposeError::NotUnderstood { node, version })));
        }
        None
    };
    proposals.into_iter().filter_map(understood).collect()
}

/// Tries until there is an outcome, or it is certain that nobody has written the batch down.
async fn hand_over(
    way: &Way,
    mut leader: Leader,
    proposals: &mut [Proposal],
) -> Option<Result<Outcomes, ProposeError>> {
    let batch = Batch(Arc::new(proposals.iter().map(|proposal| proposal.request.clone()).collect()));
    let mut written_perhaps = false;
    loop {
        match leader {
            Leader::Me => {
                let written = tokio::select! {
                    written = way.raft.client_write(batch.clone()) => Some(written),
                    // The others may have it already, and whoever leads them carries it on.
                    () = way.leadership.yielded() => None,
                };
                match written {
                    Some(Ok(written)) => return Some(Ok(written.data)),
                    // Another leader has cut it off the log; yet another may still have it.
                    Some(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) | None => {
                        written_perhaps = true
                    }
                    Some(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                        return Some(Err(ProposeError::Storage(error.to_string())));
                    }
                    Some(Err(RaftError::Fatal(error))) => return Some(Err(ProposeError::of_fatal(&error))),
                }
            }
            Leader::Other(id, member) => {
                let asked = tokio::select! {
                    asked = way.peers.propose(id, &member, &batch) => asked,
                    () = way.leadership.left(id) => Ok(Err(ForwardError::Displaced)),
                };
                match asked {
                    Ok(Ok((index, outcomes))) => {
                        // Whoever asked here reads here, unless there is no room for it here.
                        let mut applied = way.applied.clone();
                        tokio::select! {
                            _ = applied.wait_for(|applied| *applied >= index) => {}
                            () = way.leadership.yielded() => {}
                        }
                        return Some(Ok(outcomes));
                    }
                    // Who asks looks again who would not understand it.
                    Ok(Err(ForwardError::NotLeading | ForwardError::NotUnderstood))
                    | Err(CallError::NoAddress | CallError::NotConnected(_) | CallError::Refused(_)) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "a batch will be tried again");
                        written_perhaps = true;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a batch will be tried again");
                        written_perhaps = true;
                    }
                }
            }
        }
        if !written_perhaps {
            for proposal in proposals.iter() {
                proposal.stage.wait_again();
            }
            return None;
        }
        leader = loop {
            tokio::time::sleep(RETRY).await;
            if proposals.iter().all(|proposal| proposal.answer.is_closed()) {
                return Some(Err(ProposeError::Timeout));
            }
            if let Some(leader) = way.leadership.now() {
                break leader;
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_waited_for_and_who_is_alone_is_not() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.enough(), 0);
        crowd.answered(1, 0);
        assert_eq!(crowd.enough(), 0, "one goes at once");
        crowd.answered(31, 33);
        assert_eq!(crowd.enough(), 48, "those who were answered come again");
        for _ in 0..20 {
            crowd.answered(1, 0);
        }
        assert_eq!(crowd.enough(), 0, "a crowd that is gone is forgotten");
        crowd.answered(BATCH, 4 * BATCH);
        assert_eq!(crowd.enough(), BATCH);
    }

    #[test]
    fn what_was_handed_over_cannot_be_taken_back_and_what_was_taken_back_is_not_handed_over() {
        let stage = Stage::default();
        assert!(stage.hand_over());
        assert!(!stage.take_back());
        stage.wait_again();
        assert!(stage.take_back());
        assert!(!stage.hand_over());
        stage.wait_again();
        assert!(!stage.hand_over());
    }
}
