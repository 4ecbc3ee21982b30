//! `toft dev`: a whole cluster on machines that are made up, in one process.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::dev::Dev;

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap()
}

#[test]
fn who_has_seen_enough_ends_a_command_without_a_word() {
    let dev = Dev::start(&[]);
    for args in [&["node", "ls"][..], &["node", "ls", "--json"], &["events"], &["completion", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = dev.command(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{args:?}");
        assert_eq!(ended.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn a_made_up_cluster_runs_workloads_on_all_its_nodes_and_leaves_nothing() {
    let mut dev = Dev::start(&["--nodes", "3"]);
    until("three nodes are ready", || {
        dev.json(&["node", "ls"]).iter().filter(|node| node["state"] == "ready").count() == 3
    });
    let cards = dev.json(&["gpu", "ls"]);
    assert!(cards.len() > 3, "{cards:?}");

    dev.toft(&["run", "-d", "-n", "web", "--replicas", "6", "example.org/web:1"]).expect("it is taken");
    dev.toft(&["run", "-d", "-n", "llm", "--gpus", "24GB..:1", "example.org/llm:1"]).expect("it is taken");
    let mut rows = Vec::new();
    until("all seven run", || {
        rows = dev.json(&["ps"]);
        rows.iter().filter(|row| row["state"] == "running").count() == 7
    });
    let mut nodes: Vec<&str> = rows.iter().map(|row| row["node"].as_str().unwrap()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    assert_eq!(nodes.len(), 3, "the copies are spread: {rows:?}");
    let held = dev
        .json(&["gpu", "ls"])
        .iter()
        .filter(|card| card["holders"].as_array().is_some_and(|holders| !holders.is_empty()))
        .count();
    assert_eq!(held, 1);

    // What is drained empties, and the rest is elsewhere.
    dev.toft(&["node", "drain", "node-2"]).expect("it drains");
    until("node-2 is empty and all seven run", || {
        let rows = dev.json(&["ps"]);
        rows.iter().all(|row| row["node"] != "node-2")
            && rows.iter().filter(|row| row["state"] == "running").count() == 7
    });

    dev.signal(Signal::SIGTERM);
    assert!(dev.process.wait().unwrap().success());
    assert!(!is_there(&dev.data), "the folder goes with the cluster");
}

/// How many of the nodes are in a state.
fn count(dev: &Dev, state: &str) -> usize {
    dev.json(&["node", "ls"]).iter().filter(|node| node["state"] == state).count()
}

/// The running instances of the machines whose names begin so.
fn running_on(dev: &Dev, prefix: &str) -> Vec<String> {
    let rows = dev.json(&["ps"]);
    let there = |row: &&Value| row["state"] == "running" && row["node"].as_str().unwrap().starts_with(prefix);
    let mut ids: Vec<String> = rows.iter().filter(there).map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

#[test]
fn many_that_fall_silent_together_keep_what_they_run_unless_they_stay_away() {
    let near = Dev::start(&["--nodes", "5", "--prefix", "near-"]);
    until("those that vote are ready", || count(&near, "ready") == 5);
    let token = near.send("POST", "/api/v1/tokens", &json!({"uses": 12})).json();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, token["token"].as_str().unwrap()).unwrap();
    let (address, file) = (token["addresses"][0].as_str().unwrap(), file.to_str().unwrap());
    let far = Dev::start(&["--nodes", "12", "--prefix", "far-", "--join", address, "--token-file", file]);
    until("all seventeen are ready", || count(&near, "ready") == 17);
    near.toft(&["run", "-d", "-n", "web", "--replicas", "34", "example.org/web:1"]).expect("it is taken");
    until("all run", || running_on(&near, "").len() == 34);
    let before = running_on(&near, "far-");
    assert!(before.len() >= 12, "{before:?}");

    // Three times as long as one that is silent alone is waited for.
    far.signal(Signal::SIGSTOP);
    until("twelve are silent", || count(&near, "unreachable") == 12);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((count(&near, "ready"), count(&near, "unreachable")), (5, 12));
    far.signal(Signal::SIGCONT);
    until("all are back", || count(&near, "ready") == 17);
    assert_eq!(running_on(&near, "far-"), before);

    far.signal(Signal::SIGKILL);
    until("they are lost", || count(&near, "down") == 12);
    until("everything runs on those that are left", || running_on(&near, "near-").len() == 34);
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), "precious").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_toft"));
    let ran = command.args(["dev", "--bind", "127.0.0.1:0", "--data-dir"]).arg(folder.path()).output().unwrap();
    assert!(!ran.status.success());
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(said.contains("is not empty") && said.contains("--data-dir"), "{said}");
    assert_eq!(std::fs::read_to_string(folder.path().join("mine")).unwrap(), "precious");
}
