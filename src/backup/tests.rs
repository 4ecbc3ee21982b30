//! Tests of the format and of the folder, on backups of a real state.

mod files;
mod format;
mod hostile;
mod running;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use toft_model::{
    ids::WorkloadId,
    state::{Command, PutMode, WorkloadRow},
    workload::WorkloadSpec,
};
use uuid::Uuid;

use super::{
    BackupError, Backups, Settings,
    keys::{Key, KeySource, Lock},
    make::{Made, Order, make},
    restore, unpack,
    verify::{Verified, verify},
};
use crate::{
    consensus::{
        self, Files, Handle,
        types::{FOUNDER, Member},
    },
    enroll::Keys,
};

const PASSPHRASE: &str = "correct horse battery";

/// Opens the state in `data` as a daemon does.
async fn open(data: &Path) -> Handle {
    let keys = Keys::load_or_make(&data.join("cluster"), FOUNDER).unwrap();
    let node_id = Node::id().parse().unwrap();
    let me = Member { node_id, name: "box".parse().unwrap(), ..Member::default() };
    let opened = consensus::open(&Files::under(data), me, keys.transport().clone()).await.unwrap();
    tokio::spawn(opened.task);
    opened.handle
}

/// A data directory with an open state, and a folder beside it.
struct Node {
    dir: TempDir,
    state: Handle,
}

impl Node {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("cluster/more")).unwrap();
        fs::write(data.join("node.json"), format!(r#"{{"node_id":"{}","subnet":null}}"#, Self::id())).unwrap();
        fs::write(data.join("admin-password"), "secret\n").unwrap();
        fs::write(data.join("cluster/more/node.key"), "private").unwrap();
        let state = open(&data).await;
        let node = Self { dir, state };
        for name in ["web", "api", "db"] {
            node.put(name).await;
        }
        node
    }

    fn id() -> &'static str {
        "0197f000-0000-7000-8000-000000000001"
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn put(&self, name: &str) {
        let spec = Box::new(WorkloadSpec::new(name.parse().unwrap(), "demo".parse().unwrap()));
        let workload_id = WorkloadId(Uuid::now_v7());
        self.state.propose(Command::PutWorkload { workload_id, spec, mode: PutMode::Create, at_ms: 1 }).await.unwrap();
    }

    async fn try_back_up(&self, name: &str, lock: Lock) -> Result<Made, BackupError> {
        let order = Order {
            data: self.data(),
            scratch: self.path("scratch"),
            target: self.path(name),
            lock,
            node_name: "box".into(),
            node_id: Self::id().into(),
        };
        make(&self.state, order).await
    }

    /// A backup locked with the passphrase.
    async fn back_up(&self) -> PathBuf {
        self.try_back_up("b.tar.gz.age", lock()).await.unwrap();
        self.path("b.tar.gz.age")
    }

    fn settings(&self) -> Settings {
        fs::write(self.path("passphrase"), PASSPHRASE).unwrap();
        Settings {
            data: self.data(),
            dir: self.data().join("backups"),
            dir_is_ours: true,
            every: None,
            keep: 2,
            key: Some(KeySource::PassphraseFile(self.path("passphrase"))),
            node_name: "box".into(),
            node_id: Self::id().into(),
        }
    }

    /// Everything that lies in the data directory, for telling whether something changed.
    fn listing(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(self.data()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn lock() -> Lock {
    Lock::passphrase(PASSPHRASE.to_owned().into()).unwrap()
}

fn key() -> Key {
    Key::passphrase(PASSPHRASE.into())
}

fn verified(path: &Path) -> Result<Verified, BackupError> {
    verify(path, &key(), path.parent().unwrap(), &mut |_, _| ())
}

fn restored(path: &Path, data: &Path) -> Result<Option<PathBuf>, BackupError> {
    restore::stage(path, &key(), data, &mut |_, _| ())?.commit()
}
