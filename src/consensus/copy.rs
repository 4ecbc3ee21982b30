//! Copies of the whole state while it is being written: for snapshots, for backups, and before a migration.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
    ffi::SQLITE_BUSY,
};

use super::open::{failed_at, is_full};

/// Why the state could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The state itself cannot be read.
    #[error("the state `{path}` could not be read")]
    Read {
        /// The state.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
    /// The disk that the copy goes to is full.
    #[error("no space is left for a copy of the state at `{path}`")]
    DiskFull {
        /// The copy.
        path: PathBuf,
    },
    /// The copy cannot be written.
    #[error("the copy of the state at `{path}` could not be {}", failed_at(.source))]
    Write {
        /// The copy.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
    /// The copy cannot be brought to the disk.
    #[error("the copy of the state at `{path}` could not be flushed to the disk")]
    Flush {
        /// The copy.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

/// Pages copied between two looks at the progress.
const COPY_STEP_PAGES: i32 = 256;
/// How often a copy waits out a lock, each time for as long as a reader does.
const COPY_PATIENCE: u32 = 6;

/// Copies `source` to `path`, which may not be there; the copy is on the disk when this returns, its name may not be.
/// `progress` gets the pages copied and all there are.
pub(super) fn copy(source: &Connection, path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<(), CopyError> {
    let unread = |error| CopyError::Read { path: source.path().unwrap_or_default().into(), source: error };
    let failed = |error: rusqlite::Error| {
        let path = path.to_owned();
        if is_full(&error) {
            return CopyError::DiskFull { path };
        }
        CopyError::Write { path, source: error }
    };
    // An open read transaction pins the moment; without it every write of another connection would begin the copy anew.
    let moment = source.unchecked_transaction().map_err(unread)?;
    moment.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).map_err(unread)?;
    let mut target = Connection::open(path).map_err(failed)?;
    // The finished file is flushed at once, and its journal stays in memory: one that a full disk left behind would be
    // taken for the copy's own by whoever opens it next.
    target.pragma_update(None, "synchronous", "OFF").map_err(failed)?;
    target.pragma_update_and_check(None, "journal_mode", "MEMORY", |_| Ok(())).map_err(failed)?;
    let backup = Backup::new(&moment, &mut target).map_err(failed)?;
    let mut patience = COPY_PATIENCE;
    loop {
        let step = backup.step(COPY_STEP_PAGES);
        let step = step.map_err(|error| if failed_at(&error) == "read" { unread(error) } else { failed(error) })?;
        let pages = backup.progress();
        let all = u64::try_from(pages.pagecount).unwrap_or(0);
        progress(all.saturating_sub(u64::try_from(pages.remaining).unwrap_or(0)), all);
        match step {
            StepResult::Done => break,
            StepResult::More => {}
            // Another connection holds a lock, as it may where no write-ahead log is possible.
            _ if patience > 0 => patience -= 1,
            _ => {
                let busy = rusqlite::ffi::Error::new(SQLITE_BUSY);
                return Err(unread(rusqlite::Error::SqliteFailure(busy, None)));
            }
        }
    }
    drop(backup);
    target.close().map_err(|(_, error)| failed(error))?;
    finish(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CopyError::DiskFull { path },
            _ => CopyError::Flush { path, source },
        }
    })
}

/// Makes the copy one file, on the disk. Its pages say that a write-ahead log belongs to them, in the two bytes at 18
/// (<https://www.sqlite.org/fileformat2.html#file_format_version_numbers>). `PRAGMA journal_mode` would write through a
/// journal, and keep the old mode without an error when it finds no room.
fn finish(path: &Path) -> io::Result<()> {
    const VERSIONS: u64 = 18;
    const WITHOUT_LOG: [u8; 2] = [1, 1];
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&WITHOUT_LOG, VERSIONS)?;
    file.sync_all()
}
