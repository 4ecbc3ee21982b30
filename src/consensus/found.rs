//! Brings log and state together before consensus starts: founds what is new, mends what can be mended, and refuses what
//! cannot, without deleting anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use openraft::{CommittedLeaderId, Membership};
use rusqlite::{Connection, ErrorCode};
use toft_model::{
    ids::ClusterId,
    state::{ClusterRow, MigrateError},
};
use uuid::Uuid;

use super::{
    copy::CopyError,
    log_store::{LogError, LogFile, Start},
    open::{Files, is_damaged, is_full, prepare as prepare_state},
    state_machine::{
        StateError,
        snapshot::{Snapshots, copy_file},
    },
    types::{FOUNDER, Identity, LogId, Member, Snapshot, StoredMembership, Vote},
};
use crate::observe::chain;

/// Why consensus cannot start. What was there is there still.
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
    #[error("no space is left for `{path}`")]
    DiskFull {
        /// File.
        path: PathBuf,
    },
    /// Anything else that SQLite says.
    #[error("the database `{path}` cannot be opened")]
    Sqlite {
        /// File.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
    /// A file could not be handled.
    #[error("`{path}` cannot be used")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The log cannot be read.
    #[error("the log `{path}` cannot be opened")]
    Log {
        /// File.
        path: PathBuf,
        /// Cause.
        source: LogError,
    },
    /// The state cannot be used.
    #[error("the state `{path}` cannot be used")]
    State {
        /// File.
        path: PathBuf,
        /// Cause.
        source: Box<StateError>,
    },
    /// The log is gone, but the state is that of a cluster.
    #[error("the log `{path}` is missing, but the state beside it belongs to a cluster")]
    LogMissing {
        /// File.
        path: PathBuf,
    },
    /// Log and state are of different clusters.
    #[error("the log `{log}` belongs to cluster {found}, the state to cluster {state}")]
    Strangers {
        /// Log.
        log: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// The state's cluster.
        state: ClusterId,
    },
    /// Neither a snapshot nor the whole log is there to make the state from.
    #[error("the state `{path}` is lost ({why}), and no snapshot is there that the log goes on from")]
    Unmendable {
        /// State.
        path: PathBuf,
        /// What happened to it.
        why: String,
    },
    /// A machine with a state of its own cannot take on another's.
    #[error("`{path}` holds the state of another cluster")]
    Occupied {
        /// File.
        path: PathBuf,
    },
    /// openraft says no.
    #[error("consensus could not start: {0}")]
    Consensus(String),
}

