//! Nodes that die, are restarted or are cut off, with real containers.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{appliance::Appliance, machine::wait_until, outage::all_ready, trio::Trio};

fn node(toft: &Appliance, name: &str) -> Value {
    toft.get(&format!("/api/v1/nodes/{name}?consistency=local")).good()
}

/// The instances of a workload as one node knows them: where, and in which state.
fn instances(toft: &Appliance, workload: &str) -> Vec<(String, String)> {
    let told = toft.get(&format!("/api/v1/workloads/{workload}?consistency=local")).good();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let instances = told["instances"].as_array().unwrap().iter();
    let mut instances: Vec<_> = instances.map(|one| (text(&one["node"]), text(&one["state"]))).collect();
    instances.sort();
    instances
}

fn pair(node: &str, state: &str) -> (String, String) {
    (node.to_owned(), state.to_owned())
}

/// Three servers, and one of them that does not lead, whose containers are those of `web`.
fn with_web(flags: &str) -> (Trio, usize, usize, usize) {
    let trio = Trio::of_servers();
    let leader = trio.leader();
    let (lost, other) = ((leader + 1) % 3, (leader + 2) % 3);
    for (i, toft) in trio.nodes.iter().enumerate() {
        wait_until("every node is known", || all_ready(toft, 3));
        assert_eq!(node(toft, &format!("n{i}"))["state"], "ready");
    }
    let [near, far] = [leader, other].map(|i| format!("n{i}"));
    let seen = &trio.nodes[leader];
    seen.good(&format!("node cordon {near}"));
    seen.good(&format!("node cordon {far}"));
    seen.good(&format!("run -n web {flags} toft/demo"));
    assert_eq!(instances(seen, "web"), [pair(&format!("n{lost}"), "running")]);
    seen.good(&format!("node uncordon {far}"));
    (trio, leader, lost, other)
}

#[test]
fn a_node_that_dies_is_down_soon_and_its_service_runs_elsewhere_until_it_returns() {
    let (mut trio, leader, lost, other) = with_web("--replicas 1");
    let (name, elsewhere) = (format!("n{lost}"), format!("n{other}"));
    trio.nodes[lost].kill();
    let killed = Instant::now();
    let seen = &trio.nodes[leader];
    wait_until("it is down", || (node(seen, &name)["state"] == "down").then_some(()));
    let down = killed.elapsed();
    wait_until("another runs", || instances(seen, "web").contains(&pair(&elsewhere, "running")).then_some(()));
    println!("down after {down:?}, running elsewhere after {:?}", killed.elapsed());
    assert!(down < Duration::from_secs(12), "{down:?}");
    let told = seen.good("node ls");
    assert!(told.lines().any(|line| line.starts_with(&name) && line.contains("down")), "{told}");
    let events = seen.good("events");
    assert!(events.contains(&format!("node/{name}")) && events.contains("is down"), "{events}");
    let waits = seen.toft(&["run", "-n", "pinned", "--node", &name, "--no-wait", "toft/demo"]);
    assert_eq!(waits.code, 0, "{}", waits.err);
    wait_until("it says why", || {
        seen.json("inspect pinned")["pending"].as_str()?.contains(&format!("{name}: it is down")).then_some(())
    });

    // Its container went on all the time. It hears that it was given to another, and lets it go.
    assert_eq!(trio.nodes[lost].shims(), 1);
    trio.nodes[lost].up();
    let seen = &trio.nodes[leader];
    wait_until("it is back", || (node(seen, &name)["state"] == "ready").then_some(()));
    wait_until("one is left", || (instances(seen, "web") == [pair(&elsewhere, "running")]).then_some(()));
    wait_until("what waited for it runs", || (instances(seen, "pinned") == [pair(&name, "running")]).then_some(()));
}

#[test]
fn a_restart_of_the_daemon_moves_nothing() {
    let (mut trio, leader, lost, _) = with_web("--replicas 1");
    let name = format!("n{lost}");
    let before = trio.nodes[leader].instance("web")["id"].clone();
    assert_eq!(trio.nodes[lost].stop(), 0);
    let seen = &trio.nodes[leader];
    wait_until("it said that it would be back", || (node(seen, &name)["state"] == "away").then_some(()));
    // Longer than a dead one is waited for.
    thread::sleep(Duration::from_secs(4));
    assert_eq!(
        (node(seen, &name)["state"].clone(), instances(seen, "web")),
        ("away".into(), vec![pair(&name, "running")])
    );
    trio.nodes[lost].up();
    let seen = &trio.nodes[leader];
    wait_until("it is back", || (node(seen, &name)["state"] == "ready").then_some(()));
    assert_eq!(seen.instance("web")["id"], before);
}

