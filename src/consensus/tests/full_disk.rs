//! A disk without space: a small tmpfs. Mounting takes root.

use std::{fs, path::PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use toft_model::state::{Command, applied_index};

use super::{State, put, remove};
use crate::consensus::{OpenError, ProposeError, open};

/// A mounted disk of 2 MB that is gone when this is dropped.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        mount(Some("toft-test"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=2m")).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("state.db")
    }

    /// Takes what space is left, `spare` bytes apart.
    fn fill(&self, spare: usize) -> PathBuf {
        let path = self.folder.path().join("ballast");
        let stat = nix::sys::statvfs::statvfs(self.folder.path()).unwrap();
        let free = (stat.blocks_available() * stat.fragment_size()) as usize;
        fs::write(&path, vec![1u8; free.saturating_sub(spare)]).unwrap();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.folder.path(), MntFlags::MNT_DETACH) {
            eprintln!("`{}` could not be unmounted: {error}", self.folder.path().display());
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

/// Proposes until the disk is full; gives the names that were acknowledged.
async fn write_until_full(state: &State) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for i in 100..400 {
        let name = format!("web-{i}");
        match state.handle.propose(large(&name)).await {
            Ok(_) => acknowledged.push(name),
            Err(ProposeError::DiskFull) => return acknowledged,
            Err(error) => panic!("a full disk was called `{error:?}`"),
        }
    }
    panic!("the disk is never full");
}

#[tokio::test]
async fn a_full_disk_refuses_commands_and_loses_nothing_acknowledged() {
    let disk = Disk::new();
    let state = State::open(&disk.path());
    let ballast = disk.folder.path().join("ballast");
    // Closing moves the log into the database, which takes the same space again.
    fs::write(&ballast, vec![1u8; 1_200_000]).unwrap();
    let mut acknowledged = write_until_full(&state).await;
    assert!(acknowledged.len() > 3);
    assert_eq!(state.names().await, acknowledged);
    assert!(matches!(state.handle.propose(large("zzz")).await, Err(ProposeError::DiskFull)));
    assert_eq!(*state.handle.watch().borrow(), acknowledged.len() as u64);
    assert_eq!(state.handle.read(applied_index).await.unwrap(), acknowledged.len() as u64);

    fs::remove_file(&ballast).unwrap();
    state.put("zzz").await.expect("there is space again");
    acknowledged.push("zzz".into());
    assert_eq!(state.names().await, acknowledged);
    state.close().await;

    let again = State::open(&disk.path());
    assert_eq!(again.names().await, acknowledged);
    again.handle.propose(remove("zzz")).await.unwrap();
    again.close().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_restart_on_a_full_disk() {
    let disk = Disk::new();
    let state = State::open(&disk.path());
    let acknowledged = write_until_full(&state).await;
    state.close().await;
    let ballast = disk.fill(0);
    match open(&disk.path()) {
        Ok((handle, task)) => State { handle, writer: tokio::spawn(task) }.close().await,
        Err(OpenError::DiskFull { .. }) => {}
        Err(error) => panic!("a full disk was called `{error:?}`"),
    }
    fs::remove_file(ballast).unwrap();
    let again = State::open(&disk.path());
    assert_eq!(again.names().await, acknowledged);
    again.close().await;
}

#[tokio::test]
async fn a_first_start_on_a_full_disk_says_so_and_works_later() {
    for spare in (0..160_000).step_by(8_192) {
        let disk = Disk::new();
        let ballast = disk.fill(spare);
        match open(&disk.path()) {
            Ok((handle, task)) => {
                State { handle, writer: tokio::spawn(task) }.close().await;
            }
            Err(OpenError::DiskFull { .. }) => {}
            Err(error) => panic!("with {spare} bytes a full disk was called `{error:?}`"),
        }
        fs::remove_file(ballast).unwrap();
        let state = State::open(&disk.path());
        state.put("web").await.unwrap();
        state.close().await;
    }
}
