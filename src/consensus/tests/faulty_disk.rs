//! A disk that fails under the log: at every single access in turn, and by a power cut after every single one.

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{
    CommittedLeaderId, EntryPayload, LogId, RaftLogReader, Vote,
    storage::{RaftLogStorage, RaftLogStorageExt},
};
use redb::StorageBackend;
use serde_json::value::to_raw_value;

use super::{State, founder};
use crate::{
    consensus::{
        Files, Opened, ProposeError,
        compact::Limits,
        found::Parts,
        log_store::{Disk, LogError, LogFile, LogStore},
        open::{prepare, start},
        types::{Batch, Entry, FOUNDER},
    },
    enroll::Keys,
};

/// What happens at the chosen access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It fails, and so do all later ones.
    Broken,
    /// It fails as on a full disk until there is room again.
    Full,
    /// The power fails: half of the write is there, and what was not flushed may or may not be.
    PowerCut(Unflushed),
}

/// What a power cut leaves of the writes that were not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unflushed {
    Nothing,
    All,
    EveryOther,
    OnlyTheLast,
}

impl Unflushed {
    /// Those of the writes that stay.
    pub(super) fn keep(self, waiting: &[Change]) -> Vec<&Change> {
        let last = waiting.len().saturating_sub(1);
        let stays = |number: usize| match self {
            Self::Nothing => false,
            Self::All => true,
            Self::EveryOther => number.is_multiple_of(2),
            Self::OnlyTheLast => number == last,
        };
        waiting.iter().enumerate().filter(|(number, _)| stays(*number)).map(|(_, change)| change).collect()
    }
}

pub(super) enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