#[test]
fn what_is_exclusive_stops_on_a_node_that_is_cut_off_before_another_starts() {
    let (trio, leader, lost, other) = with_web("--exclusive");
    let (name, elsewhere) = (format!("n{lost}"), format!("n{other}"));
    let seen = &trio.nodes[leader];
    trio.cut(lost);
    let cut = Instant::now();
    let mut alone_until = None;
    wait_until("another runs", || {
        // The node that is cut off, by its own word.
        if alone_until.is_none() && trio.nodes[lost].shims() == 0 {
            alone_until = Some(cut.elapsed());
        }
        instances(seen, "web").contains(&pair(&elsewhere, "running")).then_some(())
    });
    let started = cut.elapsed();
    let stopped = alone_until.expect("it stopped before another started");
    println!("stopped after {stopped:?}, started elsewhere after {started:?}");
    assert!(stopped < started && started > Duration::from_secs(15), "{stopped:?}, {started:?}");
    trio.mend(lost);
    wait_until("it is back", || (node(seen, &name)["state"] == "ready").then_some(()));
    wait_until("one is left", || (instances(seen, "web") == [pair(&elsewhere, "running")]).then_some(()));
}

/// Whether the container behind a published port answers, asked from its own machine.
fn answers(toft: &Appliance, port: u16) -> bool {
    toft.machine.http(port, "GET", "/json", &[]).is_ok_and(|answer| answer.status == 200)
}

#[test]
fn what_is_exclusive_stops_on_a_node_that_is_cut_off_though_its_daemon_is_dead() {
    let (mut trio, leader, lost, other) = with_web("--exclusive -p 18080:8080");
    let (name, elsewhere) = (format!("n{lost}"), format!("n{other}"));
    wait_until("it answers", || answers(&trio.nodes[lost], 18_080).then_some(()));
    trio.cut(lost);
    let cut = Instant::now();
    trio.nodes[lost].kill();
    let seen = &trio.nodes[leader];
    let mut alone_until = None;
    wait_until("another runs", || {
        if alone_until.is_none() && !answers(&trio.nodes[lost], 18_080) {
            alone_until = Some(cut.elapsed());
        }
        instances(seen, "web").contains(&pair(&elsewhere, "running")).then_some(())
    });
    let started = cut.elapsed();
    let stopped = alone_until.expect("it stopped before another started");
    println!("stopped after {stopped:?}, started elsewhere after {started:?}");
    assert!(stopped < started && stopped > Duration::from_secs(7), "{stopped:?}, {started:?}");
    trio.mend(lost);
    trio.nodes[lost].up();
    let seen = &trio.nodes[leader];
    wait_until("it is back", || (node(seen, &name)["state"] == "ready").then_some(()));
    wait_until("one is left", || (instances(seen, "web") == [pair(&elsewhere, "running")]).then_some(()));
    wait_until("its container is gone", || (trio.nodes[lost].shims() == 0).then_some(()));
}

#[test]
fn what_is_exclusive_outlasts_a_daemon_that_said_it_would_be_back() {
    let (mut trio, leader, lost, _) = with_web("--exclusive -p 18080:8080");
    let name = format!("n{lost}");
    wait_until("it answers", || answers(&trio.nodes[lost], 18_080).then_some(()));
    let before = trio.nodes[leader].instance("web")["id"].clone();
    assert_eq!(trio.nodes[lost].stop(), 0);
    // Longer than a lease lasts.
    for _ in 0..20 {
        thread::sleep(Duration::from_secs(1));
        assert!(answers(&trio.nodes[lost], 18_080));
    }
    trio.nodes[lost].up();
    let seen = &trio.nodes[leader];
    wait_until("it is back", || (node(seen, &name)["state"] == "ready").then_some(()));
    assert_eq!((seen.instance("web")["id"].clone(), answers(&trio.nodes[lost], 18_080)), (before, true));
}

/// How long a fifth of all packets is lost.
fn lossy() -> Duration {
    let full = std::env::var_os("TOFT_TEST_FULL").is_some_and(|value| value == "1");
    Duration::from_secs(if full { 1_800 } else { 40 })
}

#[test]
fn nobody_counts_as_dead_because_packets_are_lost() {
    let trio = Trio::of_servers();
    for toft in &trio.nodes {
        wait_until("all are known", || all_ready(toft, 3));
    }
    // Until the mesh is there, too.
    for toft in &trio.nodes {
        wait_until("the others answer in the mesh", || {
            let gateways = [0, 1, 2].map(|i| node(&trio.nodes[0], &format!("n{i}"))["inventory"]["subnet"].clone());
            let reached = |subnet: &Value| {
                let place: SocketAddr = subnet.as_str()?.replace(".0/24", ".1:7444").parse().unwrap();
                let dial = move || TcpStream::connect_timeout(&place, Duration::from_secs(1)).is_ok();
                toft.machine.spawn(dial).join().unwrap().then_some(())
            };
            gateways.iter().all(|subnet| reached(subnet).is_some()).then_some(())
        });
    }
    trio.lose(20);
    thread::sleep(lossy());
    trio.lose_nothing();
    let seen = &trio.nodes[trio.leader()];
    wait_until("all are ready", || (0..3).all(|i| node(seen, &format!("n{i}"))["state"] == "ready").then_some(()));
    let events = seen.good("events -n 1000");
    let down: Vec<&str> = events.lines().filter(|line| line.contains("is down")).collect();
    assert!(down.is_empty(), "{down:#?}");
}
