//! A cluster is one computer: what runs on one node is used from any other.

use std::fs;

use serde_json::Value;

use crate::{
    exec::inside,
    harness::{appliance::Appliance, machine::wait_until, outage::all_ready, person::Person, trio::Trio},
};

/// Three servers, of which the last runs nothing; the others have an instance each of `web`, which counts.
fn with_web() -> Trio {
    let trio = Trio::of_servers();
    for toft in &trio.nodes {
        wait_until("every node is known", || all_ready(toft, 3));
    }
    let asked = &trio.nodes[2];
    for toft in &trio.nodes[..2] {
        toft.import_busybox();
    }
    asked.good("node cordon n2");
    let script = "i=0; while :; do echo line $i; i=$((i+1)); busybox sleep 0.2; done";
    let run = ["run", "-n", "web", "--replicas", "2", "--max-per-node", "1", "busybox", "--", "sh", "-c", script];
    asked.toft(&run).good();
    let mut nodes: Vec<Value> =
        asked.json("ps --json").as_array().unwrap().iter().map(|one| one["node"].clone()).collect();
    nodes.sort_by_key(ToString::to_string);
    assert_eq!(nodes, ["n0", "n1"]);
    trio
}

/// The instance of `web` on a node.
fn on(toft: &Appliance, node: &str) -> String {
    let all = toft.json("ps --json");
    let one = all.as_array().unwrap().iter().find(|one| one["node"] == node && one["state"] == "running");
    one.expect("one runs there")["name"].as_str().unwrap().to_owned()
}

