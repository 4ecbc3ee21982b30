//! A member that needs what the log has forgotten: it gets a snapshot, whatever happens on the way.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use toft_model::{ids::NodeId, state::WorkloadRow};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{joining_as, name, put, token};
use crate::{
    consensus::{
        Files, Handle, Opened, adopt,
        compact::Limits,
        open::open_with,
        types::{FOUNDER, Member, Role},
    },
    enroll::{Keys, join},
};

const SHORT: Limits = Limits { entries: 40, bytes: u64::MAX, kept: 5 };
/// Workloads of about 10 KB each.
const COUNT: usize = 100;

struct Node {
    folder: TempDir,
    handle: Handle,
    authority: [u8; 32],
    tasks: Vec<JoinHandle<()>>,
    cancel: CancellationToken,
}

impl Node {
    async fn start(folder: TempDir, listener: TcpListener, member: Member) -> Self {
        let keys = Keys::load_or_make(&folder.path().join("cluster"), FOUNDER).unwrap();
        let authority = keys.authority_hash().unwrap();
        let files = Files::under(folder.path());
        let Opened { handle, task, door } = open_with(&files, member, keys.transport().clone(), SHORT).await.unwrap();
        let cancel = CancellationToken::new();
        let door = door.serve(listener, keys.admissions(handle.clone(), Arc::default()), vec![FOUNDER], cancel.clone());
        Self { folder, handle, authority, tasks: vec![tokio::spawn(task), tokio::spawn(door)], cancel }
    }

    async fn stop(self) {
        self.cancel.cancel();
        drop(self.handle);
        for task in self.tasks {
            tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
        }
    }

    async fn count(&self) -> usize {
        self.handle.read(WorkloadRow::all).await.unwrap().len()
    }

    async fn until_all_is_there(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.count().await < COUNT {
            assert!(Instant::now() < deadline, "{} of {COUNT} came", self.count().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn member(number: u128, address: SocketAddr) -> Member {
    let name = name(&format!("box-{number}"));
    let (node_id, role) = (NodeId(Uuid::from_u128(number)), Role::Server);
    Member { node_id, name, address: address.to_string(), role, ..Member::default() }
}

fn snapshots(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder.join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "sqlite")).collect();
    found.sort();
    found
}

/// A leader whose log has forgotten how it began.
async fn leader() -> (Node, Member) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let me = member(1, listener.local_addr().unwrap());
    let node = Node::start(tempfile::tempdir().unwrap(), listener, me.clone()).await;
    for i in 0..COUNT {
        let mut command = put(&format!("web-{i}"));
        if let toft_model::state::Command::PutWorkload { spec, .. } = &mut command {
            spec.command = vec!["x".repeat(10_000)];
        }
        node.handle.propose(command).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while snapshots(node.folder.path()).len() < 2 {
        assert!(Instant::now() < deadline, "no snapshot was made");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (node, me)
}

/// Lets a member in that is reached at `address` and listens at `listener`.
async fn joining(listener: TcpListener, address: SocketAddr, leader: &Node, at: &Member) -> Node {
    let folder = tempfile::tempdir().unwrap();
    let me = member(2, address);
    let token = token(&leader.handle, leader.authority, Role::Server).await;
    let joined = join(joining_as(&me, &at.address, &token), &folder.path().join("cluster")).await.unwrap();
    adopt(&Files::under(folder.path()), &joined.identity).unwrap();
    Node::start(folder, listener, me).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_damaged_at_the_leader_is_made_anew_for_who_needs_it() {
    let (leader, at) = leader().await;
    for path in snapshots(leader.folder.path()) {
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.len();
        bytes[4096..length / 2].fill(0xa5);
        fs::write(&path, bytes).unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let two = joining(listener, address, &leader, &at).await;
    two.until_all_is_there().await;
    two.handle.propose(put("through-two")).await.unwrap();
    assert_eq!(leader.count().await, COUNT + 1);
    two.stop().await;
    leader.stop().await;
}

/// Hands connections on, but cuts the first few after `limit` bytes.
async fn cut_connections(from: TcpListener, to: SocketAddr, limit: u64, cuts: Arc<AtomicUsize>) {
    loop {
        let (mut caller, _) = from.accept().await.unwrap();
        let cuts = Arc::clone(&cuts);
        tokio::spawn(async move {
            let Ok(mut callee) = TcpStream::connect(to).await else { return };
            let is_cut = cuts.load(Ordering::SeqCst) > 0;
            let (mut there, mut back) = caller.split();
            let (mut in_there, mut out_back) = callee.split();
            let forth = async {
                if is_cut {
                    let mut part = (&mut there).take(limit);
                    tokio::io::copy(&mut part, &mut out_back).await.unwrap_or(0) >= limit
                } else {
                    drop(tokio::io::copy(&mut there, &mut out_back).await);
                    drop(out_back.shutdown().await);
                    false
                }
            };
            let answers = async {
                drop(tokio::io::copy(&mut in_there, &mut back).await);
            };
            tokio::pin!(forth, answers);
            let cut = tokio::select! {
                cut = &mut forth => cut,
                () = &mut answers => false,
            };
            if cut {
                cuts.fetch_sub(1, Ordering::SeqCst);
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_cut_off_on_its_way_is_sent_again() {
    let (leader, at) = leader().await;
    let length = fs::metadata(snapshots(leader.folder.path()).pop().unwrap()).unwrap().len();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, real) = (proxy.local_addr().unwrap(), listener.local_addr().unwrap());
    let cuts = Arc::new(AtomicUsize::new(3));
    let handing = tokio::spawn(cut_connections(proxy, real, length / 2, Arc::clone(&cuts)));
    let two = joining(listener, address, &leader, &at).await;
    two.until_all_is_there().await;
    assert_eq!(cuts.load(Ordering::SeqCst), 0, "nothing was cut off");
    let left = || -> Vec<_> {
        let entries =
            fs::read_dir(two.folder.path().join("snapshots")).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| !name.to_string_lossy().ends_with(".sqlite")).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    // The file of one that was given up at its very beginning goes with the next one.
    while left().len() > 1 {
        assert!(Instant::now() < deadline, "what did not come whole is left: {:?}", left());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    two.handle.propose(put("through-two")).await.unwrap();
    assert_eq!(leader.count().await, COUNT + 1);
    two.stop().await;
    leader.stop().await;
    handing.abort();
}
