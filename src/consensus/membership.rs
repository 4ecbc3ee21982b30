//! Who votes. One member votes alone; of two only one does, because two would both have to live; three and four have three
//! voters, five and more have five. A voter that is silent for a while gives its vote to a member that answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{ChangeMembers, RaftMetrics};

use super::{
    changes::{Changed, Turn},
    leader::is_known,
    network::Peers,
    types::{Member, MemberId, Raft, Role},
};
use crate::observe::chain;
use tokio::time::Instant;

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(500);
/// Silence after which a voter is replaced.
const SILENCE: Duration = Duration::from_secs(60);
/// A voter that was heard of in this time may be handed the lead.
const FRESH: Duration = Duration::from_secs(2);
/// Time between two questions of one that hears of no leader.
const ASK: Duration = Duration::from_secs(3);
/// Longest time for handing over.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Entries a member may lack to become a voter.
const BEHIND: u64 = 500;

/// A member as the rule sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) role: Role,
    pub(super) votes: bool,
    /// It was heard of lately, or is the one who asks.
    pub(super) answers: bool,
    /// It has nearly the whole log.
    pub(super) ready: bool,
}

/// How many of `members` vote.
fn wanted(members: usize) -> usize {
    match members {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// Who shall vote; `leader` always does.
pub(super) fn voters(leader: MemberId, members: &BTreeMap<MemberId, Candidate>) -> BTreeSet<MemberId> {
    let current: BTreeSet<MemberId> = members.iter().filter(|(_, m)| m.votes).map(|(id, _)| *id).collect();
    let mut order: Vec<_> = members
        .iter()
        .filter(|(_, member)| member.votes || member.ready && member.answers)
        .map(|(id, member)| {
            let witness_is_spare = members.len() > 3 && member.role == Role::Witness;
            (*id != leader, !member.answers, witness_is_spare, !member.votes, *id)
        })
        .collect();
    order.sort_unstable();
    let chosen: BTreeSet<MemberId> = order.into_iter().take(wanted(members.len())).map(|(.., id)| id).collect();
    // An even number of voters survives no more failures than one less; wait until all of them are ready. From more
    // voters to fewer (a member was removed) there is nothing to wait for.
    if chosen.len().is_multiple_of(2) { current } else { chosen }
}

/// The members as the leader sees them; none when this one does not lead. Who was heard of in `silence` answers.
pub(super) fn candidates(
    metrics: &RaftMetrics<MemberId, Member>,
    peers: &Peers,
    silence: Duration,
) -> Option<BTreeMap<MemberId, Candidate>> {
    let progress = metrics.replication.as_ref().filter(|_| metrics.current_leader == Some(metrics.id))?;
    let last = metrics.last_log_index.unwrap_or(0);
    // Those that were chosen last, when the change is not through.
    let voting = metrics.membership_config.membership().get_joint_config().last().cloned().unwrap_or_default();
    let candidate = |(id, member): (&MemberId, &Member)| {
        let matched = progress.get(id).copied().flatten().map_or(0, |at| at.index);
        let is_me = *id == metrics.id;
        let candidate = Candidate {
            role: member.role,
            votes: voting.contains(id),
            // Who was let in and never came gets no vote, though it may yet come.
            answers: is_me || peers.heard_within(*id, silence) && (voting.contains(id) || peers.heard(*id).is_some()),
            ready: is_me || matched + BEHIND >= last,
        };
        (*id, candidate)
    };
    Some(metrics.membership_config.nodes().map(candidate).collect())
}

/// Keeps the voters right while this member leads.
pub(super) async fn keep(raft: Raft, peers: Arc<Peers>, me: Member) {
    let mut announced = false;
    let (mut asked, mut asked_last) = (Instant::now(), 0);
    loop {
        tokio::time::sleep(PERIOD).await;
        let metrics = raft.metrics().borrow().clone();
        let known = metrics.membership_config.membership().get_node(&metrics.id).cloned();
        peers.set_voters(metrics.membership_config.voter_ids().collect());
        // Consensus waits for the disk, and so would whoever asks it for a change.
        if peers.is_going() || peers.is_short() {
            continue;
        }
        if asked.elapsed() > ASK && !is_known(&raft, &peers).await {
            asked = Instant::now();
            ask_whether_removed(&peers, &metrics, asked_last).await;
            asked_last += 1;
        }
        // Who listens on all addresses is known by the one that others reached it at.
        let mut me = me.clone();
        if let Some(known) = known.as_ref().filter(|_| me.address.is_empty()) {
            me.address.clone_from(&known.address);
        }
        if known.as_ref() == Some(&me) {
            announced = true;
        } else if known.is_some() {
            announced = false;
        }
        if !announced && known.is_some() {
            announce(&raft, &peers, metrics.id, &me, metrics.current_leader).await;
            continue;
        }
        if wanted_voters(&metrics, &peers).is_some() {
            change_voters(&raft, &peers).await;
        }
    }
}

/// Who shall vote instead of who does; none if nothing is to be changed, or another member leads.
fn wanted_voters(metrics: &RaftMetrics<MemberId, Member>, peers: &Peers) -> Option<BTreeSet<MemberId>> {
    let chosen = voters(metrics.id, &candidates(metrics, peers, SILENCE)?);
    // A change that was left half-way is made whole: until then both the old voters and the new ones have to be there.
    let [voting] = metrics.membership_config.membership().get_joint_config().as_slice() else { return Some(chosen) };
    (chosen != *voting).then_some(chosen)
}

async fn change_voters(raft: &Raft, peers: &Peers) {
    let Ok(turn) = Turn::take(raft, peers).await else { return };
    let metrics = raft.metrics().borrow().clone();
    let Some(chosen) = wanted_voters(&metrics, peers) else { return };
    let voting: BTreeSet<MemberId> = metrics.membership_config.voter_ids().collect();
    tracing::info!("members {chosen:?} vote from now on, not {voting:?}");
    if let Changed::No(error) = turn.change(ChangeMembers::ReplaceAllVoters(chosen)).await {
        tracing::warn!(error, "the voters could not be changed and will be tried again");
    }
}

/// Asks one member after the other whether this one is still a member: who was removed while it was away hears nothing.
async fn ask_whether_removed(peers: &Peers, metrics: &RaftMetrics<MemberId, Member>, turn: usize) {
    let others: Vec<_> = metrics.membership_config.nodes().filter(|(id, _)| **id != metrics.id).collect();
    if let Some((id, member)) = others.get(turn % others.len().max(1)) {
        drop(peers.read_index(**id, member).await);
    }
}

/// Lets another member lead before this one goes, so that the others need not find out by themselves.
pub(super) async fn hand_over(raft: &Raft, peers: &Peers) {
    let metrics = raft.metrics().borrow().clone();
    let (true, Some(progress)) = (metrics.current_leader == Some(metrics.id), metrics.replication) else { return };
    let voters = metrics.membership_config.voter_ids().filter(|id| *id != metrics.id && peers.heard_within(*id, FRESH));
    let Some(heir) = voters.max_by_key(|id| progress.get(id).copied().flatten()) else { return };
    let Some(member) = metrics.membership_config.membership().get_node(&heir) else { return };
    // The others stay true to a leader for as long as they hear of it, and a little longer.
    raft.runtime_config().heartbeat(false);
    let mut watch = raft.server_metrics();
    let gone = watch.wait_for(|now| now.current_leader.is_some_and(|leader| leader != metrics.id));
    let ask = async {
        loop {
            tokio::time::sleep(PERIOD / 5).await;
            if let Err(error) = peers.take_over(heir, member).await {
                tracing::debug!(%error, "the lead could not be handed over");
            }
        }
    };
    tokio::select! {
        _ = gone => tracing::info!("`{}` was asked to lead", member.name),
        () = ask => {}
        () = tokio::time::sleep(HAND_OVER) => tracing::warn!("nobody else took the lead in time"),
    }
}

/// Tells the cluster this member's name and address.
async fn announce(raft: &Raft, peers: &Peers, id: MemberId, me: &Member, leader: Option<MemberId>) {
    let Some(leader) = leader else { return };
    let told = if leader == id {
        change_itself(raft, peers, id, me).await
    } else {
        let node = raft.metrics().borrow().membership_config.membership().get_node(&leader).cloned();
        let Some(node) = node else { return };
        peers.announce(leader, &node, me).await.map_err(|error| chain(&error))
    };
    match told {
        Ok(()) => tracing::info!("the cluster knows this member as `{}` at `{}`", me.name, me.address),
        Err(error) => tracing::warn!(error, "the cluster could not be told this member's address"),
    }
}

/// The same where this member leads.
async fn change_itself(raft: &Raft, peers: &Peers, id: MemberId, me: &Member) -> Result<(), String> {
    let turn = Turn::take(raft, peers).await.map_err(|occupied| occupied.to_string())?;
    match turn.change(ChangeMembers::SetNodes(BTreeMap::from([(id, me.clone())]))).await {
        Changed::Yes => Ok(()),
        Changed::Elsewhere(_) => Err("another member leads by now".into()),
        Changed::No(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Candidate = Candidate { role: Role::Server, votes: false, answers: true, ready: true };
    const VOTER: Candidate = Candidate { votes: true, ..UP };
    const DEAD: Candidate = Candidate { answers: false, ..VOTER };
    const WITNESS: Candidate = Candidate { role: Role::Witness, ..UP };
    const YOUNG: Candidate = Candidate { ready: false, ..UP };

    #[track_caller]
    fn check(members: &[Candidate], expected: &[MemberId]) {
        let members = (1..).zip(members.iter().copied()).collect();
        assert_eq!(voters(1, &members), expected.iter().copied().collect());
    }

    #[test]
    fn the_number_of_voters_follows_the_number_of_members() {
        check(&[VOTER], &[1]);
        check(&[VOTER, UP], &[1]);
        check(&[VOTER, UP, UP], &[1, 2, 3]);
        check(&[VOTER, VOTER, VOTER, UP], &[1, 2, 3]);
        check(&[VOTER, VOTER, VOTER, UP, UP], &[1, 2, 3, 4, 5]);
        check(&[VOTER, VOTER, VOTER, VOTER, VOTER, UP], &[1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_witness_makes_two_servers_three_and_is_spare_beside_three() {
        check(&[VOTER, UP, WITNESS], &[1, 2, 3]);
        check(&[VOTER, VOTER, Candidate { votes: true, ..WITNESS }, UP], &[1, 2, 4]);
    }

    #[test]
    fn who_lacks_the_log_waits_and_so_does_the_even_number() {
        check(&[VOTER, YOUNG, UP], &[1]);
        check(&[VOTER, YOUNG, YOUNG], &[1]);
        check(&[VOTER, VOTER, VOTER, YOUNG, UP], &[1, 2, 3]);
    }

    #[test]
    fn a_silent_voter_is_replaced_when_somebody_is_there() {
        check(&[VOTER, DEAD, VOTER], &[1, 2, 3]);
        check(&[VOTER, DEAD, VOTER, UP], &[1, 3, 4]);
        check(&[VOTER, DEAD, VOTER, YOUNG], &[1, 2, 3]);
    }

    #[test]
    fn members_that_left_take_their_votes_along() {
        check(&[VOTER, VOTER], &[1]);
        check(&[VOTER, VOTER, VOTER, VOTER], &[1, 2, 3]);
    }
}
