//! Files that must not be touched.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use tempfile::TempDir;
use toft_model::state::{MigrateError, WorkloadRow};

use super::State;
use crate::consensus::{OpenError, open, open::prepare};

/// A folder whose database holds 40 workloads and one that came later; that one is still in the log when the daemon was
/// not `closed` but killed.
async fn lived(closed: bool) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let state = State::open(&path);
    for i in 0..40 {
        state.put(&format!("web-{i}")).await.unwrap();
    }
    state.close().await;
    let state = State::open(&path);
    state.put("zzz").await.unwrap();
    let left = tempfile::tempdir().unwrap();
    if closed {
        state.close().await;
        fs::copy(&path, left.path().join("state.db")).unwrap();
    } else {
        fs::copy(&path, left.path().join("state.db")).unwrap();
        fs::copy(folder.path().join("state.db-wal"), left.path().join("state.db-wal")).unwrap();
        state.close().await;
    }
    let path = left.path().join("state.db");
    (left, path)
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let mut files: BTreeMap<_, _> = fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap())).collect();
    // The index of the log is made anew whenever it is missing; an empty log says nothing.
    files.retain(|name, bytes| !(name.ends_with("-shm") || name.ends_with("-wal") && bytes.is_empty()));
    files
}

/// Opens what must not be opened, and checks that every byte stays.
#[track_caller]
fn refused(path: &Path) -> OpenError {
    let folder = path.parent().unwrap();
    let before = contents(folder);
    let Err(error) = open(path) else { panic!("it was opened") };
    assert!(before == contents(folder), "the refusal changed a file: {error}");
    assert!(!error.hint().is_empty());
    error
}

#[track_caller]
fn damaged(path: &Path) {
    let error = refused(path);
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
}

fn overwrite(path: &Path, at: usize, with: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at..at + with.len()].copy_from_slice(with);
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn overwritten_pages_are_found() {
    let (_folder, path) = lived(true).await;
    let whole = fs::read(&path).unwrap();
    for page in 1..whole.len() / 4096 {
        fs::write(&path, &whole).unwrap();
        overwrite(&path, page * 4096, &[0xa5; 200]);
        damaged(&path);
    }
    for garbage in [[0; 100], [0xff; 100]] {
        fs::write(&path, &whole).unwrap();
        overwrite(&path, 0, &garbage);
        damaged(&path);
    }
    fs::write(&path, &whole).unwrap();
    assert!(open(&path).is_ok());
}

#[tokio::test]
async fn truncated_files_are_found() {
    let (_folder, path) = lived(true).await;
    let whole = fs::read(&path).unwrap();
    for length in [1, 99, 100, 1000, 4096, 5000, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        damaged(&path);
    }
}

#[tokio::test]
async fn a_damaged_file_keeps_the_log_of_the_daemon_that_was_killed() {
    let (folder, path) = lived(false).await;
    let left = contents(folder.path());
    let pages = left["state.db"].len() / 4096;
    let mut refusals = 0;
    for page in 0..pages {
        for (name, bytes) in &left {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        overwrite(&path, page * 4096, &[0xa5; 200]);
        match prepare(&path) {
            // The log holds a newer copy of that page.
            Ok(connection) => assert_eq!(WorkloadRow::all(&connection).unwrap().len(), 41),
            Err(_) => {
                damaged(&path);
                assert_eq!(contents(folder.path())["state.db-wal"], left["state.db-wal"]);
                refusals += 1;
            }
        }
    }
    assert!(refusals > 2);
    for (name, bytes) in &left {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    fs::write(&path, b"").unwrap();
    damaged(&path);
}

#[test]
fn what_is_no_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    for text in ["x".repeat(10_000), "x".into(), "SQLite format 4\0".repeat(300)] {
        fs::write(&path, text).unwrap();
        damaged(&path);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(open(&path).map(|_| ()), Err(OpenError::Sqlite { .. })));
    let nowhere = folder.path().join("no/such/folder/state.db");
    assert!(matches!(open(&nowhere).map(|_| ()), Err(OpenError::Sqlite { .. })));
}

#[test]
fn a_foreign_database_is_left_alone() {
    for journal in ["delete", "wal"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let foreign = Connection::open(&path).unwrap();
        foreign.pragma_update(None, "journal_mode", journal).unwrap();
        foreign.execute_batch("CREATE TABLE photos (id INTEGER); INSERT INTO photos VALUES (1)").unwrap();
        drop(foreign);
        let error = refused(&path);
        assert!(matches!(error, OpenError::Version { source: MigrateError::Foreign { .. }, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_newer_database_is_left_alone() {
    for closed in [true, false] {
        let (folder, path) = lived(closed).await;
        let newer = Connection::open(&path).unwrap();
        newer.pragma_update(None, "user_version", 99).unwrap();
        // As the newer toft would leave it if it was killed.
        let left = tempfile::tempdir().unwrap();
        for (name, bytes) in contents(folder.path()) {
            fs::write(left.path().join(name), bytes).unwrap();
        }
        let error = refused(&left.path().join("state.db"));
        let version = matches!(error, OpenError::Version { source: MigrateError::Newer { found: 99 }, .. });
        assert!(version, "{error:?}");
        assert!(error.hint().contains("newer toft"));
    }
}
