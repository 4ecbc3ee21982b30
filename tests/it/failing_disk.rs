//! System calls on the daemon's own files fail, one kind at a time: it ends and says which file and why, or waits for
//! room, and nothing that it acknowledged is lost or there twice.

use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::signal::Signal;
use rusqlite::Connection;
use serde_json::json;

use crate::harness::{
    appliance::Appliance,
    http::{Answer, PATIENCE, exchange},
    machine::wait_until,
};

const WRITE: &str = "write,pwrite64,writev,pwritev";
const FLUSH: &str = "fsync,fdatasync";
const READ: &str = "read,pread64,readv,preadv";

/// What is to fail.
struct Fault {
    /// Name of the file below the data directory.
    file: &'static str,
    calls: &'static str,
    error: &'static str,
    /// Which of these calls of each thread: `N` one, `N+` all from it on.
    when: &'static str,
}

impl Fault {
    fn arguments(&self, data: &Path) -> Vec<String> {
        let Self { file, calls, error, when } = self;
        let path = data.join(file).display().to_string();
        let inject = format!("inject={calls}:error={error}:when={when}");
        // Other calls go on at their usual pace.
        let all = ["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-P", &path, "-e", &format!("trace={calls}"), "-e"];
        all.into_iter().map(str::to_owned).chain([inject]).collect()
    }

    /// Lets the calls of a running daemon fail until it is dropped.
    fn on(&self, toft: &Appliance) -> Tracer {
        let pid = toft.pid();
        let mut arguments = self.arguments(&toft.data);
        arguments.retain(|argument| argument != "--seccomp-bpf");
        let mut tracer = Command::new("strace");
        tracer.args(arguments).args(["-p", &pid.to_string()]).stdin(Stdio::null());
        let tracer = Tracer(tracer.spawn().unwrap());
        wait_until("every thread is watched", || {
            let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
            let watched = |task: fs::DirEntry| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
            };
            tasks.all(watched).then_some(())
        });
        tracer
    }
}

struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        // It lets go of the daemon before it ends.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        drop(self.0.wait());
    }
}

fn put(socket: &Path, value: u64) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let env = json!({"VALUE": value.to_string(), "PAD": "x".repeat(2000)});
    let body = json!({"name": "counter", "image": "toft/demo", "replicas": 0, "env": env});
    exchange(stream, "PUT", "/api/v1/workloads/counter", &[], body.to_string().as_bytes())
}

fn socket(toft: &Appliance) -> PathBuf {
    toft.data.join("toft.sock")
}

/// Writes from `value` on until something else than success is answered; gives the newest that was acknowledged and
/// what was said of the next.
fn write_from(toft: &Appliance, value: u64, most: u64) -> (u64, Option<io::Result<Answer>>) {
    for value in value..value + most {
        match put(&socket(toft), value) {
            Ok(answer) if answer.status < 300 => assert_eq!(answer.json()["generation"], value),
            other => return (value - 1, Some(other)),
        }
    }
    (value + most - 1, None)
}

/// Whether what is there is what was acknowledged, or one write more; gives it.
fn compare(toft: &Appliance, acknowledged: u64) -> u64 {
    let now = toft.get("/api/v1/workloads/counter").good();
    let found: u64 = now["spec"]["env"]["VALUE"].as_str().unwrap().parse().unwrap();
    assert_eq!(now["generation"], found, "a write was applied twice or not at all");
    assert!((acknowledged..=acknowledged + 1).contains(&found), "{found} is there, {acknowledged} was acknowledged");
    found
}

fn assert_sound(data: &Path, copy: &Path) {
    fs::create_dir_all(copy).unwrap();
    for name in ["state.sqlite", "state.sqlite-wal"].into_iter().filter(|name| data.join(name).exists()) {
        fs::copy(data.join(name), copy.join(name)).unwrap();
    }
    let connection = Connection::open(copy.join("state.sqlite")).unwrap();
    let verdict: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    fs::remove_dir_all(copy).unwrap();
}

