//! Members of three are killed again and again, one, two or all at once, while many write through all of them: what was
//! acknowledged is there on all three, nothing happened twice, and all three states are the same.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rusqlite::{Connection, types::Value as Cell};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    crash_loop::assert_sound,
    harness::{
        SetAtTheEnd,
        dice::Dice,
        full,
        http::Answer,
        machine::wait_until,
        trio::{Trio, ask},
    },
};

const WRITERS: usize = 5;
/// Time after which a writer asks another member.
const PATIENCE: Duration = Duration::from_secs(2);
/// Wait before that.
const PAUSE: Duration = Duration::from_millis(20);

fn rounds() -> usize {
    if full() { 200 } else { 8 }
}

/// Writes one workload over and over. Each write has a key and is repeated, at any member, until it is acknowledged.
struct Writer {
    name: String,
    value: u64,
    /// Generation that goes with the newest value that was acknowledged.
    generation: u64,
    /// A value that was sent and not acknowledged, with its key.
    open: Option<(u64, String)>,
    repeated: u64,
    dice: Dice,
}

impl Writer {
    fn write(&mut self, sockets: &[PathBuf; 3], stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let fresh = self.open.is_none();
            let (value, key) = self.open.get_or_insert_with(|| (self.value + 1, Uuid::now_v7().to_string())).clone();
            let socket = &sockets[self.dice.below(3) as usize];
            let Some(answer) = self.put(socket, value, &key) else {
                std::thread::sleep(PAUSE);
                continue;
            };
            let written = answer.good();
            self.repeated += u64::from(!fresh);
            (self.value, self.generation, self.open) = (value, self.generation + 1, None);
            assert_eq!(self.told(&written), (self.value, self.generation), "{} was written by nobody else", self.name);
        }
    }

    fn put(&self, socket: &Path, value: u64, key: &str) -> Option<Answer> {
        let (path, headers) = (format!("/api/v1/workloads/{}", self.name), [("idempotency-key", key)]);
        let env = json!({"VALUE": value.to_string()});
        let body = json!({"name": self.name, "image": "toft/demo", "replicas": 0, "env": env}).to_string();
        let answer = ask(socket, PATIENCE, "PUT", &path, &headers, &body).ok()?;
        (answer.status < 500).then_some(answer)
    }

    fn told(&self, workload: &Value) -> (u64, u64) {
        let value = workload["spec"]["env"]["VALUE"].as_str().unwrap().parse().unwrap();
        (value, workload["generation"].as_u64().unwrap())
    }

    /// Compares what a member has with what was acknowledged.
    fn compare(&self, socket: &Path) {
        let path = format!("/api/v1/workloads/{}", self.name);
        let answer = wait_until("the newest state is told", || {
            ask(socket, PATIENCE, "GET", &path, &[], "").ok().filter(|answer| answer.status < 500)
        });
        if answer.status == 404 {
            assert_eq!(self.generation, 0, "{} is gone", self.name);
            return;
        }
        let found = self.told(&answer.good());
        let maybe = self.open.as_ref().map(|(value, _)| (*value, self.generation + 1));
        let acknowledged = (self.value, self.generation);
        assert!(found == acknowledged || Some(found) == maybe, "{}: {found:?}, not {acknowledged:?}", self.name);
    }
}

/// Kills some members at a random moment, perhaps again while they start, and brings them back.
fn kill_some(trio: &mut Trio, dice: &mut Dice) -> usize {
    let victims: Vec<usize> = match dice.below(8) {
        0 => vec![0, 1, 2],
        1 | 2 => {
            let spared = dice.below(3) as usize;
            (0..3).filter(|i| *i != spared).collect()
        }
        3 => vec![trio.leader()],
        _ => vec![dice.below(3) as usize],
    };
    std::thread::sleep(Duration::from_millis(1 + dice.below(500)));
    for i in &victims {
        trio.nodes[*i].kill();
    }
    for i in &victims {
        let node = &trio.nodes[*i];
        assert_sound(&node.data, &node.machine.dir.join("copy"));
    }
    std::thread::sleep(Duration::from_millis(dice.below(300)));
    for i in &victims {
        if dice.below(3) == 0 {
            trio.nodes[*i].launch();
            std::thread::sleep(Duration::from_millis(dice.below(150)));
            trio.nodes[*i].kill();
        }
    }
    for i in &victims {
        trio.nodes[*i].launch();
    }
    for i in &victims {
        let node = &trio.nodes[*i];
        wait_until("it is back", || node.try_request("GET", "/ready", &[], b"").ok().filter(|a| a.status == 200));
    }
    victims.len()
}

/// Every row of every table but the one that says how far the log was applied.
fn rows(state: &Path) -> Vec<(String, Vec<Vec<Cell>>)> {
    let connection = Connection::open(state).unwrap();
    let verdict: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let mut tables = connection.prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").unwrap();
    let tables: Vec<String> = tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert!(tables.len() > 4, "{tables:?}");
    let content = |table: String| {
        let mut all = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let width = all.column_count();
        let mut rows: Vec<Vec<Cell>> =
            all.query_map([], |row| (0..width).map(|i| row.get(i)).collect()).unwrap().map(Result::unwrap).collect();
        rows.sort_by_key(|row| format!("{row:?}"));
        (table, rows)
    };
    tables.into_iter().filter(|table| table != "cluster").map(content).collect()
}

#[test]
fn members_that_are_killed_at_any_moment_lose_and_repeat_nothing() {
    let mut dice = Dice::new();
    let mut trio = Trio::start();
    let sockets = trio.sockets();
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|i| Writer {
            name: format!("writer-{i}"),
            value: 0,
            generation: 0,
            open: None,
            repeated: 0,
            dice: dice.split(),
        })
        .collect();
    let mut kills = [0; 4];
    for _ in 0..rounds() {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in &mut writers {
                let (sockets, stop) = (&sockets, &stop);
                scope.spawn(move || writer.write(sockets, stop));
            }
            let _end = SetAtTheEnd(&stop);
            kills[kill_some(&mut trio, &mut dice)] += 1;
        });
        for writer in &writers {
            sockets.iter().for_each(|socket| writer.compare(socket));
        }
    }
    let writes: u64 = writers.iter().map(|writer| writer.generation).sum();
    let repeated: u64 = writers.iter().map(|writer| writer.repeated).sum();
    println!("{writes} writes, {repeated} of them repeated; {kills:?} rounds with so many killed");
    assert!(writes > 10 * rounds() as u64 && repeated > 0, "{writes} writes, {repeated} repeated");

    wait_until("all have applied the same", || {
        let applied: Vec<_> = (0..3).map(|i| trio.applied(i)).collect();
        applied.iter().all(|there| there.is_some() && *there == applied[0]).then_some(())
    });
    for node in &mut trio.nodes {
        assert_eq!(node.stop(), 0);
    }
    let states = [0, 1, 2].map(|i| rows(&trio.nodes[i].data.join("state.sqlite")));
    for state in &states[1..] {
        for (here, there) in states[0].iter().zip(state) {
            assert_eq!(here.0, there.0);
            assert!(here.1 == there.1, "`{}` differs: {} and {} rows", here.0, here.1.len(), there.1.len());
        }
    }
}
