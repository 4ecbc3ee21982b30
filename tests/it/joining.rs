//! Machines that join by one line, leave, and are removed.

use std::{fs, sync::Arc, time::Instant};

use serde_json::Value;

use crate::{
    cluster::status,
    harness::{
        appliance::{Appliance, Ran},
        machine::{Machine, wait_until},
    },
};

/// An appliance that is called so and listens for nobody yet. As a witness it starts fast and runs nothing.
pub fn lone(machine: &Arc<Machine>, name: &str, role: &str) -> Appliance {
    let toft = Appliance::prepare(machine, name);
    let text = format!("[node]\nname = \"{name}\"\n[cluster]\nrole = \"{role}\"\n");
    fs::write(toft.data.join("toft.toml"), text).unwrap();
    toft
}

/// A token, and where its cluster is reached.
pub struct Ticket {
    pub id: String,
    pub token: String,
    pub address: String,
}

pub fn ticket(toft: &Appliance, arguments: &str) -> Ticket {
    let made = toft.json(format!("token create --json {arguments}").trim());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Ticket { id: text(&made["id"]), token: text(&made["token"]), address: text(&made["addresses"][0]) }
}

pub fn join(toft: &Appliance, ticket: &Ticket) -> Ran {
    toft.toft(&["join", &ticket.address, "--token", &ticket.token])
}

fn names(nodes: &Value) -> Vec<&str> {
    nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect()
}

fn members(toft: &Appliance) -> Vec<String> {
    let seen = status(toft);
    let mut names: Vec<String> = names(&seen["members"]).into_iter().map(str::to_owned).collect();
    names.sort();
    names
}

fn running_on(toft: &Appliance) -> Vec<String> {
    let instances = toft.json("ps --json");
    let running = instances.as_array().unwrap().iter().filter(|instance| instance["state"] == "running");
    let mut nodes: Vec<String> = running.map(|instance| instance["node"].as_str().unwrap().to_owned()).collect();
    nodes.sort();
    nodes
}

#[test]
fn a_lone_appliance_joins_by_one_line_takes_work_and_leaves_again() {
    let machine = Machine::new();
    let (mut a, mut b) = (lone(&machine, "a", "server"), lone(&machine, "b", "server"));
    a.up();
    b.up();
    // A command line is shown that can be pasted.
    let shown = a.toft(&["token", "create", "--label", "rack=one", "--ttl", "1h"]);
    assert!(shown.err.contains("lets one machine join for 1h"), "{shown:?}");
    let line = shown.good();
    let line: Vec<&str> = line.trim().strip_prefix("sudo toft ").unwrap().split(' ').collect();
    let pid = b.pid();
    let began = Instant::now();
    let joined = b.toft(&[&line[..], &["--label", "disk=ssd"]].concat()).good();
    eprintln!("joined within {:?}:\n{joined}", began.elapsed());
    assert!(joined.starts_with("b is a member of the cluster now.\n"), "{joined}");
    assert!(joined.contains("disk=ssd, rack=one") && joined.contains("a at "), "{joined}");
    assert_eq!(b.pid(), pid, "whoever watches over it saw no end");

    let nodes = a.json("node ls --json");
    assert_eq!(names(&nodes), ["a", "b"]);
    assert_eq!(nodes[1]["labels"]["disk"], "ssd");
    assert_eq!(nodes[1]["labels"]["rack"], "one");
    let tokens = a.json("token list --json");
    assert_eq!((&tokens[0]["state"], &tokens[0]["used_by"][0]["node"]), (&"spent".into(), &"b".into()));
    assert!(!a.good("token list").contains(line[3]), "secrets are shown once");
    b.good("run -n web --replicas 4 toft/demo");
    wait_until("both run something", || (running_on(&a) == ["a", "a", "b", "b"]).then_some(()));

    // A restart needs no flags.
    b.kill();
    b.up();
    assert_eq!(members(&b), ["a", "b"]);
    let left = b.toft(&["leave", "--yes"]).good();
    assert!(left.contains("has left the cluster"), "{left}");
    assert_eq!(members(&a), ["a"]);
    assert_eq!(names(&a.json("node ls --json")), ["a"]);
    wait_until("all of it runs elsewhere", || (running_on(&a) == ["a", "a", "a", "a"]).then_some(()));
    assert_eq!(members(&b), ["b"]);
    assert_eq!(b.good("ls -q"), "");
    wait_until("its containers are gone", || (b.shims() == 0).then_some(()));
    assert!(!b.data.join("cluster/place.json").exists(), "nothing of the cluster is left");
    b.good("run -n own toft/demo");
    // And it can come back, but not with what it has.
    let ticket = ticket(&a, "");
    let refused = join(&b, &ticket).bad(1);
    assert!(refused.contains("1 workload of its own") && refused.contains("--discard"), "{refused}");
    b.toft(&["join", &ticket.address, "--token", &ticket.token, "--discard"]).good();
    assert_eq!(names(&a.json("node ls --json")), ["a", "b"]);
    assert!(names(&b.json("ls --json")) == ["web"], "its own is put aside");
}

