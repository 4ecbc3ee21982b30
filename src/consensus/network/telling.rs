//! Entries on their way to another member.
//!
//! openraft waits for an answer for no longer than a heartbeat takes, and then sends the same again. A member behind a slow line,
//! one with a busy processor, or one of hundreds would be sent everything several times and never get it whole: then nothing is
//! committed any more. So a call goes on when openraft has given it up, and what openraft asks next gets its answer:
//!
//! ```text
//! openraft   append 7..90 --200 ms--> given up   append 7..90 --------> answered: up to 40
//! Telling    7..40 is sent ---------------------------------------------^
//! reminder                                       I still lead
//! ```
//!
//! Meanwhile a member that votes hears that the leader is there, or it would stand for election. And less is sent at a time
//! where it takes long, so that little stands in the way of that.
//!
//! One of many that do not vote is told in its turn (see [`turns`](super::turns)). What is written and committed before goes in
//! the same call, though openraft has not asked for it yet; when it does, the answer is known:
//!
//! ```text
//! openraft   append 7..9 ----------------------> answered  append 10..12 --> answered at once
//! Telling          waits for its turn, 7..12 is sent
//! ```

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::raft::AppendEntriesRequest;
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{
        log_store::Texts,
        types::{LogId, MemberId, Types, Vote},
    },
    Answer, Way,
    peers::{CallError, json},
};

/// Most bytes of entries that one of so many is sent at a time when some came while it waited for its turn: each of the calls lies in
/// memory.
const MOST_FOR_MANY: usize = 128 << 10;

/// How many bytes of entries are sent at a time.
#[derive(Debug, PartialEq)]
pub(super) struct Share(usize);

impl Share {
    const LEAST: usize = 64 << 10;
    const FIRST: usize = 1 << 20;
    const MOST: usize = 8 << 20;

    pub(super) const fn first() -> Self {
        Self(Self::FIRST)
    }

    fn took_long(&mut self) {
        self.0 = (self.0 / 2).max(Self::LEAST);
    }

    fn was_quick(&mut self) {
        self.0 = (self.0 * 2).min(Self::MOST);
    }
}

/// How far the log is committed, as far as openraft has said on the way to any member, and under which vote: what another
/// leader has committed says nothing of the entries of this one.
#[derive(Clone, Default)]
pub(super) struct Committed(Arc<Mutex<Option<Newest>>>);

type Newest = (Vote, Option<LogId>);

impl Committed {
    fn place(&self) -> MutexGuard<'_, Option<Newest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what openraft says.
    pub(super) fn note(&self, vote: Vote, commit: Option<LogId>) {
        let mut known = self.place();
        match &mut *known {
            Some((newest, _)) if *newest > vote => {}
            Some((same, newest)) if *same == vote => *newest = commit.max(*newest),
            _ => *known = Some((vote, commit)),
        }
    }

    /// The newest that was said under this vote.
    fn newest(&self, under: &Vote) -> Option<LogId> {
        self.place().filter(|(vote, _)| vote == under)?.1
    }
}

/// A call under way.
pub(super) struct Telling {
    vote: Vote,
    prev: Option<LogId>,
    /// Whether openraft has given it up once.
    late: bool,
    told: AbortOnDropHandle<Result<Told, CallError>>,
}

/// What a member was told, and has said to it.
pub(super) struct Told {
    pub(super) vote: Vote,
    pub(super) commit: Option<LogId>,
    /// The last entry.
    pub(super) last: LogId,
    pub(super) answer: Answer,
    /// How long the call took.
    took: Duration,
}

impl Telling {
    /// Whether it tells what `request` is to tell, or the beginning of it: under one vote there is one log.
    fn is_of(&self, request: &AppendEntriesRequest<Types>) -> bool {
        self.vote == request.vote && self.prev == request.prev_log_id
    }
}

