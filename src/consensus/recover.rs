//! Goes on alone with what one member has, when the majority is gone for good.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use openraft::{CommittedLeaderId, EntryPayload, Membership};
use toft_model::{
    ids::ClusterId,
    state::{ClusterRow, applied_index},
};
use uuid::Uuid;

use super::{
    found::{OpenError, detach, set_aside},
    log_store::LogFile,
    open::{Files, prepare},
    state_machine::position,
    types::{Entry, Identity, LogId, Member, Vote},
};

/// What a recovery goes on with, and without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Entries of the log that are kept, and the position of the last; 0 when the log is lost.
    pub log_end: u64,
    /// How far the state had applied them.
    pub applied: u64,
    /// Members that are left behind; they have to join again.
    pub left_behind: Vec<Member>,
    /// Where the log went that could not be used.
    pub log_set_aside: Option<PathBuf>,
}

/// What a recovery would go on with. Changes nothing but the migration of an older database.
pub fn survey(files: &Files, me: &Member) -> Result<Account, OpenError> {
    let state = prepare(&files.state)?;
    let row = ClusterRow::load(&state).map_err(|e| OpenError::of(&files.state, e))?;
    let applied = applied_index(&state).map_err(|e| OpenError::of(&files.state, e))?;
    let state_failed = |source| OpenError::of_state(&files.state, source);
    let (_, members) = position(&row).map_err(state_failed)?;
    let others = members.nodes().map(|(_, member)| member.clone()).filter(|member| member.node_id != me.node_id);
    let log_end =
        LogFile::open(&files.log).and_then(|log| log.state()).ok().and_then(|state| state.last.or(state.purged));
    let log_end = log_end.map_or(0, |last| last.index);
    Ok(Account { log_end, applied, left_behind: others.collect(), log_set_aside: None })
}

/// Makes `me` the only member of a new cluster that goes on from this one's state and log. The whole log counts as
/// agreed upon: what the majority had acknowledged and this member knows is in it.
pub fn recover(files: &Files, me: &Member) -> Result<Account, OpenError> {
    let mut account = survey(files, me)?;
    let cluster_id = ClusterId(Uuid::now_v7());
    match LogFile::open(&files.log) {
        Ok(log) => {
            let failed = |source| OpenError::Log { path: files.log.clone(), source };
            let identity = Identity { cluster_id, ..log.identity().map_err(failed)? };
            let bounds = log.state().map_err(failed)?;
            let term = log.vote().map_err(failed)?.map_or(0, |vote| vote.leader_id().term) + 1;
            let leader = CommittedLeaderId::new(term, identity.member_id);
            let next = bounds.last.or(bounds.purged).map_or(0, |last| last.index) + 1;
            let members = BTreeMap::from([(identity.member_id, me.clone())]);
            let alone = Membership::new(vec![BTreeSet::from([identity.member_id])], members);
            let entry = Entry { log_id: LogId::new(leader, next), payload: EntryPayload::Membership(alone) };
            let vote = Vote::new_committed(term, identity.member_id);
            log.settle().and_then(|()| log.begin_anew(&identity, &vote, &entry)).map_err(failed)?;
            drop(log);
            let state = prepare(&files.state)?;
            let row = ClusterRow::load(&state).map_err(|e| OpenError::of(&files.state, e))?;
            let row = ClusterRow { cluster_id: Some(cluster_id), ..row };
            row.save(&state).map_err(|e| OpenError::of(&files.state, e))?;
        }
        Err(_) => {
            if files.log.exists() {
                account.log_set_aside = set_aside(&files.log)?;
            }
            detach(&files.state)?;
        }
    }
    Ok(account)
}
