//! What other rooms see of consensus.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rusqlite::Connection;
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

    /// The index of the last applied command; changes with each.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.writer.applied.clone()
    }
}
