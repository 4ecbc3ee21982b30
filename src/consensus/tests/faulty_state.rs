//! A disk that fails under the state: at every single access of a workload, of every kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use toft_model::{
    ids::WorkloadId,
    state::{Command, PutMode, Reply, WorkloadRow},
    workload::WorkloadSpec,
};
use uuid::Uuid;

use super::{
    State,
    faulty_disk::Unflushed,
    faulty_files::{Access, Fault, Watch},
    name,
};
use crate::{
    consensus::{OpenError, ProposeError, compact::Limits},
    observe::chain,
};

/// So short a log that there are snapshots all the time.
const LIMITS: Limits = Limits { entries: 6, bytes: 16 << 20, kept: 2 };
/// Writes of the workload, half of them before a restart.
const WRITES: u64 = 24;

const ALL: [Access; 6] = [Access::Read, Access::Write, Access::Flush, Access::Truncate, Access::Map, Access::Grow];

/// How many places of a sweep are tried: all, or some that lie evenly.
fn places(count: usize, few: usize) -> impl Iterator<Item = usize> {
    let full = std::env::var("TOFT_TEST_FULL").is_ok_and(|full| full == "1");
    (1..=count).step_by(if full { 1 } else { count.div_ceil(few) })
}

fn write(value: u64) -> Command {
    let mut spec = WorkloadSpec::new(name("counter"), "demo".parse().unwrap());
    spec.env.insert("VALUE".into(), value.to_string());
    spec.env.insert("PAD".into(), "x".repeat((value as usize * 977) % 9000));
    let mode = PutMode::Replace { if_generation: None };
    Command::PutWorkload { workload_id: WorkloadId(Uuid::from_u128(9)), spec: Box::new(spec), mode, at_ms: 1 }
}

/// What was acknowledged: the value, which is also the workload's generation.
#[derive(Debug, Default)]
struct Told {
    acknowledged: u64,
    /// The next one was asked for, too.
    perhaps: bool,
    /// Why it ended.
    error: Option<String>,
}

/// Writes, restarts, and writes on; ends at the first failure, with consensus or before it.
async fn work(folder: &Path) -> Told {
    let mut told = Told::default();
    for life in 1..=2 {
        let state = match State::try_open_with(folder, LIMITS).await {
            Ok(state) => state,
            Err(error) => {
                if let OpenError::Sqlite { .. } = error {
                    assert!(error.hint().contains("the disk may be failing"), "{}", error.hint());
                }
                told.error = Some(chain(&error));
                return told;
            }
        };
        while told.acknowledged < WRITES / 2 * life {
            let next = told.acknowledged + 1;
            match state.handle.propose(write(next)).await {
                Ok(Reply::Workload(row)) => assert_eq!(row.generation, next),
                Ok(reply) => panic!("{reply:?}"),
                Err(ProposeError::Storage(error)) => {
                    (told.perhaps, told.error) = (true, Some(error));
                    // It ends by itself, with handles that are still held.
                    let ended = tokio::time::timeout(Duration::from_secs(20), state.task).await;
                    ended.expect("consensus ends").unwrap();
                    return told;
                }
                Err(error) => panic!("{error:?}"),
            }
            told.acknowledged = next;
        }
        state.close().await;
    }
    told
}

/// A folder as it is before the workload.
struct Template(TempDir);

impl Template {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        State::open(folder.path()).await.close().await;
        Self(folder)
    }

    fn copy(&self) -> TempDir {
        copy_of(self.0.path())
    }
}

fn copy_of(folder: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    let mut open = vec![PathBuf::new()];
    while let Some(inside) = open.pop() {
        for entry in std::fs::read_dir(folder.join(&inside)).unwrap() {
            let entry = entry.unwrap();
            let path = inside.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(to.path().join(&path)).unwrap();
                open.push(path);
            } else {
                // A snapshot that was being made when consensus ended may be gone by now.
                match std::fs::copy(entry.path(), to.path().join(&path)) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    copied => drop(copied.unwrap()),
                }
            }
        }
    }
    to
}

/// Opens what is left, on a disk that is well again, and compares.
async fn check(what: &str, folder: &Path, told: &Told) {
    let state = State::try_open(folder).await.unwrap_or_else(|e| panic!("{what}: {}", chain(&e)));
    let rows = state.handle.read(WorkloadRow::all).await.unwrap();
    let row = rows.first();
    let found = row.map_or(0, |row| row.generation);
    let value = row.map_or(0, |row| row.spec.env["VALUE"].parse().unwrap());
    assert_eq!(found, value, "{what}: a write was applied twice or not at all, {told:?}");
    let last = told.acknowledged + u64::from(told.perhaps);
    assert!((told.acknowledged..=last).contains(&found), "{what}: {found}, {told:?}");
    let verdict = state.handle.read(|c| c.query_row("PRAGMA quick_check", [], |row| row.get::<_, String>(0)));
    assert_eq!(verdict.await.unwrap(), "ok", "{what}");
    let Reply::Workload(row) = state.handle.propose(write(found + 1)).await.unwrap() else { panic!("{what}") };
    assert_eq!(row.generation, found + 1, "{what}");
    state.close().await;
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let aside: Vec<_> = names.filter(|name| name.to_string_lossy().contains(".damaged-")).collect();
    assert!(aside.is_empty(), "{what}: a failing disk was taken for damage: {aside:?}");
}