#[test]
fn a_machine_at_rest_joins_and_a_dead_one_makes_room_for_its_successor() {
    let machine = Machine::new();
    let mut a = lone(&machine, "a", "witness");
    a.up();
    let pass = ticket(&a, "--uses 4 --role witness --label rack=one");
    // From standard input, so that it stands on no command line.
    let mut b = lone(&machine, "b", "witness");
    let file = machine.dir.join("token");
    fs::write(&file, &pass.token).unwrap();
    let told = b.own(&["join", &pass.address, "--token-file", file.to_str().unwrap()]).good();
    assert!(told.contains("Start it: sudo toft up --data-dir"), "{told}");
    b.up();
    wait_until("it is a member", || (members(&b) == ["a", "b"]).then_some(()));
    let mut c = lone(&machine, "c", "witness");
    c.up();
    join(&c, &pass).good();
    assert_eq!(members(&c), ["a", "b", "c"]);

    // The same name while it is there, and when it is not.
    let mut again = Appliance::prepare(&machine, "b2");
    fs::write(again.data.join("toft.toml"), "[node]\nname = \"b\"\n[cluster]\nrole = \"witness\"\n").unwrap();
    again.up();
    let refused = join(&again, &pass).bad(1);
    assert!(refused.contains("another node is called `b`, and answers"), "{refused}");
    b.kill();
    wait_until("it counts as gone", || {
        let ran = join(&again, &pass);
        (ran.code == 0).then_some(()).or_else(|| {
            assert!(ran.err.contains("and answers") || ran.err.contains("too many ask to join"), "{ran:?}");
            None
        })
    });
    assert_eq!(members(&a), ["a", "b", "c"]);
    // Who had the name is told when it comes back.
    b.launch();
    let told = wait_until("it knows that it was removed", || {
        let ran = b.toft(&["cluster", "status"]);
        ran.out.contains("was removed").then_some(ran)
    });
    assert!(told.out.contains("toft leave --force"), "{told:?}");
    assert!(b.log().contains("was removed from its cluster"));
    b.toft(&["leave", "--yes", "--force"]).good();
    assert_eq!(members(&b), ["b"]);
    assert_eq!(members(&a), ["a", "b", "c"], "the successor stays");
}

#[test]
fn nodes_are_removed_unless_that_costs_the_majority() {
    let machine = Machine::new();
    let mut nodes = ["a", "b", "c", "d"].map(|name| lone(&machine, name, "witness"));
    nodes.iter_mut().for_each(Appliance::up);
    let pass = ticket(&nodes[0], "--uses 3 --role witness");
    for node in &nodes[1..] {
        join(node, &pass).good();
    }
    let votes =
        |toft: &Appliance| status(toft)["members"].as_array().unwrap().iter().filter(|m| m["votes"] == true).count();
    wait_until("three vote", || (votes(&nodes[0]) == 3).then_some(()));
    let refused = nodes[0].toft(&["node", "rm", "nobody", "--yes"]).bad(1);
    assert!(refused.contains("there is no node `nobody`"), "{refused}");
    let refused = nodes[1].toft(&["node", "rm", "b", "--yes"]).bad(1);
    assert!(refused.contains("toft leave"), "{refused}");
    let [a, b, c, d] = &mut nodes;
    // One that is there goes: asked of a member that does not lead.
    b.good("node rm d --yes");
    wait_until("it is gone", || (members(a) == ["a", "b", "c"]).then_some(()));
    let told = wait_until("it hears of it", || {
        let ran = d.toft(&["cluster", "status"]);
        ran.out.contains("was removed").then_some(ran)
    });
    assert_eq!(told.code, 1);
    // One that is dead goes.
    c.kill();
    wait_until("it is silent", || {
        let ran = a.toft(&["node", "rm", "c", "--yes"]);
        (ran.code == 0).then_some(())
    });
    assert_eq!(members(a), ["a", "b"]);
    // Who leads may leave.
    a.toft(&["leave", "--yes"]).good();
    wait_until("the other goes on", || (status(b)["leader"] == "b" && members(b) == ["b"]).then_some(()));
    b.good("secret ls");
}

