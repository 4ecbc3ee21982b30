//! The daemon is killed again and again while many write: what was acknowledged is there, and nothing happened twice.

use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{
    appliance::Appliance,
    dice::Dice,
    full,
    http::{Answer, PATIENCE, exchange},
};

const WRITERS: usize = 4;

fn rounds() -> usize {
    if full() { 200 } else { 40 }
}

fn ask(socket: &Path, method: &str, path: &str, body: &Value) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, method, path, &[], body.to_string().as_bytes())
}

fn spec(name: &str, value: u64) -> Value {
    json!({"name": name, "image": "toft/demo", "replicas": 0, "env": {"VALUE": value.to_string()}})
}

/// Writes one workload over and over and makes others, and remembers what was answered.
struct Writer {
    name: String,
    /// The newest value that was acknowledged.
    value: u64,
    /// Generation that goes with it.
    generation: u64,
    /// A value that was sent but not answered.
    perhaps: Option<u64>,
    made: Vec<String>,
    made_perhaps: Option<String>,
}

impl Writer {
    fn new(number: usize) -> Self {
        let name = format!("writer-{number}");
        Self { name, value: 0, generation: 0, perhaps: None, made: Vec::new(), made_perhaps: None }
    }

    /// Writes until nobody answers any more.
    fn write(&mut self, socket: &Path) {
        loop {
            let value = self.value + 1;
            self.perhaps = Some(value);
            let path = format!("/api/v1/workloads/{}", self.name);
            let Ok(answer) = ask(socket, "PUT", &path, &spec(&self.name, value)) else { return };
            let written = answer.good();
            assert_eq!(written["spec"]["env"]["VALUE"], value.to_string());
            (self.value, self.generation, self.perhaps) = (value, self.generation + 1, None);
            assert_eq!(written["generation"], self.generation, "{} was written by nobody else", self.name);
            if value.is_multiple_of(8) {
                let name = format!("{}-made-{value}", self.name);
                self.made_perhaps = Some(name.clone());
                let Ok(answer) = ask(socket, "POST", "/api/v1/workloads", &spec(&name, value)) else { return };
                assert_eq!(answer.status, 201, "{}", answer.text());
                self.made.push(name);
                self.made_perhaps = None;
            }
        }
    }

    /// Compares what is there with what was answered, and learns what became of the write without an answer.
    fn compare(&mut self, toft: &Appliance) {
        let show = |name: &str| toft.get(&format!("/api/v1/workloads/{name}"));
        let now = show(&self.name);
        if now.status == 404 {
            assert_eq!(self.generation, 0, "{} is gone", self.name);
            self.perhaps = None;
            return;
        }
        let now = now.good();
        let found: u64 = now["spec"]["env"]["VALUE"].as_str().unwrap().parse().unwrap();
        if self.perhaps == Some(found) {
            (self.value, self.generation) = (found, self.generation + 1);
        }
        assert_eq!(found, self.value, "{}: the newest write that was acknowledged is not there", self.name);
        assert_eq!(now["generation"], self.generation, "{}: a write was applied twice or not at all", self.name);
        self.perhaps = None;
        if let Some(name) = self.made_perhaps.take()
            && show(&name).status == 200
        {
            self.made.push(name);
        }
        for name in self.made.iter().rev().take(20) {
            assert_eq!(show(name).good()["generation"], 1, "{name}");
        }
    }
}

/// Whether a database that a killed daemon left is sound, looked at in a copy.
pub fn assert_sound(data: &Path, copy: &Path) {
    fs::create_dir_all(copy).unwrap();
    for name in ["state.sqlite", "state.sqlite-wal"] {
        drop(fs::remove_file(copy.join(name)));
        if data.join(name).exists() {
            fs::copy(data.join(name), copy.join(name)).unwrap();
        }
    }
    let connection = Connection::open(copy.join("state.sqlite")).unwrap();
    let verdict: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

/// What a power cut may leave: the log, and the database as it was flushed last.
fn cut_the_power(data: &Path, flushed: &Path) {
    for name in ["state.sqlite-wal", "state.sqlite-shm"] {
        drop(fs::remove_file(data.join(name)));
    }
    fs::copy(flushed, data.join("state.sqlite")).unwrap();
}

fn write_and_kill(toft: &mut Appliance, writers: &mut [Writer], delay: Duration) {
    let socket: PathBuf = toft.data.join("toft.sock");
    std::thread::scope(|scope| {
        for writer in writers {
            let socket = &socket;
            scope.spawn(move || writer.write(socket));
        }
        std::thread::sleep(delay);
        toft.kill();
    });
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_loses_and_repeats_nothing() {
    let mut dice = Dice::new();
    let mut toft = Appliance::start();
    assert_eq!(toft.stop(), 0);
    let flushed = toft.machine.dir.join("flushed.sqlite");
    fs::copy(toft.data.join("state.sqlite"), &flushed).unwrap();
    toft.up();
    let mut writers: Vec<_> = (0..WRITERS).map(Writer::new).collect();
    let mut power_cuts = 0;
    for round in 0..rounds() {
        let before: u64 = writers.iter().map(|writer| writer.generation).sum();
        write_and_kill(&mut toft, &mut writers, Duration::from_millis(1 + dice.below(250)));
        assert_sound(&toft.data, &toft.machine.dir.join("copy"));
        if dice.below(4) == 0 {
            cut_the_power(&toft.data, &flushed);
            power_cuts += 1;
        }
        // Also while it starts, and has not applied all of its log.
        for _ in 0..dice.below(3) {
            toft.launch();
            std::thread::sleep(Duration::from_millis(dice.below(120)));
            toft.kill();
        }
        toft.up();
        for writer in &mut writers {
            writer.compare(&toft);
        }
        if round % 10 == 9 {
            // From now on a power cut goes back only this far.
            assert_eq!(toft.stop(), 0);
            fs::copy(toft.data.join("state.sqlite"), &flushed).unwrap();
            toft.up();
        }
        let after: u64 = writers.iter().map(|writer| writer.generation).sum();
        assert!(after >= before, "round {round}");
    }
    let writes: u64 = writers.iter().map(|writer| writer.generation).sum();
    assert!(writes > rounds() as u64, "only {writes} writes in {} rounds", rounds());
    assert!(power_cuts > 0);
    let mut all: Vec<String> = writers.iter().flat_map(|writer| writer.made.clone()).collect();
    all.extend(writers.iter().map(|writer| writer.name.clone()));
    all.sort();
    let mut listed: Vec<String> = toft.good("ls -q").lines().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(listed, all);
    let kept: Vec<_> = fs::read_dir(&toft.data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let damaged = kept.iter().any(|name| name.to_string_lossy().contains(".damaged-"));
    assert!(!damaged, "a kill was taken for damage: {kept:?}");
    println!("{writes} writes, {} workloads made, {power_cuts} power cuts", all.len());
}
