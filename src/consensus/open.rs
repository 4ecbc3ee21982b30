//! Opens the database, checks it, and refuses what it must not touch.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use toft_model::state::{MigrateError, applied_index, migrate};

use super::handle::{Handle, ReaderPool};

/// Longest wait for a lock that another connection holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the state cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is no intact SQLite database.
    #[error("the database `{path}` is damaged: {detail}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What the check found.
        detail: String,
    },
    /// Its version or owner is not ours.
    #[error("the database `{path}` cannot be used")]
    Version {
        /// File.
        path: PathBuf,
        /// Cause.
        source: MigrateError,
    },
    /// The disk is full.
    #[error("no space is left for the database `{path}`")]
    DiskFull {
        /// File.
        path: PathBuf,
    },
    /// Anything else.
    #[error("the database `{path}` cannot be opened")]
    Sqlite {
        /// File.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
}

impl OpenError {
    /// The next step for the person who reads the error.
    pub fn hint(&self) -> String {
        match self {
            Self::Damaged { path, .. } => format!(
                "nothing was changed; keep a copy of the file, then restore a backup, or move `{}` away to start with an empty state (running containers stay)",
                path.display()
            ),
            Self::Version { source: MigrateError::Newer { .. }, .. } => {
                "nothing was changed; start the newer toft again, or restore a backup taken before the upgrade".into()
            }
            Self::Version { source: MigrateError::Foreign { .. }, .. } => "choose another --data-dir".into(),
            Self::DiskFull { .. } => "free some space; toft needs about 1 MB to start".into(),
            Self::Version { source: MigrateError::Sqlite { .. }, .. } | Self::Sqlite { .. } => {
                "check that the directory exists and that this user may write to it".into()
            }
        }
    }

    fn of(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        if is_damaged(&source) {
            Self::Damaged { path, detail: source.to_string() }
        } else if is_full(&source) {
            Self::DiskFull { path }
        } else {
            Self::Sqlite { path, source }
        }
    }
}

/// Opens (or creates) the database at `path` and starts its writer thread. The future ends when the last handle is
/// gone or the writer died; the daemon owns it.
pub fn open(path: &Path) -> Result<(Handle, impl Future<Output = ()> + Send + 'static), OpenError> {
    let connection = prepare(path)?;
    let index = applied_index(&connection).map_err(|e| OpenError::of(path, e))?;
    let readers = ReaderPool::new(path.to_owned());
    let (writer, task) = super::writer::start(connection, index);
    Ok((Handle::new(writer, readers), task))
}

/// The writer's connection to a database that was checked and has our version. A file that is refused keeps every byte:
/// nothing is set that SQLite writes down, nor is its log moved into it, before it proved to be ours.
pub(super) fn prepare(path: &Path) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::of(path, source);
    check_length(path)?;
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    check(&connection, path)?;
    migrate(&mut connection).map_err(|source| match source {
        MigrateError::Sqlite { source, .. } if is_full(&source) || is_damaged(&source) => failed(source),
        source => OpenError::Version { path: path.to_owned(), source },
    })?;
    configure(&connection).map_err(failed)?;
    Ok(connection)
}

pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    // The shared memory beside the log is a file too, and has an error code of its own.
    let shared_memory =
        error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
    shared_memory || error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// SQLite takes a file of no (or one) byte for a new database and deletes the log beside it.
fn check_length(path: &Path) -> Result<(), OpenError> {
    let length = |path: &Path| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let lost = match length(path) {
        Some(0) => length(Path::new(&log)).is_some_and(|log| log > 0),
        Some(1) => true,
        Some(_) | None => false,
    };
    if lost {
        return Err(OpenError::Damaged { path: path.to_owned(), detail: "its content is gone".into() });
    }
    Ok(())
}

pub(super) fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        tracing::warn!("the disk that holds the state allows no write-ahead log; every change waits for all readers");
    }
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok(())
}

fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|e| OpenError::of(path, e))?;
    if verdict != "ok" {
        return Err(OpenError::Damaged { path: path.to_owned(), detail: verdict });
    }
    Ok(())
}
