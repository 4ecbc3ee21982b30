//! Files that were harmed, or are not ours: what can be made anew is, with every write that was acknowledged, and nothing
//! else is touched.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tempfile::TempDir;
use toft_model::{
    state::{MigrateError, WorkloadRow, applied_index},
    workload::Rollout,
};

use super::State;
use crate::consensus::{
    OpenError,
    compact::Limits,
    log_store::{LogError, LogFile},
    open::prepare,
};

/// A log that is shortened often.
const SHORT: Limits = Limits { entries: 20, bytes: u64::MAX, kept: 2 };
const PAGE: usize = 4096;

type Contents = BTreeMap<PathBuf, Vec<u8>>;

/// Every file below a folder. The index of SQLite's log is made anew whenever it is missing; an empty log says nothing.
fn contents(folder: &Path) -> Contents {
    let mut files = Contents::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else {
                files.insert(entry.strip_prefix(folder).unwrap().to_owned(), fs::read(&entry).unwrap());
            }
        }
    }
    files.retain(|name, bytes| {
        let name = name.to_string_lossy();
        !(name.ends_with("-shm") || name.ends_with("-wal") && bytes.is_empty())
    });
    files
}

/// What a daemon left behind, and what it had acknowledged.
struct Left {
    files: Contents,
    names: Vec<String>,
}

impl Left {
    fn read(folder: &Path, count: usize) -> Self {
        let mut names: Vec<_> = (0..count).map(|i| format!("web-{i}")).collect();
        names.sort();
        Self { files: contents(folder), names }
    }

