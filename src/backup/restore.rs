//! Puts a backup into a data directory that no daemon uses.
//!
//! A restore is staged, then committed. Staging unpacks and checks everything in a folder of its own inside the data
//! directory, and changes nothing else. Committing writes down what it is about to do, moves what was there aside and the
//! new files in, by renames alone. A crash before that note leaves the old state; after it, [`finish`], which every start
//! and every restore calls first, does the rest. Nothing is ever deleted but what staging made.
//!
//! Who calls this holds the lock of the data directory.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use super::{
    BackupError, Manifest,
    digest::cluster_id,
    keys::Key,
    manifest::{CLUSTER, NODE, PASSWORD, STATE},
    unpack,
    verify::{self, Scratch, node_id},
};
use crate::{consensus, files::write_whole};

/// Folder that a restore is staged in.
const STAGE: &str = "restore-new";
/// The note that a restore was committed.
const NOTE: &str = "restore.json";
/// Beginning of the names of folders with replaced states.
const REPLACED: &str = "replaced-";
/// Everything that makes up the state of a node, in the order it is moved.
const PARTS: [&str; 9] =
    [STATE, "state.sqlite-wal", "state.sqlite-shm", "raft.redb", "snapshots", "ledger.redb", NODE, CLUSTER, PASSWORD];
/// Those of them that a backup may bring.
const BROUGHT: [&str; 4] = [STATE, NODE, CLUSTER, PASSWORD];

/// The state that a data directory holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Present {
    /// The node, as far as it can be told.
    pub node_id: Option<String>,
    /// The cluster, as far as it can be told.
    pub cluster_id: Option<String>,
}

/// What is in the data directory `data`; `None` when it holds no state.
pub fn present(data: &Path) -> Option<Present> {
    if !PARTS.iter().any(|part| data.join(part).symlink_metadata().is_ok()) {
        return None;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let state = data.join(STATE);
    let cluster = Connection::open_with_flags(&state, flags).and_then(|connection| cluster_id(&connection));
    Some(Present { node_id: node_id(&data.join(NODE)), cluster_id: cluster.ok().flatten() })
}

/// A restore that waits for its commit; dropping it changes nothing.
pub struct Staged {
    /// What the backup says of itself.
    pub manifest: Manifest,
    data: PathBuf,
    stage: Scratch,
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("data", &self.data).finish_non_exhaustive()
    }
}

/// Unpacks the backup `path` beside the state in `data` and checks all of it.
pub fn stage(path: &Path, key: &Key, data: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Staged, BackupError> {
    let stage = Scratch::new(data.join(STAGE))?;
    let unpacked = unpack::unpack(path, key, stage.path(), progress)?;
    let mut differences = unpacked.differences;
    differences.extend(verify::check(stage.path(), &unpacked.manifest)?);
    if !differences.is_empty() {
        return Err(BackupError::Differs { path: path.to_owned(), differences });
    }
    // The members of the old cluster may live on elsewhere; this state begins one of its own.
    consensus::detach(&stage.path().join(STATE))
        .map_err(|source| BackupError::Detach { path: path.to_owned(), source })?;
    sync_tree(stage.path()).map_err(|source| BackupError::write(stage.path(), source))?;
    Ok(Staged { manifest: unpacked.manifest, data: data.to_owned(), stage })
}

impl Staged {
    /// Puts it in place. Gives the folder that now holds what was there before, if anything was.
    pub fn commit(self) -> Result<Option<PathBuf>, BackupError> {
        let Self { data, stage, .. } = self;
        let brings = BROUGHT.iter().filter(|part| stage.path().join(part).exists()).map(|part| (*part).to_owned());
        let note = Note { replaced: free_name(&data), brings: brings.collect() };
        let failed = |source| BackupError::write(&data, source);
        write_note(&data, &note).map_err(failed)?;
        stage.keep();
        carry_out(&data, &note, &mut |_| Ok(())).map_err(failed)
    }
}

/// What was committed.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Folder for what was there.
    replaced: String,
    /// What comes from the stage.
    brings: Vec<String>,
}

/// Finishes a committed restore that a crash interrupted, and clears away one that was not committed. Gives whether there
/// was one to finish.
pub fn finish(data: &Path) -> Result<bool, BackupError> {
    let path = data.join(NOTE);
    let unreadable = |source| BackupError::Unreadable { path: path.clone(), source };
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let stage = data.join(STAGE);
            verify::remove(&stage).map_err(|source| BackupError::write(&stage, source))?;
            return Ok(false);
        }
        text => text.map_err(unreadable)?,
    };
    let note: Note = serde_json::from_slice(&text).map_err(|error| unreadable(error.into()))?;
    let plain = note.replaced.starts_with(REPLACED) && !note.replaced.contains('/');
    if !plain || note.brings.iter().any(|part| !BROUGHT.contains(&part.as_str())) {
        return Err(unreadable(io::Error::other("it names files that no restore replaces")));
    }
    carry_out(data, &note, &mut |_| Ok(())).map_err(|source| BackupError::write(data, source))?;
    Ok(true)
}

