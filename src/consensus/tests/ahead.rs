//! A leader of several members sends entries ahead of its own disk; everybody else, and a leader of none but itself, waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{
    EntryPayload, LeaderId, LogId, Membership, RaftLogReader, Vote,
    storage::{RaftLogStorage, RaftLogStorageExt},
};
use redb::{BackendError, StorageBackend, backends::InMemoryBackend};
use tempfile::TempDir;

use super::super::{
    log_store::{Disk, LogError, LogFile, LogStore},
    open::{lead_no_longer, prepare},
    state_machine::{Readers, StateMachine},
    types::{Entry, Member, MemberId, StoredMembership},
};

const ME: MemberId = 1;

/// A disk on which nothing arrives while it is held.
#[derive(Debug, Clone, Default)]
struct Held {
    bytes: Arc<InMemoryBackend>,
    held: Arc<AtomicBool>,
}

impl Disk for Held {
    fn open(&self) -> Result<Box<dyn StorageBackend>, LogError> {
        Ok(Box::new(self.clone()))
    }
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.bytes.set_len(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        while self.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.bytes.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.bytes.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.bytes.close()
    }
    fn try_lock_range(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<bool, BackendError> {
        self.bytes.try_lock_range(start, end)
    }
}

fn members(voters: &[MemberId]) -> Membership<MemberId, Member> {
    let nodes: BTreeMap<MemberId, Member> = voters.iter().map(|id| (*id, Member::default())).collect();
    Membership::new(vec![voters.iter().copied().collect::<BTreeSet<_>>()], nodes)
}

fn stored(voters: &[MemberId]) -> StoredMembership {
    StoredMembership::new(None, members(voters))
}

fn entry(leader: MemberId, index: u64) -> Entry {
    Entry { log_id: LogId::new(LeaderId::new(1, leader), index), payload: EntryPayload::Blank }
}

async fn store(disk: &Held, leader: MemberId) -> LogStore {
    let waits = tokio::sync::watch::Sender::new(false);
    let (mut log, _) = LogStore::start(LogFile::empty(disk.clone()).unwrap(), waits).unwrap();
    log.save_vote(&Vote::new_committed(1, leader)).await.unwrap();
    log
}

/// Appends on a thread, since the disk may hold it.
fn append(log: &LogStore, entries: Vec<Entry>) -> std::thread::JoinHandle<()> {
    let mut log = log.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(log.blocking_append(entries)).unwrap();
    })
}

fn is_over(thread: &std::thread::JoinHandle<()>) -> bool {
    std::thread::sleep(Duration::from_millis(150));
    thread.is_finished()
}

#[tokio::test]
async fn a_leader_of_several_does_not_wait_but_its_consent_does() {
    let disk = Held::default();
    let mut log = store(&disk, ME).await;
    log.ahead().allow(ME, &stored(&[1, 2, 3]));
    disk.held.store(true, Ordering::SeqCst);
    append(&log, vec![entry(ME, 1), entry(ME, 2)]).join().unwrap();
    assert_eq!(log.try_get_log_entries(1..3).await.unwrap().len(), 2, "the others can have them");
    log.ahead().until_flushed(0).await.unwrap();
    assert!(log.ahead().until_flushed(2).await.is_err(), "the disk has not");
    assert!(log.ahead().check().is_err(), "a leader whose disk stalls is to fall silent");
    disk.held.store(false, Ordering::SeqCst);
    log.ahead().until_flushed(2).await.unwrap();
    log.ahead().check().unwrap();
}

#[tokio::test]
async fn everybody_else_waits() {
    for (what, leader, allowed, entries) in [
        ("before it is known who the members are", ME, None, vec![entry(ME, 1)]),
        ("who is a majority alone", ME, Some(stored(&[1])), vec![entry(ME, 1)]),
        ("who follows", 2, Some(stored(&[1, 2, 3])), vec![entry(2, 1)]),
        ("who follows and gets back what it wrote as a leader", 2, Some(stored(&[1, 2, 3])), vec![entry(ME, 1)]),
        (
            "a change of the members",
            ME,
            Some(stored(&[1, 2, 3])),
            vec![Entry { payload: EntryPayload::Membership(members(&[1, 2, 3])), ..entry(ME, 1) }],
        ),
    ] {
        let disk = Held::default();
        let log = store(&disk, leader).await;
        if let Some(membership) = allowed {
            log.ahead().allow(ME, &membership);
        }
        disk.held.store(true, Ordering::SeqCst);
        let appending = append(&log, entries);
        assert!(!is_over(&appending), "{what}");
        disk.held.store(false, Ordering::SeqCst);
        appending.join().unwrap();
        log.ahead().until_flushed(1).await.unwrap();
    }
}

#[tokio::test]
async fn members_are_known_from_the_log_as_it_changes() {
    let disk = Held::default();
    let mut log = store(&disk, ME).await;
    log.ahead().allow(ME, &stored(&[1]));
    let change = Entry { payload: EntryPayload::Membership(members(&[1, 2, 3])), ..entry(ME, 1) };
    append(&log, vec![change]).join().unwrap();
    disk.held.store(true, Ordering::SeqCst);
    append(&log, vec![entry(ME, 2)]).join().unwrap();
    let back = Entry { payload: EntryPayload::Membership(members(&[1])), ..entry(ME, 3) };
    let appending = append(&log, vec![back]);
    assert!(!is_over(&appending), "what was sent ahead is written first, and then this");
    disk.held.store(false, Ordering::SeqCst);
    appending.join().unwrap();
    disk.held.store(true, Ordering::SeqCst);
    let appending = append(&log, vec![entry(ME, 4)]);
    assert!(!is_over(&appending), "it is a majority alone again");
    disk.held.store(false, Ordering::SeqCst);
    appending.join().unwrap();
    // When the change is taken back it is not known who the members are.
    log.truncate(entry(ME, 3).log_id).await.unwrap();
    disk.held.store(true, Ordering::SeqCst);
    let appending = append(&log, vec![entry(ME, 3)]);
    assert!(!is_over(&appending));
    disk.held.store(false, Ordering::SeqCst);
    appending.join().unwrap();
    let indexes: Vec<u64> =
        log.try_get_log_entries(1..9).await.unwrap().iter().map(|entry| entry.log_id.index).collect();
    assert_eq!(indexes, [1, 2, 3]);
}

#[tokio::test]
async fn a_leader_of_several_that_comes_back_does_not_lead_on() {
    for (voters, leads_on) in [(&[1][..], true), (&[1, 2, 3][..], false)] {
        let folder = TempDir::new().unwrap();
        let mut log = store(&Held::default(), ME).await;
        let change = Entry { payload: EntryPayload::Membership(members(voters)), ..entry(ME, 1) };
        append(&log, vec![change]).join().unwrap();
        let path = folder.path().join("state.sqlite");
        let connection = prepare(&path).unwrap();
        let waits = tokio::sync::watch::Sender::new(false);
        let snapshots = folder.path().join("snapshots");
        let (state, _) = StateMachine::start(connection, Readers::new(path), snapshots, waits).unwrap();
        lead_no_longer(&log, &state, ME).await.unwrap();
        let vote = log.read_vote().await.unwrap().unwrap();
        assert_eq!((vote.leader_id().term, vote.committed), (1, leads_on), "{voters:?}");
    }
}
