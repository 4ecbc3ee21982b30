//! Three members on machines of their own, clients at all of them, and everything that can happen to a network or a
//! process: what the clients were told can be explained by one register that does one thing at a time.

mod checker;
mod clients;
mod histories;

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::Path,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use checker::{Operation, Register, is_linearizable, reduce};
use clients::{Client, Noted, register, spec};

use crate::harness::{
    SetAtTheEnd,
    dice::Dice,
    full,
    machine::wait_until,
    trio::{Trio, ask},
};

const CLIENTS: usize = 6;
const KEYS: usize = 4;
const INITIAL: Register = Register { generation: 1, value: 0 };
/// Longest wait for a member to be of use again.
const PATIENCE: Duration = Duration::from_secs(3);

/// What happens to the cluster.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    LeaderKilled,
    FollowerCut,
    LeaderCut,
    LeaderParted,
    LeaderPaused,
    PacketsLost,
}

const TROUBLES: [Trouble; 6] = [
    Trouble::LeaderKilled,
    Trouble::FollowerCut,
    Trouble::LeaderCut,
    Trouble::LeaderParted,
    Trouble::LeaderPaused,
    Trouble::PacketsLost,
];

impl Trouble {
    /// Lasts for `time` and is over at the end.
    fn happen(self, trio: &mut Trio, time: Duration) {
        let leader = trio.leader();
        let follower = (leader + 1) % 3;
        let last = || std::thread::sleep(time);
        match self {
            Self::LeaderKilled => {
                trio.nodes[leader].kill();
                last();
                trio.nodes[leader].up();
            }
            Self::FollowerCut | Self::LeaderCut => {
                let alone = if matches!(self, Self::LeaderCut) { leader } else { follower };
                trio.cut(alone);
                last();
                trio.mend(alone);
            }
            Self::LeaderParted => {
                trio.part(leader, follower);
                last();
                trio.join(leader, follower);
            }
            Self::LeaderPaused => {
                trio.pause(leader);
                last();
                trio.resume(leader);
            }
            Self::PacketsLost => {
                trio.lose(20);
                last();
                trio.lose_nothing();
            }
        }
    }
}

/// Workloads that are there, with value 0.
fn make(trio: &Trio, prefix: &str, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|i| format!("{prefix}-{i}")).collect();
    for name in &names {
        trio.nodes[0].post("/api/v1/workloads", &spec(name, 0)).good();
    }
    names
}

/// Histories of each workload.
fn sorted(keys: &[String], noted: impl IntoIterator<Item = Noted>) -> BTreeMap<String, Vec<Operation>> {
    let mut histories = BTreeMap::new();
    for (key, operation) in noted {
        histories.entry(keys[key].clone()).or_insert_with(Vec::new).push(operation);
    }
    histories
}

/// Fails with the operations that cannot be explained, and leaves the whole history in a file.
fn assert_linearizable(histories: &BTreeMap<String, Vec<Operation>>) {
    for (key, history) in histories {
        if is_linearizable(INITIAL, history) {
            continue;
        }
        let text = |operations: &[Operation]| {
            operations.iter().fold(String::new(), |mut text, operation| {
                writeln!(text, "{operation}").unwrap();
                text
            })
        };
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("history-{}-{key}.txt", std::process::id()));
        let mut whole = history.clone();
        whole.sort_unstable_by_key(|operation| operation.begin);
        std::fs::write(&file, text(&whole)).unwrap();
        let reduced = reduce(INITIAL, history);
        let newest = &reduced[reduced.len().saturating_sub(40)..];
        panic!("`{key}` is not linearizable; all of it is in {}:\n{}", file.display(), text(newest));
    }
}

/// Every member takes a change again.
fn assert_well(trio: &Trio) {
    for (i, socket) in trio.sockets().iter().enumerate() {
        wait_until(&format!("member {i} takes a change"), || {
            let name = format!("well-{i}");
            let (path, body) = (format!("/api/v1/workloads/{name}"), spec(&name, 0).to_string());
            ask(socket, PATIENCE, "PUT", &path, &[], &body).ok().filter(|answer| answer.status == 200)
        });
    }
}

#[test]
fn what_clients_are_told_is_linearizable_whatever_happens() {
    let mut dice = Dice::new();
    let mut trio = Trio::start();
    let rounds = if full() { 8 } else { 1 };
    for round in 0..rounds {
        for trouble in TROUBLES {
            // New ones each time: what was never answered weighs on the checker for as long as there are others.
            let keys = make(&trio, &format!("r{round}-{trouble:?}").to_lowercase(), KEYS);
            let stop = AtomicBool::new(false);
            let began = Instant::now();
            let noted = std::thread::scope(|scope| {
                let clients: Vec<_> = (0..CLIENTS)
                    .map(|number| {
                        let (sockets, dice, keys) = (trio.sockets(), dice.split(), keys.clone());
                        let client = Client { number, sockets, dice, keys, began, query: "" };
                        let stop = &stop;
                        scope.spawn(move || client.work(stop))
                    })
                    .collect();
                let end = SetAtTheEnd(&stop);
                let time = if full() { 2_500 + dice.below(5_000) } else { 2_500 + dice.below(1_000) };
                std::thread::sleep(Duration::from_millis(500));
                trouble.happen(&mut trio, Duration::from_millis(time));
                assert_well(&trio);
                std::thread::sleep(Duration::from_millis(500));
                drop(end);
                clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
            });
            let histories = sorted(&keys, noted);
            let count: usize = histories.values().map(Vec::len).sum();
            let open = histories.values().flatten().filter(|operation| operation.end.is_none()).count();
            let checking = Instant::now();
            assert_linearizable(&histories);
            println!(
                "{trouble:?}: {count} operations in {:.1?}, {open} never answered, checked in {:.1?}",
                checking - began,
                checking.elapsed()
            );
            // A machine that is busy with other tests does a few each second.
            assert!(count >= 20, "only {count} operations with {trouble:?}");
        }
    }
}

#[test]
fn reads_of_what_one_member_knows_are_found_out() {
    let mut dice = Dice::new();
    let trio = Trio::start();
    let keys = make(&trio, "register", 1);
    let began = Instant::now();
    let mut client = |query| {
        let (sockets, keys, dice) = (trio.sockets(), keys.clone(), dice.split());
        Client { number: 0, sockets, dice, keys, began, query }
    };
    let (mut honest, mut local) = (client(""), client("?consistency=local"));
    let leader = trio.leader();
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let at_first = wait_until("the register is everywhere", || {
        ask(&trio.sockets()[away], PATIENCE, "GET", "/api/v1/workloads/register-0?consistency=local", &[], "")
            .ok()
            .filter(|answer| answer.status == 200)
    });
    assert_eq!(register(&at_first), INITIAL);
    trio.cut(away);
    let mut history = vec![honest.write(0, other, 1, None).unwrap()];
    assert!(history[0].end.is_some(), "a majority takes changes");
    // Who is asked for the newest state says that it cannot tell.
    assert_eq!(honest.read(0, away), None);
    history.extend(honest.read(0, other));
    assert_eq!(history.len(), 2);
    assert!(is_linearizable(INITIAL, &history));
    history.extend(local.read(0, away));
    assert_eq!(history.len(), 3);
    assert!(!is_linearizable(INITIAL, &history), "{history:?}");
    trio.mend(away);
    let mut back = wait_until("who was away has it too", || honest.read(0, away));
    back.begin = history[2].begin;
    history[2] = back;
    assert!(is_linearizable(INITIAL, &history));
}
