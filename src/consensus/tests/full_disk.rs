//! A disk without space: a small tmpfs. Mounting takes root.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use toft_model::state::Command;

use super::{State, put, remove};
use crate::consensus::{OpenError, ProposeError, compact::Limits};

/// A mounted disk that is gone when this is dropped.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new(mib: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        mount(Some("toft-test"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes what space is left, `spare` bytes apart.
    fn fill(&self, spare: usize) -> PathBuf {
        let path = self.path().join("ballast");
        let stat = nix::sys::statvfs::statvfs(self.path()).unwrap();
        let free = (stat.blocks_available() * stat.fragment_size()) as usize;
        let there = fs::metadata(&path).map_or(0, |file| file.len() as usize);
        fs::write(&path, vec![1u8; there + free.saturating_sub(spare)]).unwrap();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.path(), MntFlags::MNT_DETACH) {
            eprintln!("`{}` could not be unmounted: {error}", self.path().display());
        }
    }
}

/// A command that takes about 40 KB.
fn large(name: &str) -> Command {
    let mut command = put(name);
    if let Command::PutWorkload { spec, .. } = &mut command {
        spec.command = vec!["x".repeat(40_000)];
    }
    command
}

/// Proposes until the disk is said to be full; gives the names that were acknowledged.
async fn write_until_full(state: &State) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for i in 100..600 {
        let name = format!("web-{i}");
        match state.handle.propose(large(&name)).await {
            Ok(_) => acknowledged.push(name),
            Err(ProposeError::DiskFull) => return acknowledged,
            Err(error) => panic!("a full disk was called `{error:?}`"),
        }
    }
    panic!("the disk is never full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_refuses_what_grows_and_takes_what_shrinks() {
    let disk = Disk::new(12);
    let state = State::open(disk.path()).await;
    let acknowledged = write_until_full(&state).await;
    assert!(acknowledged.len() > 3);
    assert_eq!(state.names().await, acknowledged);
    assert!(matches!(state.handle.propose(large("zzz")).await, Err(ProposeError::DiskFull)));
    state.handle.propose(remove(&acknowledged[0])).await.expect("removing needs little room");
    state.close().await;
    let again = State::open(disk.path()).await;
    assert_eq!(again.names().await, acknowledged[1..]);
    again.close().await;
}

