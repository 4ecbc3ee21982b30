//! What other rooms see of consensus.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
    ffi::SQLITE_BUSY,
};
use toft_model::state::{Command, Refusal, Reply};
use tokio::sync::{oneshot, watch};

use super::{
    open::{connect_reader, is_full},
    writer::{Proposal, Writer},
};

/// Longest wait for a command to be applied.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a command was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The state says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk is full.
    #[error("no space is left on the disk that holds the state")]
    DiskFull,
    /// The database failed otherwise.
    #[error("the state could not be written: {0}")]
    Storage(String),
    /// The daemon is shutting down.
    #[error("the appliance is shutting down")]
    Closed,
    /// No answer came; the command may still be applied.
    #[error("the state did not answer within {} seconds", PROPOSE_TIMEOUT.as_secs())]
    Timeout,
}

impl ProposeError {
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        if is_full(error) { Self::DiskFull } else { Self::Storage(error.to_string()) }
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[error("the state could not be read")]
pub struct ReadError(#[source] rusqlite::Error);

/// Why the state could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The state itself cannot be read.
    #[error("the state could not be read")]
    Read(#[source] rusqlite::Error),
    /// The disk that the copy goes to is full.
    #[error("no space is left for a copy of the state at `{path}`")]
    DiskFull {
        /// The copy.
        path: PathBuf,
    },
    /// The copy cannot be written.
    #[error("the copy of the state at `{path}` could not be written")]
    Write {
        /// The copy.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
}

/// Pages copied between two looks at the progress.
const COPY_STEP_PAGES: i32 = 256;
/// How often a copy waits out a lock, each time for as long as a reader does.
const COPY_PATIENCE: u32 = 6;

/// Connections that wait for the next read.
pub(super) struct ReaderPool {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl ReaderPool {
    /// Idle connections kept; each costs about 100 KB.
    const KEEP: usize = 4;

    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::new(Vec::new()) }
    }

    fn take(&self) -> rusqlite::Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| connect_reader(&self.path), Ok)
    }

    fn give(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < Self::KEEP {
            idle.push(connection);
        }
    }
}

/// Propose, read, watch.
#[derive(Clone)]
pub struct Handle {
    // Before the writer, whose connection must close last: only a writing connection tidies the log away.
    readers: Arc<ReaderPool>,
    writer: Writer,
}

impl Handle {
    pub(super) fn new(writer: Writer, readers: ReaderPool) -> Self {
        Self { writer, readers: Arc::new(readers) }
    }

    /// Applies a command. When this returns `Ok`, the change is on disk.
    pub async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        let (answer, reply) = oneshot::channel();
        let exchange = async {
            self.writer.proposals.send(Proposal { command, answer }).await.map_err(|_| ProposeError::Closed)?;
            reply.await.map_err(|_| ProposeError::Closed)?
        };
        let applied = tokio::time::timeout(PROPOSE_TIMEOUT, exchange).await.map_err(|_| ProposeError::Timeout)??;
        Ok(applied?)
    }

    /// Runs `question` on a read-only connection; it sees every command acknowledged before the call.
    pub async fn read<T, F>(&self, question: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        let ask = move || {
            let connection = readers.take()?;
            // One read transaction: the question sees one moment, however many statements it takes.
            let transaction = connection.unchecked_transaction()?;
            let answer = question(&transaction)?;
            drop(transaction);
            readers.give(connection);
            Ok(answer)
        };
        match tokio::task::spawn_blocking(ask).await {
            Ok(answer) => answer.map_err(ReadError),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Copies the whole state into a new database at `path`: one file, one moment, which holds every command acknowledged
    /// before the call. Commands go on being applied meanwhile. `progress` is told the pages done and all pages. What a
    /// failure leaves at `path` is for the caller to remove.
    pub async fn copy_to<F>(&self, path: &Path, progress: F) -> Result<(), CopyError>
    where
        F: FnMut(u64, u64) + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        let path = path.to_owned();
        let copy = move || {
            let source = readers.take().map_err(CopyError::Read)?;
            copy(&source, &path, progress)?;
            readers.give(source);
            Ok(())
        };
        match tokio::task::spawn_blocking(copy).await {
            Ok(copied) => copied,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// The index of the last applied command; changes with each.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.writer.applied.clone()
    }
}

fn copy(source: &Connection, path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<(), CopyError> {
    let failed = |error: rusqlite::Error| {
        let path = path.to_owned();
        if is_full(&error) { CopyError::DiskFull { path } } else { CopyError::Write { path, source: error } }
    };
    // An open read transaction pins the moment; without it every write of another connection would begin the copy anew.
    let moment = source.unchecked_transaction().map_err(CopyError::Read)?;
    moment.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).map_err(CopyError::Read)?;
    let mut target = Connection::open(path).map_err(failed)?;
    // Whoever wants the copy to last flushes the finished file.
    target.pragma_update(None, "synchronous", "OFF").map_err(failed)?;
    let backup = Backup::new(&moment, &mut target).map_err(failed)?;
    let mut patience = COPY_PATIENCE;
    loop {
        let step = backup.step(COPY_STEP_PAGES).map_err(failed)?;
        let pages = backup.progress();
        let all = u64::try_from(pages.pagecount).unwrap_or(0);
        progress(all.saturating_sub(u64::try_from(pages.remaining).unwrap_or(0)), all);
        match step {
            StepResult::Done => break,
            StepResult::More => {}
            // Another connection holds a lock, as it may where no write-ahead log is possible.
            _ if patience > 0 => patience -= 1,
            _ => {
                return Err(CopyError::Read(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(SQLITE_BUSY),
                    None,
                )));
            }
        }
    }
    drop(backup);
    // The pages say that a write-ahead log belongs to them; the copy is one file.
    target.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).map_err(failed)?;
    target.close().map_err(|(_, error)| failed(error))
}
