//! Several appliances that share one state.

use std::{fs, sync::Arc, time::Instant};

use serde_json::{Value, json};

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
    trio::Trio,
};

/// A member-to-be: it has a name and an address for the others, and does not run yet.
pub fn prepare(machine: &Arc<Machine>, name: &str, port: u16) -> Appliance {
    let toft = Appliance::prepare(machine, name);
    // Several on one machine cannot have a mesh: each would lead the others' networks away.
    let text = format!("[node]\nname = \"{name}\"\n[mesh]\nenabled = false\n[cluster]\nbind = \"127.0.0.1:{port}\"\n");
    fs::write(toft.data.join("toft.toml"), text).unwrap();
    toft
}

pub fn join(toft: &mut Appliance, through: &Appliance, port: u16) {
    let token = toft.machine.dir.join("token");
    let witness = fs::read_to_string(toft.data.join("toft.toml")).unwrap().contains("witness");
    let role = if witness { "witness" } else { "server" };
    fs::write(&token, through.good(&format!("token create -q --role {role}"))).unwrap();
    toft.set_flags(&["--join", &format!("127.0.0.1:{port}"), "--token-file", token.to_str().unwrap()]);
    toft.up();
}

/// Members called a, b and c, of which `a` founded the cluster.
pub fn three(machine: &Arc<Machine>) -> [Appliance; 3] {
    let mut a = prepare(machine, "a", 7501);
    a.up();
    let mut b = prepare(machine, "b", 7502);
    join(&mut b, &a, 7501);
    let mut c = prepare(machine, "c", 7503);
    join(&mut c, &b, 7502);
    for toft in [&a, &b, &c] {
        wait_until("all three vote", || {
            (status(toft)["members"].as_array()?.iter().filter(|m| m["votes"] == true).count() == 3).then_some(())
        });
    }
    [a, b, c]
}

pub fn status(toft: &Appliance) -> Value {
    toft.json("cluster status --json")
}

fn names(toft: &Appliance) -> Vec<String> {
    let mut names: Vec<String> = toft.good("ls -q").lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn three_nodes_run_one_workload_and_go_on_without_their_leader() {
    let machine = Machine::new();
    let [mut a, b, c] = three(&machine);
    b.good("run -n web --replicas 6 toft/demo");
    let placed = |toft: &Appliance| {
        let instances = toft.json("ps --json");
        let running = instances.as_array().unwrap().iter().filter(|instance| instance["state"] == "running");
        let mut nodes: Vec<String> = running.map(|instance| instance["node"].as_str().unwrap().to_owned()).collect();
        nodes.sort();
        nodes
    };
    wait_until("six copies on three nodes", || (placed(&c) == ["a", "a", "b", "b", "c", "c"]).then_some(()));

    assert_eq!(status(&b)["leader"], "a");
    a.kill();
    let killed = Instant::now();
    b.good("scale web=7 --no-wait");
    assert!(killed.elapsed().as_secs() < 10, "{:?}", killed.elapsed());
    assert_ne!(status(&b)["leader"], "a");
    c.good("run -n later --no-wait toft/demo");
    a.set_flags(&[]);
    a.up();
    wait_until("who was away has it too", || (names(&a) == ["later", "web"]).then_some(()));
}

#[test]
fn a_witness_votes_and_runs_nothing() {
    let machine = Machine::new();
    let mut a = prepare(&machine, "a", 7501);
    a.up();
    let mut b = prepare(&machine, "b", 7502);
    join(&mut b, &a, 7501);
    let mut w = prepare(&machine, "w", 7503);
    let text = fs::read_to_string(w.data.join("toft.toml")).unwrap();
    fs::write(w.data.join("toft.toml"), text + "role = \"witness\"\n").unwrap();
    join(&mut w, &a, 7501);
    let votes =
        |toft: &Appliance| status(toft)["members"].as_array().unwrap().iter().filter(|m| m["votes"] == true).count();
    wait_until("all three vote", || (votes(&a) == 3).then_some(()));
    assert!(!w.data.join("containerd").exists(), "it needs no containerd");
    w.good("run -n web --replicas 4 toft/demo");
    let nodes = w.json("node ls --json");
    let nodes: Vec<&str> = nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["a", "b"]);
    let told = w.toft(&["image", "ls"]).bad(1);
    assert!(told.contains("witness"), "{told}");
    // Either server may go.
    a.kill();
    b.good("scale web=5 --no-wait");
    wait_until("the witness has it too", || (w.json("inspect web")["spec"]["replicas"] == 5).then_some(()));
}

