//! Connections that read: they see one moment each and never wait for the writer.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use super::super::open::keep_statements;

/// Longest wait for a lock that another connection holds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[error("the state could not be read")]
pub struct ReadError(#[source] pub(super) rusqlite::Error);

/// Connections that wait for the next read.
pub(in super::super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// Held shared by each read; who replaces the database holds it alone.
    gate: RwLock<()>,
}

impl Readers {
    /// Idle connections kept; each costs about 100 KB.
    const KEEP: usize = 4;

    pub(in super::super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::new(Vec::new()), gate: RwLock::new(()) }
    }

    pub(in super::super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `question` on this thread.
    pub(super) fn ask<T>(&self, question: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let connection = self.take()?;
        // One read transaction: the question sees one moment, however many statements it takes.
        let transaction = connection.unchecked_transaction()?;
        let answer = question(&transaction)?;
        drop(transaction);
        self.give(connection);
        Ok(answer)
    }

    /// Lends a connection, without a transaction.
    pub(in super::super) fn with<T, E>(
        &self,
        failed: impl Fn(rusqlite::Error) -> E,
        work: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let connection = self.take().map_err(failed)?;
        let outcome = work(&connection)?;
        self.give(connection);
        Ok(outcome)
    }

    /// Runs `question` on a thread that may block.
    pub(in super::super) async fn read<T, F>(self: &std::sync::Arc<Self>, question: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = std::sync::Arc::clone(self);
        match tokio::task::spawn_blocking(move || readers.ask(question)).await {
            Ok(answer) => answer.map_err(ReadError),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Does `work` while no connection of a reader is open.
    pub(super) fn without_readers<T>(&self, work: impl FnOnce() -> T) -> T {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        work()
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

pub(in super::super) fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    keep_statements(&connection, 32)?;
    Ok(connection)
}