impl OpenError {
    /// The next step for the person who reads the error.
    pub fn hint(&self) -> String {
        match self {
            Self::Damaged { path, .. } => format!(
                "nothing was changed; keep a copy of the file, then restore a backup, or move `{}` away to start with an empty state (running containers stay)",
                path.display()
            ),
            Self::Version { source: MigrateError::Newer { .. }, .. }
            | Self::Log { source: LogError::Newer { .. }, .. } => {
                "nothing was changed; start the newer toft again, or restore a backup taken before the upgrade".into()
            }
            Self::Version { source: MigrateError::Foreign { .. }, .. } => "choose another --data-dir".into(),
            Self::DiskFull { .. } => "free some space; toft needs about 4 MB to start".into(),
            Self::Sqlite { source, .. } if source.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) => {
                "nothing was changed; the disk may be failing: look for its errors with `dmesg`, and keep a copy of the directory"
                    .into()
            }
            Self::Version { source: MigrateError::Sqlite { .. }, .. } | Self::Sqlite { .. } | Self::Io { .. } => {
                "check that the directory exists and that this user may write to it".into()
            }
            Self::Log { .. } | Self::LogMissing { .. } | Self::Unmendable { .. } => {
                "nothing was deleted; restore a backup, or go on with what the state holds: `toft cluster recover`"
                    .into()
            }
            Self::Occupied { .. } => {
                "a machine that joins begins empty: move its data directory away, or choose another with --data-dir"
                    .into()
            }
            Self::Strangers { .. } => "put the files of one cluster together, or restore a backup".into(),
            Self::State { .. } | Self::Consensus(_) => "nothing was deleted; the log of the daemon says more".into(),
        }
    }

    pub(super) fn of_log(path: &Path, source: LogError) -> Self {
        let path = path.to_owned();
        if source.is_full() { Self::DiskFull { path } } else { Self::Log { path, source } }
    }

    pub(super) fn of_state(path: &Path, source: StateError) -> Self {
        let path = path.to_owned();
        if source.is_full() { Self::DiskFull { path } } else { Self::State { path, source: Box::new(source) } }
    }

    /// A copy of the state could not be made, as one is before a migration.
    pub(super) fn of_copy(path: &Path, source: CopyError) -> Self {
        match source {
            CopyError::DiskFull { path } => Self::DiskFull { path },
            source => Self::State { path: path.to_owned(), source: Box::new(source.into()) },
        }
    }

    pub(super) fn of(path: &Path, source: rusqlite::Error) -> Self {
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

/// Log and state, checked and of one cluster.
pub(super) struct Parts {
    pub(super) log: LogFile,
    pub(super) state: Connection,
    pub(super) identity: Identity,
}

/// Opens both files.
pub(super) fn prepare(files: &Files, founder: &Member) -> Result<Parts, OpenError> {
    let parts = bring_together(files, founder)?;
    parts.log.settle().map_err(|source| OpenError::of_log(&files.log, source))?;
    Ok(parts)
}

fn bring_together(files: &Files, founder: &Member) -> Result<Parts, OpenError> {
    let log_failed = |source| OpenError::of_log(&files.log, source);
    if !files.log.exists() {
        let state = prepare_state(&files.state)?;
        let row = ClusterRow::load(&state).map_err(|e| OpenError::of(&files.state, e))?;
        if row.membership.is_some() {
            return Err(OpenError::LogMissing { path: files.log.clone() });
        }
        let (identity, start) = founding(&row, founder);
        LogFile::create(&files.log, &identity, Some(&start)).map_err(log_failed)?;
    }
    let log = LogFile::open(&files.log).map_err(log_failed)?;
    let identity = log.identity().map_err(log_failed)?;
    let start = log.start().map_err(log_failed)?;
    let purged = log.state().map_err(log_failed)?.purged.map_or(0, |purged| purged.index);
    let mend = Mend { files, identity: &identity, start: start.as_ref(), purged };
    // SQLite would begin a new one, which is older than the log.
    if purged > 0 && std::fs::metadata(&files.state).map_or(true, |state| state.len() == 0) {
        let state = mend.state("nothing is there")?;
        return Ok(Parts { log, state, identity });
    }
    let state = match prepare_state(&files.state) {
        Err(OpenError::Damaged { detail, .. }) => mend.state(&detail)?,
        other => other?,
    };
    let row = ClusterRow::load(&state).map_err(|e| OpenError::of(&files.state, e))?;
    if let Some(found) = row.cluster_id.filter(|found| *found != identity.cluster_id) {
        return Err(OpenError::Strangers { log: files.log.clone(), found: identity.cluster_id, state: found });
    }
    let begins = start.as_ref().filter(|start| row.applied_index == purged && purged == start.applied.index);
    if row.membership.is_none() && (begins.is_some() || start.is_none() && purged == 0) {
        match begins {
            Some(start) => enter(&files.state, &state, &identity, start)?,
            None => name(&files.state, &state, &identity)?,
        }
    } else if row.membership.is_none() || row.applied_index < purged {
        let why = format!("it ends at {}, the log begins after {purged}", row.applied_index);
        drop(state);
        let state = mend.state(&why)?;
        return Ok(Parts { log, state, identity });
    }
    Ok(Parts { log, state, identity })
}

/// Makes a machine the member that a cluster has let in. It has no state of its own before.
pub fn adopt(files: &Files, identity: &Identity) -> Result<(), OpenError> {
    for path in [&files.log, &files.state] {
        if path.exists() {
            return Err(OpenError::Occupied { path: path.clone() });
        }
    }
    LogFile::create(&files.log, identity, None).map_err(|source| OpenError::of_log(&files.log, source))
}

/// Makes the state at `path` that of no cluster: the next start founds one that goes on from it. Former members of its
/// cluster, should any live, have nothing to do with the new one.
pub fn detach(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::of(path, source);
    let state = prepare_state(path)?;
    let row = ClusterRow::load(&state).map_err(failed)?;
    let row = ClusterRow { cluster_id: None, applied_position: None, membership: None, ..row };
    row.save(&state).map_err(failed)?;
    // One file again, which can be moved.
    state.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).map_err(failed)?;
    state.close().map_err(|(_, source)| failed(source))
}