#[test]
fn who_is_left_alone_tells_it_and_can_go_on_alone() {
    let machine = Machine::new();
    let [mut a, mut b, mut c] = three(&machine);
    c.good("run -n web toft/demo");
    a.stop();
    b.stop();
    wait_until("the lead is lost", || status(&c)["leader"].is_null().then_some(()));
    let told = c.toft(&["cluster", "status"]);
    let told = told.bad(1);
    assert!(told.is_empty() || told.contains("recover"), "{told}");
    assert_eq!(names(&c), ["web"], "what is known is still told");
    let refused = c.own(&["cluster", "recover", "--yes"]).bad(1);
    assert!(refused.contains("another toft"), "{refused}");

    c.stop();
    c.own(&["cluster", "recover", "--yes"]).good();
    c.set_flags(&[]);
    c.up();
    assert_eq!(names(&c), ["web"]);
    assert_eq!(status(&c)["members"].as_array().unwrap().len(), 1);
    c.good("run -n more --no-wait toft/demo");

    // Those left behind are of another cluster now, and say so instead of mixing in.
    a.set_flags(&[]);
    a.launch();
    wait_until("it answers", || a.try_request("GET", "/health", &[], b"").ok());
    assert_eq!(names(&a), ["web"]);
    wait_until("nobody leads there", || status(&a)["leader"].is_null().then_some(()));
    a.stop();

    // They join again, and are the nodes that they were.
    a.own(&["leave", "--yes", "--force"]).good();
    a.up();
    let token = c.good("token create -q");
    a.toft(&["join", "127.0.0.1:7503", "--token", token.trim()]).good();
    assert_eq!(status(&c)["members"].as_array().unwrap().len(), 2);
    wait_until("all is there", || (names(&a) == ["more", "web"]).then_some(()));
}

#[test]
fn without_a_majority_changes_are_refused_soon_and_what_is_known_is_told() {
    let mut trio = Trio::start();
    let spec = |name: &str| json!({"name": name, "image": "toft/demo", "replicas": 0});
    let written = trio.nodes[1].post("/api/v1/workloads", &spec("web"));
    assert_eq!(written.status, 201, "{}", written.text());
    let read = trio.nodes[2].get("/api/v1/workloads/web");
    assert_eq!(read.status, 200, "{}", read.text());
    assert!(read.header("toft-applied-index").unwrap().parse::<u64>().unwrap() > 0);

    for gone in [1, 2] {
        trio.nodes[gone].kill();
    }
    let left = &trio.nodes[0];
    wait_until("the lead is lost", || status(left)["leader"].is_null().then_some(()));
    let asked = Instant::now();
    let refused = left.post("/api/v1/workloads", &spec("never")).refusal(503);
    assert_eq!(refused["code"], "no_leader", "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("toft cluster status"), "{refused}");
    assert!(asked.elapsed().as_secs() < 15, "{:?}", asked.elapsed());
    let asked = Instant::now();
    for method in ["POST", "DELETE"] {
        let path = if method == "POST" { "/api/v1/workloads/web/stop" } else { "/api/v1/workloads/web" };
        assert_eq!(left.request(method, path, &[], b"").refusal(503)["code"], "no_leader");
    }
    for path in ["workloads", "workloads/web", "instances", "nodes", "events", "workloads/web/wait?for=settled"] {
        let refused = left.get(&format!("/api/v1/{path}")).refusal(503);
        assert_eq!(refused["code"], "no_leader", "{path}: {refused}");
        assert!(refused["hint"].as_str().unwrap().contains("?consistency=local"), "{refused}");
    }
    for path in ["workloads?consistency=local", "events?limit=5&consistency=local", "cluster", "backups"] {
        assert_eq!(left.get(&format!("/api/v1/{path}")).status, 200, "{path}");
    }
    assert!(asked.elapsed().as_secs() < 5, "nobody waits for what is known: {:?}", asked.elapsed());

    let warning = "toft: warning: the cluster has no leader; what follows may be old\n";
    for arguments in [&["ls", "-q"][..], &["ls", "--json"], &["inspect", "web"], &["events"]] {
        let ran = left.toft(arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, warning), "{ran:?}");
        assert!(ran.out.contains("web"), "{ran:?}");
    }
    let told = left.toft(&["stop", "web"]).bad(1);
    assert!(told.contains("no leader"), "{told}");

    trio.nodes[1].up();
    let trio = &trio;
    wait_until("changes are taken again", || {
        let answer = trio.nodes[0].post("/api/v1/workloads", &spec("later"));
        (answer.status == 201 || answer.status == 409).then_some(())
    });
    assert_eq!(names(&trio.nodes[1]), ["later", "web"], "what was refused has not happened");
}

#[test]
fn one_key_is_one_change_whichever_member_is_asked() {
    let trio = Trio::start();
    let key = ("Idempotency-Key", "01890a5d-ac96-774b-bcce-b302099a8057");
    let body = |value: &str| json!({"name": "web", "image": "toft/demo", "replicas": 0, "env": {"A": value}});
    for node in &trio.nodes {
        let created = node.request("POST", "/api/v1/workloads", &[key], body("b").to_string().as_bytes());
        assert_eq!((created.status, created.header("etag")), (201, Some("\"1\"")), "{}", created.text());
    }
    let other = trio.nodes[1].request("POST", "/api/v1/workloads", &[key], body("c").to_string().as_bytes());
    let refused = other.refusal(409);
    assert_eq!(refused["field"], "Idempotency-Key", "{refused}");
    let put = trio.nodes[2].put("/api/v1/workloads/web", &[], &body("d"));
    assert_eq!(put.header("etag"), Some("\"2\""));
    let again = trio.nodes[0].request("POST", "/api/v1/workloads", &[key], body("b").to_string().as_bytes());
    assert_eq!((again.status, again.header("etag")), (201, Some("\"2\"")), "what is there now is told");
    let key = ("Idempotency-Key", "01890a5d-ac96-774b-bcce-b302099a8058");
    for node in &trio.nodes {
        assert_eq!(node.request("DELETE", "/api/v1/workloads/web", &[key], b"").status, 202);
    }
    trio.nodes[0].request("DELETE", "/api/v1/workloads/web", &[], b"").refusal(404);
}
