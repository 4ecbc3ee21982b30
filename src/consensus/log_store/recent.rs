//! The newest entries in memory: applying them and sending them to the others need not read the disk.

use std::collections::VecDeque;

use super::super::types::Entry;

/// Bytes kept, as they are encoded.
const LIMIT: usize = 4 << 20;

/// Consecutive entries that end with the newest.
#[derive(Default)]
pub(super) struct Recent {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl Recent {
    /// Adds the newest, each with its encoded length.
    pub(super) fn extend(&mut self, entries: Vec<(Entry, usize)>) {
        for (entry, length) in entries {
            let next = self.entries.back().map(|(last, _)| last.log_id.index + 1);
            if next.is_some_and(|next| next != entry.log_id.index) {
                self.clear();
            }
            self.bytes += length;
            self.entries.push_back((entry, length));
        }
        while self.bytes > LIMIT && self.entries.len() > 1 {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, length)) = self.entries.pop_front() {
            self.bytes -= length;
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
        for (entry, length) in self.entries.iter().skip(skip).take_while(|(entry, _)| entry.log_id.index < end) {
            bytes += length;
            if bytes > limit && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Some(found)
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
