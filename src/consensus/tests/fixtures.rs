//! What stands in logs, in the state beside the tables, and in messages between members, as some version of toft wrote
//! it. It must be read for ever: old disks hold it, and members of the version before send it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use openraft::{
    AnyError, CommittedLeaderId, EntryPayload, LogId, Membership, RaftLogReader, Vote,
    error::{Fatal, RaftError},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
    storage::{RaftLogStorage, RaftLogStorageExt},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use toft_model::{
    ids::{ClusterId, NodeId},
    state::{Refusal, RefusalKind, Reply},
};
use uuid::Uuid;

use super::name;
use crate::consensus::{
    log_store::{LogFile, LogStore, Start},
    propose::ForwardError,
    types::{
        Batch, Entry, Identity, Member, MemberId, Outcomes, Role, SnapshotMeta, StorageError, StoredMembership, Types,
    },
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/consensus/tests/fixtures")
}

/// The content of a fixture. A new one is written down once, when `TOFT_UPDATE_SNAPSHOTS=1`; one that is there never
/// changes.
fn fixture(name: &str, new: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = folder().join(name);
    if !path.exists() && std::env::var("TOFT_UPDATE_SNAPSHOTS").is_ok_and(|update| update == "1") {
        std::fs::write(&path, new()).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|e| panic!("`{}`: {e}; TOFT_UPDATE_SNAPSHOTS=1 makes it", path.display()))
}

/// Whether what is written is what the fixture holds, and the fixture is read as what it was.
fn keeps<T: Serialize + DeserializeOwned>(name: &str, value: &T) {
    let now = serde_json::to_string(value).unwrap();
    let bytes = fixture(&format!("{name}.json"), || format!("{now}\n").into_bytes());
    let kept = String::from_utf8(bytes).unwrap();
    let read: T = serde_json::from_str(&kept).unwrap_or_else(|e| panic!("`{name}` is not read any more: {e}"));
    assert_eq!(serde_json::to_string(&read).unwrap(), now, "`{name}` is read as something else");
    assert_eq!(kept.trim_end(), now, "`{name}` is written otherwise; do members of the version before read it?");
}

fn id(term: u64, index: u64) -> LogId<MemberId> {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn member(number: u128, role: Role) -> Member {
    let name = name(&format!("box-{number}"));
    let (node_id, address) = (NodeId(Uuid::from_u128(number)), format!("192.168.1.{number}:7444"));
    Member { node_id, name, address, role, ..Member::default() }
}

/// On the way from one voter to three, with one that learns.
fn membership() -> Membership<MemberId, Member> {
    let members: BTreeMap<_, _> = (1..=4).map(|n| (n, member(n.into(), Role::Server))).collect();
    let mut members = members;
    members.insert(3, member(3, Role::Witness));
    Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2, 3])], members)
}

/// Three requests as they stand in a log: what a version does not know in them it says, so the text is kept as it is.
fn batch() -> Batch {
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    Batch(Arc::new(vec![
        raw(
            r#"{"id":"00000000-0000-0000-0000-000000000011","command":"power_workload","name":"web","action":"restart","at_ms":1760000004000}"#,
        ),
        raw(
            r#"{"id":"00000000-0000-0000-0000-000000000012","command":"remove_workload","name":"web","at_ms":1760000005000}"#,
        ),
        raw(
            r#"{"id":"00000000-0000-0000-0000-000000000013","command":"remove_workload","name":"bücher \"1\"","at_ms":0}"#,
        ),
    ]))
}

fn entries() -> [Entry; 3] {
    [
        Entry { log_id: id(1, 8), payload: EntryPayload::Blank },
        Entry { log_id: id(2, 9), payload: EntryPayload::Membership(membership()) },
        Entry { log_id: id(2, 10), payload: EntryPayload::Normal(batch()) },
    ]
}

fn identity() -> Identity {
    Identity { cluster_id: ClusterId(Uuid::from_u128(77)), member_id: 1 }
}

fn beginning() -> Start {
    let membership = Membership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, member(1, Role::Server))]));
    Start {
        applied: id(1, 7),
        vote: Vote::new_committed(1, 1),
        membership: StoredMembership::new(Some(id(1, 7)), membership),
    }
}

#[test]
fn what_stands_in_logs_and_states_is_read_for_ever() {
    for (name, entry) in ["entry_blank", "entry_membership", "entry_batch"].into_iter().zip(entries()) {
        keeps(name, &entry);
    }
    keeps("vote", &Vote::<MemberId>::new(3, 2));
    keeps("vote_committed", &Vote::<MemberId>::new_committed(3, 2));
    keeps("identity", &identity());
    keeps("start", &beginning());
    keeps("state_position", &id(2, 10));
    keeps("state_membership", &StoredMembership::new(Some(id(2, 9)), membership()));
}

