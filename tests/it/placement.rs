//! Where work goes, on real appliances: what users say of nodes, who makes room, and a drain that misses no copy.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::{
    cluster::{join, prepare},
    harness::{
        appliance::Appliance,
        machine::{Machine, wait_until},
    },
};

fn patch(toft: &Appliance, path: &str, body: &Value) -> crate::harness::http::Answer {
    let json = [("content-type", "application/json")];
    toft.request("PATCH", path, &json, body.to_string().as_bytes())
}

fn explained(toft: &Appliance, name: &str) -> Value {
    toft.get(&format!("/api/v1/workloads/{name}/explain")).good()
}

#[test]
fn users_say_of_a_node_what_no_machine_knows() {
    let machine = Machine::new();
    let mut toft = prepare(&machine, "box", 7501);
    toft.up();
    toft.good("node label box zone=cellar disk=ssd");
    toft.good("node label box disk-");
    toft.good("node taint box gpu=only:NoSchedule desk:PreferNoSchedule");
    toft.good("node set box --price 0.35 --watts 250 --cpu-percent 200%");
    let node = toft.get("/api/v1/nodes/box").good();
    assert_eq!(node["labels"], json!({"zone": "cellar"}));
    assert_eq!(node["builtin_labels"]["toft/os"], "linux");
    assert_eq!(
        node["settings"],
        json!({
            "labels": {"zone": "cellar"}, "taints": ["desk:PreferNoSchedule", "gpu=only:NoSchedule"],
            "price_per_hour": 0.35, "watts": 250, "cpu_percent": 200
        })
    );
    let told = toft.good("node inspect box");
    for line in
        ["zone=cellar", "toft/arch=", "gpu=only:NoSchedule", "Price per hour      0.35", "CPU to reserve      200 %"]
    {
        assert!(told.contains(line), "{line} is not in\n{told}");
    }

    // A taint keeps off, a toleration does not care, and what waits is told why.
    let waits = toft.toft(&["run", "-n", "web", "toft/demo"]).bad(125);
    assert!(waits.contains("waits for a place: box: it has the taint `gpu=only:NoSchedule`"), "{waits}");
    let why = toft.good("explain web");
    let words = why.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains("taints: it has the taint `gpu=only:NoSchedule` -> toft node taint box gpu:NoSchedule-"),
        "{why}"
    );
    assert!(why.lines().all(|line| line.chars().count() <= 100), "{why}");
    toft.good("run -n near --toleration gpu --constraint node.labels.zone==CELLAR toft/demo");
    toft.good("node taint box gpu-");
    wait_until("it has a place", || (toft.get("/api/v1/workloads/web").good()["status"] == "running").then_some(()));
    assert_eq!(explained(&toft, "web")["instances"][0]["node"], "box");

    // A restart of the daemon registers anew, and takes nothing back.
    toft.stop();
    toft.up();
    assert_eq!(
        toft.get("/api/v1/nodes/box").good()["settings"],
        json!({
            "labels": {"zone": "cellar"}, "taints": ["desk:PreferNoSchedule"],
            "price_per_hour": 0.35, "watts": 250, "cpu_percent": 200
        })
    );
    toft.good("cluster set placement.policy=spread placement.weights.cost=50 placement.expression=-price");
    assert_eq!(toft.json("cluster get --json")["placement"]["weights"], json!({"cost": 50}));
    toft.good("cluster set placement.expression- placement.weights.cost-");
    assert_eq!(
        toft.get("/api/v1/placement").good(),
        json!({"policy": "spread", "cpu_percent": 100, "memory_percent": 100})
    );
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_field() {
    let toft = Appliance::start();
    let name = toft.get("/api/v1/nodes").good()["items"][0]["name"].as_str().unwrap().to_owned();
    let node = format!("/api/v1/nodes/{name}");
    let long = "x".repeat(300);
    let many: serde_json::Map<String, Value> = (0..65).map(|i| (format!("k{i}"), json!("v"))).collect();
    for (body, field) in [
        (json!({"labels": {"toft/arch": "x"}}), "labels"),
        (json!({"labels": {"a\u{0}b": "x"}}), "labels"),
        (json!({"labels": {"a": long}}), "labels"),
        (json!({"labels": many}), "labels"),
        (json!({"taints": ["gpu"]}), "taints[0]"),
        (json!({"taints": ["gpu:Never"]}), "taints[0]"),
        (json!({"availability": "asleep"}), "availability"),
        (json!({"price_per_hour": -1}), "price_per_hour"),
        (json!({"watts": 4_000_000_000u64}), "watts"),
        (json!({"cpu_percent": 0}), "cpu_percent"),
        (json!({"colour": "red"}), "colour"),
    ] {
        let error = patch(&toft, &node, &body).refusal(400);
        assert_eq!(error["field"], field, "{body}: {error}");
    }
    patch(&toft, "/api/v1/nodes/nowhere", &json!({})).refusal(404);
    for (body, field) in [
        (json!({"policy": "luck"}), "policy"),
        (json!({"weights": {"cost": 5_000}}), "weights.cost"),
        (json!({"weights": {"luck": 5}}), "weights"),
        (json!({"expression": "9**9**9**9"}), "expression"),
        (json!({"expression": "range(9999999)"}), "expression"),
        (json!({"expression": format!("{}1{}", "(".repeat(400), ")".repeat(400))}), "expression"),
    ] {
        let error = patch(&toft, "/api/v1/placement", &body).refusal(400);
        assert!(error["field"].as_str().unwrap().starts_with(field), "{body}: {error}");
    }
    for (placement, field) in [
        (json!({"constraints": ["node.role == manager"]}), "placement.constraints[0]"),
        (json!({"constraints": vec!["node.labels.a"; 65]}), "placement.constraints"),
        (json!({"affinities": ["node.labels.a == b weight 101"]}), "placement.affinities[0]"),
        (json!({"priority": 1_001}), "placement.priority"),
        (json!({"max_per_node": 0}), "placement.max_per_node"),
        (json!({"luck": 1}), "placement.luck"),
    ] {
        let spec = json!({"name": "web", "image": "toft/demo", "placement": placement});
        let error = toft.post("/api/v1/workloads", &spec).refusal(400);
        assert_eq!(error["field"], field, "{error}");
    }
    toft.get("/api/v1/workloads/none/explain").refusal(404);
    toft.get("/api/v1/nodes/none/remaining").refusal(404);
    assert_eq!(toft.get(&node).good()["settings"], json!({}), "nothing of it was taken");
}

