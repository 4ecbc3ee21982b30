//! The log stays short, and what it forgets is in a snapshot.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use openraft::{RaftSnapshotBuilder, storage::RaftStateMachine};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use toft_model::state::{WorkloadRow, applied_index};
use tokio::task::JoinSet;

use super::{State, put, remove};
use crate::consensus::{
    Files,
    compact::Limits,
    log_store::LogFile,
    open::prepare,
    state_machine::{Readers, StateMachine},
};

const SHORT: Limits = Limits { entries: 50, bytes: u64::MAX, kept: 10 };

fn snapshots(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder.join("snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sqlite"))
        .collect();
    found.sort();
    found
}

/// Entries that a log holds.
fn length(folder: &Path) -> u64 {
    let bounds = LogFile::open(&folder.join("raft.redb")).unwrap().state().unwrap();
    bounds.last.or(bounds.purged).unwrap().index - bounds.purged.unwrap().index
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_stays_short_however_much_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::try_open_with(folder.path(), SHORT).await.unwrap();
    let mut largest = 0;
    for round in 0..400 {
        state.put("web").await.unwrap();
        state.handle.propose(remove("web")).await.unwrap();
        if round % 20 == 0 {
            largest = largest.max(fs::metadata(folder.path().join("raft.redb")).unwrap().len());
        }
    }
    let last = state.handle.status().last_index;
    assert!(last >= 800, "{last}");
    state.close().await;
    // One span between two snapshots, what was written while the last one was made, and what is kept.
    let left = length(folder.path());
    assert!(left <= 50 + 50 + 10, "{left} of {last} entries are left");
    assert!(largest < 4 << 20, "the file has {largest} bytes");
    assert!(snapshots(folder.path()).len() <= 2);
    let again = State::try_open_with(folder.path(), SHORT).await.unwrap();
    assert!(again.names().await.is_empty());
    again.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_entries_shorten_the_log_by_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { entries: u64::MAX, bytes: 1 << 20, kept: 2 };
    let state = State::try_open_with(folder.path(), limits).await.unwrap();
    for _ in 0..60 {
        let mut command = put("web");
        if let toft_model::state::Command::PutWorkload { spec, .. } = &mut command {
            spec.command = vec!["x".repeat(100_000)];
        }
        state.handle.propose(command).await.unwrap();
        state.handle.propose(remove("web")).await.unwrap();
    }
    state.close().await;
    let left = length(folder.path());
    assert!(left < 60, "{left} entries are left");
    let bytes = fs::metadata(folder.path().join("raft.redb")).unwrap().len();
    assert!(bytes < 12 << 20, "{bytes} bytes after 6 MB in entries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_made_while_writes_go_on_is_the_state_at_its_position() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::try_open_with(folder.path(), SHORT).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let handle = state.handle.clone();
        writers.spawn(async move {
            for i in 0..150 {
                handle.propose(put(&format!("w{writer}-{i}"))).await.unwrap();
            }
        });
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut compared = std::collections::BTreeSet::new();
    let at = |index: u64, rows: &Path| {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(rows, flags).unwrap();
        assert_eq!(applied_index(&connection).unwrap(), index);
        let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
        WorkloadRow::all(&connection).unwrap().into_iter().map(|row| row.spec.name.to_string()).collect::<Vec<_>>()
    };
    let kept = tempfile::tempdir().unwrap();
    while !writers.is_empty() {
        assert!(Instant::now() < deadline, "the writers do not end");
        let _ = tokio::time::timeout(Duration::from_millis(5), writers.join_next())
            .await
            .map(|done| done.unwrap().unwrap());
        for path in snapshots(folder.path()) {
            let copy = kept.path().join(path.file_name().unwrap());
            if !copy.exists() && fs::hard_link(&path, &copy).is_ok() {
                compared.insert(copy);
            }
        }
    }
    state.close().await;
    assert!(compared.len() >= 2, "{compared:?}");
    // What the whole history says: each writer's workloads come in order.
    for path in compared {
        let index: u64 = path.file_stem().unwrap().to_str().unwrap().split('-').next().unwrap().parse().unwrap();
        let names = at(index, &path);
        for writer in 0..4 {
            let of = names.iter().filter(|name| name.starts_with(&format!("w{writer}-"))).count();
            let whole = (0..of).all(|i| names.contains(&format!("w{writer}-{i}")));
            assert!(whole, "{}: writer {writer} has gaps", path.display());
        }
    }
}

/// A state machine of its own, with `count` workloads.
async fn machine(count: usize) -> (TempDir, StateMachine, tokio::sync::oneshot::Receiver<()>) {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    for i in 0..count {
        state.put(&format!("web-{i:03}")).await.unwrap();
    }
    state.close().await;
    let files = Files::under(folder.path());
    let waits = tokio::sync::watch::Sender::new(false);
    let readers = Readers::new(files.state.clone());
    let (machine, end) = StateMachine::start(prepare(&files.state).unwrap(), readers, files.snapshots, waits).unwrap();
    (folder, machine, end)
}

async fn names(machine: &StateMachine) -> Vec<String> {
    let rows = machine.readers().read(WorkloadRow::all).await.unwrap();
    rows.into_iter().map(|row| row.spec.name.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_is_put_in_place_while_readers_read() {
    let (_one, mut small, small_end) = machine(3).await;
    let (_other, mut large, _) = machine(200).await;
    let (few, many) = (names(&small).await, names(&large).await);
    let from = [small.build_snapshot().await.unwrap(), large.build_snapshot().await.unwrap()];
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..3 {
        let (readers_of, done) = (Arc::clone(small.readers()), Arc::clone(&done));
        let (few, many) = (few.clone(), many.clone());
        readers.spawn(async move {
            let mut seen = [0, 0];
            while !done.load(Ordering::Relaxed) {
                let rows = readers_of.read(WorkloadRow::all).await.unwrap();
                let names: Vec<_> = rows.into_iter().map(|row| row.spec.name.to_string()).collect();
                assert!(names == few || names == many, "{} rows are neither state", names.len());
                seen[usize::from(names == many)] += 1;
            }
            seen
        });
    }
    for round in 0..20 {
        let snapshot = &from[(round + 1) % 2];
        let place = small.begin_receiving_snapshot().await.unwrap();
        fs::copy(&snapshot.snapshot.path, &place.path).unwrap();
        small.install_snapshot(&snapshot.meta, place).await.unwrap();
        let applied = small.applied_state().await.unwrap().0;
        assert_eq!(applied, snapshot.meta.last_log_id);
        assert_eq!(*small.applied().borrow(), applied.unwrap().index);
        assert_eq!(names(&small).await, if round % 2 == 0 { many.clone() } else { few.clone() });
    }
    done.store(true, Ordering::Relaxed);
    let seen = readers.join_all().await;
    assert!(seen.iter().all(|seen| seen[0] + seen[1] > 0), "{seen:?}");
    drop(small);
    let _ = tokio::time::timeout(Duration::from_secs(10), small_end).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_received_snapshot_that_is_not_whole_is_refused_and_the_state_stays() {
    let (_one, mut small, _end) = machine(3).await;
    let (_other, mut large, _) = machine(60).await;
    let few = names(&small).await;
    let snapshot = large.build_snapshot().await.unwrap();
    let whole = fs::read(&snapshot.snapshot.path).unwrap();
    let mut harms: Vec<Vec<u8>> =
        [0, 1, 100, 4096, whole.len() / 2, whole.len() - 4096].map(|cut| whole[..cut].to_vec()).into();
    for page in 0..whole.len() / 4096 {
        let mut harmed = whole.clone();
        harmed[page * 4096..(page + 1) * 4096].fill(0xa5);
        harms.push(harmed);
    }
    let mut refused = 0;
    for harmed in &harms {
        let place = small.begin_receiving_snapshot().await.unwrap();
        fs::write(&place.path, harmed).unwrap();
        if small.install_snapshot(&snapshot.meta, place).await.is_err() {
            refused += 1;
            assert_eq!(names(&small).await, few);
        }
    }
    assert!(refused + 3 >= harms.len(), "{refused} of {} were refused", harms.len());
    // Another position than the sender said.
    let place = small.begin_receiving_snapshot().await.unwrap();
    fs::write(&place.path, &whole).unwrap();
    let other = small.build_snapshot().await.unwrap();
    assert!(
        other.meta.last_log_id == snapshot.meta.last_log_id
            || small.install_snapshot(&other.meta, place).await.is_err()
    );
    let place = small.begin_receiving_snapshot().await.unwrap();
    fs::write(&place.path, &whole).unwrap();
    small.install_snapshot(&snapshot.meta, place).await.unwrap();
    assert_eq!(names(&small).await.len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_for_a_snapshot_gets_a_sound_and_recent_one() {
    let (folder, mut machine, _end) = machine(40).await;
    let built = machine.build_snapshot().await.unwrap();
    let path = built.snapshot.path.clone();
    let given = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(given.meta.last_log_id, built.meta.last_log_id);
    let mut harmed = fs::read(&path).unwrap();
    harmed[4096..8192].fill(0xa5);
    fs::write(&path, &harmed).unwrap();
    // The one before it is from the beginning, which the log may not go back to.
    assert!(snapshots(folder.path()).len() == 2);
    let given = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(given.meta.last_log_id, built.meta.last_log_id);
    assert_ne!(fs::read(&given.snapshot.path).unwrap(), harmed);
}

/// A folder whose newest snapshot is ahead of the state, and with `log` of the log too.
async fn behind_its_snapshot(log: bool) -> (TempDir, u64) {
    let folder = tempfile::tempdir().unwrap();
    // Nothing of the log is forgotten.
    let limits = Limits { entries: 50, bytes: u64::MAX, kept: 1000 };
    let state = State::try_open_with(folder.path(), limits).await.unwrap();
    for number in 0..10 {
        state.put(&format!("web-{number}")).await.unwrap();
    }
    state.close().await;
    let aside = tempfile::tempdir().unwrap();
    for name in ["state.sqlite", "raft.redb"] {
        fs::copy(folder.path().join(name), aside.path().join(name)).unwrap();
    }
    let state = State::try_open_with(folder.path(), limits).await.unwrap();
    let mut written = 10;
    while snapshots(folder.path()).last().is_none_or(|newest| index_of(newest) < 20) {
        state.put(&format!("web-{written}")).await.unwrap();
        written += 1;
    }
    state.close().await;
    for name in ["state.sqlite", "raft.redb"].iter().take(if log { 2 } else { 1 }) {
        fs::copy(aside.path().join(name), folder.path().join(name)).unwrap();
    }
    (folder, written)
}

fn index_of(snapshot: &Path) -> u64 {
    snapshot.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_a_power_cut_took_behind_its_snapshot_catches_up() {
    let (folder, written) = behind_its_snapshot(false).await;
    for more in 0..2 {
        let state = State::open(folder.path()).await;
        assert_eq!(state.names().await.len() as u64, written + more);
        state.put(&format!("more-{more}")).await.unwrap();
        state.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_was_received_and_not_put_in_place_is_put_there_at_the_next_start() {
    let (folder, _) = behind_its_snapshot(true).await;
    let ends = index_of(snapshots(folder.path()).last().unwrap());
    let state = State::open(folder.path()).await;
    let names = state.names().await;
    assert!(state.handle.read(applied_index).await.unwrap() >= ends);
    state.put("more").await.unwrap();
    state.close().await;
    let state = State::open(folder.path()).await;
    assert_eq!(state.names().await.len(), names.len() + 1);
    state.close().await;
}
