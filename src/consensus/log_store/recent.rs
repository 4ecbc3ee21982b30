//! The newest entries in memory: applying them and sending them to the others need not read the disk.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{
    super::types::{Entry, LogId},
    file::CHECKSUM,
};

/// Bytes kept, as they are encoded.
const LIMIT: usize = 4 << 20;

/// Consecutive entries that end with the newest.
#[derive(Default)]
pub(super) struct Recent {
    /// Each with what the disk has of it.
    entries: VecDeque<(Entry, Bytes)>,
    bytes: usize,
}

impl Recent {
    /// Adds the newest, each as it is stored too.
    pub(super) fn extend(&mut self, entries: Vec<(Entry, Bytes)>) {
        for (entry, stored) in entries {
            let next = self.entries.back().map(|(last, _)| last.log_id.index + 1);
            if next.is_some_and(|next| next != entry.log_id.index) {
                self.clear();
            }
            self.bytes += stored.len();
            self.entries.push_back((entry, stored));
        }
        while self.bytes > LIMIT && self.entries.len() > 1 {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, stored)) = self.entries.pop_front() {
            self.bytes -= stored.len();
        }
    }

    /// The entries of `[start, end)`, at least one and at most `limit` bytes; none when some are not here.
    pub(super) fn range(&self, start: u64, end: u64, limit: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.0.log_id.index;
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        if skip >= self.entries.len() {
            return None;
        }
        let mut bytes = 0;
        let mut found = Vec::new();
        for (entry, stored) in self.entries.iter().skip(skip).take_while(|(entry, _)| entry.log_id.index < end) {
            bytes += stored.len();
            if bytes > limit && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Some(found)
    }

    /// An entry as JSON.
    fn text(&self, id: &LogId) -> Option<Bytes> {
        let first = self.entries.front()?.0.log_id.index;
        let (entry, stored) = self.entries.get(usize::try_from(id.index.checked_sub(first)?).ok()?)?;
        (entry.log_id == *id).then(|| stored.slice(CHECKSUM..))
    }

    /// The entries of the same term that follow another, up to index `end`, as JSON and of so many bytes together.
    fn after(&self, id: &LogId, end: u64, limit: usize) -> Vec<(LogId, Bytes)> {
        let Some(first) = self.entries.front().map(|(entry, _)| entry.log_id.index) else { return Vec::new() };
        let Some(skip) = id.index.checked_sub(first).and_then(|place| usize::try_from(place).ok()) else {
            return Vec::new();
        };
        let mut bytes = 0;
        let next = self.entries.iter().skip(skip);
        let fits = next.take_while(|(entry, stored)| {
            bytes += stored.len();
            entry.log_id.index <= end && entry.log_id.leader_id == id.leader_id && bytes <= limit
        });
        let mut fits = fits.map(|(entry, stored)| (entry.log_id, stored.slice(CHECKSUM..)));
        // It must be here itself, or what stands behind it may follow something else.
        if fits.next().is_some_and(|(same, _)| same == *id) { fits.collect() } else { Vec::new() }
    }

    pub(super) fn drop_up_to(&mut self, index: u64) {
        while self.entries.front().is_some_and(|(entry, _)| entry.log_id.index <= index) {
            self.drop_first();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The newest entries as JSON: what was made for the disk goes to the others too, however many they are.
#[derive(Clone, Default)]
pub(in super::super) struct Texts(pub(super) Arc<Mutex<Recent>>);

impl Texts {
    /// An entry, unless it is too old.
    pub(in super::super) fn of(&self, id: &LogId) -> Option<Bytes> {
        self.recent().text(id)
    }

    /// The entries of the same term that follow another, up to index `end` and so many bytes with the other one.
    pub(in super::super) fn after(&self, id: &LogId, end: u64, limit: usize) -> Vec<(LogId, Bytes)> {
        self.recent().after(id, end, limit)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term, 1), index)
    }

    /// Entries of ten bytes each behind their checksums.
    fn known(ids: impl IntoIterator<Item = LogId>) -> Texts {
        let mut recent = Recent::default();
        let entry = |log_id| (Entry { log_id, payload: EntryPayload::Blank }, Bytes::from(vec![b' '; CHECKSUM + 10]));
        recent.extend(ids.into_iter().map(entry).collect());
        Texts(Arc::new(Mutex::new(recent)))
    }

    #[test]
    fn what_follows_an_entry_is_of_its_term_and_within_bounds() {
        let texts = known((3..=8).map(|index| id(2, index)).chain((9..=12).map(|index| id(4, index))));
        let after = |from, end, limit| {
            let found = texts.after(&from, end, limit);
            assert!(found.iter().all(|(_, text)| text.len() == 10));
            found.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        let ids =
            |term, indexes: std::ops::RangeInclusive<u64>| indexes.map(|index| id(term, index)).collect::<Vec<_>>();
        assert_eq!(after(id(2, 5), 99, 9_999), ids(2, 6..=8));
        assert_eq!(after(id(4, 9), 11, 9_999), ids(4, 10..=11));
        assert_eq!(after(id(4, 9), 99, 3 * (CHECKSUM + 10)), ids(4, 10..=11));
        // Nothing follows what is not here, not even what stands at the next place.
        for absent in [id(2, 2), id(3, 5), id(4, 12), id(4, 13), id(2, 8)] {
            assert_eq!(after(absent, 99, 9_999), [], "{absent}");
        }
        assert_eq!(known([]).after(&id(2, 5), 99, 9_999), []);
    }
}
