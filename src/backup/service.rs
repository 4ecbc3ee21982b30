//! The backups of a running node.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    BackupError, Stored, archive,
    folder::{ENDING, Folder, sweep},
    keys::{KeySource, Lock},
    make::{Made, Order, make},
    verify::verify,
};
use crate::consensus::Handle;

/// How backups are made, from the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data directory.
    pub data: PathBuf,
    /// Folder of the backups.
    pub dir: PathBuf,
    /// Whether that folder is part of the data directory and may be made.
    pub dir_is_ours: bool,
    /// Time between two scheduled backups; `None` turns the schedule off.
    pub every: Option<Duration>,
    /// Scheduled backups kept.
    pub keep: usize,
    /// What locks them.
    pub key: Option<KeySource>,
    /// Name of this node.
    pub node_name: String,
    /// Id of this node.
    pub node_id: String,
}

/// How it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Folder of the backups.
    pub dir: PathBuf,
    /// Time between two scheduled backups; `None` when there is no schedule.
    pub every: Option<Duration>,
    /// Scheduled backups kept.
    pub keep: usize,
    /// What locks them, if anything.
    pub key: Option<KeySource>,
    /// When the next scheduled one is due, in milliseconds since 1970.
    pub next_at_ms: Option<i64>,
    /// When the last try failed, in milliseconds since 1970, and why; absent when it did not.
    pub failure: Option<(i64, String)>,
}

/// A backup for somebody who takes it away: no file is left here.
#[derive(Debug)]
pub struct Streamed {
    /// Name for it.
    pub name: String,
    /// The file, at its beginning.
    pub file: File,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its SHA-256, in hex.
    pub sha256: String,
}

/// Makes, lists and opens backups; one is made at a time.
#[derive(Clone)]
pub struct Backups(Arc<Inner>);

struct Inner {
    settings: Settings,
    folder: Folder,
    state: Handle,
    making: tokio::sync::Mutex<()>,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    next_at_ms: Option<i64>,
    failure: Option<(i64, String)>,
}

impl Backups {
    /// The backups of the node with that state.
    pub fn new(settings: Settings, state: Handle) -> Self {
        let folder = Folder { dir: settings.dir.clone(), ours: settings.dir_is_ours, data: settings.data.clone() };
        let inner = Inner { settings, folder, state, making: tokio::sync::Mutex::default(), shown: Mutex::default() };
        sweep(&[inner.scratch(), inner.part(), inner.stream_part()]);
        Self(Arc::new(inner))
    }

    /// Makes one in the folder, locked as configured. It has its name only once it proved good: where the key is at hand
    /// it is restored into a scratch folder, else it is read again and compared.
    pub async fn create(&self) -> Result<Stored, BackupError> {
        self.make_stored(false).await
    }

    pub(super) async fn make_stored(&self, scheduled: bool) -> Result<Stored, BackupError> {
        let _one = self.0.making.try_lock().map_err(|_| BackupError::Busy)?;
        let source = self.0.settings.key.clone().ok_or(BackupError::NoKey)?;
        let inner = Arc::clone(&self.0);
        let lock = blocking(move || {
            inner.folder.prepare()?;
            sweep(&[inner.part()]);
            source.lock()
        })
        .await?;
        let made = make(&self.0.state, self.0.order(self.0.part(), lock)).await?;
        let inner = Arc::clone(&self.0);
        blocking(move || inner.settle(&made, scheduled)).await
    }

