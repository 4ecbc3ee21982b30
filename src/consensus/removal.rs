//! Takes a node out of the membership, without losing the majority.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::ChangeMembers;
use toft_model::ids::NodeId;
use tokio::time::Instant;

use super::{
    changes::{Changed, PAUSE, Turn},
    leader::{SILENCE, leader},
    membership::{Candidate, candidates, voters},
    network::{CallError, Peers},
    types::{Member, MemberId, Raft},
};

/// Longest time for a removal, over a change of the leader too.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long is waited for members that were never heard, when without them too few would be left.
const NEWCOMERS: Duration = Duration::from_secs(4);

/// Why the membership stays as it is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemovalError {
    /// Nobody else could go on.
    #[error("{0}")]
    Majority(String),
    /// No member leads.
    #[error("the cluster has no leader now, so nobody can be removed")]
    NoLeader,
    /// Anything else.
    #[error("the members could not be changed: {0}")]
    Failed(String),
}

/// What a member that does not lead says.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is done, or can be; with whether the node answers.
    Done { answers: bool },
    /// Another one leads.
    Elsewhere(Option<(MemberId, Member)>),
    /// It cannot be.
    Refused(RemovalError),
}

/// Whether a member answered lately, as far as this one knows.
pub(super) fn answers(raft: &Raft, peers: &Peers, id: MemberId) -> bool {
    id == raft.metrics().borrow().id || peers.heard_within(id, SILENCE)
}

/// Who is to vote when `gone` is out, or why that would be too few.
fn remaining(
    leader: MemberId,
    gone: &BTreeSet<MemberId>,
    mut all: BTreeMap<MemberId, Candidate>,
    names: &BTreeMap<MemberId, String>,
) -> Result<BTreeSet<MemberId>, RemovalError> {
    all.retain(|id, _| !gone.contains(id));
    let heir = match gone.contains(&leader) {
        false => Some(leader),
        true => all
            .iter()
            .filter(|(_, one)| one.answers && one.ready)
            .map(|(id, one)| (!one.votes, *id))
            .min()
            .map(|(_, id)| id),
    };
    let Some(heir) = heir else {
        return Err(RemovalError::Majority("no other member answers and has the whole log".into()));
    };
    let chosen = voters(heir, &all);
    let silent: Vec<&str> = chosen
        .iter()
        .filter(|id| all.get(id).is_some_and(|one| !one.answers))
        .filter_map(|id| names.get(id).map(String::as_str))
        .collect();
    let answering = chosen.len() - silent.len();
    if answering * 2 <= chosen.len() {
        let (silent, all) = (silent.join("`, `"), chosen.len());
        return Err(RemovalError::Majority(format!(
            "the cluster would lose its majority: of {all} voters that it would have only {answering} would answer, for `{silent}` does not"
        )));
    }
    Ok(chosen)
}

/// The same as this leader sees the members now. Whoever was let in a moment ago, or was never called since this member began, has
/// time to be heard.
async fn choose(
    raft: &Raft,
    peers: &Peers,
    gone: &BTreeSet<MemberId>,
    names: &BTreeMap<MemberId, String>,
) -> Result<BTreeSet<MemberId>, Answer> {
    let begun = Instant::now();
    loop {
        let metrics = raft.metrics().borrow().clone();
        let Some(all) = candidates(&metrics, peers, SILENCE) else { return Err(Answer::Elsewhere(None)) };
        let others = all.keys().filter(|id| **id != metrics.id && !gone.contains(id));
        let unheard: Vec<&str> = others
            .filter(|id| peers.heard(**id).is_none())
            .filter_map(|id| names.get(id).map(String::as_str))
            .collect();
        let unheard = unheard.join("`, `");
        match remaining(metrics.id, gone, all, names) {
            Ok(chosen) => return Ok(chosen),
            Err(_) if !unheard.is_empty() && begun.elapsed() < NEWCOMERS => {
                tokio::time::sleep(PAUSE * 4).await;
            }
            Err(RemovalError::Majority(why)) if !unheard.is_empty() => {
                let why = format!("{why}; of `{unheard}`, which was let in, nothing was heard yet");
                return Err(Answer::Refused(RemovalError::Majority(why)));
            }
            Err(error) => return Err(Answer::Refused(error)),
        }
    }
}

/// Removes the members of `node_id` as the leader, or says where the leader is.
pub(super) async fn remove_here(raft: &Raft, peers: &Arc<Peers>, node_id: NodeId, only_ask: bool) -> Answer {
    if only_ask {
        return remove_with(None, raft, peers, node_id).await;
    }
    match Turn::take(raft, peers).await {
        Ok(turn) => remove_with(Some(turn), raft, peers, node_id).await,
        Err(occupied) => Answer::Refused(RemovalError::Failed(occupied.to_string())),
    }
}

