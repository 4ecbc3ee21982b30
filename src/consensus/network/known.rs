//! What a member said it has, so that it is not asked again.

use std::time::Instant;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};

use super::{
    super::types::{LogId, Types, Vote},
    Answer,
};

/// What is known of one member; nothing at first.
#[derive(Default)]
pub(super) struct Known {
    acknowledged: Option<Acknowledged>,
    /// The last entry that it has beyond those, told before openraft asked for it.
    beyond: Option<LogId>,
}

/// The last entries that a member said it has, as far as openraft asked for them.
pub(super) struct Acknowledged {
    vote: Vote,
    last: LogId,
    /// What it was told to be committed.
    pub(super) committed: Option<LogId>,
    pub(super) at: Instant,
}

impl Known {
    /// What follows from an answer: under `vote` the member was told of entries up to `last`, and that those up to `committed` are
    /// committed. openraft asked for entries up to `asked`.
    pub(super) fn by(
        answer: &Answer,
        vote: Vote,
        last: Option<LogId>,
        committed: Option<LogId>,
        asked: Option<LogId>,
    ) -> Self {
        let whole = matches!(answer, Ok(AppendEntriesResponse::Success));
        let Some(told) = last.filter(|_| whole) else { return Self::default() };
        let last = asked.map_or(told, |asked| asked.min(told));
        Self {
            acknowledged: Some(Acknowledged { vote, last, committed, at: Instant::now() }),
            beyond: (told > last).then_some(told),
        }
    }

    /// What is known, if the member has just the entries that a request follows on.
    pub(super) fn of(&self, request: &AppendEntriesRequest<Types>) -> Option<&Acknowledged> {
        let known = self.acknowledged.as_ref()?;
        (known.vote == request.vote && Some(known.last) == request.prev_log_id).then_some(known)
    }

    /// It is told that so much is committed.
    pub(super) fn told(&mut self, committed: Option<LogId>) {
        if let Some(known) = &mut self.acknowledged {
            known.committed = committed;
        }
    }

    /// The last of the entries asked for that the member has said it has, before openraft asked for them.
    pub(super) fn before(&mut self, request: &AppendEntriesRequest<Types>) -> Option<LogId> {
        let (first, last) = (request.entries.first()?.log_id, request.entries.last()?.log_id);
        let beyond = self.beyond.take()?;
        if beyond < first {
            return None;
        }
        self.of(request)?;
        self.beyond = (beyond > last).then_some(beyond);
        let known = self.acknowledged.as_mut()?;
        known.last = beyond.min(last);
        Some(known.last)
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, Entry, EntryPayload};

    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(3, 7), index)
    }

    /// Asks for the entries from `first` to `last`.
    fn asked(term: u64, first: u64, last: u64) -> AppendEntriesRequest<Types> {
        let entries = (first..=last).map(|index| Entry { log_id: id(index), payload: EntryPayload::Blank }).collect();
        let vote = Vote::new_committed(term, 7);
        AppendEntriesRequest { vote, prev_log_id: Some(id(first - 1)), entries, leader_commit: None }
    }

    /// It was asked for 5 alone, and told of all up to 9.
    fn known(answer: AppendEntriesResponse<u64>) -> Known {
        Known::by(&Ok(answer), Vote::new_committed(3, 7), Some(id(9)), Some(id(4)), Some(id(5)))
    }

    #[test]
    fn what_was_told_ahead_is_not_asked_for_again() {
        let mut member = known(AppendEntriesResponse::Success);
        assert_eq!(member.before(&asked(3, 6, 7)), Some(id(7)));
        assert_eq!(member.before(&asked(3, 8, 12)), Some(id(9)), "the rest it has not heard of");
        assert_eq!(member.before(&asked(3, 10, 12)), None);
        assert!(member.of(&asked(3, 10, 9)).is_some_and(|known| known.committed == Some(id(4))));
    }

    #[test]
    fn nothing_is_taken_for_known_that_was_not_acknowledged_under_this_vote_and_follows_on_it() {
        for request in [asked(4, 6, 7), asked(3, 7, 8), asked(3, 5, 7), asked(3, 10, 11), asked(3, 6, 5)] {
            let mut member = known(AppendEntriesResponse::Success);
            assert_eq!(member.before(&request), None, "{request:?}");
            // What did not fit once counts for nothing later.
            if !request.entries.is_empty() {
                assert_eq!(member.before(&asked(3, 6, 7)), None, "{request:?}");
            }
        }
        for answer in [AppendEntriesResponse::Conflict, AppendEntriesResponse::HigherVote(Vote::new(9, 1))] {
            let mut member = known(answer);
            assert!(member.of(&asked(3, 6, 5)).is_none());
            assert_eq!(member.before(&asked(3, 6, 7)), None);
        }
    }
}