pub(super) fn make(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => {
            if bytes.len() < at + data.len() {
                bytes.resize(at + data.len(), 0);
            }
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

/// A disk in memory.
#[derive(Default)]
struct Platter {
    /// What is on it for good.
    flushed: Vec<u8>,
    /// What programs see.
    seen: Vec<u8>,
    /// What makes the difference.
    waiting: Vec<Change>,
    /// Accesses that change something.
    count: usize,
    fault: Option<(usize, Fault)>,
    /// How often there was no room.
    refused: usize,
    dead: bool,
}

impl Platter {
    fn holding(bytes: Vec<u8>) -> Self {
        Self { seen: bytes.clone(), flushed: bytes, ..Self::default() }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        let fails = self.step()?;
        let Some(fault) = fails else {
            make(&mut self.seen, &change);
            self.waiting.push(change);
            return Ok(());
        };
        if let (Fault::PowerCut(_), Change::Write(at, data)) = (fault, &change) {
            let torn = Change::Write(*at, data[..data.len() / 2].to_vec());
            self.waiting.push(torn);
        }
        self.fail(fault)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.step()? {
            Some(fault) => self.fail(fault),
            None => {
                self.flushed = self.seen.clone();
                self.waiting.clear();
                Ok(())
            }
        }
    }

    /// Counts an access and says whether it is to fail.
    fn step(&mut self) -> io::Result<Option<Fault>> {
        if self.dead {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        self.count += 1;
        Ok(self.fault.filter(|(at, _)| self.count >= *at).map(|(_, fault)| fault))
    }

    fn fail(&mut self, fault: Fault) -> io::Result<()> {
        match fault {
            Fault::Full => {
                self.refused += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            Fault::Broken => {}
            Fault::PowerCut(unflushed) => {
                let waiting = std::mem::take(&mut self.waiting);
                for change in unflushed.keep(&waiting) {
                    make(&mut self.flushed, change);
                }
            }
        }
        self.dead = true;
        Err(io::Error::from_raw_os_error(nix::libc::EIO))
    }
}

#[derive(Clone, Default)]
struct Faulty {
    platter: Arc<Mutex<Platter>>,
    /// One program at a time has it open.
    open: Arc<AtomicBool>,
}

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

impl Faulty {
    fn holding(bytes: Vec<u8>) -> Self {
        Self { platter: Arc::new(Mutex::new(Platter::holding(bytes))), ..Self::default() }
    }

    fn platter(&self) -> std::sync::MutexGuard<'_, Platter> {
        self.platter.lock().unwrap()
    }

    /// What is on it for good.
    fn flushed(&self) -> Vec<u8> {
        self.platter().flushed.clone()
    }

    fn fails(&self, at: usize, fault: Fault) {
        self.platter().fault = Some((at, fault));
    }
}

impl Disk for Faulty {
    fn open(&self) -> Result<Box<dyn StorageBackend>, LogError> {
        assert!(!self.open.swap(true, Ordering::SeqCst), "it is open already");
        Ok(Box::new(self.clone()))
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        if platter.dead {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        let at = offset as usize;
        let Some(bytes) = platter.seen.get(at..at + out.len()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.platter().change(Change::Length(length as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.platter().flush()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.platter().change(Change::Write(offset as usize, data.to_vec()))
    }

    fn close(&self) -> io::Result<()> {
        self.open.store(false, Ordering::SeqCst);
        Ok(())
    }
}

fn id(index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

fn entry(index: u64) -> Entry {
    let text = format!("{index}-{}", "x".repeat((index as usize * 97) % 3000));
    Entry { log_id: id(index), payload: EntryPayload::Normal(Batch(Arc::new(vec![to_raw_value(&text).unwrap()]))) }
}

/// What was acknowledged, and what may be there beside it.
#[derive(Debug, Default, Clone)]
struct Told {
    /// Entries that must be there.
    entries: BTreeSet<u64>,
    /// Entries of the write that failed.
    perhaps: BTreeSet<u64>,
    vote: Option<Vote<u64>>,
    vote_perhaps: Option<Vote<u64>>,
    purged: u64,
    purged_perhaps: u64,
}

/// Steps of the workload.
const STEPS: u64 = 16;

/// Appends of several sizes, votes, a conflict that is cut off, and purges; ends at the first failure.
async fn work(log: &mut LogStore) -> Told {
    let mut told = Told::default();
    let mut next = 1;
    for step in 0..STEPS {
        let done = match step {
            3 | 9 => {
                let vote = Vote::new(step, 1);
                told.vote_perhaps = Some(vote);
                let done = log.save_vote(&vote).await;
                if done.is_ok() {
                    told.vote = Some(vote);
                }
                done
            }
            6 => {
                // What is cut off was never acknowledged to anybody.
                let last = next - 1;
                told.entries.remove(&last);
                told.perhaps = BTreeSet::from([last]);
                next = last;
                log.truncate(id(last)).await
            }
            8 | 13 => {
                let upto = next - 3;
                told.purged_perhaps = upto;
                told.entries.retain(|index| *index > upto);
                let done = log.purge(id(upto)).await;
                if done.is_ok() {
                    told.purged = upto;
                }
                done
            }
            _ => {
                let indexes: Vec<u64> = (next..next + 1 + step % 3).collect();
                next += indexes.len() as u64;
                told.perhaps.extend(&indexes);
                let done = log.blocking_append(indexes.iter().map(|index| entry(*index))).await;
                if done.is_ok() {
                    told.entries.append(&mut told.perhaps);
                }
                done
            }
        };
        if done.is_err() {
            return told;
        }
        told.perhaps.clear();
    }
    told
}

/// Opens the log as it lies on the disk and compares.
async fn check(what: &str, bytes: Vec<u8>, told: &Told) {
    let disk = Faulty::holding(bytes);
    let log = LogFile::on(Box::new(disk.clone())).unwrap_or_else(|e| panic!("{what}: {}", crate::observe::chain(&e)));
    log.settle().unwrap();
    let vote = log.vote().unwrap();
    assert!(vote == told.vote || vote == told.vote_perhaps, "{what}: {vote:?}, {told:?}");
    let bounds = log.state().unwrap();
    let purged = bounds.purged.map_or(0, |id| id.index);
    assert!(purged == told.purged || purged == told.purged_perhaps, "{what}: {bounds:?}, {told:?}");
    let (mut log, end) = LogStore::start(log, tokio::sync::watch::Sender::new(false)).unwrap();
    let found = log.try_get_log_entries(0..u64::MAX).await.unwrap();
    for entry in &found {
        let wanted = self::entry(entry.log_id.index);
        let (EntryPayload::Normal(found), EntryPayload::Normal(wanted)) = (&entry.payload, &wanted.payload) else {
            panic!("{what}: {entry:?}");
        };
        assert_eq!(found.0[0].get(), wanted.0[0].get(), "{what}: an entry is torn");
    }
    let found: BTreeSet<u64> = found.iter().map(|entry| entry.log_id.index).collect();
    assert!(told.entries.is_subset(&found), "{what}: {found:?}, {told:?}");
    let more: Vec<_> = found.difference(&told.entries).filter(|index| **index > told.purged).collect();
    let allowed = |index: &u64| told.perhaps.contains(index) || *index <= told.purged_perhaps;
    assert!(more.iter().all(|index| allowed(index)), "{what}: {found:?}, {told:?}");
    // It is as good as before.
    let next = bounds.last.or(bounds.purged).map_or(1, |last| last.index + 1);
    log.blocking_append([self::entry(next)]).await.unwrap();
    drop(log);
    let _ = tokio::time::timeout(Duration::from_secs(5), end).await.unwrap();
    let again = LogFile::on(Box::new(disk)).unwrap();
    assert_eq!(again.state().unwrap().last, Some(id(next)), "{what}");
}

/// Runs the workload on a disk that fails; gives the disk and what was acknowledged.
async fn run(at: usize, fault: Fault) -> (Faulty, Told) {
    let disk = Faulty::default();
    let log = LogFile::empty(disk.clone()).unwrap();
    disk.platter().count = 0;
    disk.fails(at, fault);
    let (mut log, end) = LogStore::start(log, tokio::sync::watch::Sender::new(false)).unwrap();
    let told = work(&mut log).await;
    drop(log);
    let _ = tokio::time::timeout(Duration::from_secs(5), end).await.unwrap();
    (disk, told)
}

async fn accesses() -> usize {
    let (disk, told) = run(usize::MAX, Fault::Broken).await;
    assert!(told.perhaps.is_empty() && told.entries.len() > 3, "{told:?}");
    check("no fault", disk.flushed(), &told).await;
    let count = disk.platter().count;
    assert!(count > 60, "{count} accesses");
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_breaks_at_any_access_takes_nothing_acknowledged() {
    for at in 1..=accesses().await {
        let (disk, told) = run(at, Fault::Broken).await;
        let flushed = disk.flushed();
        let seen = disk.platter().seen.clone();
        check(&format!("broken at {at}, flushed"), flushed, &told).await;
        check(&format!("broken at {at}, seen"), seen, &told).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_access_takes_nothing_acknowledged_and_tears_nothing() {
    let accesses = accesses().await;
    for unflushed in [Unflushed::Nothing, Unflushed::All, Unflushed::EveryOther, Unflushed::OnlyTheLast] {
        for at in 1..=accesses {
            let (disk, told) = run(at, Fault::PowerCut(unflushed)).await;
            let flushed = disk.flushed();
            check(&format!("{unflushed:?} stays of what was cut at {at}"), flushed, &told).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_while_the_log_is_mended_takes_nothing_acknowledged() {
    let (disk, told) = run(70, Fault::PowerCut(Unflushed::EveryOther)).await;
    let left = disk.flushed();
    for unflushed in [Unflushed::Nothing, Unflushed::All, Unflushed::EveryOther, Unflushed::OnlyTheLast] {
        let mut at = 1;
        loop {
            let disk = Faulty::holding(left.clone());
            disk.fails(at, Fault::PowerCut(unflushed));
            let log = LogFile::on(Box::new(disk.clone())).unwrap();
            assert_eq!(disk.platter().count, 0, "it was written before it was settled");
            let settled = log.settle();
            drop(log);
            check(&format!("{unflushed:?} stays of what was cut at {at}"), disk.flushed(), &told).await;
            if settled.is_ok() && !disk.platter().dead {
                break;
            }
            at += 1;
        }
        assert!(at > 3, "{at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_finds_no_room_waits_and_goes_on() {
    let accesses = accesses().await;
    for at in (1..=accesses).step_by(5) {
        let disk = Faulty::default();
        let log = LogFile::empty(disk.clone()).unwrap();
        disk.platter().count = 0;
        disk.fails(at, Fault::Full);
        let waits = tokio::sync::watch::Sender::new(false);
        let mut waiting = waits.subscribe();
        let (mut log, end) = LogStore::start(log, waits).unwrap();
        let freeing = disk.clone();
        let free = tokio::spawn(async move {
            let seen = tokio::time::timeout(Duration::from_secs(10), waiting.wait_for(|waits| *waits)).await;
            freeing.platter().fault = None;
            // The last accesses are those of closing.
            seen.is_ok_and(|seen| seen.is_ok())
        });
        let told = work(&mut log).await;
        assert!(told.perhaps.is_empty() && told.entries.len() > 3, "full at {at}: {told:?}");
        drop(log);
        let _ = tokio::time::timeout(Duration::from_secs(5), end).await.unwrap();
        let waited = free.await.unwrap();
        assert!(disk.platter().refused > 0, "full at {at}: it never was");
        assert!(waited || at > accesses - 20, "full at {at}: nobody waited");
        let flushed = disk.flushed();
        check(&format!("full at {at}"), flushed, &told).await;
    }
}

/// A member whose log lies on a faulty disk.
async fn member(folder: &std::path::Path, disk: &Faulty) -> State {
    let files = Files::under(folder);
    let log = LogFile::on(Box::new(disk.clone())).unwrap();
    log.settle().unwrap();
    let identity = log.identity().unwrap();
    let parts = Parts { log, state: prepare(&files.state).unwrap(), identity };
    let keys = Keys::load_or_make(&folder.join("cluster"), FOUNDER).unwrap();
    let who = (founder(), keys.transport().clone());
    let Opened { handle, task, .. } = start(parts, &files, who, Limits::default()).await.unwrap();
    State { handle, task: tokio::spawn(task) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_ends_consensus_and_says_so() {
    for delay in 1..8 {
        let folder = tempfile::tempdir().unwrap();
        State::open(folder.path()).await.close().await;
        let log = folder.path().join("raft.redb");
        let disk = Faulty::holding(std::fs::read(&log).unwrap());
        let state = member(folder.path(), &disk).await;
        for i in 0..5 {
            state.put(&format!("web-{i}")).await.unwrap();
        }
        let now = disk.platter().count;
        disk.fails(now + delay, Fault::Broken);
        let mut acknowledged: Vec<_> = (0..5).map(|i| format!("web-{i}")).collect();
        let error = loop {
            let name = format!("web-{}", acknowledged.len());
            match state.put(&name).await {
                Ok(_) => acknowledged.push(name),
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, ProposeError::Storage(why) if why.contains("error")), "{delay}: {error:?}");
        let again = state.put("zzz").await.unwrap_err();
        assert!(matches!(again, ProposeError::Storage(_) | ProposeError::Closed), "{delay}: {again:?}");
        // Reads go on until the daemon ends, which it does.
        assert_eq!(state.names().await, acknowledged);
        let State { handle, task } = state;
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("the task ends").unwrap();
        drop(handle);
        let flushed = disk.flushed();
        std::fs::write(&log, flushed).unwrap();
        let again = State::open(folder.path()).await;
        let names = again.names().await;
        assert!(names.starts_with(&acknowledged) && names.len() <= acknowledged.len() + 1, "{delay}: {names:?}");
        again.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_room_refuses_at_once_and_takes_what_waited_when_there_is_some() {
    let folder = tempfile::tempdir().unwrap();
    State::open(folder.path()).await.close().await;
    let log = folder.path().join("raft.redb");
    let disk = Faulty::holding(std::fs::read(&log).unwrap());
    let state = member(folder.path(), &disk).await;
    state.put("before").await.unwrap();
    disk.fails(1, Fault::Full);
    let handle = state.handle.clone();
    let waiting = tokio::spawn(async move { handle.propose(super::put("waits")).await });
    let refused = async {
        // Until the first failure is noticed another one may wait too.
        let late = super::put("late");
        while !matches!(state.handle.propose(late.clone()).await, Err(ProposeError::DiskFull)) {
            tokio::task::yield_now().await;
        }
    };
    let deadline = Duration::from_millis(1500);
    if tokio::time::timeout(deadline, refused).await.is_err() {
        assert!(matches!(state.put("later").await, Err(ProposeError::DiskFull)));
    }
    assert_eq!(state.names().await, ["before"]);
    disk.platter().fault = None;
    // Whichever of the two came first is the one that waited.
    let waited = match tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap() {
        Ok(_) => "waits",
        Err(refused) => {
            assert!(matches!(refused, ProposeError::DiskFull), "{refused:?}");
            "late"
        }
    };
    state.put("after").await.unwrap();
    assert!(state.names().await.contains(&waited.to_owned()));
    state.close().await;
}
