//! The log and the vote, in redb.
//!
//! The log is the durable copy of everything: [`append`](RaftLogStorage::append) returns after the disk has it, but
//! for a leader of several members, which sends entries ahead of its own disk; see [`ahead`]. Consensus writes entries
//! where it runs; what it does not wait for, or what waits for room, a thread writes, and never both at a time. Readers
//! take the newest entries from memory and older ones from the file. An entry is stored as JSON behind its CRC-32, so
//! that a damaged one is told from a good one.
//!
//! The commit position is not kept: a member that comes back learns it from its leader, and one that stands alone has
//! committed all it has. What a snapshot holds is committed, too.

mod ahead;
mod disk;
mod file;
mod recent;

use std::{
    fmt::Debug,
    ops::{Bound, ControlFlow, RangeBounds},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use tokio::sync::{oneshot, watch};

pub(super) use ahead::{Ahead, Stalled, needs_others};
#[cfg(test)]
pub(super) use disk::Disk;
pub use file::LogError;
pub(super) use file::{LogFile, Start};
use recent::Recent;
pub(super) use recent::Texts;

use super::{
    space::until_there_is_room,
    types::{Entry, LogId, MemberId, StorageError, Types, Vote},
};

/// Most bytes of entries that one read gives; a single larger entry is given alone.
const READ_LIMIT: usize = 4 << 20;
/// Wait before a read that met a file which is being opened again is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How often that is tried while no writer waits for room.
const RETRIES: usize = 40;

/// The log. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    file: Arc<LogFile>,
    recent: Arc<Mutex<Recent>>,
    writes: std::sync::mpsc::Sender<Write>,
    size: Arc<watch::Sender<LogSize>>,
    /// Whether a writer waits for room.
    waits: watch::Receiver<bool>,
    ahead: Arc<Ahead>,
    /// Appends that returned before the thread has written them.
    unwritten: Arc<AtomicUsize>,
    /// What is known to be committed when it starts.
    committed: Option<LogId>,
}

/// How much the log holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogSize {
    /// Entries that are not purged.
    pub entries: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl LogSize {
    fn grow(&mut self, entries: &[(u64, Bytes)]) {
        self.entries += entries.len() as u64;
        self.bytes += entries.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    }
}

/// Entries with their indexes, as they lie in the file.
type Encoded = Vec<(u64, Bytes)>;
type Done = oneshot::Sender<Result<(), LogError>>;

enum Write {
    /// Entries; the flag says that they found no room before.
    Append(Encoded, bool, Done),
    /// Entries that nobody waits for here.
    Ahead(Encoded),
    Vote(Vote, Done),
    Truncate(u64, Done),
    Purge(LogId, Done),
}

