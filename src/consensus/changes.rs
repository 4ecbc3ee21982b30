//! Changes of the members, one after the other: what one looks at before it decides stays true until it is through, and none slips
//! between the two steps in which the voters change.

use std::{collections::BTreeMap, time::Duration};

use openraft::{
    ChangeMembers,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::{sync::MutexGuard, time::Instant};

use super::{
    network::{Peers, members_now},
    types::{Member, MemberId, Raft},
};
use crate::observe::chain;

/// Longest wait for one's turn: whoever asks from another machine waits no longer either.
const TURN: Duration = Duration::from_secs(15);
/// Longest wait for a change that nobody here makes, and the wait between two tries.
const TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// A change that was asked for.
pub(super) enum Changed {
    /// It is made, and this member knows it.
    Yes,
    /// Another member leads, if anybody is known to.
    Elsewhere(Option<(MemberId, Member)>),
    /// It is not, and why.
    No(String),
}

/// Another change waits for a majority.
#[derive(Debug, thiserror::Error)]
#[error("another change of the members has been under way for {} s; is a majority of the voters there?", TURN.as_secs())]
pub(super) struct Occupied;

/// While this is held, nobody else changes the members as their leader.
pub(super) struct Turn<'a> {
    raft: &'a Raft,
    _one: MutexGuard<'a, ()>,
}

impl<'a> Turn<'a> {
    /// Waits for whoever has it.
    pub(super) async fn take(raft: &'a Raft, peers: &'a Peers) -> Result<Self, Occupied> {
        let turn = tokio::time::timeout(TURN, peers.changing()).await;
        turn.map(|one| Self { raft, _one: one }).map_err(|_| Occupied)
    }

    /// The members as the changes before have left them.
    pub(super) fn members(&self) -> BTreeMap<MemberId, Member> {
        members_now(self.raft)
    }

    /// Makes a change, once one that was left half-way or that a former leader made is through.
    pub(super) async fn change(&self, change: ChangeMembers<MemberId, Member>) -> Changed {
        let deadline = Instant::now() + TIMEOUT;
        let made = loop {
            match self.raft.change_membership(change.clone(), true).await {
                Ok(made) => break made.log_id,
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                    return Changed::Elsewhere(to.leader_id.zip(to.leader_node));
                }
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_),
                ))) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                Err(error) => return Changed::No(chain(&error)),
            }
        };
        // openraft answers before it tells what is new, and whoever comes next is to see it.
        let mut told = self.raft.server_metrics();
        let known = told.wait_for(|now| now.membership_config.log_id().is_some_and(|known| known >= made)).await;
        known.map_or_else(|_| Changed::No("this member ends".into()), |_| Changed::Yes)
    }
}
