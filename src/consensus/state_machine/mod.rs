//! The state: what the log amounts to, in SQLite.
//!
//! One thread owns the connection that writes. It applies all entries that are committed in one transaction, which also
//! notes the position and the members, so that the database is always the state at one position of the log. SQLite does
//! not flush each transaction (`synchronous=NORMAL`): the log is the durable copy, and what a power cut takes from the
//! database is applied again from the log. Readers have connections of their own and never wait for the writer.
//!
//! Snapshots are copies of the database, made by SQLite's online backup; see [`snapshot`].

mod readers;
pub mod snapshot;
mod writer;
mod written;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use openraft::{
    AnyError, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, StorageIOError, storage::RaftStateMachine,
};
use toft_model::state::ClusterRow;
use tokio::sync::{oneshot, watch};

pub use readers::ReadError;
pub(super) use readers::Readers;
#[cfg(test)]
pub(super) use readers::connect_reader;
pub use snapshot::SnapshotFile;
use snapshot::Snapshots;
use writer::{Ends, Order};
pub(super) use written::Written;
pub use written::{Follows, Rows};

use super::{
    copy::CopyError,
    open::{failed_at, is_full},
    types::{Entry, LogId, MemberId, Outcomes, Snapshot, SnapshotMeta, StorageError, StoredMembership, Types},
};
use crate::observe::chain;