/// The same with the turn to do it; without one it is only a question.
async fn remove_with(turn: Option<Turn<'_>>, raft: &Raft, peers: &Arc<Peers>, node_id: NodeId) -> Answer {
    let metrics = raft.metrics().borrow().clone();
    let elsewhere = |metrics: &openraft::RaftMetrics<MemberId, Member>| {
        let id = leader(metrics, peers)?;
        Some((id, metrics.membership_config.membership().get_node(&id)?.clone()))
    };
    if leader(&metrics, peers) != Some(metrics.id) {
        return Answer::Elsewhere(elsewhere(&metrics));
    }
    let nodes: BTreeMap<MemberId, Member> =
        metrics.membership_config.nodes().map(|(id, member)| (*id, member.clone())).collect();
    let gone: BTreeSet<MemberId> =
        nodes.iter().filter(|(_, member)| member.node_id == node_id).map(|(id, _)| *id).collect();
    let answers = gone.iter().any(|id| answers(raft, peers, *id));
    if gone.is_empty() {
        return Answer::Done { answers };
    }
    let names = nodes.iter().map(|(id, member)| (*id, member.name.to_string())).collect();
    let chosen = match choose(raft, peers, &gone, &names).await {
        Ok(chosen) => chosen,
        Err(answer) => return answer,
    };
    let Some(turn) = turn else { return Answer::Done { answers } };
    let voting: BTreeSet<MemberId> = metrics.membership_config.voter_ids().collect();
    if gone.contains(&metrics.id) {
        peers.go();
    }
    let mut steps = Vec::new();
    if voting.intersection(&gone).next().is_some() {
        steps.push(ChangeMembers::ReplaceAllVoters(chosen));
    }
    steps.push(ChangeMembers::RemoveNodes(gone.clone()));
    for step in steps {
        match turn.change(step).await {
            Changed::Yes => {}
            Changed::Elsewhere(to) => return Answer::Elsewhere(to),
            Changed::No(error) => {
                peers.stay();
                return Answer::Refused(RemovalError::Failed(error));
            }
        }
    }
    peers.forget(&gone);
    tracing::info!("members {gone:?} were removed");
    Answer::Done { answers }
}

/// The same, asked of whoever leads. Gives whether the node answered lately.
pub(super) async fn remove(
    raft: &Raft,
    peers: &Arc<Peers>,
    node_id: NodeId,
    only_ask: bool,
) -> Result<bool, RemovalError> {
    let deadline = Instant::now() + REMOVAL_TIMEOUT;
    loop {
        match remove_here(raft, peers, node_id, only_ask).await {
            Answer::Done { answers } => return Ok(answers),
            Answer::Refused(error) => return Err(error),
            Answer::Elsewhere(Some((id, member))) if id != raft.metrics().borrow().id => {
                match peers.remove(id, &member, node_id, only_ask).await {
                    Ok(answers) => return Ok(answers),
                    Err(CallError::Failed(why)) => return Err(RemovalError::Majority(why)),
                    Err(error) => tracing::debug!(%error, "the leader could not be asked to remove a member"),
                }
            }
            Answer::Elsewhere(_) => {}
        }
        // This member is out already, and so it may not ask.
        if peers.is_removed() && !only_ask {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Err(RemovalError::NoLeader);
        }
        tokio::time::sleep(PAUSE * 4).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::types::Role;

    const UP: Candidate = Candidate { role: Role::Server, votes: true, answers: true, ready: true };
    const DEAD: Candidate = Candidate { answers: false, ..UP };
    const LEARNER: Candidate = Candidate { votes: false, ..UP };

    #[track_caller]
    fn check(members: &[Candidate], gone: MemberId, expected: Result<&[MemberId], &str>) {
        let all: BTreeMap<MemberId, Candidate> = (1..).zip(members.iter().copied()).collect();
        let names = all.keys().map(|id| (*id, format!("box-{id}"))).collect();
        match (remaining(1, &[gone].into(), all, &names), expected) {
            (Ok(chosen), Ok(expected)) => assert_eq!(chosen, expected.iter().copied().collect()),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (got, expected) => panic!("{got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn who_is_left_has_a_majority_or_nobody_goes() {
        check(&[UP, UP, UP], 3, Ok(&[1]));
        check(&[UP, DEAD, UP], 3, Ok(&[1]));
        check(&[UP, DEAD, UP], 2, Ok(&[1]));
        check(&[UP, UP, DEAD, LEARNER], 2, Ok(&[1, 3, 4]));
        check(&[UP, DEAD, DEAD, UP], 4, Err("only 1 would answer, for `box-2`, `box-3` does not"));
        check(&[UP, DEAD, DEAD, UP], 2, Ok(&[1, 3, 4]));
    }

    #[test]
    fn a_leader_goes_when_another_can_lead() {
        check(&[UP, LEARNER], 1, Ok(&[2]));
        check(&[UP, UP, UP], 1, Ok(&[2]));
        check(&[UP, DEAD], 1, Err("no other member answers"));
        check(&[UP], 1, Err("no other member answers"));
    }
}