#[test]
fn what_members_say_to_each_other_is_read_for_ever() {
    let request = AppendEntriesRequest::<Types> {
        vote: Vote::new_committed(2, 1),
        prev_log_id: Some(id(1, 7)),
        entries: entries().into(),
        leader_commit: Some(id(1, 8)),
    };
    keeps("peer_append", &request);
    type Appended = Result<AppendEntriesResponse<MemberId>, RaftError<MemberId>>;
    keeps::<Appended>("peer_append_success", &Ok(AppendEntriesResponse::Success));
    keeps::<Appended>("peer_append_part", &Ok(AppendEntriesResponse::PartialSuccess(Some(id(2, 9)))));
    keeps::<Appended>("peer_append_conflict", &Ok(AppendEntriesResponse::Conflict));
    keeps::<Appended>("peer_append_higher_vote", &Ok(AppendEntriesResponse::HigherVote(Vote::new(4, 2))));
    let broken = openraft::StorageIOError::write_logs(AnyError::error("the log's file failed"));
    let broken = Fatal::StorageError(StorageError::from(broken));
    keeps::<Appended>("peer_append_fatal", &Err(RaftError::Fatal(broken)));
    keeps("peer_vote", &VoteRequest { vote: Vote::<MemberId>::new(3, 2), last_log_id: Some(id(2, 10)) });
    type Voted = Result<VoteResponse<MemberId>, RaftError<MemberId>>;
    let answer = VoteResponse { vote: Vote::new(3, 2), vote_granted: true, last_log_id: Some(id(2, 10)) };
    keeps::<Voted>("peer_vote_answer", &Ok(answer));
    let meta = SnapshotMeta {
        last_log_id: Some(id(2, 10)),
        last_membership: StoredMembership::new(Some(id(2, 9)), membership()),
        snapshot_id: "00000000000000000010-2".into(),
    };
    keeps("peer_snapshot_head", &(Vote::<MemberId>::new_committed(2, 1), meta));
    type Installed = Result<SnapshotResponse<MemberId>, Fatal<MemberId>>;
    keeps::<Installed>("peer_snapshot_answer", &Ok(SnapshotResponse { vote: Vote::new_committed(2, 1) }));
    type Proposed = Result<(u64, Outcomes), ForwardError>;
    let refusal =
        Refusal { kind: RefusalKind::NotFound, message: "there is no workload `web`".into(), hint: "`toft ls`".into() };
    let outcomes = Outcomes(vec![Ok(Reply::Done), Ok(Reply::Plan { placed: 1, dropped: 2 }), Err(refusal)]);
    keeps::<Proposed>("peer_propose_answer", &Ok((10, outcomes)));
    keeps::<Proposed>("peer_propose_not_leading", &Err(ForwardError::NotLeading));
    keeps::<Proposed>("peer_propose_stopped", &Err(ForwardError::Stopped("the log's file failed".into())));
    keeps("peer_member", &member(3, Role::Witness));
}

/// Every byte of the tables of a log's file.
fn tables(path: &Path) -> (BTreeMap<u64, Vec<u8>>, BTreeMap<String, Vec<u8>>) {
    let database = Database::open(path).unwrap();
    let transaction = database.begin_read().unwrap();
    let log = transaction.open_table(TableDefinition::<u64, &[u8]>::new("log")).unwrap();
    let about = transaction.open_table(TableDefinition::<&str, &[u8]>::new("about")).unwrap();
    let log = log.iter().unwrap().map(Result::unwrap).map(|(index, bytes)| (index.value(), bytes.value().to_vec()));
    let about =
        about.iter().unwrap().map(Result::unwrap).map(|(key, bytes)| (key.value().to_owned(), bytes.value().to_vec()));
    (log.collect(), about.collect())
}

/// Makes a log as this version does.
async fn write_log(path: &Path) {
    LogFile::create(path, &identity(), Some(&beginning())).unwrap();
    let log = LogFile::open(path).unwrap();
    log.settle().unwrap();
    let (mut log, end) = LogStore::start(log, tokio::sync::watch::Sender::new(false)).unwrap();
    log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
    log.blocking_append(entries()).await.unwrap();
    drop(log);
    let _ = end.await;
}

#[tokio::test]
async fn a_log_of_today_is_read_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let (now, kept) = (folder.path().join("now.redb"), folder.path().join("kept.redb"));
    write_log(&now).await;
    let packed = fixture("raft.redb.gz", || {
        let mut packer = GzEncoder::new(Vec::new(), Compression::best());
        packer.write_all(&std::fs::read(&now).unwrap()).unwrap();
        packer.finish().unwrap()
    });
    let mut bytes = Vec::new();
    GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).unwrap();
    std::fs::write(&kept, bytes).unwrap();
    assert_eq!(tables(&kept), tables(&now), "a log is written otherwise; do old logs open?");
    let log = LogFile::open(&kept).unwrap();
    assert_eq!(log.identity().unwrap(), identity());
    assert_eq!(log.start().unwrap(), Some(beginning()));
    assert_eq!(log.vote().unwrap(), Some(Vote::new_committed(2, 1)));
    let bounds = log.state().unwrap();
    assert_eq!((bounds.purged, bounds.last), (Some(id(1, 7)), Some(id(2, 10))));
    log.settle().unwrap();
    let (mut log, _end) = LogStore::start(log, tokio::sync::watch::Sender::new(false)).unwrap();
    let found = log.try_get_log_entries(0..u64::MAX).await.unwrap();
    assert_eq!(serde_json::to_string(&found).unwrap(), serde_json::to_string(&entries()).unwrap());
}