/// A request to append the entries whose JSON is given, as JSON.
pub(super) fn request(
    vote: &Vote,
    prev: Option<&LogId>,
    entries: &[Bytes],
    commit: Option<&LogId>,
) -> Result<Bytes, CallError> {
    let length = entries.iter().map(|text| text.len() + 1).sum::<usize>();
    let mut text = Vec::with_capacity(length + 512);
    text.extend_from_slice(b"{\"vote\":");
    text.extend_from_slice(&json(vote)?);
    text.extend_from_slice(b",\"prev_log_id\":");
    text.extend_from_slice(&json(&prev)?);
    text.extend_from_slice(b",\"leader_commit\":");
    text.extend_from_slice(&json(&commit)?);
    text.extend_from_slice(b",\"entries\":[");
    for (i, entry) in entries.iter().enumerate() {
        if i > 0 {
            text.push(b',');
        }
        text.extend_from_slice(entry);
    }
    text.extend_from_slice(b"]}");
    Ok(text.into())
}

/// A request that appends nothing.
pub(super) fn empty(request: &AppendEntriesRequest<Types>) -> Result<Bytes, CallError> {
    self::request(&request.vote, request.prev_log_id.as_ref(), &[], request.leader_commit.as_ref())
}

impl Way {
    /// Tells a member of entries, as many as fit. What is under way already is not told again.
    pub(super) async fn tell(&mut self, request: AppendEntriesRequest<Types>) -> Result<Told, CallError> {
        let telling = match self.telling.take() {
            Some(mut telling) if telling.is_of(&request) => {
                // One of many may be late because it waits for its turn.
                if !std::mem::replace(&mut telling.late, true) && self.log.among_many(self.id).is_none() {
                    self.share.took_long();
                }
                if self.log.votes(self.id) {
                    self.remind(&request.vote)?;
                }
                telling
            }
            _ => self.begin_to_tell(&request)?,
        };
        drop(request);
        // Whoever no longer waits here leaves it to the next.
        let telling = self.telling.insert(telling);
        let told = (&mut telling.told).await;
        if self.telling.take().is_some_and(|telling| !telling.late) {
            self.share.was_quick();
        }
        let told = told.unwrap_or_else(|e| Err(CallError::Failed(e.to_string())))?;
        self.took = told.took;
        Ok(told)
    }

    fn begin_to_tell(&mut self, request: &AppendEntriesRequest<Types>) -> Result<Telling, CallError> {
        let share = self.share.0;
        let (mut entries, mut last) = first(request, &self.texts, share)?;
        let (vote, prev, commit) = (request.vote, request.prev_log_id, request.leader_commit);
        let pause = self.log.among_many(self.id).map_or(Duration::ZERO, |members| {
            self.turns.until(self.id, members, self.took, self.told_at.map(|at| at.elapsed()))
        });
        self.told_at = Some(Instant::now() + pause);
        let (peers, id, member) = (self.peers.clone(), self.id, self.member.clone());
        let (log, texts, committed) = (self.log.clone(), self.texts.clone(), self.committed.clone());
        let call = async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
                // What this leader has on its disk, and under this vote: it may be told to anybody.
                if last.leader_id == *vote.leader_id() {
                    let room = share.min(MOST_FOR_MANY).saturating_sub(entries.iter().map(Bytes::len).sum());
                    for (id, text) in texts.after(&last, log.written(), room) {
                        last = id;
                        entries.push(text);
                    }
                }
            }
            let commit = commit.max(committed.newest(&vote));
            let message = self::request(&vote, prev.as_ref(), &entries, commit.as_ref())?;
            drop(entries);
            let begun = Instant::now();
            let answer = peers.append(id, &member, message).await?;
            Ok(Told { vote, commit, last, answer, took: begun.elapsed() })
        };
        Ok(Telling { vote, prev, late: false, told: AbortOnDropHandle::new(tokio::spawn(call)) })
    }

    /// Says that the leader is there, and nothing else.
    fn remind(&mut self, vote: &Vote) -> Result<(), CallError> {
        if self.reminder.as_ref().is_some_and(|reminder| !reminder.is_finished()) {
            return Ok(());
        }
        let message = request(vote, None, &[], None)?;
        let (peers, id, member): (_, MemberId, _) = (self.peers.clone(), self.id, self.member.clone());
        self.reminder = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = peers.append(id, &member, message).await {
                tracing::debug!(%error, "a member was not reminded");
            }
        })));
        Ok(())
    }
}

