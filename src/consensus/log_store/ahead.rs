//! How far the log is on this member's disk, and whether a leader may send entries to the others while its own disk still
//! takes them.
//!
//! A leader that waits for its disk and then for the others' pays for two disks one after the other. Here it sends at once,
//! and what the others answer counts only when its own disk has the entries too (see the network's `Way`): so nothing is
//! committed that this disk has not, just as if it had waited. Three things follow, and are kept here and in `open`:
//!
//! - It is allowed only where no majority consists of this member alone; openraft would commit by itself at once.
//! - A leader whose disk stalls must fall silent, or it would lead for ever and commit nothing.
//! - After a restart a leader may lack entries that others have under its term. It must not lead on in that term and give
//!   their positions to other entries.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use openraft::EntryPayload;
use tokio::sync::watch;

use super::super::types::{Entry, LogId, MemberId, StoredMembership, Vote};

/// Longest time a leader's disk may take while the others hear from it.
const STALL: Duration = Duration::from_millis(500);

/// Number of members up to which all are told at the same time.
const FEW: usize = 16;

/// The least that a member is sent at a time, in bytes, however many there are.
const LEAST_SHARE: usize = 64 << 10;

/// How far the log is on the disk.
#[derive(Debug, Clone, Copy)]
struct Written {
    /// Last entry that was handed to the disk.
    handed: u64,
    /// Last entry that the disk has.
    flushed: u64,
    /// Since when entries wait for the disk, if any do.
    since: Option<Instant>,
}

/// What decides whether an append may return before the disk has it.
#[derive(Debug, Default)]
struct Place {
    me: Option<MemberId>,
    vote: Option<Vote>,
    /// The members in force, or unknown.
    members: Option<Members>,
}

#[derive(Debug)]
struct Members {
    /// Index of the entry that says so.
    index: u64,
    /// Whether every majority has somebody else in it.
    need_others: bool,
    voters: BTreeSet<MemberId>,
    /// How many there are.
    count: usize,
}

impl Members {
    fn of(index: u64, membership: &StoredMembership) -> Self {
        Self {
            index,
            need_others: needs_others(membership),
            voters: membership.voter_ids().collect(),
            count: membership.nodes().count(),
        }
    }
}

/// Shared by the log, its thread, and the ways to the others.
#[derive(Debug)]
pub(in super::super) struct Ahead {
    written: watch::Sender<Written>,
    place: Mutex<Place>,
}

/// This member's disk takes too long to lead.
#[derive(Debug, thiserror::Error)]
#[error("the disk of this member has not taken the newest entries for {} ms", STALL.as_millis())]
pub(in super::super) struct Stalled;

/// Whether no majority of any of the configurations is one member alone.
pub(in super::super) fn needs_others(membership: &StoredMembership) -> bool {
    membership.membership().get_joint_config().iter().any(|voters| voters.len() > 1)
}

impl Ahead {
    pub(super) fn new(last: u64, vote: Option<Vote>) -> Self {
        let written = Written { handed: last, flushed: last, since: None };
        Self { written: watch::Sender::new(written), place: Mutex::new(Place { vote, ..Place::default() }) }
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets this member send ahead where it may; before that it never does.
    pub(in super::super) fn allow(&self, me: MemberId, membership: &StoredMembership) {
        let index = membership.log_id().map_or(0, |id| id.index);
        let mut place = self.place();
        place.me = Some(me);
        place.members = Some(Members::of(index, membership));
    }

    pub(super) fn voted(&self, vote: Vote) {
        self.place().vote = Some(vote);
    }

    /// Notes entries that are about to be written, and tells whether the append may return before they are.
    pub(super) fn hand(&self, entries: &[Entry]) -> bool {
        let Some(last) = entries.last() else { return false };
        self.written.send_modify(|written| {
            written.handed = last.log_id.index;
            written.since.get_or_insert_with(Instant::now);
        });
        let mut place = self.place();
        let mut changes_members = false;
        for entry in entries {
            if let EntryPayload::Membership(membership) = &entry.payload {
                let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                place.members = Some(Members::of(entry.log_id.index, &stored));
                changes_members = true;
            }
        }
        // Entries of a term can only be made by the one who was elected for it: what this member's own term is written
        // on, while it stands by its own vote, it has just made itself.
        let leads = place.me.is_some_and(|me| {
            place.vote.is_some_and(|vote| {
                let term = vote.leader_id();
                term.voted_for() == Some(me) && entries.iter().all(|entry| entry.log_id.leader_id == *term)
            })
        });
        leads && !changes_members && place.members.as_ref().is_some_and(|members| members.need_others)
    }

    /// Whether no majority consists of this member alone, as far as it knows.
    pub(in super::super) fn needs_others(&self) -> bool {
        self.place().members.as_ref().is_none_or(|members| members.need_others)
    }

    /// Whether a member votes, as far as this one knows.
    pub(in super::super) fn votes(&self, id: MemberId) -> bool {
        self.place().members.as_ref().is_none_or(|members| members.voters.contains(&id))
    }

    /// How many members there are, when they are so many that voters go before a member like this one, which does not vote.
    pub(in super::super) fn among_many(&self, id: MemberId) -> Option<usize> {
        let place = self.place();
        let members = place.members.as_ref()?;
        (members.count > FEW && !members.voters.contains(&id)).then_some(members.count)
    }

    /// How many of so many bytes one member is sent at a time. Each lies in memory several times until it is sent, and
    /// hundreds that are behind would fill it together.
    pub(super) fn share_of(&self, bytes: usize) -> usize {
        let count = self.place().members.as_ref().map_or(1, |members| members.count);
        (bytes * 4 / count.max(4)).max(LEAST_SHARE.min(bytes))
    }

    /// The disk has everything up to `index`.
    pub(super) fn flushed(&self, index: u64) {
        self.written.send_modify(|written| {
            written.flushed = index;
            written.since = (written.flushed < written.handed).then(Instant::now);
        });
    }

    /// Entries since `index` are gone.
    pub(super) fn truncated(&self, index: u64) {
        self.written.send_modify(|written| {
            written.handed = written.handed.min(index.saturating_sub(1));
            written.flushed = written.flushed.min(written.handed);
        });
        let mut place = self.place();
        place.members = place.members.take().filter(|members| members.index < index);
    }

    /// Entries up to `upto` are gone: they are in a snapshot.
    pub(super) fn purged(&self, upto: LogId) {
        let jumped = self.written.borrow().handed < upto.index;
        if jumped {
            self.written.send_modify(|written| {
                *written = Written { handed: upto.index, flushed: upto.index, since: None };
            });
            // The snapshot may know of other members.
            self.place().members = None;
        }
    }

    /// Refuses when entries have waited for the disk for too long.
    pub(in super::super) fn check(&self) -> Result<(), Stalled> {
        let since = self.written.borrow().since;
        if since.is_some_and(|since| since.elapsed() > STALL) { Err(Stalled) } else { Ok(()) }
    }

    /// The last entry that the disk has.
    pub(in super::super) fn written(&self) -> u64 {
        self.written.borrow().flushed
    }

    /// Waits until the disk has everything up to `index`, but not for a disk that stalls.
    pub(in super::super) async fn until_flushed(&self, index: u64) -> Result<(), Stalled> {
        let mut written = self.written.subscribe();
        let flushed = written.wait_for(|written| written.flushed >= index);
        match tokio::time::timeout(STALL, flushed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Stalled),
        }
    }
}