/// Wait before a copy of the state that found no room is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// SQLite says no.
    #[error("the database `{path}` could not be {}", failed_at(.source))]
    Sqlite {
        /// File.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
    /// The state could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A file could not be moved, made or read.
    #[error("`{path}` could not be {verb}")]
    File {
        /// What was being done.
        verb: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A snapshot is not what it should be.
    #[error("the snapshot `{path}` cannot be used: {detail}")]
    Snapshot {
        /// File.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// What consensus wrote there does not parse.
    #[error("the state's position or members are damaged: {0}")]
    Damaged(String),
    /// A newer toft proposed it.
    #[error("this toft does not understand entry {index} of the log ({detail}); upgrade it, nothing is lost")]
    Unknown {
        /// Entry.
        index: u64,
        /// What is wrong.
        detail: String,
    },
    /// The writing thread has ended.
    #[error("the state is closed")]
    Closed,
}

impl StateError {
    pub(super) fn of_database(path: &Path) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |source| Self::Sqlite { path: path.to_owned(), source }
    }

    /// Whether there was no room.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => is_full(source),
            Self::Copy(error) => matches!(error, CopyError::DiskFull { .. }),
            Self::File { source, .. } => {
                matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// Position and members of a state.
pub(super) type Position = (Option<LogId>, StoredMembership);

/// Reads what consensus wrote into a database.
pub(super) fn position(row: &ClusterRow) -> Result<Position, StateError> {
    fn parse<T: serde::de::DeserializeOwned>(text: Option<&String>) -> Result<Option<T>, StateError> {
        text.map(|text| serde_json::from_str(text)).transpose().map_err(|e| StateError::Damaged(e.to_string()))
    }
    let applied = parse(row.applied_position.as_ref())?;
    Ok((applied, parse(row.membership.as_ref())?.unwrap_or_default()))
}

fn text<T: serde::Serialize>(value: &T) -> Result<String, StateError> {
    serde_json::to_string(value).map_err(|e| StateError::Damaged(e.to_string()))
}

/// The state machine. Clones share the database.
#[derive(Clone)]
pub struct StateMachine {
    orders: tokio::sync::mpsc::Sender<Order>,
    readers: Arc<Readers>,
    snapshots: Arc<Snapshots>,
    applied: watch::Receiver<u64>,
    schedule: watch::Receiver<u64>,
    written: Written,
}

impl StateMachine {
    /// Starts the thread that writes, on a database that was checked. The receiver gives an error when it has ended.
    pub(super) fn start(
        connection: rusqlite::Connection,
        readers: Readers,
        snapshots: PathBuf,
        waits: watch::Sender<bool>,
    ) -> Result<(Self, oneshot::Receiver<()>), StateError> {
        let readers = Arc::new(readers);
        let Ends { orders, applied, schedule, written, end } = writer::start(connection, Arc::clone(&readers), waits)?;
        let snapshots = Arc::new(Snapshots::open(snapshots)?);
        Ok((Self { orders, readers, snapshots, applied, schedule, written }, end))
    }

    /// Connections that read.
    pub(super) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// The index of the last entry applied, as it moves.
    pub(super) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// The index of the last entry applied that concerns the scheduler, as it moves.
    pub(super) fn schedule(&self) -> watch::Receiver<u64> {
        self.schedule.clone()
    }

    /// The rows that were written.
    pub(super) fn written(&self) -> &Written {
        &self.written
    }

    /// Makes a snapshot if there is none of that position or a later one, and does not wait for room.
    pub(super) async fn have_snapshot(&self, index: u64) -> Result<(), StateError> {
        let (newest, _) = self.snapshots.newest().await?;
        if newest.is_some_and(|newest| newest.meta.last_log_id.map_or(0, |last| last.index) >= index) {
            return Ok(());
        }
        self.order(Order::Flush).await?;
        self.snapshots.build(&self.readers).await.map(drop)
    }

    /// Where the newest snapshot ends, if that is ahead of the state and the log, which ends at `last`, leads there. If
    /// it does not, as when a snapshot was received and never put in place, that is done now.
    pub(super) async fn snapshot_ahead(&self, last: Option<LogId>) -> Result<Option<LogId>, StateError> {
        let applied = *self.applied.borrow();
        if self.snapshots.newest_index()? <= applied {
            return Ok(None);
        }
        let (Some(newest), _) = self.snapshots.newest().await? else { return Ok(None) };
        let ends = newest.meta.last_log_id.filter(|ends| ends.index > applied);
        if ends.is_some() && ends > last {
            let copy = self.snapshots.copy_for_state(&newest.snapshot).await?;
            self.order(|done| Order::Replace(copy, done)).await?;
            return Ok(None);
        }
        Ok(ends)
    }

    /// Makes a snapshot.
    async fn copy_state(&self) -> Result<Snapshot, StateError> {
        let me = self.clone();
        with_room(move || {
            let me = me.clone();
            async move {
                // What the log loses because it is in the snapshot shall be on the disk in the database too.
                me.order(Order::Flush).await?;
                me.snapshots.build(&me.readers).await
            }
        })
        .await
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, StateError>>) -> Order,
    ) -> Result<T, StateError> {
        let (done, outcome) = oneshot::channel();
        self.orders.send(order(done)).await.map_err(|_| StateError::Closed)?;
        outcome.await.map_err(|_| StateError::Closed)?
    }
}

/// Does `work` until there is room for it: to openraft a snapshot that cannot be made is the end.
async fn with_room<T, F>(work: impl Fn() -> F) -> Result<T, StateError>
where
    F: Future<Output = Result<T, StateError>>,
{
    let mut told = false;
    loop {
        match work().await {
            Err(error) if error.is_full() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!("no space is left for a copy of the state; toft waits until there is some");
                }
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

fn failed(subject: ErrorSubject<MemberId>, verb: ErrorVerb, error: &StateError) -> StorageError {
    tracing::error!(error = chain(error), "the state failed");
    StorageIOError::new(subject, verb, AnyError::error(chain(error))).into()
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<Position, StorageError> {
        let read = async {
            let failed = StateError::of_database(self.readers.path());
            let row = self.readers.read(ClusterRow::load).await.map_err(|ReadError(e)| failed(e))?;
            position(&row)
        };
        read.await.map_err(|e| failed(ErrorSubject::StateMachine, ErrorVerb::Read, &e))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.order(|done| Order::Apply(entries, done))
            .await
            .map_err(|e| failed(ErrorSubject::StateMachine, ErrorVerb::Write, &e))
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        let file = self.snapshots.receive().map_err(|e| failed(ErrorSubject::Snapshot(None), ErrorVerb::Write, &e))?;
        Ok(Box::new(file))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotFile>) -> Result<(), StorageError> {
        let install = async {
            let kept = self.snapshots.keep(meta, *snapshot).await?;
            let snapshots = Arc::clone(&self.snapshots);
            let copy = with_room(move || {
                let (snapshots, kept) = (Arc::clone(&snapshots), kept.clone());
                async move { snapshots.copy_for_state(&kept).await }
            });
            let copy = copy.await?;
            self.order(|done| Order::Replace(copy, done)).await
        };
        let subject = ErrorSubject::Snapshot(Some(meta.signature()));
        install.await.map_err(|e| failed(subject, ErrorVerb::Write, &e))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let newest = async {
            let (newest, harmed) = self.snapshots.newest().await?;
            // The log may not go back to the snapshot before one that is damaged.
            if harmed { self.copy_state().await.map(Some) } else { Ok(newest) }
        };
        newest.await.map_err(|e| failed(ErrorSubject::Snapshot(None), ErrorVerb::Read, &e))
    }
}

impl RaftSnapshotBuilder<Types> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        self.copy_state().await.map_err(|e| failed(ErrorSubject::Snapshot(None), ErrorVerb::Write, &e))
    }
}
