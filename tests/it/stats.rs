//! `toft stats` and `toft top`: what containers use, on a real kernel.

use serde_json::Value;

use crate::harness::{appliance::Appliance, machine::wait_until};

fn of<'a>(stats: &'a Value, instance: &str) -> &'a Value {
    let instances = stats["instances"].as_array().unwrap();
    instances.iter().find(|used| used["instance"] == instance).unwrap_or_else(|| panic!("{instance}: {stats}"))
}

#[test]
fn what_is_used_is_what_the_processes_do() {
    let toft = Appliance::start();
    toft.import_busybox();
    toft.good("run -n idle --memory 64MiB busybox -- sleep 1000");
    // Memory that is touched, in a file system in memory: counted for the container that wrote it.
    let hold = "busybox dd if=/dev/zero of=/dev/shm/held bs=1M count=24 2>/dev/null; echo held; sleep 1000";
    toft.toft(&["run", "-n", "holder", "busybox", "--", "sh", "-c", hold]).good();
    toft.toft(&["run", "-n", "busy", "--replicas", "2", "busybox", "--", "sh", "-c", "while :; do :; done"]).good();
    wait_until("the memory is held", || (toft.logs("holder") == ["held"]).then_some(()));

    let stats = toft.json("stats --no-stream --json");
    assert_eq!(stats["instances"].as_array().unwrap().len(), 4, "{stats}");
    let number = |instance: &str, field: &str| {
        of(&stats, instance)[field].as_f64().unwrap_or_else(|| panic!("{instance} {field}: {stats}"))
    };
    assert!(number("busy-0", "cpu_percent") > 5.0 && number("busy-1", "cpu_percent") > 5.0, "{stats}");
    assert!(number("idle-0", "cpu_percent") < 5.0, "{stats}");
    assert!(number("busy-0", "cpu_ns") > number("idle-0", "cpu_ns"));
    let held = number("holder-0", "memory_bytes");
    assert!((24e6..64e6).contains(&held), "{stats}");
    assert!(number("idle-0", "memory_bytes") < 16e6, "{stats}");
    assert_eq!(number("idle-0", "memory_limit_bytes"), f64::from(64 << 20));
    assert!(number("busy-0", "memory_limit_bytes") > 256e6, "without a limit, that of the machine");
    assert_eq!((number("idle-0", "pids"), number("busy-0", "pids")), (1.0, 1.0));
    assert!(of(&stats, "idle-0").get("memory_pss_bytes").is_none(), "only when asked for");
    let pss = toft.json("stats --no-stream --json --pss idle");
    assert_eq!(pss["instances"].as_array().unwrap().len(), 1);
    let pss = of(&pss, "idle-0")["memory_pss_bytes"].as_u64().unwrap();
    assert!((10_000..8_000_000).contains(&pss), "{pss}");

    let table = toft.good("stats --no-stream holder idle");
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("INSTANCE   CPU %"), "{table}");
    assert!(lines.next().unwrap().starts_with("holder-0") && lines.next().unwrap().starts_with("idle-0"), "{table}");
    assert!(!table.contains('\u{1b}'), "no terminal, no colours");

    // The stream goes on, and follows what comes and goes.
    let follower = toft.follow(&["stats", "--json"]);
    let next = || serde_json::from_str::<Value>(&follower.line()).unwrap();
    assert_eq!(next()["instances"].as_array().unwrap().len(), 4);
    toft.good("stop idle");
    wait_until("the stopped one has left", || (next()["instances"].as_array().unwrap().len() == 3).then_some(()));
    drop(follower);

    for (line, words) in [("stats nobody", "there is no workload `nobody`"), ("top idle", "no instance of `idle` runs")]
    {
        let error = toft.toft(&line.split(' ').collect::<Vec<_>>()).bad(1);
        assert!(error.contains(words), "{line}: {error}");
    }
    assert_eq!(toft.get("/api/v1/stats?workloads=A,b").refusal(400)["field"], "workloads");
    assert_eq!(toft.get("/api/v1/stats?colour=red").refusal(400)["code"], "invalid");
    assert_eq!(toft.get("/api/v1/stats/stream?workloads=nobody").refusal(404)["code"], "not_found");
}

#[test]
fn traffic_is_counted_for_who_has_a_network_of_its_own() {
    let toft = Appliance::start();
    toft.import_busybox();
    let send = "while :; do busybox wget -T 1 -q -O - http://$0:1/ 2>/dev/null; busybox sleep 0.05; done";
    let gateway = toft.get("/api/v1/nodes").good()["items"][0]["inventory"]["subnet"].as_str().unwrap().to_owned();
    let gateway = gateway.replace(".0/24", ".1");
    toft.toft(&["run", "-n", "talks", "busybox", "--", "sh", "-c", send, &gateway]).good();
    toft.good("run -n hosted --network host busybox -- sleep 1000");
    wait_until("something was sent", || {
        let stats = toft.json("stats --no-stream --json");
        assert!(of(&stats, "hosted-0").get("sent_bytes").is_none(), "{stats}");
        of(&stats, "talks-0")["sent_bytes"].as_u64().filter(|sent| *sent > 100)
    });
}

#[test]
fn processes_are_told_with_what_they_are() {
    let toft = Appliance::start();
    toft.import_busybox();
    // The last word is the shell's name, which it takes from whoever starts it.
    let command = ["sh", "-c", "sleep 77 & sleep 1000; true", "\u{1b}[2Jevil"];
    toft.toft(&[&["run", "-n", "pair", "--replicas", "2", "-u", "web", "busybox", "--"], &command[..]].concat()).good();
    let top = wait_until("all processes are there", || {
        let top = toft.json("top --json pair-1");
        (top["pair-1"].as_array().unwrap().len() >= 3).then_some(top)
    });
    let processes = top["pair-1"].as_array().unwrap();
    let sleeps = processes.iter().find(|p| p["command"] == "sleep 77").unwrap_or_else(|| panic!("{top}"));
    assert_eq!((&sleeps["uid"], &sleeps["state"]), (&1000.into(), &"S".into()));
    assert!(processes.iter().any(|p| p["pid"] == sleeps["parent"]), "its parent is among them: {top}");
    let table = toft.good("top pair");
    assert!(table.starts_with("INSTANCE   UID"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("pair-0") && line.ends_with("sleep 77")), "{table}");
    assert!(!table.contains('\u{1b}'), "what a process calls itself commands no terminal: {table}");
    assert!(toft.toft(&["top", "nobody"]).bad(1).contains("there is no instance `nobody`"));
}