#[test]
fn who_leads_may_leave_as_soon_as_another_has_joined_but_not_before_it_came() {
    let machine = Machine::new();
    let (mut a, mut b) = (lone(&machine, "a", "witness"), lone(&machine, "b", "witness"));
    a.up();
    let pass = ticket(&a, "--role witness");
    let file = machine.dir.join("token");
    fs::write(&file, &pass.token).unwrap();
    b.own(&["join", &pass.address, "--token-file", file.to_str().unwrap()]).good();
    let refused = a.toft(&["leave", "--yes"]).bad(1);
    assert!(refused.contains("no other member answers") && refused.contains("of `b`, which was let in"), "{refused}");
    b.up();
    wait_until("it is a member", || (members(&b) == ["a", "b"]).then_some(()));
    a.toft(&["leave", "--yes"]).good();
    wait_until("the other goes on", || (status(&b)["leader"] == "b" && members(&b) == ["b"]).then_some(()));
    // The same in one breath.
    let pass = ticket(&b, "--role witness");
    join(&a, &pass).good();
    b.toft(&["leave", "--yes"]).good();
    wait_until("the first one goes on", || (status(&a)["leader"] == "a" && members(&a) == ["a"]).then_some(()));
}

/// The state of a node as another lists it.
fn listed(toft: &Appliance, node: &str) -> Option<Value> {
    toft.json("node ls --json").as_array()?.iter().find(|one| one["name"] == node).cloned()
}

#[test]
fn who_was_let_in_is_joining_until_it_has_told_what_it_is() {
    let machine = Machine::new();
    let (mut a, mut b) = (lone(&machine, "a", "server"), lone(&machine, "b", "server"));
    a.up();
    let pass = ticket(&a, "--label rack=one");
    // It is let in at rest: nothing runs there yet.
    let file = machine.dir.join("token");
    fs::write(&file, &pass.token).unwrap();
    b.own(&["join", &pass.address, "--token-file", file.to_str().unwrap()]).good();
    let seen = wait_until("it is listed", || listed(&a, "b"));
    assert_eq!(
        (&seen["state"], &seen["registered_at"], &seen["labels"]["rack"]),
        (&"joining".into(), &Value::Null, &"one".into())
    );
    assert!(seen["heard_since"].is_string(), "since when: {seen}");
    let text = a.good("node ls");
    let line = text.lines().find(|line| line.starts_with("b ")).unwrap();
    assert!(line.contains("joining") && line.contains(" - "), "{text}");
    let inspected = a.good("node inspect b");
    assert!(inspected.contains("joining for") && inspected.contains("rack=one"), "{inspected}");
    assert_eq!(a.get("/api/v1/nodes/b").good()["state"], "joining");
    let page = a.get("/").text();
    assert!(page.contains(">joining<") && page.contains("<h3>b</h3>"), "{page}");
    // It takes no work, and is no obstacle to any.
    a.good("run -n web --replicas 2 toft/demo");
    assert_eq!(running_on(&a), ["a", "a"]);
    let waits = a.toft(&["run", "-n", "there", "--node", "b", "--no-wait", "toft/demo"]);
    assert_eq!(waits.code, 0, "{waits:?}");
    let checks = a.own(&["doctor", "--json"]).out;
    let checks: Value = serde_json::from_str(&checks).unwrap();
    let versions = checks.as_array().unwrap().iter().find(|check| check["name"] == "versions");
    assert!(versions.is_none_or(|check| check["verdict"] == "ok"), "{versions:?}");

    b.up();
    wait_until("it is ready", || (listed(&a, "b")?["state"] == "ready").then_some(()));
    let seen = listed(&a, "b").unwrap();
    assert!(seen["registered_at"].is_string() && seen["inventory"]["cpus"].as_u64() > Some(0), "{seen}");
    wait_until("what waited for it runs there", || (running_on(&a) == ["a", "a", "b"]).then_some(()));
    // Once it is known it never joins again, whatever happens to it.
    b.kill();
    wait_until("it counts as lost", || (listed(&a, "b")?["state"] == "down").then_some(()));
    b.up();
    wait_until("it is back", || (listed(&a, "b")?["state"] == "ready").then_some(()));

    // One that never comes can be taken away.
    let mut c = lone(&machine, "c", "server");
    let pass = ticket(&a, "");
    fs::write(&file, &pass.token).unwrap();
    c.own(&["join", &pass.address, "--token-file", file.to_str().unwrap()]).good();
    wait_until("it is listed", || (listed(&a, "c")?["state"] == "joining").then_some(()));
    wait_until("it goes", || (a.toft(&["node", "rm", "c", "--yes"]).code == 0).then_some(()));
    assert!(listed(&a, "c").is_none());
    c.launch();
    wait_until("it hears of it", || c.log().contains("was removed from its cluster").then_some(()));
}