/// Runs the workload with one fault; gives the folder, what failed and what was acknowledged.
async fn run(template: &Template, access: Access, at: usize, fault: Fault) -> (TempDir, Arc<Watch>, Told) {
    let folder = template.copy();
    let watch = Watch::over(folder.path());
    watch.fails(access, at, fault);
    let told = work(folder.path()).await;
    (folder, watch, told)
}

/// How often the workload does what.
async fn count(template: &Template) -> BTreeMap<Access, usize> {
    let (folder, watch, told) = run(template, Access::Read, usize::MAX, Fault::Once).await;
    assert_eq!((told.acknowledged, &told.error), (WRITES, &None));
    check("no fault", copy_of(folder.path()).path(), &told).await;
    let reached = watch.reached();
    for (access, file) in [
        (Access::Read, "state.sqlite"),
        (Access::Read, "state.sqlite-wal"),
        (Access::Read, "snapshots/built.partial"),
        (Access::Write, "state.sqlite"),
        (Access::Write, "state.sqlite-wal"),
        (Access::Write, "snapshots/built.partial"),
        (Access::Flush, "state.sqlite"),
        (Access::Flush, "state.sqlite-wal"),
        (Access::Truncate, "state.sqlite"),
        (Access::Map, "state.sqlite-shm"),
        (Access::Grow, "state.sqlite-shm"),
    ] {
        assert!(reached.contains(&(access, file.to_owned())), "{access:?} of `{file}` is not among {reached:?}");
    }
    watch.counts()
}

/// An error says which file failed, or the one that it belongs to.
fn assert_clear(what: &str, error: &str) {
    assert!(error.contains("state.sqlite") || error.contains("snapshots"), "{what}: `{error}` names no file");
    assert!(error.contains("I/O error") || error.contains("no space"), "{what}: `{error}` does not say what happened");
}

/// Runs the workload on a disk that fills up and has room again later.
async fn fill(template: &Template, access: Access, at: usize) {
    let folder = template.copy();
    let watch = Watch::over(folder.path());
    watch.fails(access, at, Fault::Full);
    let what = format!("full at {access:?} {at}");
    let state = match State::try_open_with(folder.path(), LIMITS).await {
        Ok(state) => state,
        Err(error) => {
            assert!(matches!(error, OpenError::DiskFull { .. }), "{what}: {}", chain(&error));
            watch.free();
            State::try_open_with(folder.path(), LIMITS).await.unwrap_or_else(|e| panic!("{what}: {}", chain(&e)))
        }
    };
    let filled = Arc::clone(&watch);
    let free = tokio::spawn(async move {
        while filled.fired().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        filled.free();
    });
    for value in 1..=WRITES {
        loop {
            match state.handle.propose(write(value)).await {
                Ok(Reply::Workload(row)) => break assert_eq!(row.generation, value),
                // It was written nowhere.
                Err(ProposeError::DiskFull) => tokio::time::sleep(Duration::from_millis(5)).await,
                other => panic!("{what}: {other:?}"),
            }
        }
    }
    state.close().await;
    free.abort();
    let told = Told { acknowledged: WRITES, ..Told::default() };
    check(&what, copy_of(folder.path()).path(), &told).await;
}

async fn sweep(fault: Fault, few: usize) {
    let template = Template::new().await;
    let counts = count(&template).await;
    let mut stopped = BTreeSet::new();
    for access in ALL {
        let count = counts.get(&access).copied().unwrap_or(0);
        assert!(count > 0, "{access:?} never happens");
        for at in places(count, few) {
            let (folder, watch, told) = run(&template, access, at, fault).await;
            // Some accesses depend on who comes first.
            let Some((_, file)) = watch.fired() else { continue };
            let what = format!("{fault:?} at {access:?} {at} of {count}, `{file}`");
            if let Some(error) = &told.error {
                assert_clear(&what, error);
                stopped.insert(access);
            }
            check(&what, copy_of(folder.path()).path(), &told).await;
        }
    }
    assert_eq!(stopped, BTreeSet::from(ALL), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_that_fails_once_takes_nothing_acknowledged() {
    sweep(Fault::Once, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_breaks_under_the_state_takes_nothing_acknowledged() {
    sweep(Fault::Broken, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_write_of_the_state_takes_nothing_acknowledged() {
    let template = Template::new().await;
    let counts = count(&template).await;
    let mut cuts = 0;
    for access in [Access::Write, Access::Flush, Access::Truncate] {
        for at in places(counts[&access], 10) {
            let (folder, watch, told) = run(&template, access, at, Fault::PowerCut).await;
            let Some((_, file)) = watch.fired() else { continue };
            cuts += 1;
            for unflushed in [Unflushed::Nothing, Unflushed::All, Unflushed::EveryOther, Unflushed::OnlyTheLast] {
                let left = copy_of(folder.path());
                // Shared memory is gone with the power.
                drop(std::fs::remove_file(left.path().join("state.sqlite-shm")));
                watch.leave(left.path(), unflushed);
                let what = format!("{unflushed:?} stays of what was cut at {access:?} {at}, `{file}`");
                check(&what, left.path(), &told).await;
            }
        }
    }
    assert!(cuts > 10, "{cuts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_without_room_waits_and_goes_on() {
    let template = Template::new().await;
    let counts = count(&template).await;
    for access in [Access::Write, Access::Grow] {
        for at in places(counts[&access], 8) {
            fill(&template, access, at).await;
        }
    }
}
