//! What the API says of backups.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::time;
use crate::backup::{Status, Stored, keys::KeySource};

/// A backup in a node's folder.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// Name of its file.
    pub name: String,
    /// Its file on the node.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// When it was made; for a file of unknown origin, when it was last written.
    pub created_at: String,
    /// `good`: the size is the one it was made with; `changed`: it is not; `unknown`: this node did not make it.
    pub condition: String,
    /// What opens it: `recipient` (a key) or `passphrase`; absent when the file is no backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<String>,
    /// Whether the schedule made it; those are rotated.
    pub scheduled: bool,
    /// Whether it was restored and compared right after it was made.
    pub verified: bool,
    /// SHA-256 of the file as it was made, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Index of the last command in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    /// Version of the state's tables in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<i64>,
    /// The toft that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toft_version: Option<String>,
}

/// How a node makes backups, and how that goes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackupStatus {
    /// Folder they are put into.
    pub dir: String,
    /// Seconds between two scheduled ones; absent when there is no schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// Scheduled ones kept.
    pub keep: usize,
    /// What locks them: `recipient`, `key_file` or `passphrase_file`; absent when nothing is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The public key, for `recipient`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The file on the node, for `key_file` and `passphrase_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_path: Option<String>,
    /// When the next scheduled one is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<String>,
    /// When the last scheduled try failed; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl From<Stored> for Backup {
    fn from(stored: Stored) -> Self {
        let record = stored.record.as_ref();
        Self {
            path: stored.path.display().to_string(),
            size_bytes: stored.size_bytes,
            created_at: time(stored.created_at_ms()),
            condition: stored.condition.as_str().into(),
            locked: stored.locked.map(str::to_owned),
            scheduled: record.is_some_and(|record| record.scheduled),
            verified: record.is_some_and(|record| record.verified),
            sha256: record.map(|record| record.sha256.clone()),
            applied_index: record.map(|record| record.applied_index),
            schema_version: record.map(|record| record.schema_version),
            toft_version: record.map(|record| record.toft_version.clone()),
            name: stored.name,
        }
    }
}

impl From<Status> for BackupStatus {
    fn from(status: Status) -> Self {
        let (key, recipient, path) = match status.key {
            None => (None, None, None),
            Some(KeySource::Recipient(text)) => (Some("recipient"), Some(text), None),
            Some(KeySource::KeyFile(path)) => (Some("key_file"), None, Some(path)),
            Some(KeySource::PassphraseFile(path)) => (Some("passphrase_file"), None, Some(path)),
        };
        let (failed_at, failure) = status.failure.map(|(at_ms, why)| (time(at_ms), why)).unzip();
        Self {
            dir: status.dir.display().to_string(),
            every_seconds: status.every.map(|every| every.as_secs()),
            keep: status.keep,
            key: key.map(str::to_owned),
            recipient,
            key_path: path.map(|path| path.display().to_string()),
            next_at: status.next_at_ms.map(time),
            failed_at,
            failure,
        }
    }
}
