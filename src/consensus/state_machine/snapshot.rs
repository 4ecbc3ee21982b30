//! Snapshots: copies of the database in a folder of their own, `INDEX-TERM.sqlite`. The newest two are kept: one may
//! turn out to be damaged when it is needed.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use toft_model::state::{ClusterRow, SCHEMA_VERSION, schema_version};

use super::{
    super::{
        copy::{CopyError, copy},
        open::damage,
        types::{Snapshot, SnapshotMeta},
    },
    StateError,
    readers::{Readers, connect_reader},
};
use crate::observe::chain;

/// Snapshots kept.
const KEPT: usize = 2;
/// Beginning of the names of files that are being received.
const RECEIVED: &str = "received-";
/// Bytes that a copy leaves free.
const SPARE: u64 = 1 << 20;
/// Ending of files that are not complete.
const PARTIAL: &str = "partial";

/// A database file that is a snapshot, or becomes one.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Of one that is being received.
    _unfinished: Option<Arc<Unfinished>>,
}

/// Removes a file that never became a snapshot.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!(error = chain(&error), "what came of a snapshot is left behind");
        }
    }
}

impl SnapshotFile {
    fn at(path: PathBuf) -> Self {
        Self { path, _unfinished: None }
    }
}

/// The folder.
pub(in super::super) struct Snapshots {
    folder: PathBuf,
    received: AtomicU64,
    /// Files that are being received.
    unfinished: Mutex<Vec<Weak<Unfinished>>>,
}

