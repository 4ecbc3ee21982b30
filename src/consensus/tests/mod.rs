//! Tests of what is promised about the disk: what was acknowledged stays, what is not ours is left alone.

mod damage;
mod full_disk;

use std::{path::Path, time::Duration};

use toft_model::{
    ids::WorkloadId,
    name::Name,
    state::{Command, PutMode, RefusalKind, Reply, WorkloadRow, applied_index},
    workload::WorkloadSpec,
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{Handle, ProposeError, open::prepare};

/// An open state, its writer thread watched by a task.
struct State {
    handle: Handle,
    writer: JoinHandle<()>,
}

impl State {
    fn open(path: &Path) -> Self {
        let (handle, task) = super::open(path).unwrap();
        Self { handle, writer: tokio::spawn(task) }
    }

    /// Drops the last handle and waits until the thread has closed the file.
    async fn close(self) {
        drop(self.handle);
        tokio::time::timeout(Duration::from_secs(10), self.writer).await.unwrap().unwrap();
    }

    async fn put(&self, name: &str) -> Result<Reply, ProposeError> {
        self.handle.propose(put(name)).await
    }

    async fn names(&self) -> Vec<String> {
        let rows = self.handle.read(WorkloadRow::all).await.unwrap();
        rows.into_iter().map(|row| row.spec.name.to_string()).collect()
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn put(name: &str) -> Command {
    let spec = Box::new(WorkloadSpec::new(self::name(name), "demo".parse().unwrap()));
    Command::PutWorkload { workload_id: WorkloadId(Uuid::now_v7()), spec, mode: PutMode::Create, at_ms: 1 }
}

fn remove(name: &str) -> Command {
    Command::RemoveWorkload { name: self::name(name), at_ms: 1 }
}

#[tokio::test]
async fn acknowledged_writes_are_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    for round in 0..3 {
        let state = State::open(&path);
        assert_eq!(*state.handle.watch().borrow(), round);
        state.put(&format!("web-{round}")).await.unwrap();
        assert_eq!(state.names().await.len() as u64, round + 1);
        state.close().await;
    }
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["state.db"], "something was left beside the database");
}

#[tokio::test]
async fn acknowledged_writes_survive_a_daemon_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let state = State::open(&path);
    state.put("web").await.unwrap();
    // What is on disk now is all that a killed daemon leaves.
    let left = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_str().unwrap().ends_with("-shm") {
            std::fs::copy(entry.path(), left.path().join(entry.file_name())).unwrap();
        }
    }
    let again = State::open(&left.path().join("state.db"));
    assert_eq!(again.names().await, ["web"]);
    assert_eq!(*again.handle.watch().borrow(), 1);
    again.close().await;
    state.close().await;
}

#[tokio::test]
async fn a_refusal_reaches_its_proposer_and_moves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("state.db"));
    state.put("web").await.unwrap();
    let mut watch = state.handle.watch();
    watch.mark_unchanged();
    let Err(ProposeError::Refused(refusal)) = state.put("web").await else { panic!("it was not refused") };
    assert_eq!(refusal.kind, RefusalKind::Exists);
    assert!(!watch.has_changed().unwrap());
    assert_eq!(state.handle.read(applied_index).await.unwrap(), 1);
    state.close().await;
}

#[tokio::test]
async fn whoever_got_an_answer_sees_it_in_the_watch_and_in_reads() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("state.db"));
    for round in 1..200 {
        state.put(&format!("web-{round}")).await.unwrap();
        assert_eq!(*state.handle.watch().borrow(), round);
        assert_eq!(state.handle.read(applied_index).await.unwrap(), round);
    }
    state.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn proposals_of_many_at_once_are_all_applied_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("state.db"));
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..400 {
        let handle = state.handle.clone();
        // Every name is asked for twice: one of the two is refused.
        tasks.spawn(async move { handle.propose(put(&format!("web-{}", i / 2))).await.is_ok() });
    }
    let accepted = tasks.join_all().await.into_iter().filter(|accepted| *accepted).count();
    assert_eq!(accepted, 200);
    assert_eq!(state.names().await.len(), 200);
    assert_eq!(state.handle.read(applied_index).await.unwrap(), 200);
    state.close().await;
}

#[tokio::test]
async fn a_read_sees_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("state.db"));
    state.put("web").await.unwrap();
    let (looked, first_look) = tokio::sync::oneshot::channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let handle = state.handle.clone();
    let reading = tokio::spawn(async move {
        handle
            .read(move |connection| {
                let before = applied_index(connection)?;
                looked.send(()).unwrap();
                wait.recv().unwrap();
                Ok((before, applied_index(connection)?, WorkloadRow::all(connection)?.len()))
            })
            .await
    });
    first_look.await.unwrap();
    state.put("api").await.unwrap();
    go_on.send(()).unwrap();
    assert_eq!(reading.await.unwrap().unwrap(), (1, 1, 1));
    assert_eq!(state.names().await, ["api", "web"]);
    state.close().await;
}

#[tokio::test]
async fn a_reader_cannot_write_and_a_failed_read_spoils_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("state.db"));
    state.put("web").await.unwrap();
    let written = state.handle.read(|connection| connection.execute("DELETE FROM workloads", [])).await;
    assert!(written.is_err());
    assert_eq!(state.names().await, ["web"]);
    state.close().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_only_who_asks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let state = State::open(&path);
    state.put("web").await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute("UPDATE workloads SET spec = '{' WHERE name = 'web'", []).unwrap();
    drop(other);
    let (broken, good) = tokio::join!(state.handle.propose(remove("web")), state.put("api"));
    assert!(matches!(broken, Err(ProposeError::Storage(_))), "{broken:?}");
    assert!(good.is_ok(), "{good:?}");
    state.close().await;
}

#[tokio::test]
async fn the_watch_ends_with_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("state.db"));
    let mut watch = state.handle.watch();
    state.close().await;
    assert!(watch.changed().await.is_err());
}

#[test]
fn the_writer_syncs_every_commit_and_logs_ahead() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let connection = prepare(&folder.path().join("state.db")).unwrap();
        let pragma = |name: &str| {
            connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap()
        };
        assert_eq!(pragma("journal_mode"), rusqlite::types::Value::Text("wal".into()));
        // 2 is FULL: the log is on disk before a commit returns.
        assert_eq!(pragma("synchronous"), rusqlite::types::Value::Integer(2));
        assert_eq!(pragma("foreign_keys"), rusqlite::types::Value::Integer(1));
    }
}
