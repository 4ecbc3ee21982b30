//! The first file of a backup: what it is and what else is inside.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};

/// The format this program writes, and the newest it reads.
pub const FORMAT: i64 = 1;
/// Name of the manifest in the archive.
pub(super) const MANIFEST: &str = "manifest.json";
/// Name of the state in the archive and in a data directory.
pub(super) const STATE: &str = "state.sqlite";
/// Name of the node's identity, likewise.
pub(super) const NODE: &str = "node.json";
/// Name of the first password, likewise.
pub(super) const PASSWORD: &str = "admin-password";
/// Folder of the cluster's keys, likewise.
pub(super) const CLUSTER: &str = "cluster";

/// Most bytes of a manifest.
pub(super) const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Most bytes of a state.
const MAX_STATE_BYTES: u64 = 16 << 30;
/// Most bytes of any other file.
pub(super) const MAX_SMALL_BYTES: u64 = 1 << 20;
/// Most files.
pub(super) const MAX_FILES: usize = 1_000;
/// Longest path, which a plain tar header holds.
const MAX_PATH_BYTES: usize = 100;
/// Deepest path.
const MAX_DEPTH: usize = 4;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format; [`FORMAT`].
    pub format: i64,
    /// The toft that made it.
    pub toft_version: String,
    /// Version of the state's tables.
    pub schema_version: i64,
    /// The cluster, when it has an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The node it was made on.
    pub node_id: String,
    /// The node's name.
    pub node_name: String,
    /// Index of the last command in the state.
    pub applied_index: u64,
    /// When, in RFC 3339.
    pub created_at: String,
    /// The other files, in the order of the archive.
    pub files: Vec<FileEntry>,
    /// Rows of each table of the state.
    pub tables: BTreeMap<String, u64>,
    /// SHA-256 over what the tables of the state hold, in hex.
    pub content_sha256: String,
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path in the archive and under the data directory.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

impl Manifest {
    /// Bytes of all its files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).fold(0, u64::saturating_add)
    }

    /// Whether a backup may hold this, in one sentence if not. Only then may its files be written anywhere.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.files.len() > MAX_FILES {
            return Err(format!("it lists {} files", self.files.len()));
        }
        let mut seen = HashSet::new();
        for file in &self.files {
            check_path(&file.path)?;
            if !seen.insert(&file.path) {
                return Err(format!("it lists `{}` twice", file.path));
            }
            let most = if file.path == STATE { MAX_STATE_BYTES } else { MAX_SMALL_BYTES };
            if file.size_bytes > most {
                return Err(format!("`{}` is larger than {most} bytes", file.path));
            }
        }
        match [STATE, NODE].iter().find(|needed| !seen.contains(&(**needed).to_owned())) {
            Some(needed) => Err(format!("it has no `{needed}`")),
            None => Ok(()),
        }
    }
}

/// Refuses every path but those that a backup has: nothing that leaves the data directory, nothing that toft does not
/// know how to put back.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    let shown: String = path.chars().take(MAX_PATH_BYTES).collect();
    let refused = Err(format!("it has a file `{}`", shown.escape_default()));
    if [STATE, NODE, PASSWORD].contains(&path) {
        return Ok(());
    }
    let inside = path.strip_prefix(CLUSTER).and_then(|rest| rest.strip_prefix('/'));
    let Some(inside) = inside.filter(|_| path.len() <= MAX_PATH_BYTES) else { return refused };
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    let normal = Path::new(inside).components().all(|part| matches!(part, Component::Normal(_)));
    if normal && inside.split('/').all(plain) && inside.split('/').count() < MAX_DEPTH { Ok(()) } else { refused }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_paths_are_allowed() {
        for good in ["state.sqlite", "node.json", "admin-password", "cluster/ca.pem", "cluster/keys/a.b"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        let long = format!("cluster/{}", "x".repeat(100));
        let hostile = [
            "",
            "/etc/passwd",
            "../node.json",
            "./node.json",
            "cluster",
            "cluster/",
            "cluster/../node.json",
            "cluster/./a",
            "cluster//a",
            "cluster/a/../../../etc/passwd",
            "cluster/a/b/c/d",
            "cluster/a\0b",
            "cluster/..\\a",
            "state.sqlite-wal",
            "toft.toml",
            "STATE.SQLITE",
            "manifest.json",
            &long,
        ];
        for bad in hostile {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