/// The JSON of the first entries that fit into so many bytes, at least of one, and which is the last.
fn first(request: &AppendEntriesRequest<Types>, known: &Texts, limit: usize) -> Result<(Vec<Bytes>, LogId), CallError> {
    let mut texts = Vec::new();
    let (mut bytes, mut last) = (0, None);
    for entry in &request.entries {
        let text = known.of(&entry.log_id).map_or_else(|| json(entry), Ok)?;
        bytes += text.len();
        if bytes > limit && !texts.is_empty() {
            break;
        }
        texts.push(text);
        last = Some(entry.log_id);
    }
    last.map(|last| (texts, last)).ok_or_else(|| CallError::Failed("there is nothing to tell".into()))
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, Entry, EntryPayload};

    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(3, 7), index)
    }

    fn asked(entries: u64) -> AppendEntriesRequest<Types> {
        let entries = (5..5 + entries).map(|index| Entry { log_id: id(index), payload: EntryPayload::Blank }).collect();
        let vote = Vote::new_committed(3, 7);
        AppendEntriesRequest { vote, prev_log_id: Some(id(4)), entries, leader_commit: Some(id(2)) }
    }

    #[test]
    fn a_request_of_texts_is_the_request() {
        for request in [asked(0), asked(1), asked(3)] {
            let texts: Vec<Bytes> = request.entries.iter().map(|entry| json(entry).unwrap()).collect();
            let (prev, commit) = (request.prev_log_id.as_ref(), request.leader_commit.as_ref());
            let told = super::request(&request.vote, prev, &texts, commit).unwrap();
            let told: AppendEntriesRequest<Types> = serde_json::from_slice(&told).unwrap();
            assert_eq!(serde_json::to_value(&told).unwrap(), serde_json::to_value(&request).unwrap());
        }
        let reminder = super::request(&Vote::new_committed(3, 7), None, &[], None).unwrap();
        let reminder: AppendEntriesRequest<Types> = serde_json::from_slice(&reminder).unwrap();
        assert!(reminder.entries.is_empty() && reminder.prev_log_id.is_none() && reminder.leader_commit.is_none());
    }

    #[test]
    fn what_fits_is_told_and_one_entry_always() {
        let request = asked(4);
        let length = json(&request.entries[0]).unwrap().len();
        let none = Texts::default();
        for (limit, told) in [(0, 1), (length, 1), (length * 2, 2), (length * 4 - 1, 3), (length * 9, 4)] {
            let (texts, last) = first(&request, &none, limit).unwrap();
            assert_eq!((texts.len(), last), (told, id(4 + told as u64)), "{limit}");
        }
        assert!(first(&asked(0), &none, 9).is_err());
    }

    #[test]
    fn what_is_committed_is_known_under_its_vote_alone() {
        let (older, vote, newer) = (Vote::new_committed(2, 8), Vote::new_committed(3, 7), Vote::new_committed(4, 8));
        let committed = Committed::default();
        assert_eq!(committed.newest(&vote), None);
        for (commit, newest) in
            [(None, None), (Some(4), Some(4)), (Some(9), Some(9)), (Some(6), Some(9)), (None, Some(9))]
        {
            committed.note(vote, commit.map(id));
            assert_eq!(committed.newest(&vote), newest.map(id), "{commit:?}");
        }
        committed.note(older, Some(id(20)));
        assert_eq!((committed.newest(&older), committed.newest(&vote)), (None, Some(id(9))));
        committed.note(newer, Some(id(12)));
        assert_eq!((committed.newest(&vote), committed.newest(&newer)), (None, Some(id(12))));
    }

    #[test]
    fn a_share_shrinks_and_grows_within_bounds() {
        let mut share = Share::first();
        share.took_long();
        assert_eq!(share, Share(512 << 10));
        (0..20).for_each(|_| share.took_long());
        assert_eq!(share, Share(Share::LEAST));
        (0..20).for_each(|_| share.was_quick());
        assert_eq!(share, Share(Share::MOST));
    }
}