impl Snapshots {
    /// Opens the folder; what was never completed is removed.
    pub(in super::super) fn open(folder: PathBuf) -> Result<Self, StateError> {
        let made = |source| StateError::File { verb: "made", path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(made)?;
        for path in files(&folder)? {
            if path.extension().is_some_and(|extension| extension == PARTIAL) {
                remove(&path)?;
            }
        }
        Ok(Self { folder, received: AtomicU64::new(0), unfinished: Mutex::default() })
    }

    /// A file to receive another member's snapshot in.
    pub(super) fn receive(&self) -> Result<SnapshotFile, StateError> {
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{RECEIVED}{number}.{PARTIAL}"));
        let mut unfinished = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.retain(|unfinished| unfinished.strong_count() > 0);
        // Who gave up may have made its file after that.
        let live: Vec<_> = unfinished.iter().filter_map(Weak::upgrade).collect();
        for left in files(&self.folder)? {
            let is_received = left.file_name().is_some_and(|name| name.to_string_lossy().starts_with(RECEIVED));
            if is_received && live.iter().all(|unfinished| unfinished.0 != left) {
                remove(&left)?;
            }
        }
        let guard = Arc::new(Unfinished(path.clone()));
        unfinished.push(Arc::downgrade(&guard));
        Ok(SnapshotFile { path, _unfinished: Some(guard) })
    }

    /// Copies the state.
    pub(super) async fn build(self: &Arc<Self>, readers: &Arc<Readers>) -> Result<Snapshot, StateError> {
        let (snapshots, readers) = (Arc::clone(self), Arc::clone(readers));
        blocking(move || {
            let partial = snapshots.folder.join(format!("built.{PARTIAL}"));
            remove(&partial)?;
            snapshots.has_room_for(readers.path())?;
            let unopened = |source| CopyError::Read { path: readers.path().to_owned(), source };
            if let Err(error) = readers.with(unopened, |source| copy(source, &partial, |_, _| ())) {
                remove(&partial)?;
                return Err(error.into());
            }
            let meta = check(&partial)?;
            snapshots.put(&partial, meta)
        })
        .await
    }

    /// Keeps a snapshot that was received whole.
    pub(super) async fn keep(
        self: &Arc<Self>,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> Result<SnapshotFile, StateError> {
        let (snapshots, wanted) = (Arc::clone(self), meta.clone());
        blocking(move || {
            let found = check(&file.path)?;
            if found.last_log_id != wanted.last_log_id {
                let detail = format!("it ends at {:?}, not at {:?}", found.last_log_id, wanted.last_log_id);
                return Err(StateError::Snapshot { path: file.path.clone(), detail });
            }
            Ok(*snapshots.put(&file.path, found)?.snapshot)
        })
        .await
    }

    /// A second copy, which may be moved into the state's place.
    pub(super) async fn copy_for_state(self: &Arc<Self>, snapshot: &SnapshotFile) -> Result<PathBuf, StateError> {
        let (snapshots, from) = (Arc::clone(self), snapshot.path.clone());
        let to = self.folder.join(format!("state.{PARTIAL}"));
        blocking(move || {
            snapshots.has_room_for(&from)?;
            match copy_file(&from, &to) {
                Ok(()) => Ok(to),
                Err(error) => remove(&to).and(Err(error)),
            }
        })
        .await
    }

    /// The position in the log that the newest one says it ends at, sound or not; 0 without any.
    pub(super) fn newest_index(&self) -> Result<u64, StateError> {
        let newest = complete(&self.folder)?.pop();
        let name = newest.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
        Ok(name.and_then(|name| name.split('-').next()?.parse().ok()).unwrap_or(0))
    }

    /// The newest snapshot that is sound, and whether a newer one was passed over.
    pub(super) async fn newest(self: &Arc<Self>) -> Result<(Option<Snapshot>, bool), StateError> {
        let snapshots = Arc::clone(self);
        blocking(move || {
            let last = complete(&snapshots.folder)?.pop();
            let sound = snapshots.sound().next();
            let harmed = last.as_ref() != sound.as_ref().map(|sound| &sound.snapshot.path);
            Ok((sound, harmed))
        })
        .await
    }

    /// Says no when the disk would be full with a copy of `file`: what it has is for the log.
    fn has_room_for(&self, file: &Path) -> Result<(), StateError> {
        let failed = |source| StateError::File { verb: "copied", path: file.to_owned(), source };
        let length = std::fs::metadata(file).map_err(failed)?.len();
        let has_room = crate::consensus::space::free_bytes(&self.folder).is_none_or(|free| free > length + SPARE);
        if has_room { Ok(()) } else { Err(failed(std::io::ErrorKind::StorageFull.into())) }
    }

    /// Snapshots that are sound, newest first.
    pub(in super::super) fn sound(&self) -> impl Iterator<Item = Snapshot> {
        let mut found = complete(&self.folder).unwrap_or_default();
        found.reverse();
        found.into_iter().filter_map(|path| match check(&path) {
            Ok(meta) => Some(Snapshot { meta, snapshot: Box::new(SnapshotFile::at(path)) }),
            Err(error) => {
                tracing::error!(error = chain(&error), "a snapshot is passed over");
                None
            }
        })
    }

    /// Gives a complete file its name and removes those that are too old.
    fn put(&self, partial: &Path, meta: SnapshotMeta) -> Result<Snapshot, StateError> {
        let path = self.folder.join(format!("{}.sqlite", meta.snapshot_id));
        let moved = |source| StateError::File { verb: "written", path: path.clone(), source };
        std::fs::File::open(partial).and_then(|file| file.sync_all()).map_err(moved)?;
        std::fs::rename(partial, &path).map_err(moved)?;
        std::fs::File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(moved)?;
        let found = complete(&self.folder)?;
        for old in found.iter().rev().skip(KEPT).filter(|old| **old != path) {
            remove(old)?;
        }
        Ok(Snapshot { meta, snapshot: Box::new(SnapshotFile::at(path)) })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Copies a file and flushes it.
pub(in super::super) fn copy_file(from: &Path, to: &Path) -> Result<(), StateError> {
    let copied = |source| StateError::File { verb: "copied", path: from.to_owned(), source };
    std::fs::copy(from, to).map_err(copied)?;
    std::fs::File::open(to).and_then(|file| file.sync_all()).map_err(copied)
}

/// What a snapshot's file says of itself, if it is sound.
pub(in super::super) fn check(path: &Path) -> Result<SnapshotMeta, StateError> {
    let bad = |detail: String| StateError::Snapshot { path: path.to_owned(), detail };
    let unread = |error: rusqlite::Error| bad(chain(&error));
    let connection = connect_reader(path).map_err(unread)?;
    if let Some(damage) = damage(&connection).map_err(unread)? {
        return Err(bad(damage));
    }
    let version = schema_version(&connection).map_err(unread)?;
    if !version.is_usable() {
        return Err(bad(format!("its version is {}, this toft knows {SCHEMA_VERSION}; upgrade it", version.version)));
    }
    let row = ClusterRow::load(&connection).map_err(unread)?;
    let (last_log_id, last_membership) = super::position(&row)?;
    let (index, term) = last_log_id.map_or((0, 0), |last| (last.index, last.leader_id.term));
    let snapshot_id = format!("{index:020}-{term}");
    Ok(SnapshotMeta { last_log_id, last_membership, snapshot_id })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, StateError> {
    let listed = |source| StateError::File { verb: "listed", path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(listed)? {
        files.push(entry.map_err(listed)?.path());
    }
    files.sort();
    Ok(files)
}

/// Snapshots that were completed, oldest first.
fn complete(folder: &Path) -> Result<Vec<PathBuf>, StateError> {
    let mut found = files(folder)?;
    found.retain(|path| path.extension().is_some_and(|extension| extension == "sqlite"));
    Ok(found)
}

fn remove(path: &Path) -> Result<(), StateError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StateError::File { verb: "removed", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
