//! Tests of what is promised about the disk: what was acknowledged stays, what is not ours is left alone.

mod ahead;
pub(crate) mod cluster;
mod compaction;
mod conformance;
mod damage;
mod faulty_disk;
mod faulty_files;
mod faulty_state;
mod fixtures;
mod full_disk;
mod services;
mod snapshot_transfer;

use std::{collections::BTreeMap, path::Path, time::Duration};

use rusqlite::{OptionalExtension, StatementStatus};
use toft_model::{
    ids::{NodeId, RequestId, WorkloadId},
    name::Name,
    state::{Command, PutMode, RefusalKind, Reply, Request, WorkloadRow, applied_index},
    token::{MemberRole, NewToken},
    workload::WorkloadSpec,
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{
    Files, Handle, OpenError, Opened, ProposeError,
    compact::Limits,
    open::{open_with, prepare},
    state_machine::connect_reader,
    types::{FOUNDER, Member, Role},
};
use crate::enroll::{Joining, Keys, Token};

/// An open state, its tasks watched by one.
struct State {
    handle: Handle,
    task: JoinHandle<()>,
}

fn founder() -> Member {
    Member { node_id: NodeId(Uuid::from_u128(1)), name: name("box"), ..Member::default() }
}

impl State {
    async fn try_open(folder: &Path) -> Result<Self, OpenError> {
        Self::try_open_with(folder, Limits::default()).await
    }

    /// The same with a log that is shortened sooner.
    async fn try_open_with(folder: &Path, limits: Limits) -> Result<Self, OpenError> {
        let keys = Keys::load_or_make(&folder.join("cluster"), FOUNDER).unwrap();
        let opened = open_with(&Files::under(folder), founder(), keys.transport().clone(), limits).await?;
        let Opened { handle, task, .. } = opened;
        Ok(Self { handle, task: tokio::spawn(task) })
    }

    async fn open(folder: &Path) -> Self {
        Self::try_open(folder).await.unwrap()
    }

    /// Drops the last handle and waits until the files are closed.
    async fn close(self) {
        drop(self.handle);
        tokio::time::timeout(Duration::from_secs(10), self.task).await.unwrap().unwrap();
    }

    async fn put(&self, name: &str) -> Result<Reply, ProposeError> {
        self.handle.propose(put(name)).await
    }

    async fn names(&self) -> Vec<String> {
        let rows = self.handle.read(WorkloadRow::all).await.unwrap();
        rows.into_iter().map(|row| row.spec.name.to_string()).collect()
    }
}

/// A token of the cluster with this authority, for some machines.
async fn token(handle: &Handle, authority: [u8; 32], role: Role) -> Token {
    let token = Token::make(authority).unwrap();
    let new = NewToken {
        id: token.id.clone(),
        secret: token.hash(),
        role: match role {
            Role::Server => MemberRole::Server,
            Role::Witness => MemberRole::Witness,
        },
        name: None,
        labels: BTreeMap::new(),
        uses: 9,
        expires_at_ms: i64::MAX / 2,
    };
    let command = Command::CreateToken { token: Box::new(new.clone()), at_ms: new.expires_at_ms - 60_000 };
    handle.propose(command).await.unwrap();
    token
}

/// What a machine asks for that is to be `member`.
fn joining_as<'a>(member: &Member, address: &'a str, token: &'a Token) -> Joining<'a> {
    Joining {
        address,
        token,
        node_id: member.node_id,
        name: (member.name.clone(), true),
        role: None,
        labels: BTreeMap::new(),
        listen: ([127, 0, 0, 1], 1).into(),
        reach: member.address.clone(),
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
    for round in 0..3 {
        let state = State::open(folder.path()).await;
        assert_eq!(state.names().await.len(), round);
        state.put(&format!("web-{round}")).await.unwrap();
        assert_eq!(state.names().await.len(), round + 1);
        state.close().await;
    }
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["cluster", "raft.redb", "snapshots", "state.sqlite"], "something was left beside the files");
}

#[tokio::test]
async fn acknowledged_writes_survive_a_power_cut_that_takes_what_the_database_did_not_flush() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    for i in 0..20 {
        state.put(&format!("web-{i}")).await.unwrap();
    }
    // The worst that may be left: the log, and the database as it was flushed last, which is when it was made.
    let left = tempfile::tempdir().unwrap();
    std::fs::copy(folder.path().join("raft.redb"), left.path().join("raft.redb")).unwrap();
    std::fs::copy(folder.path().join("state.sqlite"), left.path().join("state.sqlite")).unwrap();
    let again = State::open(left.path()).await;
    assert_eq!(again.names().await.len(), 20);
    again.close().await;
    state.close().await;
}