#[test]
fn what_runs_on_one_node_is_used_from_any_other() {
    let mut trio = with_web();
    let asked = &trio.nodes[2];
    let [near, far] = ["n0", "n1"].map(|node| on(asked, node));
    for instance in [&near, &far] {
        let ran = asked.toft(&["exec", instance, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (7, "out\n", "err\n"));
        asked.toft(&["exec", instance, "--", "nosuchprogram"]).bad(127);
    }
    let (mut person, _) = Person::at(asked.client(&["exec", "-it", &far, "--", "sh"]), 31, 93);
    person.sees("#");
    person.types("busybox stty size\n");
    person.sees("31 93");
    person.resizes(40, 120);
    person
        .types("while [ \"$(busybox stty size)\" != '40 120' ]; do busybox sleep 0.1; done; echo re''sized; exit 5\n");
    person.sees("resized");
    assert_eq!(person.ends(), 5);
    // Who vanishes takes the process along.
    let follower = asked.follow(&["exec", &far, "--", "sh", "-c", "echo ready; sleep 1234; :"]);
    assert_eq!(follower.line(), "ready");
    drop(follower);
    wait_until("the process is gone", || inside(&trio.nodes[1], "sleep 1234").is_empty().then_some(()));

    // Files, both ways.
    let here = asked.machine.dir.join("here");
    fs::create_dir(&here).unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(here.join("up"), &bytes).unwrap();
    let [up, down] = ["up", "down"].map(|name| here.join(name).display().to_string());
    asked.toft(&["cp", &up, &format!("{far}:/tmp/there")]).good();
    asked.toft(&["cp", &format!("{far}:/tmp/there"), &down]).good();
    assert!(fs::read(&down).unwrap() == bytes, "a file came back as another");
    let refused = asked.toft(&["cp", &format!("{far}:/absent"), &down]).bad(1);
    assert!(refused.contains("/absent"), "{refused}");

    // What they use, their processes, their output by time.
    let stats = asked.json("stats --no-stream --json");
    let mut of: Vec<&str> =
        stats["instances"].as_array().unwrap().iter().map(|one| one["node"].as_str().unwrap()).collect();
    of.sort_unstable();
    assert_eq!(of, ["n0", "n1"], "{stats}");
    assert!(asked.toft(&["top", &far]).good().contains("echo line"));
    let records = asked.records("web", "?tail=5");
    let times: Vec<&str> = records.iter().map(|record| record["at"].as_str().unwrap()).collect();
    assert!(records.len() == 10 && times.is_sorted(), "{records:?}");
    for node in ["n0", "n1", "n2"] {
        assert!(asked.good(&format!("node inspect {node}")).contains("Booted"));
    }
    assert!(asked.good("image ls --node n1").contains("busybox"));
    assert!(!asked.good("image ls").contains("busybox"));
    asked.toft(&["image", "rm", "busybox", "--node", "n7"]).bad(1);

    // Two nodes' output at once, and one dies in the middle.
    let follower = asked.follow(&["logs", "-f", "web"]);
    let mut seen = [false; 2];
    while seen != [true, true] {
        let line = follower.line();
        seen[0] |= line.starts_with(&near);
        seen[1] |= line.starts_with(&far);
    }
    let (mut person, _) = Person::at(asked.client(&["exec", "-it", &far, "--", "sh"]), 24, 80);
    person.sees("#");
    trio.nodes[1].kill();
    person.sees("node `n1` went away");
    assert_eq!(person.ends(), 125);
    let after: Vec<String> = (0..20).map(|_| follower.line()).collect();
    assert!(after.iter().filter(|line| line.starts_with(&near)).count() > 5, "{after:?}");
    drop(follower);
    let told = trio.nodes[2].toft(&["stats", "--no-stream"]);
    assert!(told.out.contains(&near), "{told:?}");
    let told = trio.nodes[2].toft(&["logs", "-n", "3", "web"]);
    assert!(told.out.contains(&near), "{told:?}");
    // Until it counts as lost its instance is asked for, and what is missing is told.
    if told.code == 1 {
        assert!(told.err.contains("node `n1`"), "{told:?}");
    }
}

#[test]
fn how_the_nodes_reach_each_other_is_shown_and_measured() {
    let trio = Trio::of_servers();
    let asked = &trio.nodes[0];
    let path = |of: &Value, node: &str| -> Option<String> {
        let peer = of["peers"].as_array()?.iter().find(|peer| peer["node"] == node)?;
        Some(peer["path"].as_str()?.to_owned())
    };
    let shown = wait_until("both are reached and have told their clocks", || {
        let shown = asked.json("mesh show --json");
        let peers = shown["peers"].as_array()?;
        let told = |peer: &Value| {
            peer["path"] == "direct" && peer["clock_ahead_ms"].is_i64() && peer["handshake_age_ms"].is_u64()
        };
        (peers.len() == 2 && peers.iter().all(told)).then_some(shown)
    });
    assert_eq!(shown["node"], "n0");
    for peer in shown["peers"].as_array().unwrap() {
        assert!(peer["endpoint"].as_str().unwrap().starts_with("192.0.2."), "{peer}");
        assert!(
            peer["round_trip_us"].as_u64().unwrap() < 1_000_000 && peer["mtu"].as_u64().unwrap() >= 1_280,
            "{peer}"
        );
        assert!(peer["received_bytes"].as_u64().unwrap() > 0 && peer["handshake_age_ms"].is_u64(), "{peer}");
        assert!(peer["clock_ahead_ms"].as_i64().unwrap().abs() < 1_000, "one machine has one clock: {peer}");
        assert_eq!(peer["version"], shown["version"]);
    }
    assert_eq!(asked.json("mesh show --node n2 --json")["node"], "n2");
    let text = asked.good("mesh show");
    assert!(text.contains("direct") && !text.contains("CLOCK"), "{text}");
    assert!(!asked.good("node ls").contains("CLOCK"));
    asked.toft(&["mesh", "show", "--node", "n9"]).bad(1);
    asked.toft(&["mesh", "ping", "n9"]).bad(1);
    asked.toft(&["mesh", "ping", "-c", "0"]).bad(2);
    assert_eq!(asked.get("/api/v1/mesh/ping?packets=1000").status, 400);

    let pings = asked.json("mesh ping -c 3 --json");
    let loss = |pings: &Value, from: &str, to: &str| -> Option<u64> {
        let row = pings["rows"].as_array()?.iter().find(|row| row["from"] == from)?;
        row["to"].as_array()?.iter().find(|ping| ping["node"] == to)?["loss_percent"].as_u64()
    };
    for (from, to) in [("n0", "n1"), ("n0", "n2"), ("n1", "n0"), ("n1", "n2"), ("n2", "n0"), ("n2", "n1")] {
        assert_eq!(loss(&pings, from, to), Some(0), "{from} {to}: {pings}");
    }
    assert!(asked.good("mesh ping n1").lines().count() >= 3);

    // Two that cannot hear each other any more, and a third that hears both and carries for them.
    trio.part(1, 2);
    let seen = wait_until("the link is told to be relayed", || {
        let shown = asked.json("mesh show --node n1 --json");
        let peer = shown["peers"].as_array()?.iter().find(|peer| peer["node"] == "n2")?;
        (peer["path"] == "relayed" && peer["via"] == "n0").then_some(shown)
    });
    assert_eq!(path(&seen, "n0").as_deref(), Some("direct"));
    assert!(asked.good("mesh show --node n1").contains("relayed via n0"));
    wait_until("what is relayed arrives both ways", || {
        let ran = asked.toft(&["mesh", "ping", "-c", "2", "--json"]);
        (ran.code == 0).then_some(())
    });
    trio.join(1, 2);
    let mended = || (path(&asked.json("mesh show --node n1 --json"), "n2")? == "direct").then_some(());
    wait_until("the link is told to be mended", mended);

    // One that nobody hears.
    trio.cut(2);
    let seen = wait_until("the node is told to be out of reach", || {
        let shown = asked.json("mesh show --node n1 --json");
        (path(&shown, "n2")? == "none").then_some(shown)
    });
    assert_eq!(path(&seen, "n0").as_deref(), Some("direct"));
    let ran = asked.toft(&["mesh", "ping", "-c", "2", "--json"]);
    let pings: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(ran.code, 1, "something was lost");
    assert_eq!((loss(&pings, "n0", "n1"), loss(&pings, "n1", "n2")), (Some(0), Some(100)), "{pings}");
}