/// Fills the disk but for `spare` bytes while the state is open, writes until that is noticed, makes room again, and
/// expects that all goes on and nothing that was acknowledged is missing: not now, not after a restart, and not in what
/// a kill in the worst moment would have left.
async fn survives_a_full_disk(spare: usize) -> bool {
    let disk = Disk::new(16);
    let state = State::open(disk.path()).await;
    state.put("first").await.unwrap();
    let ballast = disk.fill(spare);
    let handle = state.handle.clone();
    // What shrinks is let through until a write has failed; it waits then.
    let waits = tokio::spawn(async move {
        let mut done = 0;
        for _ in 0..60 {
            match handle.propose(remove("nobody")).await {
                Err(ProposeError::Refused(_)) => done += 1,
                Err(ProposeError::DiskFull) => break,
                other => panic!("with {spare} bytes: {other:?}"),
            }
        }
        done
    });
    assert!(matches!(state.handle.propose(large("zzz")).await, Err(ProposeError::DiskFull)), "with {spare} bytes");
    let deadline = Instant::now() + Duration::from_millis(700);
    while !waits.is_finished() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waited = !waits.is_finished();
    let left = tempfile::tempdir().unwrap();
    for name in ["raft.redb", "state.sqlite", "state.sqlite-wal"] {
        drop(fs::copy(disk.path().join(name), left.path().join(name)));
    }
    assert_eq!(state.names().await, ["first"], "reads go on");
    fs::remove_file(&ballast).unwrap();
    let done = tokio::time::timeout(Duration::from_secs(10), waits).await.expect("it goes on").unwrap();
    assert!(done > 0 || waited, "with {spare} bytes nothing was taken");
    let mut names = vec!["first".to_owned()];
    for i in 0..5 {
        state.put(&format!("later-{i}")).await.unwrap_or_else(|e| panic!("with {spare} bytes: {e}"));
        names.push(format!("later-{i}"));
    }
    state.close().await;
    let again = State::open(disk.path()).await;
    assert_eq!(again.names().await, names);
    again.close().await;
    let killed = State::open(left.path()).await;
    assert_eq!(killed.names().await, ["first"], "with {spare} bytes");
    killed.close().await;
    waited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_on_a_full_disk_wait_and_go_on_wherever_it_became_full() {
    let mut waited = 0;
    for spare in [0, 1, 2, 3, 5, 8, 9, 13, 21, 34, 55, 89, 144].map(|pages| pages * 4096) {
        waited += usize::from(survives_a_full_disk(spare).await);
    }
    assert!(waited > 2, "only {waited} met a full disk");
}

/// One that could not start lets go of its files a moment after it said so.
async fn open_again(folder: &Path) -> State {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match State::try_open(folder).await {
            Ok(state) => return state,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_restart_on_a_full_disk() {
    for spare in [0, 4096, 40_960, 200_000] {
        let disk = Disk::new(12);
        let state = State::open(disk.path()).await;
        let acknowledged = write_until_full(&state).await;
        state.close().await;
        let ballast = disk.fill(spare);
        match tokio::time::timeout(Duration::from_secs(10), State::try_open(disk.path())).await {
            Ok(Ok(state)) => state.close().await,
            Ok(Err(OpenError::DiskFull { .. })) => {}
            other => panic!("with {spare} bytes: {:?}", other.map(|opened| opened.err())),
        }
        fs::remove_file(ballast).unwrap();
        let again = open_again(disk.path()).await;
        assert_eq!(again.names().await, acknowledged);
        again.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_on_a_full_disk_says_so_and_works_later() {
    let mut refused = 0;
    for spare in (0..2_600_000).step_by(131_072) {
        let disk = Disk::new(12);
        // Keys are not what this is about.
        crate::enroll::Keys::load_or_make(&disk.path().join("cluster"), 1).unwrap();
        let ballast = disk.fill(spare);
        match tokio::time::timeout(Duration::from_secs(10), State::try_open(disk.path())).await {
            Ok(Ok(state)) => state.close().await,
            Ok(Err(OpenError::DiskFull { .. })) => refused += 1,
            other => panic!("with {spare} bytes: {:?}", other.map(|opened| opened.err())),
        }
        fs::remove_file(ballast).unwrap();
        let state = open_again(disk.path()).await;
        state.put("web").await.unwrap();
        state.close().await;
    }
    assert!(refused > 2, "only {refused} were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_finds_no_room_is_made_later_and_writes_go_on() {
    let disk = Disk::new(24);
    let limits = Limits { entries: 60, bytes: u64::MAX, kept: 5 };
    let state = State::try_open_with(disk.path(), limits).await.unwrap();
    for i in 0..50 {
        state.handle.propose(large(&format!("web-{i}"))).await.unwrap();
    }
    // Room for writes, but not for another copy of the state.
    let ballast = disk.fill((4 << 20) + (300 << 10));
    for _ in 0..40 {
        let refused = state.handle.propose(remove("nobody")).await;
        assert!(matches!(refused, Err(ProposeError::Refused(_))), "{refused:?}");
    }
    let newest = |disk: &Disk| fs::read_dir(disk.path().join("snapshots")).unwrap().map(|e| e.unwrap().path()).max();
    assert!(newest(&disk).is_none_or(|path| path.to_string_lossy().contains("00000000000000000000-")));
    fs::remove_file(ballast).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while newest(&disk).is_none_or(|path| path.to_string_lossy().contains("00000000000000000000-")) {
        assert!(Instant::now() < deadline, "the snapshot was never made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    state.put("zzz").await.unwrap();
    state.close().await;
}
