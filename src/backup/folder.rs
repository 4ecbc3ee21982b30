//! The folder of the backups, and what this node remembers of those it made.
//!
//! What is remembered lies in the data directory, not in the folder: a disk that is shared or carried around needs no
//! note of ours. Files that are not remembered are listed and otherwise left alone.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{BackupError, archive, make::Made, verify};
use crate::files::write_whole;

/// How the names of backups end.
pub(super) const ENDING: &str = ".tar.gz.age";
/// Name of the file with what is remembered.
const INDEX: &str = "backups.json";

/// What is remembered of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Folder it was put into.
    pub(super) dir: PathBuf,
    /// Name of the file.
    pub(super) name: String,
    /// Size in bytes.
    pub(super) size_bytes: u64,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
    /// When, in RFC 3339.
    pub created_at: String,
    /// Whether the schedule made it; only those are rotated.
    pub scheduled: bool,
    /// Whether it was restored once, right after it was made.
    pub verified: bool,
    /// Index of the last command in it.
    pub applied_index: u64,
    /// Version of the state's tables in it.
    pub schema_version: i64,
    /// The toft that made it.
    pub toft_version: String,
}

/// Whether a backup in the folder is the one that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It has the size it was made with.
    Good,
    /// It has not: something changed it.
    Changed,
    /// Somebody else put it there.
    Unknown,
}

impl Condition {
    /// `good`, `changed` or `unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Changed => "changed",
            Self::Unknown => "unknown",
        }
    }
}

/// A backup in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Name of the file.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was last written, in milliseconds since 1970.
    pub modified_at_ms: i64,
    /// How it is locked: `recipient` or `passphrase`; absent when that cannot be told.
    pub locked: Option<&'static str>,
    /// Whether it is the one that was made.
    pub condition: Condition,
    /// What this node remembers of it.
    pub record: Option<Record>,
}

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    pub(super) dir: PathBuf,
    /// Whether to make it when it is not there.
    pub(super) ours: bool,
    pub(super) data: PathBuf,
}

impl Folder {
    fn failed(&self, source: io::Error) -> BackupError {
        BackupError::Folder { path: self.dir.clone(), source }
    }

    /// Makes sure that the folder is there.
    pub(super) fn prepare(&self) -> Result<(), BackupError> {
        if self.ours {
            use std::os::unix::fs::DirBuilderExt;
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
            made.map_err(|source| self.failed(source))?;
        }
        if fs::metadata(&self.dir).map_err(|source| self.failed(source))?.is_dir() {
            return Ok(());
        }
        Err(self.failed(io::Error::from(io::ErrorKind::NotADirectory)))
    }

    /// A name that is free, for a backup of `node` made at `now`.
    pub(super) fn free_name(&self, node: &str, now: jiff::Timestamp) -> String {
        let first = format!("toft-{node}-{}", now.strftime("%Y%m%dT%H%M%SZ"));
        let names = std::iter::once(first.clone()).chain((2..10_000).map(|number| format!("{first}-{number}")));
        let mut names = names.map(|name| format!("{name}{ENDING}"));
        let free = names.find(|name| self.dir.join(name).symlink_metadata().is_err());
        free.unwrap_or_else(|| format!("{first}{ENDING}"))
    }

