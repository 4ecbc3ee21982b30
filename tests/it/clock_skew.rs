//! A node whose clock is five minutes off: it joins, works and leads, and everybody is told. The wall clock of one daemon is
//! another one by libfaketime; its steady clock is the machine's.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{
    appliance::Appliance,
    lan::Lan,
    machine::wait_until,
    outage::{instances, name, running_on},
};

/// The library that gives a program another clock.
fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let mut found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).filter(|path| path.exists());
    found.next().expect("libfaketime is installed, as tests/packages.txt says")
}

/// Lets a daemon that starts from now on have another clock.
fn set_clock(toft: &mut Appliance, off: &str) {
    let library = library().display().to_string();
    // A steady clock is steady whatever the wall clock says.
    let variables = [("LD_PRELOAD", library.as_str()), ("FAKETIME", off), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    toft.set_variables(&variables);
}

fn clock_of(nodes: &Value, node: &str) -> Option<i64> {
    nodes.as_array()?.iter().find(|one| one["name"] == node)?["clock_ahead_ms"].as_i64()
}

/// Everybody sees that `b` is off by so many seconds, and says so.
fn is_told(lan: &Lan, seconds: i64) {
    let near = |ms: i64| (ms - seconds * 1_000).abs() < 2_000;
    for asked in [0, 1] {
        wait_until("the clock is told", || {
            clock_of(&lan.nodes[asked].json("node ls --json"), "b").filter(|ms| near(*ms))
        });
    }
    let a = &lan.nodes[0];
    let words = [format!("{seconds:+}."), format!("{:+}.", seconds - seconds.signum())];
    let says = |text: &str| words.iter().any(|word| text.contains(word));
    let line = |text: String| text.lines().find(|line| line.starts_with("b ")).unwrap_or_default().to_owned();
    let (listed, shown) = (line(a.good("node ls")), line(a.good("mesh show")));
    assert!(says(&listed) && says(&shown), "{words:?}: {listed}\n{shown}");
    assert!(a.good("node inspect b").contains("set-ntp"));
    let ran = a.own(&["doctor", "--json"]);
    let checks: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    let clocks = checks.as_array().unwrap().iter().find(|check| check["name"] == "clocks").unwrap();
    assert_eq!(clocks["verdict"], "warning", "{clocks}");
    assert!(says(clocks["message"].as_str().unwrap()), "{clocks}");
}

/// What the cluster does every day, with `b` whose clock is off.
fn works(lan: &Lan, round: u32) {
    let (a, b) = (&lan.nodes[0], &lan.nodes[1]);
    // Each successor counts as one that works by the clock of its node.
    let began = Instant::now();
    b.good(&format!("update web -e ROUND={round}"));
    let took = began.elapsed();
    println!("an update of two took {took:?}");
    assert!(took < Duration::from_secs(40), "{took:?}");
    assert_eq!(a.get("/api/v1/workloads/web").good()["rollout"]["state"], json!("done"));
    assert_eq!(running_on(a, "web").unwrap(), ["a", "b"]);
    for asked in [a, b] {
        let told = asked.toft(&["logs", "web"]);
        assert_eq!(told.code, 0, "{told:?}");
        let nodes: Vec<Value> = asked.records("web", "").iter().map(|record| record["instance"].clone()).collect();
        assert!(nodes.iter().any(|one| *one != nodes[0]), "the output of one is missing: {nodes:?}");
    }
    assert!(a.toft(&["top", "only"]).good().lines().count() > 1);
}

#[test]
fn a_node_whose_clock_is_five_minutes_off_joins_works_leads_and_is_told() {
    let mut lan = Lan::prepare(&["server", "server", "witness", "witness"]);
    lan.nodes[0].up();
    set_clock(&mut lan.nodes[1], "+300s");
    let token = lan.nodes[0].good("token create -q --ttl 1m");
    lan.join(1, &token);
    wait_until("it hears the other's clock", || {
        clock_of(&lan.nodes[1].json("node ls --json"), "a").filter(|ms| ms.abs() > 1_000)
    });
    // A token of a minute, made by the one that is ahead.
    let token = lan.nodes[1].good("token create -q --ttl 1m --role witness");
    lan.join(2, &token);
    lan.until_voters(3);
    lan.until_ready(&[0, 1]);
    is_told(&lan, 300);
    lan.nodes[0].good("run -n web --replicas 2 toft/demo");
    lan.run_first_on(1, &[0, 1], "run -n only --exclusive toft/demo");
    let before = lan.nodes[0].instance("only");
    let leases = Instant::now();
    works(&lan, 1);

    // It leads: who is heard of, who may run what is exclusive.
    lan.nodes[0].kill();
    lan.until_written(1, "scale web=3 --no-wait");
    wait_until("it takes over", || (running_on(&lan.nodes[1], "web")? == vec![name(1); 3]).then_some(()));
    lan.nodes[0].up();
    lan.until_ready(&[0, 1]);
    lan.nodes[1].good("scale web=2");
    wait_until("two are left", || (instances(&lan.nodes[1], "web")?.len() == 2).then_some(()));

    // The same clock is behind after a restart.
    assert_eq!(lan.nodes[1].stop(), 0);
    set_clock(&mut lan.nodes[1], "-300s");
    lan.nodes[1].up();
    lan.until_ready(&[0, 1]);
    is_told(&lan, -300);
    // One on each, wherever they went meanwhile.
    lan.nodes[0].good("rm web");
    lan.nodes[0].good("run -n web --replicas 2 toft/demo");
    works(&lan, 2);
    // A token of a minute, made by the one that is behind.
    let token = lan.nodes[1].good("token create -q --ttl 1m --role witness");
    lan.join(3, &token);
    // Longer than any lease.
    thread::sleep(Duration::from_secs(15).saturating_sub(leases.elapsed()));
    let after = lan.nodes[0].instance("only");
    assert_eq!((&after["id"], &after["restarts"]), (&before["id"], &before["restarts"]), "{after}");
    assert_eq!(after["state"], "running");
    let events = lan.nodes[0].good("events -n 1000");
    let down: Vec<&str> = events.lines().filter(|line| line.contains("node/b") && line.contains("is down")).collect();
    assert!(down.is_empty(), "{down:#?}");
}
