//! A daemon that takes write after write: its files and its memory stay small.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::harness::{appliance::Appliance, http::PATIENCE};

/// Clients that write at the same time.
const CLIENTS: u64 = 64;

/// Bytes the log may grow by between two snapshots (`src/consensus/compact.rs`).
const LOG_GROWTH: u64 = 16 << 20;
/// Memory of its own that the daemon may use, in bytes. All of it together stays under 100 MB, which `bench/run.sh state
/// --million` measures; the pages of the program itself are a few times as many here as in a release build (20 MB).
const MEMORY: u64 = 80_000_000;

fn writes() -> u64 {
    if std::env::var("TOFT_TEST_FULL").is_ok_and(|full| full == "1") { 1_000_000 } else { 50_000 }
}

/// A connection that is kept.
struct Client {
    stream: UnixStream,
    workload: String,
    /// Writes that were acknowledged.
    written: u64,
}

impl Client {
    fn connect(socket: &Path, number: u64) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, workload: format!("writer-{number}"), written: 0 }
    }

    /// Writes the workload with another value of 256 bytes.
    fn write(&mut self) {
        let value = format!("{:0>256}", self.written + 1);
        let body = json!({"name": self.workload, "image": "toft/demo", "replicas": 0, "env": {"VALUE": value}});
        let body = body.to_string();
        let head = format!(
            "PUT /api/v1/workloads/{} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.workload,
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        let (status, answer) = self.answer();
        self.written += 1;
        assert!(status == 200 || status == 201, "{status}: {answer}");
        assert!(answer.contains(&format!("\"generation\":{},", self.written)), "{answer}");
    }

    fn answer(&mut self) -> (u16, String) {
        let mut bytes = Vec::with_capacity(2048);
        let mut part = [0; 4096];
        loop {
            let count = self.stream.read(&mut part).unwrap();
            assert!(count > 0, "the connection was closed");
            bytes.extend_from_slice(&part[..count]);
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if bytes.len() == end + 4 + length.parse::<usize>().unwrap() {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return (status, String::from_utf8_lossy(&bytes[end + 4..]).into_owned());
            }
        }
    }
}

/// What the daemon takes up, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    log: u64,
    state: u64,
    snapshots: u64,
    memory: u64,
}

impl Use {
    fn of(toft: &Appliance) -> Self {
        // Files may go while they are looked at.
        let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.blocks() * 512);
        let of = |name: &str| size(&toft.data.join(name));
        let snapshots = fs::read_dir(toft.data.join("snapshots")).unwrap().flatten();
        let status = fs::read_to_string(format!("/proc/{}/status", toft.pid())).unwrap();
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        Self {
            log: of("raft.redb"),
            state: of("state.sqlite") + of("state.sqlite-wal") + of("state.sqlite-shm"),
            snapshots: snapshots.map(|entry| size(&entry.path())).sum(),
            memory: own.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024,
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            log: self.log.max(other.log),
            state: self.state.max(other.state),
            snapshots: self.snapshots.max(other.snapshots),
            memory: self.memory.max(other.memory),
        }
    }
}

#[test]
fn files_and_memory_stay_small_over_many_writes() {
    let mut toft = Appliance::start();
    let socket = toft.data.join("toft.sock");
    let written = AtomicU64::new(0);
    let begin = Instant::now();
    let mut most = Use::default();
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (socket, written) = (&socket, &written);
                scope.spawn(move || {
                    let mut client = Client::connect(socket, number);
                    while written.fetch_add(1, Ordering::Relaxed) < writes() {
                        client.write();
                    }
                    client
                })
            })
            .collect();
        let mut told = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            std::thread::sleep(Duration::from_millis(100));
            let now = Use::of(&toft);
            most = most.most(now);
            let done = written.load(Ordering::Relaxed);
            if done >= told {
                println!("{:>6} s {done:>8} writes {now:?}", begin.elapsed().as_secs());
                told += writes() / 20;
            }
        }
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    println!("{} writes in {:?}, at most {most:?}", writes(), begin.elapsed());
    assert_eq!(clients.iter().map(|client| client.written).sum::<u64>(), writes());
    // Twice: what grew, and the pages that are free for the next while they are still read.
    assert!(most.log < 4 * LOG_GROWTH, "{most:?}");
    // Sixty-four workloads, the newest requests and events; and the log of SQLite beside them.
    assert!(most.state < 48 << 20, "{most:?}");
    // Two, and the one that is being made.
    assert!(most.snapshots < 3 * most.state, "{most:?}");
    assert!(most.memory < MEMORY, "{most:?}");
    let snapshots = fs::read_dir(toft.data.join("snapshots")).unwrap().count();
    assert!(snapshots > 0, "the log was never shortened");
    let compare = |toft: &Appliance| {
        for client in &clients {
            let now = toft.get(&format!("/api/v1/workloads/{}", client.workload)).good();
            assert_eq!(now["generation"], client.written, "{}", client.workload);
            assert_eq!(now["spec"]["env"]["VALUE"], format!("{:0>256}", client.written));
        }
        toft.get("/api/v1/cluster").good()
    };
    let before = compare(&toft);
    assert_eq!(before["applied"], before["log_end"], "{before}");
    toft.kill();
    toft.up();
    let after = compare(&toft);
    assert!(after["applied"].as_u64() >= before["applied"].as_u64(), "{before} {after}");
}