    /// Makes one that is handed out and not kept, locked with `lock` or as configured.
    pub async fn stream(&self, lock: Option<Lock>) -> Result<Streamed, BackupError> {
        let _one = self.0.making.try_lock().map_err(|_| BackupError::Busy)?;
        let lock = match (lock, self.0.settings.key.clone()) {
            (Some(lock), _) => lock,
            (None, Some(source)) => blocking(move || source.lock()).await?,
            (None, None) => return Err(BackupError::NoKey),
        };
        let part = self.0.stream_part();
        sweep(std::slice::from_ref(&part));
        let Made { sealed, .. } = make(&self.0.state, self.0.order(part.clone(), lock)).await?;
        let name =
            format!("toft-{}-{}{ENDING}", self.0.settings.node_name, jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
        // Open files outlive their names: this one goes when nobody reads it any more.
        let file = File::open(&part).map_err(|source| BackupError::Unreadable { path: part.clone(), source });
        sweep(&[part]);
        Ok(Streamed { name, file: file?, size_bytes: sealed.size_bytes, sha256: sealed.sha256 })
    }

    /// Every backup in the folder, oldest first.
    pub async fn list(&self) -> Result<Vec<Stored>, BackupError> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.folder.list()).await
    }

    /// Opens one of the folder; gives its size in bytes too.
    pub async fn open(&self, name: String) -> Result<(File, u64), BackupError> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.folder.open(&name)).await
    }

    /// How it goes.
    pub fn status(&self) -> Status {
        let Settings { dir, every, keep, key, .. } = self.0.settings.clone();
        let shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        Status { dir, every, keep, key, next_at_ms: shown.next_at_ms, failure: shown.failure.clone() }
    }

    /// Time between two scheduled backups.
    pub(super) fn every(&self) -> Option<Duration> {
        self.0.settings.every
    }

    /// Removes scheduled backups beyond those to keep.
    pub(super) async fn rotate(&self) -> Result<Vec<String>, BackupError> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.folder.rotate(inner.settings.keep)).await
    }

    /// When the newest scheduled one was made, in milliseconds since 1970.
    pub(super) async fn newest_scheduled_ms(&self) -> Result<Option<i64>, BackupError> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.folder.newest_scheduled_ms()).await
    }

    pub(super) fn show_next(&self, at_ms: i64) {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner).next_at_ms = Some(at_ms);
    }

    pub(super) fn show_failure(&self, failure: Option<(i64, String)>) {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner).failure = failure;
    }
}

impl Inner {
    fn scratch(&self) -> PathBuf {
        self.settings.data.join("backup-scratch")
    }

    /// The backup being made; one name a node, so that the next one clears away what a crash left.
    fn part(&self) -> PathBuf {
        self.settings.dir.join(format!(".toft-{}.part", self.settings.node_id))
    }

    fn stream_part(&self) -> PathBuf {
        self.settings.data.join("backup-stream.part")
    }

    fn order(&self, target: PathBuf, lock: Lock) -> Order {
        Order {
            data: self.settings.data.clone(),
            scratch: self.scratch(),
            target,
            lock,
            node_name: self.settings.node_name.clone(),
            node_id: self.settings.node_id.clone(),
        }
    }

    /// Proves a new backup and gives it its name; what does not prove good goes.
    fn settle(&self, made: &Made, scheduled: bool) -> Result<Stored, BackupError> {
        let part = self.part();
        let name = self.folder.free_name(&self.settings.node_name, jiff::Timestamp::now());
        let settled = self.prove(made).and_then(|verified| self.folder.adopt(&part, &name, made, scheduled, verified));
        if let Err(error) = settled {
            drop(fs::remove_file(&part));
            return Err(error);
        }
        let mut stored = self.folder.list()?;
        stored.retain(|stored| stored.name == name);
        stored.pop().ok_or(BackupError::NotFound(name))
    }

    /// Whether it was restored; otherwise it was only compared.
    fn prove(&self, made: &Made) -> Result<bool, BackupError> {
        let part = self.part();
        let Some(key) = self.settings.key.as_ref().map(KeySource::key).transpose()?.flatten() else {
            let found =
                archive::measure(&part).map_err(|source| BackupError::Unreadable { path: part.clone(), source })?;
            if found == made.sealed {
                return Ok(false);
            }
            return Err(BackupError::Damaged {
                path: part,
                detail: "the disk gives back other bytes than were written".into(),
            });
        };
        let verified = verify(&part, &key, &self.settings.data, &mut |_, _| ())?;
        if verified.differences.is_empty() {
            return Ok(true);
        }
        Err(BackupError::Differs { path: part, differences: verified.differences })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