impl LogStore {
    /// Starts the thread that writes. It ends when the last clone is gone; the receiver then gives an error.
    pub(super) fn start(file: LogFile, waits: watch::Sender<bool>) -> Result<(Self, oneshot::Receiver<()>), LogError> {
        let size = Arc::new(watch::Sender::new(file.size()?));
        let bounds = file.state()?;
        let last = bounds.last.or(bounds.purged).map_or(0, |last| last.index);
        let ahead = Arc::new(Ahead::new(last, file.vote()?));
        let unwritten = Arc::new(AtomicUsize::new(0));
        let file = Arc::new(file);
        let recent = Arc::new(Mutex::new(Recent::default()));
        let (writes, receiver) = std::sync::mpsc::channel();
        let (ended, end) = oneshot::channel();
        let waiting = waits.subscribe();
        let (writer, told) = (Arc::clone(&file), Arc::clone(&size));
        let (written, left) = (Arc::clone(&ahead), Arc::clone(&unwritten));
        std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || {
                let writing = Writer { file: &writer, size: &told, waits: &waits, ahead: &written, unwritten: &left };
                while let Ok(write) = receiver.recv() {
                    if perform(&writing, write).is_break() {
                        break;
                    }
                }
                drop(writer);
                drop(ended);
            })
            .map_err(LogError::Thread)?;
        Ok((Self { file, recent, writes, size, waits: waiting, ahead, unwritten, committed: None }, end))
    }

    /// How far the log is on the disk.
    pub(super) fn ahead(&self) -> &Arc<Ahead> {
        &self.ahead
    }

    /// What entries read as.
    pub(super) fn texts(&self) -> Texts {
        Texts(Arc::clone(&self.recent))
    }

    /// Up to here the log is committed: the state is brought there before anything else.
    pub(super) fn knowing(self, committed: LogId) -> Self {
        Self { committed: Some(committed), ..self }
    }

    /// How much the log holds, as it changes.
    pub(super) fn size(&self) -> watch::Receiver<LogSize> {
        self.size.subscribe()
    }

    async fn write(&self, write: impl FnOnce(Done) -> Write) -> Result<(), LogError> {
        let (done, outcome) = oneshot::channel();
        self.writes.send(write(done)).map_err(|_| LogError::Closed)?;
        outcome.await.map_err(|_| LogError::Closed)?
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes entries here and now: consensus has nothing else to do until they are on the disk, and a thread of their
    /// own would cost two changes of thread. Only waiting for room, and for what was sent ahead, is left to the thread.
    async fn append_now(&self, entries: Encoded) -> Result<(), LogError> {
        if self.unwritten.load(Ordering::Acquire) > 0 {
            return self.write(|done| Write::Append(entries, false, done)).await;
        }
        match self.file.append(&entries) {
            Ok(()) => {
                self.size.send_modify(|size| size.grow(&entries));
                self.ahead.flushed(entries.last().map_or(0, |(index, _)| *index));
                Ok(())
            }
            Err(error) if error.is_full() => self.write(|done| Write::Append(entries, true, done)).await,
            Err(error) => Err(error),
        }
    }

    fn append_ahead(&self, entries: Encoded) -> Result<(), LogError> {
        self.unwritten.fetch_add(1, Ordering::AcqRel);
        self.writes.send(Write::Ahead(entries)).map_err(|_| LogError::Closed)
    }

    async fn read(&self, start: u64, end: u64, limit: usize) -> Result<Vec<Entry>, LogError> {
        if let Some(entries) = self.recent().range(start, end, limit) {
            return Ok(entries);
        }
        // After a write that found no room the file cannot be read before it was opened again.
        let mut retries = 0;
        loop {
            match self.file.entries(start, end, limit) {
                Err(error) if error.is_passing() && (*self.waits.borrow() || retries < RETRIES) => retries += 1,
                outcome => return outcome,
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// What the thread writes with.
struct Writer<'a> {
    file: &'a LogFile,
    size: &'a watch::Sender<LogSize>,
    waits: &'a watch::Sender<bool>,
    ahead: &'a Ahead,
    unwritten: &'a AtomicUsize,
}

impl Writer<'_> {
    /// Writes as soon as there is room.
    fn write(&self, write: impl Fn(&LogFile) -> Result<(), LogError>) -> Result<(), LogError> {
        self.write_after(false, write)
    }

    /// The same when a write may have failed already.
    fn write_after(&self, mut again: bool, write: impl Fn(&LogFile) -> Result<(), LogError>) -> Result<(), LogError> {
        until_there_is_room(self.waits, LogError::is_full, || {
            if std::mem::replace(&mut again, true) {
                self.file.reopen()?;
            }
            write(self.file)
        })
    }

    fn append(&self, entries: &[(u64, Bytes)], again: bool) -> Result<(), LogError> {
        self.write_after(again, |file| file.append(entries))?;
        self.size.send_modify(|size| size.grow(entries));
        self.ahead.flushed(entries.last().map_or(0, |(index, _)| *index));
        Ok(())
    }

    fn measure(&self) -> Result<(), LogError> {
        self.size.send_replace(self.file.size()?);
        Ok(())
    }
}

/// Breaks when what nobody waits for could not be written: the end of the thread tells.
fn perform(writer: &Writer<'_>, write: Write) -> ControlFlow<()> {
    let (outcome, done) = match write {
        Write::Ahead(entries) => {
            let outcome = writer.append(&entries, false);
            writer.unwritten.fetch_sub(1, Ordering::AcqRel);
            return match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    tracing::error!(error = crate::observe::chain(&error), "the log failed");
                    ControlFlow::Break(())
                }
            };
        }
        Write::Append(entries, again, done) => (writer.append(&entries, again), done),
        Write::Vote(vote, done) => (writer.write(|file| file.save_vote(&vote)), done),
        Write::Truncate(since, done) => {
            (writer.write(|file| file.truncate(since)).and_then(|()| writer.measure()), done)
        }
        Write::Purge(upto, done) => (writer.write(|file| file.purge(upto)).and_then(|()| writer.measure()), done),
    };
    // Whoever asked may be gone: it is on the disk all the same.
    drop(done.send(outcome));
    ControlFlow::Continue(())
}

fn failed(subject: ErrorSubject<MemberId>, verb: ErrorVerb, error: &LogError) -> StorageError {
    tracing::error!(error = crate::observe::chain(error), "the log failed");
    StorageIOError::new(subject, verb, openraft::AnyError::error(crate::observe::chain(error))).into()
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index + 1,
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await.map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Read, &e))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start, end, self.ahead.share_of(READ_LIMIT))
            .await
            .map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Read, &e))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let state = self.file.state().map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Read, &e))?;
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last.or(state.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        self.ahead.voted(vote);
        self.write(|done| Write::Vote(vote, done)).await.map_err(|e| failed(ErrorSubject::Vote, ErrorVerb::Write, &e))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.committed)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.file.vote().map_err(|e| failed(ErrorSubject::Vote, ErrorVerb::Read, &e))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let write_failed = |e: &LogError| failed(ErrorSubject::Logs, ErrorVerb::Write, e);
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut encoded = Vec::with_capacity(entries.len());
        for entry in &entries {
            encoded.push((entry.log_id.index, file::encode(entry).map_err(|e| write_failed(&e))?));
        }
        let ahead = self.ahead.hand(&entries);
        let stored = encoded.iter().map(|(_, bytes)| bytes.clone());
        self.recent().extend(entries.into_iter().zip(stored).collect());
        let appended = if ahead { self.append_ahead(encoded) } else { self.append_now(encoded).await };
        match appended {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                self.recent().clear();
                callback.log_io_completed(Err(std::io::Error::other(crate::observe::chain(&error))));
                Err(write_failed(&error))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.recent().clear();
        self.ahead.truncated(log_id.index);
        self.write(|done| Write::Truncate(log_id.index, done))
            .await
            .map_err(|e| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &e))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.recent().drop_up_to(log_id.index);
        self.ahead.purged(log_id);
        self.write(|done| Write::Purge(log_id, done))
            .await
            .map_err(|e| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &e))
    }
}
