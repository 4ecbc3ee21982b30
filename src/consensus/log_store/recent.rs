//! The newest entries in memory: applying them and sending them to the others need not read the disk.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner).text(id)
    }
}