    /// Every backup there, oldest first.
    pub(super) fn list(&self) -> Result<Vec<Stored>, BackupError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.ours => return Ok(Vec::new()),
            entries => entries.map_err(|source| self.failed(source))?,
        };
        let mut records = self.records()?;
        records.retain(|record| record.dir == self.dir);
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| self.failed(source))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(meta) = entry.metadata() else { continue };
            if !is_name(&name) || !meta.is_file() {
                continue;
            }
            let record = records.iter().find(|record| record.name == name).cloned();
            let condition = match &record {
                Some(record) if record.size_bytes == meta.len() => Condition::Good,
                Some(_) => Condition::Changed,
                None => Condition::Unknown,
            };
            found.push(Stored {
                locked: archive::locked(&entry.path()).ok().map(archive::Locked::as_str),
                path: entry.path(),
                size_bytes: meta.len(),
                modified_at_ms: meta.mtime().saturating_mul(1_000).saturating_add(meta.mtime_nsec() / 1_000_000),
                condition,
                record,
                name,
            });
        }
        let key = |stored: &Stored| (stored.created_at_ms(), stored.name.clone());
        found.sort_by_key(key);
        Ok(found)
    }

    /// Opens the backup `name` for reading; nothing that is elsewhere, nor what a link leads to.
    pub(super) fn open(&self, name: &str) -> Result<(File, u64), BackupError> {
        let missing = || BackupError::NotFound(name.chars().take(200).collect());
        if !is_name(name) {
            return Err(missing());
        }
        let path = self.dir.join(name);
        let opened =
            OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            opened => opened.map_err(|source| BackupError::Unreadable { path: path.clone(), source })?,
        };
        let meta = file.metadata().map_err(|source| BackupError::Unreadable { path, source })?;
        if meta.is_file() { Ok((file, meta.len())) } else { Err(missing()) }
    }

    /// Gives a finished file its name, remembered before it has it: a crash in between forgets nothing.
    pub(super) fn adopt(
        &self,
        part: &Path,
        name: &str,
        made: &Made,
        scheduled: bool,
        verified: bool,
    ) -> Result<(), BackupError> {
        let manifest = &made.manifest;
        let record = Record {
            dir: self.dir.clone(),
            name: name.to_owned(),
            size_bytes: made.sealed.size_bytes,
            sha256: made.sealed.sha256.clone(),
            created_at: manifest.created_at.clone(),
            scheduled,
            verified,
            applied_index: manifest.applied_index,
            schema_version: manifest.schema_version,
            toft_version: manifest.toft_version.clone(),
        };
        let mut records = self.records()?;
        // What is gone is forgotten; what lies in a folder that is away now is not.
        records.retain(|record| record.dir != self.dir || self.dir.join(&record.name).exists());
        records.push(record);
        self.remember(&records)?;
        let target = self.dir.join(name);
        let named = fs::rename(part, &target).and_then(|()| File::open(&self.dir)?.sync_all());
        named.map_err(|source| BackupError::write(&target, source))
    }

    /// Removes the oldest backups of the schedule, as long as `keep` newer good ones are there. Gives the names removed.
    /// A good one is read whole and compared before it counts, so that the last good one never goes.
    pub(super) fn rotate(&self, keep: usize) -> Result<Vec<String>, BackupError> {
        let mut scheduled = self.list()?;
        scheduled.retain(|stored| stored.record.as_ref().is_some_and(|record| record.scheduled));
        let mut good = 0;
        let mut removed = Vec::new();
        if scheduled.len() <= keep {
            return Ok(removed);
        }
        for stored in scheduled.iter().rev() {
            if good < keep.max(1) {
                match archive::measure(&stored.path) {
                    Ok(found) if Some(&found.sha256) == stored.record.as_ref().map(|record| &record.sha256) => {
                        good += 1
                    }
                    Ok(_) => tracing::warn!("the backup `{}` was changed since it was made", stored.path.display()),
                    Err(error) => tracing::warn!(%error, "the backup `{}` cannot be read", stored.path.display()),
                }
                continue;
            }
            fs::remove_file(&stored.path).map_err(|source| BackupError::write(&stored.path, source))?;
            removed.push(stored.name.clone());
        }
        if !removed.is_empty() {
            let gone: HashSet<&str> = removed.iter().map(String::as_str).collect();
            let mut records = self.records()?;
            records.retain(|record| record.dir != self.dir || !gone.contains(record.name.as_str()));
            self.remember(&records)?;
        }
        Ok(removed)
    }

    /// When the newest backup of the schedule was made that is still there, in milliseconds since 1970.
    pub(super) fn newest_scheduled_ms(&self) -> Result<Option<i64>, BackupError> {
        let scheduled = |stored: &Stored| stored.record.as_ref().is_some_and(|record| record.scheduled);
        Ok(self.list()?.iter().filter(|stored| scheduled(stored)).map(Stored::created_at_ms).max())
    }

    fn records(&self) -> Result<Vec<Record>, BackupError> {
        let path = self.data.join(INDEX);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.map_err(|source| BackupError::Unreadable { path: path.clone(), source })?,
        };
        Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "`{}` is not understood; the backups made before are kept for good", path.display());
            Vec::new()
        }))
    }

    fn remember(&self, records: &[Record]) -> Result<(), BackupError> {
        let path = self.data.join(INDEX);
        let text = serde_json::to_vec_pretty(records).map_err(io::Error::from);
        text.and_then(|text| write_whole(&path, 0o600, &text)).map_err(|source| BackupError::write(&path, source))
    }
}

impl Stored {
    /// When it was made, as far as that is known; else when it was last written. In milliseconds since 1970.
    pub fn created_at_ms(&self) -> i64 {
        let made = self.record.as_ref().and_then(|record| record.created_at.parse::<jiff::Timestamp>().ok());
        made.map_or(self.modified_at_ms, jiff::Timestamp::as_millisecond)
    }
}

fn is_name(name: &str) -> bool {
    name.ends_with(ENDING) && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// Removes what a daemon that was killed left of a backup it was making.
pub(super) fn sweep(leftovers: &[PathBuf]) {
    for path in leftovers {
        let removed = if path.is_dir() { verify::remove(path) } else { fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "`{}` could not be removed", path.display());
            }
            _ => {}
        }
    }
}
