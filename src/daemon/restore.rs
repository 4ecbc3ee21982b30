//! Restores a backup into a data directory that no daemon uses.

use std::path::{Path, PathBuf};

use super::{Hinted, directories::Directories};
use crate::{
    backup::{
        BackupError, Manifest,
        keys::Key,
        restore::{self, Present},
    },
    config::Config,
};

/// What shall be restored.
pub struct Restore<'a> {
    /// The backup.
    pub file: &'a Path,
    /// What opens it.
    pub key: &'a Key,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// The data directory.
    pub data: PathBuf,
    /// Folder that holds what was there before.
    pub replaced: Option<PathBuf>,
}

/// Checks the backup whole, then asks `agree` when the data directory holds a state, then puts it in place. Gives `None`,
/// with nothing changed, when `agree` said no. `progress` is told the bytes read and all bytes.
pub fn restore(
    config: &Config,
    order: &Restore<'_>,
    progress: &mut dyn FnMut(u64, u64),
    agree: &mut dyn FnMut(&Manifest, &Present) -> bool,
) -> anyhow::Result<Option<Restored>> {
    let directories = Directories::locked(&config.paths)?;
    let data = directories.data();
    restore::finish(data).map_err(backup_failed)?;
    let staged = restore::stage(order.file, order.key, data, progress).map_err(backup_failed)?;
    if let Some(present) = restore::present(data)
        && !agree(&staged.manifest, &present)
    {
        return Ok(None);
    }
    let manifest = staged.manifest.clone();
    let replaced = staged.commit().map_err(backup_failed)?;
    Ok(Some(Restored { manifest, data: data.to_owned(), replaced }))
}

/// The error with its next step.
pub(super) fn backup_failed(error: BackupError) -> anyhow::Error {
    match error.hint() {
        Some(hint) => Hinted::new(error, hint).into(),
        None => error.into(),
    }
}
