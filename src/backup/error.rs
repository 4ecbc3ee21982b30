//! What can go wrong with backups, each with the next step.

use std::{
    io,
    path::{Path, PathBuf},
};

use toft_model::state::SCHEMA_VERSION;

use super::manifest::FORMAT;
use crate::consensus::{CopyError, OpenError};

/// Why a backup was not made, read or put back. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The state in it cannot begin a cluster.
    #[error("the state in `{path}` cannot be used")]
    Detach {
        /// File.
        path: PathBuf,
        /// Cause.
        source: OpenError,
    },
    /// The file cannot be read.
    #[error("`{path}` cannot be read")]
    Unreadable {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It does not begin as an age file does, or holds no manifest.
    #[error("`{path}` is no backup: {detail}")]
    NotABackup {
        /// File.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Bytes are missing or are not the ones that were written.
    #[error("`{path}` is damaged: {detail}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// It is intact, but what it holds is not what its manifest says.
    #[error("`{path}` does not hold what it says: {}", .differences.join("; "))]
    Differs {
        /// File.
        path: PathBuf,
        /// One a difference.
        differences: Vec<String>,
    },
    /// The passphrase or key does not open it.
    #[error("`{path}` cannot be opened with this {key}")]
    WrongKey {
        /// File.
        path: PathBuf,
        /// `passphrase` or `key file`.
        key: &'static str,
    },
    /// It is locked in another way.
    #[error("`{path}` is locked with a {needed}")]
    OtherKey {
        /// File.
        path: PathBuf,
        /// `passphrase` or `key file`.
        needed: &'static str,
    },
    /// A newer toft made it.
    #[error("`{path}` was made by toft {toft_version} with {what} {found}; this toft knows up to {known}")]
    Newer {
        /// File.
        path: PathBuf,
        /// `backup format` or `schema version`.
        what: &'static str,
        /// What it has.
        found: i64,
        /// What is known here.
        known: i64,
        /// The toft that made it.
        toft_version: String,
    },
    /// A key or passphrase file cannot be used.
    #[error("{what} `{path}` cannot be used: {detail}")]
    KeyFile {
        /// `key file` or `passphrase file`.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// A recipient or passphrase given directly cannot be used.
    #[error("{0}")]
    Key(String),
    /// The configuration names nothing to lock backups with.
    #[error("no key for backups is configured")]
    NoKey,
    /// The folder of the backups cannot be used.
    #[error("the folder of the backups `{path}` cannot be used")]
    Folder {
        /// Folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// There is no backup of that name.
    #[error("there is no backup `{0}`")]
    NotFound(String),
    /// Another backup is being made.
    #[error("another backup is being made")]
    Busy,
    /// A disk is full.
    #[error("no space is left for `{path}`")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// Something cannot be written.
    #[error("`{path}` cannot be written")]
    Write {
        /// What was being written.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The running state could not be copied.
    #[error("the state could not be copied")]
    Copy(#[source] CopyError),
    /// The data directory holds what a backup cannot.
    #[error("the data directory does not fit into a backup: {0}")]
    Unfit(String),
    /// The running state is not worth keeping.
    #[error("the state is damaged: {0}")]
    StateDamaged(String),
    /// A database cannot be looked at.
    #[error("the database `{path}` cannot be read")]
    Database {
        /// File.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
}

impl BackupError {
    /// The next step for the person who reads the error.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "`toft backup ls` shows the backups of a running appliance".into()
            }
            Self::Detach { source, .. } => source.hint(),
            Self::Unreadable { .. } => "check that this user may read it, and that its disk is well".into(),
            Self::NotABackup { .. } => "name a file that `toft backup create` made; they end in `.tar.gz.age`".into(),
            Self::Damaged { .. } => {
                "copy it again from where it came, or use another backup; `toft backup verify FILE` tells which are whole"
                    .into()
            }
            Self::Differs { .. } => "use another backup; `toft backup verify FILE` tells which are whole".into(),
            Self::WrongKey { key: "passphrase", .. } => {
                "try another passphrase; if this was the right one, the beginning of the file is damaged".into()
            }
            Self::WrongKey { .. } => {
                "name the key file whose public key the backup was made for; if this is the one, the beginning of the file is damaged".into()
            }
            Self::OtherKey { needed: "passphrase", .. } => {
                "give it with --passphrase-file FILE, or on a terminal when asked".into()
            }
            Self::OtherKey { .. } => "name the file that `toft backup keygen` wrote with --key-file FILE".into(),
            Self::Newer { what, found, toft_version, .. } => {
                let newest = if *what == "backup format" { FORMAT } else { SCHEMA_VERSION };
                format!("install toft {toft_version} or newer here; version {found} of its files came after {newest}")
            }
            Self::KeyFile { what: "key file", .. } => {
                "`toft backup keygen` makes a key file; it holds one line that begins with AGE-SECRET-KEY-1".into()
            }
            Self::KeyFile { .. } => format!(
                "write the passphrase, at least {} characters, as the first line of the file",
                super::keys::SHORTEST_PASSPHRASE
            ),
            Self::Key(_) => "`toft backup keygen` makes a key and prints its public key, which begins with age1".into(),
            Self::NoKey => {
                "set `recipient`, `key_file` or `passphrase_file` under [backup] in toft.toml and restart toft; or give one to `toft backup create --output FILE`".into()
            }
            Self::Folder { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "make the folder or mount its disk; toft does not make it, for the disk may just be away".into()
            }
            Self::Folder { .. } => "check `dir` under [backup] in toft.toml".into(),
            Self::NotFound(_) => "`toft backup ls` shows the backups there are".into(),
            Self::Busy => "wait until it is done and try again".into(),
            Self::DiskFull { .. } | Self::Copy(CopyError::DiskFull { .. }) => "free some space and try again".into(),
            Self::StateDamaged(_) => "the backups made before are kept; restore the newest one".into(),
            Self::Write { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "try again with sudo".into(),
            Self::Write { .. } | Self::Copy(_) | Self::Unfit(_) | Self::Database { .. } => return None,
        };
        Some(hint)
    }

    /// What writing `path` failed with.
    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Write { path, source },
        }
    }
}