#[test]
fn the_less_important_makes_room() {
    let machine = Machine::new();
    let mut toft = prepare(&machine, "box", 7501);
    toft.up();
    let cores = toft.get("/api/v1/nodes/box").good()["inventory"]["cpus"].as_u64().unwrap();
    let all = format!("--cpu-reservation {cores}");
    toft.good(&format!("run -n low --priority 10 {all} toft/demo"));
    toft.good(&format!("run -n top --priority 200 {all} --no-wait toft/demo"));
    wait_until("it has its place", || (toft.get("/api/v1/workloads/top").good()["status"] == "running").then_some(()));
    let low = toft.get("/api/v1/workloads/low").good();
    assert_eq!((&low["status"], low["instances"].as_array().unwrap().len()), (&json!("pending"), 0));
    let story = toft.good("events");
    assert!(story.contains("makes room for `top`, whose priority is 200; its own is 10"), "{story}");
    toft.good("rm top");
    wait_until("it is back", || (toft.get("/api/v1/workloads/low").good()["status"] == "running").then_some(()));
}

#[test]
fn a_drain_misses_no_copy_and_says_what_it_cannot_move() {
    let machine = Machine::new();
    let mut a = prepare(&machine, "a", 7501);
    a.up();
    let mut b = prepare(&machine, "b", 7502);
    join(&mut b, &a, 7501);
    a.good("run -n web --replicas 4 toft/demo");
    a.good("run -n db --node a -v data:/data toft/demo");
    let running = |toft: &Appliance| {
        let instances = toft.json("ps --json");
        let running = instances.as_array().unwrap().iter().filter(|one| one["state"] == "running").cloned();
        running.filter(|one| one["workload"] == "web").collect::<Vec<_>>()
    };
    wait_until("copies on both", || (running(&b).iter().filter(|one| one["node"] == "a").count() == 2).then_some(()));
    let (done, fewest) = (AtomicBool::new(false), std::sync::Mutex::new(usize::MAX));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let now = running(&b).len();
                let mut fewest = fewest.lock().unwrap();
                *fewest = (*fewest).min(now);
            }
        });
        let told = b.toft(&["node", "drain", "a"]);
        done.store(true, Ordering::Relaxed);
        let told = told.bad(1);
        assert!(
            told.contains("db-0: stuck: a: it is being drained; b: the specification names another node"),
            "{told}"
        );
    });
    assert_eq!(*fewest.lock().unwrap(), 4, "a copy was missing meanwhile");
    wait_until("all are on the other", || running(&b).iter().all(|one| one["node"] == "b").then_some(()));
    assert_eq!(b.json("inspect db")["status"], "running");
    b.good("rm db");
    b.good("node drain a --timeout 60s");
    let waits = b.toft(&["run", "-n", "late", "--node", "a", "toft/demo"]).bad(125);
    assert!(waits.contains("a: it is being drained"), "{waits}");
    b.good("node uncordon a");
    wait_until("it has its place", || (b.get("/api/v1/workloads/late").good()["status"] == "running").then_some(()));
}