/// Carries out what was noted, from wherever an earlier try stopped. `before` is called before each move.
fn carry_out(data: &Path, note: &Note, before: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<Option<PathBuf>> {
    let stage = data.join(STAGE);
    let replaced = data.join(&note.replaced);
    match DirBuilder::new().mode(0o700).create(&replaced) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    for part in PARTS {
        // What the stage no longer has is in place already; then the part in the data directory is the new one.
        let old = !note.brings.iter().any(|brought| brought == part) || stage.join(part).exists();
        if old && data.join(part).symlink_metadata().is_ok() {
            before(part)?;
            fs::rename(data.join(part), replaced.join(part))?;
        }
    }
    sync(&replaced)?;
    sync(data)?;
    for part in &note.brings {
        if stage.join(part).exists() {
            before(part)?;
            fs::rename(stage.join(part), data.join(part))?;
        }
    }
    sync(data)?;
    before(STAGE)?;
    verify::remove(&stage)?;
    before(NOTE)?;
    fs::remove_file(data.join(NOTE))?;
    sync(data)?;
    // It stays unless it is empty, which is when nothing was there before.
    let empty = fs::remove_dir(&replaced).is_ok();
    Ok((!empty).then_some(replaced))
}

fn write_note(data: &Path, note: &Note) -> io::Result<()> {
    write_whole(&data.join(NOTE), 0o600, &serde_json::to_vec_pretty(note)?)
}

fn free_name(data: &Path) -> String {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let first = format!("{REPLACED}{now}");
    let names = std::iter::once(first.clone()).chain((2..).map(|number| format!("{first}-{number}")));
    names.into_iter().find(|name| data.join(name).symlink_metadata().is_err()).unwrap_or(first)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An old state, and a committed restore of a new one.
    fn committed() -> (tempfile::TempDir, Note) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let stage = data.join(STAGE);
        fs::create_dir_all(stage.join(CLUSTER)).unwrap();
        fs::create_dir_all(data.join(CLUSTER)).unwrap();
        fs::create_dir_all(data.join("snapshots")).unwrap();
        fs::create_dir_all(data.join("logs")).unwrap();
        for old in [STATE, "state.sqlite-wal", "raft.redb", "ledger.redb", NODE, PASSWORD, "cluster/ca", "snapshots/1"]
        {
            fs::write(data.join(old), "old").unwrap();
        }
        for new in [STATE, NODE, "cluster/ca"] {
            fs::write(stage.join(new), "new").unwrap();
        }
        let brings = [STATE, NODE, CLUSTER].map(str::to_owned).to_vec();
        let note = Note { replaced: free_name(data), brings };
        write_note(data, &note).unwrap();
        (dir, note)
    }

    fn assert_new(data: &Path, note: &Note) {
        for new in [STATE, NODE, "cluster/ca"] {
            assert_eq!(fs::read_to_string(data.join(new)).unwrap(), "new", "{new}");
        }
        for gone in ["state.sqlite-wal", "raft.redb", "ledger.redb", PASSWORD, "snapshots", STAGE, NOTE] {
            assert!(!data.join(gone).exists(), "{gone}");
        }
        let replaced = data.join(&note.replaced);
        for old in [STATE, "state.sqlite-wal", "raft.redb", "ledger.redb", NODE, PASSWORD, "cluster/ca", "snapshots/1"]
        {
            assert_eq!(fs::read_to_string(replaced.join(old)).unwrap(), "old", "{old}");
        }
        assert!(data.join("logs").exists(), "what is no state stays");
    }

    #[test]
    fn a_crash_before_any_move_is_finished_by_the_next_start() {
        let mut stop_at = 0;
        loop {
            let (dir, note) = committed();
            let mut moves = 0;
            let crashed = carry_out(dir.path(), &note, &mut |_| {
                moves += 1;
                if moves > stop_at { Err(io::Error::other("power cut")) } else { Ok(()) }
            });
            if crashed.is_ok() {
                assert_new(dir.path(), &note);
                break;
            }
            assert!(finish(dir.path()).unwrap(), "after {stop_at} moves");
            assert_new(dir.path(), &note);
            assert!(!finish(dir.path()).unwrap(), "once is enough");
            stop_at += 1;
        }
        assert!(stop_at > 10, "{stop_at}");
    }

    #[test]
    fn a_restore_that_was_not_committed_is_cleared_away() {
        let (dir, _) = committed();
        fs::remove_file(dir.path().join(NOTE)).unwrap();
        assert!(!finish(dir.path()).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join(STATE)).unwrap(), "old");
        assert!(!dir.path().join(STAGE).exists());
    }

    #[test]
    fn a_note_that_names_other_files_is_refused() {
        for text in [
            r#"{"replaced":"../x","brings":[]}"#,
            r#"{"replaced":"replaced-/../..","brings":[]}"#,
            r#"{"replaced":"replaced-1","brings":["../etc"]}"#,
            "{}",
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(NOTE), text).unwrap();
            assert!(finish(dir.path()).is_err(), "{text}");
        }
    }
}
