//! Proves a backup by restoring it into a folder that is thrown away.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use serde::Deserialize;
use toft_model::state::{migrate, query_snapshot};
use uuid::Uuid;

use super::{
    BackupError, Manifest,
    digest::examine,
    keys::Key,
    manifest::{NODE, STATE},
    unpack,
};

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// What is not so; nothing in a good backup.
    pub differences: Vec<String>,
}

/// Restores the backup `path` into a new folder under `parent`, compares everything with the manifest, and removes the
/// folder. `progress` is told the bytes read and all bytes.
pub fn verify(
    path: &Path,
    key: &Key,
    parent: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, BackupError> {
    let scratch = Scratch::new(parent.join(format!("toft-verify-{}", Uuid::new_v4().simple())))?;
    let unpacked = unpack::unpack(path, key, scratch.path(), progress)?;
    let mut differences = unpacked.differences;
    differences.extend(check(scratch.path(), &unpacked.manifest)?);
    if differences.is_empty() {
        differences.extend(try_out(&scratch.path().join(STATE)));
    }
    Ok(Verified { manifest: unpacked.manifest, differences })
}

/// Compares what was unpacked into `folder` with what the manifest says of it.
pub(super) fn check(folder: &Path, manifest: &Manifest) -> Result<Vec<String>, BackupError> {
    let mut differences = Vec::new();
    let state = folder.join(STATE);
    if state.exists() {
        match examine(&state)? {
            Err(why) => differences.push(format!("the database `{STATE}` is damaged: {why}")),
            Ok(facts) => {
                let mut compare = |what: &str, found: String, listed: String| {
                    if found != listed {
                        differences.push(format!("{what} is {found}, the manifest says {listed}"));
                    }
                };
                let id = |id: &Option<String>| id.clone().unwrap_or_else(|| "none".into());
                compare("the schema version", facts.schema_version.to_string(), manifest.schema_version.to_string());
                compare("the applied index", facts.applied_index.to_string(), manifest.applied_index.to_string());
                compare("the cluster id", id(&facts.cluster_id), id(&manifest.cluster_id));
                let tables =
                    facts.tables.keys().chain(manifest.tables.keys().filter(|t| !facts.tables.contains_key(*t)));
                for table in tables {
                    let rows = |tables: &std::collections::BTreeMap<String, u64>| {
                        tables.get(table).map_or_else(|| "absent".to_owned(), u64::to_string)
                    };
                    compare(&format!("the row count of `{table}`"), rows(&facts.tables), rows(&manifest.tables));
                }
                compare("the digest of the state's content", facts.content_sha256, manifest.content_sha256.clone());
            }
        }
    }
    match node_id(&folder.join(NODE)) {
        Some(found) if found != manifest.node_id => {
            differences.push(format!("`{NODE}` is of node {found}, the manifest says {}", manifest.node_id));
        }
        None if folder.join(NODE).exists() => differences.push(format!("`{NODE}` names no node")),
        Some(_) | None => {}
    }
    Ok(differences)
}

/// The node that a `node.json` names.
pub(super) fn node_id(path: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        node_id: String,
    }
    let text = fs::read(path).ok()?;
    serde_json::from_slice::<Named>(&text).ok().map(|named| named.node_id)
}

/// Does to a copy of the state what the next start would do: bring it to this version and read every row.
fn try_out(state: &Path) -> Option<String> {
    let mut connection = match Connection::open(state) {
        Ok(connection) => connection,
        Err(error) => return Some(format!("the state does not open: {error}")),
    };
    if let Err(error) = migrate(&mut connection) {
        return Some(crate::observe::chain(&error));
    }
    query_snapshot(&connection).err().map(|error| format!("a row of the state is not understood: {error}"))
}

/// A folder that only its owner may enter, and that goes when this does.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it anew; what an earlier try left there goes.
    pub(super) fn new(path: PathBuf) -> Result<Self, BackupError> {
        remove(&path).map_err(|source| BackupError::write(&path, source))?;
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| BackupError::write(&path, source))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Lets the folder stay.
    pub(super) fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty()
            && let Err(error) = remove(&self.0)
        {
            tracing::warn!(%error, "`{}` could not be removed", self.0.display());
        }
    }
}

/// Removes a folder with all that is in it, if it is there.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
