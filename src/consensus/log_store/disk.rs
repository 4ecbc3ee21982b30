//! Where the log's file lies, and a cautious way to open it: redb mends a file that was not closed in order, and might
//! write into one that turns out to be damaged. What it writes while it opens the file stays in memory until the file has
//! proved to be sound.

use std::{
    fmt,
    fs::OpenOptions,
    io,
    ops::Bound,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use redb::{BackendError, StorageBackend, backends::FileBackend};

use super::LogError;

/// What holds the log's bytes. Opened again after a write that found no room.
pub(in super::super) trait Disk: Send + Sync {
    /// The bytes, which must be there.
    fn open(&self) -> Result<Box<dyn StorageBackend>, LogError>;
}

/// A file.
impl Disk for PathBuf {
    fn open(&self) -> Result<Box<dyn StorageBackend>, LogError> {
        let opened = |source| LogError::Make { path: self.clone(), source };
        let file = OpenOptions::new().read(true).write(true).open(self).map_err(opened)?;
        Ok(Box::new(FileBackend::new(file)?))
    }
}

/// A change that redb made.
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// Changes that are held back, and the length that the file would have.
#[derive(Default)]
struct Held {
    changes: Vec<Change>,
    length: Option<u64>,
}

/// Bytes whose changes are held back until they are let go.
#[derive(Clone)]
pub(super) struct Cautious {
    bytes: Arc<dyn StorageBackend>,
    /// None when changes go straight through.
    held: Arc<RwLock<Option<Held>>>,
    /// Changes that were let go and met a full disk must not be followed by others.
    failed: Arc<Mutex<bool>>,
}

impl fmt::Debug for Cautious {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cautious").finish_non_exhaustive()
    }
}

impl Cautious {
    pub(super) fn new(bytes: Box<dyn StorageBackend>) -> Self {
        let held = Arc::new(RwLock::new(Some(Held::default())));
        Self { bytes: Arc::from(bytes), held, failed: Arc::default() }
    }

    /// One that holds nothing back.
    #[cfg(test)]
    pub(super) fn through(bytes: Box<dyn StorageBackend>) -> Self {
        Self { bytes: Arc::from(bytes), held: Arc::default(), failed: Arc::default() }
    }

    /// Makes the changes that were held back, in their order, and holds back no more.
    pub(super) fn let_go(&self) -> io::Result<()> {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = held.take() else { return Ok(()) };
        let made = waiting.changes.into_iter().try_for_each(|change| match change {
            Change::Write(offset, data) => self.bytes.write(offset, &data),
            Change::Length(length) => self.bytes.set_len(length),
            Change::Sync => self.bytes.sync_data(),
        });
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = made.is_err();
        made
    }

    /// Notes a change if it has to wait; gives it back otherwise.
    fn hold(&self, change: impl FnOnce() -> Change) -> io::Result<bool> {
        if *self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(io::Error::other("an earlier write failed"));
        }
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = held.as_mut() else { return Ok(false) };
        let change = change();
        if let Change::Length(length) = change {
            held.length = Some(length);
        }
        held.changes.push(change);
        Ok(true)
    }
}

/// Copies the part of `from`, which lies at `at`, that falls into `out`, which lies at `offset`.
fn overlay(out: &mut [u8], offset: u64, from: &[u8], at: u64) {
    let (start, end) = (offset.max(at), (offset + out.len() as u64).min(at + from.len() as u64));
    if start < end {
        let length = (end - start) as usize;
        let (to, source) = ((start - offset) as usize, (start - at) as usize);
        out[to..to + length].copy_from_slice(&from[source..source + length]);
    }
}

impl StorageBackend for Cautious {
    fn len(&self) -> io::Result<u64> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().and_then(|held| held.length).map_or_else(|| self.bytes.len(), Ok)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = held.as_ref().filter(|held| !held.changes.is_empty()) else {
            return self.bytes.read(offset, out);
        };
        let there = self.bytes.len()?;
        if offset + out.len() as u64 > held.length.unwrap_or(there) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let known = there.saturating_sub(offset).min(out.len() as u64) as usize;
        out[known..].fill(0);
        self.bytes.read(offset, &mut out[..known])?;
        for change in &held.changes {
            match change {
                Change::Write(at, data) => overlay(out, offset, data, *at),
                // What was cut off and added again is empty.
                Change::Length(length) => {
                    let kept = length.saturating_sub(offset).min(out.len() as u64) as usize;
                    out[kept..].fill(0);
                }
                Change::Sync => {}
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if self.hold(|| Change::Length(length))? { Ok(()) } else { self.bytes.set_len(length) }
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.hold(|| Change::Sync)? { Ok(()) } else { self.bytes.sync_data() }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.hold(|| Change::Write(offset, data.to_vec()))? { Ok(()) } else { self.bytes.write(offset, data) }
    }

    fn close(&self) -> io::Result<()> {
        self.bytes.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.bytes.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.bytes.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.bytes.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.bytes.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.bytes.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.bytes.query_lock_range(start, end)
    }
}
