//! Operations on the backups of this node.

use std::fs::File;

use super::Ops;
use crate::{
    backup::{Backups, Status, Stored, Streamed, keys::Lock},
    control::{ControlError, ErrorKind},
};

/// What shall lock a backup, when not what is configured.
pub enum LockWith {
    /// A public key.
    Recipient(String),
    /// A passphrase.
    Passphrase(String),
}

impl Ops {
    fn node_backups(&self) -> Result<&Backups, ControlError> {
        self.backups.as_ref().ok_or_else(|| ControlError::new(ErrorKind::Unavailable, "this node makes no backups"))
    }

    /// Every backup in the folder, oldest first.
    pub async fn backups(&self) -> Result<Vec<Stored>, ControlError> {
        Ok(self.node_backups()?.list().await?)
    }

    /// Makes one in the folder, locked as configured.
    pub async fn create_backup(&self) -> Result<Stored, ControlError> {
        Ok(self.node_backups()?.create().await?)
    }

    /// Makes one that is not kept, locked as configured or with `lock`.
    pub async fn stream_backup(&self, lock: Option<LockWith>) -> Result<Streamed, ControlError> {
        let lock = lock.map(|lock| match lock {
            LockWith::Recipient(text) => Lock::recipient(&text).map_err(|e| ControlError::from(e).field("recipient")),
            LockWith::Passphrase(text) => {
                Lock::passphrase(text.into()).map_err(|e| ControlError::from(e).field("passphrase"))
            }
        });
        Ok(self.node_backups()?.stream(lock.transpose()?).await?)
    }

    /// Opens one of the folder; gives its size in bytes too.
    pub async fn open_backup(&self, name: String) -> Result<(File, u64), ControlError> {
        Ok(self.node_backups()?.open(name).await?)
    }

    /// How backups are made, and how that goes.
    pub fn backup_status(&self) -> Result<Status, ControlError> {
        Ok(self.node_backups()?.status())
    }
}