    /// By a daemon that ended in order.
    async fn closed(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), limits, 50).await.close().await;
        Self::read(folder.path(), 50)
    }

    /// By one that was killed: what it wrote last is only in the logs.
    async fn killed(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), limits, 40).await.close().await;
        let state = State::try_open_with(folder.path(), limits).await.unwrap();
        for i in 40..50 {
            state.put(&format!("web-{i}")).await.unwrap();
        }
        let left = Self::read(folder.path(), 50);
        assert!(left.files[Path::new("state.sqlite-wal")].len() > PAGE);
        state.close().await;
        left
    }

    fn put(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &self.files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn file(&self, name: &str) -> &[u8] {
        &self.files[Path::new(name)]
    }

    /// Harms the files and starts on them: everything acknowledged is there, more can be written, and what was harmed is
    /// kept if it was of no use. Says whether it was.
    async fn survives(&self, what: &str, harm: impl FnOnce(&Path)) -> bool {
        let folder = self.put();
        harm(folder.path());
        let harmed = contents(folder.path());
        let state = State::try_open(folder.path()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(state.names().await, self.names, "{what}");
        state.put("zzz").await.unwrap_or_else(|e| panic!("{what}: {e}"));
        state.close().await;
        let again = State::open(folder.path()).await;
        assert_eq!(again.names().await.len(), self.names.len() + 1, "{what}");
        again.close().await;
        let after = contents(folder.path());
        let kept = after.iter().find(|(name, _)| {
            let name = name.to_string_lossy();
            name.starts_with("state.sqlite.damaged-") && !name.ends_with("-wal")
        });
        let Some((name, bytes)) = kept else { return false };
        assert!(Some(bytes) == harmed.get(Path::new("state.sqlite")), "{what}: the harmed file is not kept");
        let log = harmed.get(Path::new("state.sqlite-wal"));
        assert!(after.get(Path::new(&format!("{}-wal", name.display()))) == log, "{what}: its log is not kept");
        true
    }

    /// Harms the files and starts on them, which must be refused with every byte kept.
    async fn refused(&self, what: &str, harm: impl FnOnce(&Path)) -> OpenError {
        let folder = self.put();
        harm(folder.path());
        let before = contents(folder.path());
        for _ in 0..2 {
            let Err(error) = State::try_open(folder.path()).await else { panic!("{what}: it was opened") };
            let after = contents(folder.path());
            let changed: Vec<_> = after.iter().filter(|(name, bytes)| before.get(*name) != Some(*bytes)).collect();
            let changed: Vec<_> = changed.into_iter().map(|(name, _)| name).collect();
            assert!(before == after, "{what}: `{error}` changed {changed:?}");
            assert!(!error.hint().is_empty());
        }
        State::try_open(folder.path()).await.err().unwrap()
    }
}

/// Writes `count` workloads one after the other and waits until the log was shortened, if it is to be.
async fn fill(folder: &Path, limits: Limits, count: usize) -> State {
    let state = State::try_open_with(folder, limits).await.unwrap();
    for i in 0..count {
        state.put(&format!("web-{i}")).await.unwrap();
    }
    if limits.entries < count as u64 {
        let deadline = Instant::now() + Duration::from_secs(20);
        while fs::read_dir(folder.join("snapshots")).unwrap().filter(is_snapshot).count() < 2 {
            assert!(Instant::now() < deadline, "no second snapshot was made");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    state
}

fn is_snapshot(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "sqlite")
}

/// Oldest first.
fn snapshots(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("snapshots")).unwrap().filter(is_snapshot);
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn overwrite(path: &Path, at: usize, length: usize) {
    let mut bytes = fs::read(path).unwrap();
    let end = (at + length).min(bytes.len());
    bytes[at..end].fill(0xa5);
    fs::write(path, bytes).unwrap();
}

/// Overwrites every page in turn, and cuts at many places; says how often the state had to be made anew.
async fn every_harm(left: &Left) -> usize {
    let length = left.file("state.sqlite").len();
    let mut mended = 0;
    for page in 0..length / PAGE {
        let harm = |folder: &Path| overwrite(&folder.join("state.sqlite"), page * PAGE, PAGE);
        mended += usize::from(left.survives(&format!("page {page} of {}", length / PAGE), harm).await);
    }
    for cut in [0, 1, 99, 100, 1000, PAGE, PAGE + 1, length / 2, length - PAGE, length - 1] {
        let harm = |folder: &Path| {
            let file = fs::OpenOptions::new().write(true).open(folder.join("state.sqlite")).unwrap();
            file.set_len(cut as u64).unwrap();
        };
        mended += usize::from(left.survives(&format!("cut at {cut}"), harm).await);
    }
    for text in ["x", "my shopping list\n", "SQLite format 4\0"] {
        let harm = |folder: &Path| fs::write(folder.join("state.sqlite"), text.repeat(500)).unwrap();
        mended += usize::from(left.survives(text, harm).await);
    }
    mended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_harmed_state_is_made_anew_from_the_whole_log() {
    let left = Left::closed(Limits::default()).await;
    let mended = every_harm(&left).await;
    let pages = left.file("state.sqlite").len() / PAGE;
    assert!(mended > pages, "only {mended} harms were found with {pages} pages");
    left.survives("it is gone", |folder| fs::remove_file(folder.join("state.sqlite")).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_harmed_state_of_a_daemon_that_was_killed_is_made_anew_from_the_whole_log() {
    let left = Left::killed(Limits::default()).await;
    assert!(every_harm(&left).await > 5);
    let log = left.file("state.sqlite-wal").len();
    for cut in [0, 1, 31, 32, 33, log / 3, log / 2, log - 1] {
        let harm = |folder: &Path| {
            let file = fs::OpenOptions::new().write(true).open(folder.join("state.sqlite-wal")).unwrap();
            file.set_len(cut as u64).unwrap();
        };
        left.survives(&format!("SQLite's log cut at {cut}"), harm).await;
    }
    for at in (0..log).step_by(PAGE) {
        let harm = |folder: &Path| overwrite(&folder.join("state.sqlite-wal"), at, PAGE);
        left.survives(&format!("SQLite's log overwritten at {at}"), harm).await;
    }
    // SQLite would delete the log of a database that is not there.
    let folder = left.put();
    fs::remove_file(folder.path().join("state.sqlite")).unwrap();
    let state = State::open(folder.path()).await;
    assert_eq!(state.names().await, left.names);
    state.close().await;
    let kept = contents(folder.path());
    let mut kept = kept.iter().filter(|(name, _)| name.to_string_lossy().contains(".damaged-"));
    assert_eq!(kept.next().map(|(_, bytes)| bytes.as_slice()), Some(left.file("state.sqlite-wal")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_harmed_state_is_made_anew_from_a_snapshot_and_the_log_after_it() {
    let left = Left::closed(SHORT).await;
    assert!(every_harm(&left).await > left.file("state.sqlite").len() / PAGE);
    left.survives("it is gone", |folder| fs::remove_file(folder.join("state.sqlite")).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_damaged_is_passed_over_for_the_one_before() {
    // The log still goes on from the older of the two.
    let left = Left::closed(Limits { kept: 30, ..SHORT }).await;
    let harm = |folder: &Path| {
        overwrite(&folder.join("state.sqlite"), 0, 3 * PAGE);
        overwrite(snapshots(folder).last().unwrap(), PAGE, 2 * PAGE);
    };
    assert!(left.survives("state and newest snapshot", harm).await);
    for cut in [0, 100, PAGE, 3 * PAGE] {
        let harm = |folder: &Path| {
            overwrite(&folder.join("state.sqlite"), 0, 3 * PAGE);
            let newest = snapshots(folder).pop().unwrap();
            fs::OpenOptions::new().write(true).open(newest).unwrap().set_len(cut as u64).unwrap();
        };
        assert!(left.survives(&format!("newest snapshot cut at {cut}"), harm).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_nothing_is_left_to_make_anew_from_is_refused() {
    let left = Left::closed(SHORT).await;
    let without = |folder: &Path| snapshots(folder).iter().for_each(|path| fs::remove_file(path).unwrap());
    let damaged = |folder: &Path| snapshots(folder).iter().for_each(|path| overwrite(path, 0, 3 * PAGE));
    type Harm<'a> = &'a dyn Fn(&Path);
    for (what, harm) in [("no snapshot", &without as Harm), ("damaged snapshots", &damaged)] {
        let error = left.refused(what, |folder| {
            harm(folder);
            overwrite(&folder.join("state.sqlite"), PAGE, PAGE);
        });
        let error = error.await;
        assert!(matches!(error, OpenError::Unmendable { .. }), "{error:?}");
        let error = left.refused(what, |folder| {
            harm(folder);
            fs::remove_file(folder.join("state.sqlite")).unwrap();
        });
        let error = error.await;
        assert!(matches!(error, OpenError::Unmendable { .. }), "{error:?}");
        assert!(error.hint().contains("recover"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_state_is_caught_up_from_the_log() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), Limits::default(), 20).await.close().await;
    let older = fs::read(folder.path().join("state.sqlite")).unwrap();
    fill_more(folder.path(), Limits::default()).await;
    fs::write(folder.path().join("state.sqlite"), &older).unwrap();
    let state = State::open(folder.path()).await;
    assert_eq!(state.names().await.len(), 50);
    state.close().await;

    // The log does not go back that far any more, but a snapshot does.
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), Limits::default(), 20).await.close().await;
    let older = fs::read(folder.path().join("state.sqlite")).unwrap();
    fill_more(folder.path(), SHORT).await;
    fs::write(folder.path().join("state.sqlite"), &older).unwrap();
    let state = State::open(folder.path()).await;
    assert_eq!(state.names().await.len(), 50);
    state.close().await;
    let kept = contents(folder.path());
    assert!(kept.iter().any(|(name, bytes)| name.to_string_lossy().contains(".damaged-") && *bytes == older));
}

async fn fill_more(folder: &Path, limits: Limits) {
    let state = State::try_open_with(folder, limits).await.unwrap();
    for i in 20..50 {
        state.put(&format!("web-{i}")).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while limits.entries < 100 && snapshots(folder).is_empty() {
        assert!(Instant::now() < deadline, "no snapshot was made");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    state.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_or_foreign_state_is_refused() {
    for left in [Left::closed(Limits::default()).await, Left::killed(Limits::default()).await] {
        let newer = |folder: &Path| {
            let connection = Connection::open(folder.join("state.sqlite")).unwrap();
            connection.pragma_update(None, "user_version", 99).unwrap();
        };
        let error = left.refused("newer", newer).await;
        let version = matches!(error, OpenError::Version { source: MigrateError::Newer { found: 99 }, .. });
        assert!(version && error.hint().contains("newer toft"), "{error:?}");
        for journal in ["delete", "wal"] {
            let foreign = |folder: &Path| {
                for name in ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"] {
                    drop(fs::remove_file(folder.join(name)));
                }
                let connection = Connection::open(folder.join("state.sqlite")).unwrap();
                connection.pragma_update(None, "journal_mode", journal).unwrap();
                connection.execute_batch("CREATE TABLE photos (id INTEGER); INSERT INTO photos VALUES (1)").unwrap();
            };
            let error = left.refused("foreign", foreign).await;
            assert!(matches!(error, OpenError::Version { source: MigrateError::Foreign { .. }, .. }), "{error:?}");
        }
        let folder = |folder: &Path| {
            fs::remove_file(folder.join("state.sqlite")).unwrap();
            fs::create_dir(folder.join("state.sqlite")).unwrap();
        };
        let error = left.refused("a folder", folder).await;
        assert!(matches!(error, OpenError::Sqlite { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_state_of_different_clusters_are_refused() {
    let (one, other) = (Left::closed(Limits::default()).await, Left::closed(Limits::default()).await);
    let mix = |folder: &Path| fs::write(folder.join("state.sqlite"), other.file("state.sqlite")).unwrap();
    let error = one.refused("strangers", mix).await;
    assert!(matches!(error, OpenError::Strangers { .. }), "{error:?}");
    let error = one.refused("no log", |folder| fs::remove_file(folder.join("raft.redb")).unwrap()).await;
    assert!(matches!(error, OpenError::LogMissing { .. }), "{error:?}");
}

/// Bounds and vote of a log.
fn sum_of(path: &Path) -> Result<String, LogError> {
    let log = LogFile::open(path)?;
    Ok(format!("{:?} {:?} {:?}", log.state()?, log.vote()?, log.identity()?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_harmed_log_is_refused_or_whole() {
    for (left, kind) in [(Left::closed(SHORT).await, "closed"), (Left::killed(SHORT).await, "killed")] {
        let good = left.file("raft.redb");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raft.redb");
        fs::write(&path, good).unwrap();
        let whole = sum_of(&path).unwrap();
        let mut refused = 0;
        let mut shorter = Vec::new();
        let mut check = |what: String, harmed: Vec<u8>| {
            fs::write(&path, &harmed).unwrap();
            let sum = sum_of(&path);
            assert!(fs::read(&path).unwrap() == harmed, "{kind}: {what}: looking at it changed the file");
            match sum {
                Ok(sum) if sum == whole => {}
                Ok(_) => shorter.push((what, harmed)),
                Err(_) => refused += 1,
            }
        };
        for page in 0..good.len() / PAGE {
            for fill in [0x00, 0xa5] {
                let mut harmed = good.to_vec();
                harmed[page * PAGE..(page + 1) * PAGE].fill(fill);
                if harmed != good {
                    check(format!("page {page} is {fill:#x}"), harmed);
                }
            }
        }
        // The head tells where everything is.
        for byte in 0..320 {
            let mut harmed = good.to_vec();
            harmed[byte] ^= 0x55;
            check(format!("byte {byte} is flipped"), harmed);
        }
        for cut in (0..good.len()).step_by(good.len() / 40).chain([1, 8, 9, 319, 320, PAGE, good.len() - 1]) {
            check(format!("it is cut at {cut}"), good[..cut].to_vec());
        }
        check("it is text".into(), "my shopping list\n".repeat(500).into_bytes());
        assert!(refused > 60, "{kind}: only {refused} harms were found");
        // After a crash redb takes damage in what it wrote last for a write that was torn. The state has that write.
        assert!(kind == "killed" || shorter.is_empty(), "{kind}: {}", shorter[0].0);
        for (what, harmed) in shorter {
            left.survives(&what, |folder| fs::write(folder.join("raft.redb"), harmed).unwrap()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_refused_stops_the_start_and_stays() {
    let left = Left::killed(Limits::default()).await;
    let length = left.file("raft.redb").len();
    for cut in [0, 5, 1000, length / 3] {
        let harm = |folder: &Path| {
            let file = fs::OpenOptions::new().write(true).open(folder.join("raft.redb")).unwrap();
            file.set_len(cut as u64).unwrap();
        };
        let error = left.refused(&format!("cut at {cut}"), harm).await;
        assert!(matches!(error, OpenError::Log { .. }), "{error:?}");
        assert!(error.hint().contains("recover"));
    }
    let newer = |folder: &Path| {
        const ABOUT: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("about");
        let database = redb::Database::open(folder.join("raft.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(ABOUT).unwrap().insert("format", b"2".as_slice()).unwrap();
        transaction.commit().unwrap();
    };
    let error = left.refused("newer", newer).await;
    assert!(matches!(error, OpenError::Log { source: LogError::Newer { found: 2 }, .. }), "{error:?}");
    assert!(error.hint().contains("newer toft"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_from_before_the_log_is_copied_and_founded_with_its_rows() {
    const START: &str = include_str!("../../../crates/model/src/state/migrations/0001_start.sql");
    const COLUMNS: &str = "id, name, generation, spec, desired, epoch, pending, created_at_ms, updated_at_ms";
    // Rows as that version wrote them.
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), Limits::default(), 3).await.close().await;
    let path = folder.path().join("state.sqlite");
    let mut rows = WorkloadRow::all(&prepare(&path).unwrap()).unwrap();
    // It knew no rollouts.
    rows.iter_mut().for_each(|row| row.rollout = Rollout::Done);
    let old = tempfile::tempdir().unwrap();
    let old_path = old.path().join("state.sqlite");
    let connection = Connection::open(&old_path).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.execute_batch(START).unwrap();
    connection.pragma_update(None, "application_id", 0x746f_6674).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    connection.execute("ATTACH ?1 AS newer", [path.to_str().unwrap()]).unwrap();
    connection
        .execute_batch(&format!("INSERT INTO main.workloads SELECT {COLUMNS} FROM newer.workloads; DETACH newer"))
        .unwrap();
    connection.execute("UPDATE cluster SET applied_index = 77", []).unwrap();
    drop(connection);

    for round in 0..2 {
        let state = State::open(old.path()).await;
        assert_eq!(state.handle.read(WorkloadRow::all).await.unwrap(), rows, "round {round}");
        assert!(state.handle.read(applied_index).await.unwrap() >= 77);
        state.close().await;
    }
    let kept = Connection::open(old.path().join("state.sqlite.v1")).unwrap();
    assert_eq!(kept.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    assert_eq!(kept.query_row("SELECT COUNT(*) FROM workloads", [], |row| row.get::<_, i64>(0)).unwrap(), 3);
    drop(kept);

    // The rows from before are in no log, but in the first snapshot.
    overwrite(&old_path, PAGE, 2 * PAGE);
    let state = State::open(old.path()).await;
    assert_eq!(state.handle.read(WorkloadRow::all).await.unwrap(), rows);
    state.put("zzz").await.unwrap();
    state.close().await;
}
