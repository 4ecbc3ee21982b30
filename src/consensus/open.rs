//! Opens the database, checks it, and refuses what it must not touch.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use toft_model::state::{MigrateError, applied_index, migrate};

use super::handle::{Handle, ReaderPool};

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
            Self::Version { .. } => "choose another --data-dir".into(),
            Self::DiskFull { .. } => "free some space; toft needs about 1 MB to start".into(),
            Self::Sqlite { .. } => "check that the directory exists and that this user may write to it".into(),
        }
    }

    fn of(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path, detail: source.to_string() }
            }
            Some(ErrorCode::DiskFull) => Self::DiskFull { path },
            _ => Self::Sqlite { path, source },
        }
    }
}

/// Opens (or creates) the database at `path` and starts its writer thread. The future ends when the last handle is
/// gone or the writer died; the daemon owns it.
pub fn open(path: &Path) -> Result<(Handle, impl Future<Output = ()> + Send + 'static), OpenError> {
    let mut connection = connect(path).map_err(|e| OpenError::of(path, e))?;
    check(&connection, path)?;
    migrate(&mut connection).map_err(|source| match source {
        MigrateError::Sqlite { source, .. } if is_full(&source) => OpenError::DiskFull { path: path.to_owned() },
        source => OpenError::Version { path: path.to_owned(), source },
    })?;
    let index = applied_index(&connection).map_err(|e| OpenError::of(path, e))?;
    let readers = ReaderPool::new(path.to_owned());
    let (writer, task) = super::writer::start(connection, index);
    Ok((Handle::new(writer, readers), task))
}

pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    configure(&connection)?;
    Ok(connection)
}

pub(super) fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.set_prepared_statement_cache_capacity(64);
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
