//! Copies of the whole state while it is being written, for backups.

use std::path::{Path, PathBuf};

use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
    ffi::SQLITE_BUSY,
};

use super::open::is_full;

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

pub(super) fn copy(source: &Connection, path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<(), CopyError> {
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