#[tokio::test]
async fn a_request_that_is_repeated_is_applied_once_even_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let id = RequestId(Uuid::from_u128(7));
    let state = State::open(folder.path()).await;
    let first = state.handle.propose_request(Request::new(id, put("web"))).await.unwrap();
    assert_eq!(state.handle.propose_request(Request::new(id, put("web"))).await.unwrap(), first);
    state.close().await;
    let state = State::open(folder.path()).await;
    assert_eq!(state.handle.propose_request(Request::new(id, put("web"))).await.unwrap(), first);
    assert_eq!(state.names().await, ["web"]);
    state.close().await;
}

#[tokio::test]
async fn a_refusal_reaches_its_proposer_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    state.put("web").await.unwrap();
    let Err(ProposeError::Refused(refusal)) = state.put("web").await else { panic!("it was not refused") };
    assert_eq!(refusal.kind, RefusalKind::Exists);
    assert_eq!(state.names().await, ["web"]);
    state.close().await;
}

#[tokio::test]
async fn whoever_got_an_answer_sees_it_in_the_watch_and_in_reads() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    for round in 1..100 {
        let before = *state.handle.watch().borrow();
        state.put(&format!("web-{round}")).await.unwrap();
        let now = *state.handle.watch().borrow();
        assert!(now > before);
        assert!(state.handle.read(applied_index).await.unwrap() >= now);
        assert_eq!(state.names().await.len(), round);
    }
    state.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn proposals_of_many_at_once_are_all_applied_once_and_share_entries() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    let before = *state.handle.watch().borrow();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..400 {
        let handle = state.handle.clone();
        // Every name is asked for twice: one of the two is refused.
        tasks.spawn(async move { handle.propose(put(&format!("web-{}", i / 2))).await.is_ok() });
    }
    let accepted = tasks.join_all().await.into_iter().filter(|accepted| *accepted).count();
    assert_eq!(accepted, 200);
    assert_eq!(state.names().await.len(), 200);
    let entries = *state.handle.watch().borrow() - before;
    assert!(entries < 200, "{entries} entries for 400 requests");
    state.close().await;
}

#[tokio::test]
async fn a_read_sees_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
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
                Ok((before == applied_index(connection)?, WorkloadRow::all(connection)?.len()))
            })
            .await
    });
    first_look.await.unwrap();
    state.put("api").await.unwrap();
    go_on.send(()).unwrap();
    assert_eq!(reading.await.unwrap().unwrap(), (true, 1));
    assert_eq!(state.names().await, ["api", "web"]);
    state.close().await;
}

#[tokio::test]
async fn a_reader_cannot_write_and_a_failed_read_spoils_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    state.put("web").await.unwrap();
    let written = state.handle.read(|connection| connection.execute("DELETE FROM workloads", [])).await;
    assert!(written.is_err());
    assert_eq!(state.names().await, ["web"]);
    state.close().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_only_who_asks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    state.put("web").await.unwrap();
    let other = rusqlite::Connection::open(folder.path().join("state.sqlite")).unwrap();
    other.execute("UPDATE workloads SET spec = '{' WHERE name = 'web'", []).unwrap();
    drop(other);
    let (broken, good) = tokio::join!(state.handle.propose(remove("web")), state.put("api"));
    let Err(ProposeError::Refused(refusal)) = broken else { panic!("{broken:?}") };
    assert_eq!(refusal.kind, RefusalKind::Fault);
    assert!(good.is_ok(), "{good:?}");
    state.close().await;
}

#[tokio::test]
async fn oversized_commands_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    let mut command = put("web");
    if let Command::PutWorkload { spec, .. } = &mut command {
        spec.command = vec!["x".repeat(1 << 20)];
    }
    assert!(matches!(state.handle.propose(command).await, Err(ProposeError::TooLarge { .. })));
    state.put("api").await.unwrap();
    state.close().await;
}

#[tokio::test]
async fn the_watch_ends_with_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).await;
    let mut watch = state.handle.watch();
    state.close().await;
    watch.mark_unchanged();
    assert!(watch.changed().await.is_err());
}

#[test]
fn the_database_logs_ahead_and_leaves_flushing_to_the_log() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let connection = prepare(&folder.path().join("state.db")).unwrap();
        let pragma = |name: &str| {
            connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap()
        };
        assert_eq!(pragma("journal_mode"), rusqlite::types::Value::Text("wal".into()));
        // 1 is NORMAL: only moving SQLite's log into the database flushes.
        assert_eq!(pragma("synchronous"), rusqlite::types::Value::Integer(1));
        assert_eq!(pragma("foreign_keys"), rusqlite::types::Value::Integer(1));
    }
}

#[test]
fn statements_that_are_kept_are_not_prepared_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let writer = prepare(&path).unwrap();
    let reader = connect_reader(&path).unwrap();
    for connection in [&writer, &reader] {
        for id in ["some", "other", "some"] {
            let mut kept = connection.prepare_cached("SELECT name FROM nodes WHERE id = ?1").unwrap();
            let none: Option<String> = kept.query_row([id], |row| row.get(0)).optional().unwrap();
            assert_eq!((none, kept.get_status(StatementStatus::RePrepare)), (None, 0), "{id}");
        }
    }
}