/// A cluster of one that goes on from a state, whatever was before.
fn founding(row: &ClusterRow, founder: &Member) -> (Identity, Start) {
    let identity =
        Identity { cluster_id: row.cluster_id.unwrap_or_else(|| ClusterId(Uuid::now_v7())), member_id: FOUNDER };
    let applied = LogId::new(CommittedLeaderId::new(FIRST_TERM, FOUNDER), row.applied_index);
    let members = BTreeMap::from([(FOUNDER, founder.clone())]);
    let membership = Membership::new(vec![BTreeSet::from([FOUNDER])], members);
    let membership = StoredMembership::new(Some(applied), membership);
    let start = Start { applied, vote: Vote::new_committed(FIRST_TERM, FOUNDER), membership };
    (identity, start)
}

/// The term in which a cluster is founded.
const FIRST_TERM: u64 = 1;

/// Notes in a state that it is the one a cluster starts with.
fn enter(path: &Path, state: &Connection, identity: &Identity, start: &Start) -> Result<(), OpenError> {
    let json = |value: serde_json::Result<String>| {
        value.map_err(|e| OpenError::of_state(path, StateError::Damaged(e.to_string())))
    };
    let row = ClusterRow {
        cluster_id: Some(identity.cluster_id),
        applied_index: start.applied.index,
        applied_position: Some(json(serde_json::to_string(&start.applied))?),
        membership: Some(json(serde_json::to_string(&start.membership))?),
    };
    row.save(state).map_err(|e| OpenError::of(path, e))
}

/// Notes in a state without members whose it is; the members come from the others.
fn name(path: &Path, state: &Connection, identity: &Identity) -> Result<(), OpenError> {
    let failed = |e| OpenError::of(path, e);
    let row = ClusterRow { cluster_id: Some(identity.cluster_id), ..ClusterRow::load(state).map_err(failed)? };
    row.save(state).map_err(failed)
}

/// What a state is made anew from.
struct Mend<'a> {
    files: &'a Files,
    identity: &'a Identity,
    start: Option<&'a Start>,
    /// Entries up to here are not in the log any more.
    purged: u64,
}

impl Mend<'_> {
    /// Sets the state aside that cannot be used and makes it anew: from the newest snapshot that the log goes on from, or
    /// from nothing when the log is whole. When neither is there nothing is changed.
    fn state(&self, why: &str) -> Result<Connection, OpenError> {
        let path = &self.files.state;
        let failed = |source| OpenError::of_state(path, source);
        read_through(path)?;
        let snapshots = Snapshots::open(self.files.snapshots.clone()).map_err(failed)?;
        let ends = |snapshot: &Snapshot| snapshot.meta.last_log_id.map_or(0, |last| last.index);
        let snapshot = snapshots.sound().find(|snapshot| ends(snapshot) >= self.purged);
        if snapshot.is_none() && self.purged > 0 {
            return Err(OpenError::Unmendable { path: path.clone(), why: why.to_owned() });
        }
        // The copy first: when there is no room for it, what is there stays where it is.
        let partial = path.with_extension("partial");
        if let Some(snapshot) = &snapshot {
            copy_file(&snapshot.snapshot.path, &partial).map_err(failed)?;
        }
        if let Some(aside) = set_aside(path)? {
            tracing::error!(
                "the state `{}` cannot be used: {why}; it is kept as `{}`",
                path.display(),
                aside.display()
            );
        }
        if let Some(snapshot) = snapshot {
            std::fs::rename(&partial, path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
            tracing::warn!("the state is made anew from the snapshot at {} and the log after it", ends(&snapshot));
            return prepare_state(path);
        }
        tracing::warn!("the state is made anew from the whole log");
        let state = prepare_state(path)?;
        match self.start {
            Some(start) => enter(path, &state, self.identity, start)?,
            None => name(path, &state, self.identity)?,
        }
        Ok(state)
    }
}

/// Reads the whole file, if it is there: a disk that cannot be read lets SQLite speak of damage, too.
fn read_through(path: &Path) -> Result<(), OpenError> {
    let read = std::fs::File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()));
    match read {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_READ);
            let source = rusqlite::Error::SqliteFailure(code, Some(error.to_string()));
            Err(OpenError::Sqlite { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Moves a database and what SQLite keeps beside it out of the way, and says where to, if there was anything.
pub(super) fn set_aside(path: &Path) -> Result<Option<PathBuf>, OpenError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut moved = false;
    for suffix in ["", "-wal", "-shm"] {
        let from = beside(suffix);
        match std::fs::rename(&from, beside(&format!(".damaged-{now}{suffix}"))) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                tracing::error!(error = chain(&source), "`{}` could not be set aside", from.display());
                return Err(OpenError::Io { path: from, source });
            }
            Ok(()) => moved = true,
        }
    }
    Ok(moved.then(|| beside(&format!(".damaged-{now}"))))
}