#[test]
fn a_disk_that_fails_ends_the_daemon_with_the_file_and_the_reason_and_takes_nothing() {
    let mut toft = Appliance::start();
    let (mut acknowledged, error) = write_from(&toft, 1, 5);
    assert!(error.is_none(), "{error:?}");
    for (file, calls, error, when, says) in [
        ("state.sqlite-wal", WRITE, "EIO", "3+", ["state.sqlite", "could not be written"]),
        ("state.sqlite-wal", WRITE, "EIO", "20", ["state.sqlite", "could not be written"]),
        ("raft.redb", WRITE, "EIO", "5+", ["the log's file failed", "Input/output error"]),
        ("raft.redb", FLUSH, "EIO", "7", ["the log's file failed", "Input/output error"]),
        ("raft.redb", FLUSH, "EROFS", "3+", ["the log's file failed", "Read-only file system"]),
    ] {
        let what = format!("{calls} of {file} fail with {error} at {when}");
        let before = toft.log().len();
        let tracer = Fault { file, calls, error, when }.on(&toft);
        let (last, refused) = write_from(&toft, acknowledged + 1, 500);
        acknowledged = last;
        match refused.unwrap_or_else(|| panic!("{what}: nothing failed")) {
            Ok(answer) => {
                let told = answer.refusal(500);
                let message = told["message"].as_str().unwrap();
                assert!(says.iter().all(|word| message.contains(word)), "{what}: {message}");
            }
            // It ended before it could answer.
            Err(error) => println!("{what}: {error}"),
        }
        let code = toft.ended();
        drop(tracer);
        assert_eq!(code, 1, "{what}");
        let log = toft.log().split_off(before);
        assert!(says.iter().all(|word| log.contains(word)), "{what}: {log}");
        assert_sound(&toft.data, &toft.machine.dir.join("copy"));
        toft.up();
        acknowledged = compare(&toft, acknowledged);
    }
    let (last, error) = write_from(&toft, acknowledged + 1, 5);
    assert!(error.is_none(), "{error:?}");
    compare(&toft, last);
}

#[test]
fn a_disk_that_is_full_for_a_while_is_waited_for() {
    let mut toft = Appliance::start();
    let (mut acknowledged, error) = write_from(&toft, 1, 5);
    assert!(error.is_none(), "{error:?}");
    for file in ["state.sqlite-wal", "raft.redb"] {
        let before = toft.log().len();
        let tracer = Fault { file, calls: WRITE, error: "ENOSPC", when: "4+" }.on(&toft);
        let (socket, enough) = (socket(&toft), AtomicBool::new(false));
        acknowledged = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut value = acknowledged;
                while !enough.load(Ordering::SeqCst) {
                    let answer = put(&socket, value + 1).unwrap();
                    // What is refused is written nowhere.
                    if answer.status != 507 {
                        value += 1;
                        assert_eq!(answer.good()["generation"], value);
                    }
                }
                value
            });
            let told = "no space is left on the disk that holds the state";
            wait_until("it says so", || toft.log()[before..].contains(told).then_some(()));
            let body = json!({"name": "other", "image": "toft/demo", "replicas": 0});
            assert_eq!(toft.post("/api/v1/workloads", &body).refusal(507)["code"], "disk_full");
            assert_eq!(toft.get("/api/v1/workloads/counter").status, 200, "reads go on");
            drop(tracer);
            let told = "there is space for the state again";
            wait_until("it goes on", || toft.log()[before..].contains(told).then_some(()));
            enough.store(true, Ordering::SeqCst);
            writing.join().unwrap()
        });
        assert_eq!(compare(&toft, acknowledged), acknowledged);
    }
    toft.kill();
    toft.up();
    assert_eq!(compare(&toft, acknowledged), acknowledged);
}

#[test]
fn a_start_on_a_disk_that_cannot_be_read_is_refused_and_changes_nothing() {
    let mut toft = Appliance::start();
    let (acknowledged, error) = write_from(&toft, 1, 5);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(toft.stop(), 0);
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&toft.data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        // Besides what SQLite keeps while it is open.
        names
            .retain(|name| !["toft.pid", "state.sqlite-wal", "state.sqlite-shm"].iter().any(|passing| name == passing));
        names.sort();
        names
    };
    let before = names();
    for (file, when) in [("state.sqlite", "1+"), ("state.sqlite", "2"), ("state.sqlite", "6+"), ("raft.redb", "3+")] {
        let fault = Fault { file, calls: READ, error: "EIO", when };
        let up = toft.up_command();
        let mut traced = toft.machine.command("strace");
        traced.args(fault.arguments(&toft.data)).arg("--").arg(up.get_program()).args(up.get_args());
        for (name, value) in up.get_envs() {
            match value {
                Some(value) => traced.env(name, value),
                None => traced.env_remove(name),
            };
        }
        let output = traced.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{file} {when}: {said}");
        assert!(
            said.contains(file) && said.to_lowercase().contains("i/o error") || said.contains("Input/output"),
            "{said}"
        );
        assert!(said.contains("hint:"), "{said}");
        assert_eq!(names(), before, "{file} {when}");
    }
    toft.up();
    assert_eq!(compare(&toft, acknowledged), acknowledged);
}
