//! A workload from its first start to its removal, by the command line.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
};

/// What the demo says of itself on a published port.
fn demo(toft: &Appliance, port: u64) -> Value {
    toft.machine.visit(port as u16, "/json").good()
}

fn host_port(instance: &Value) -> u64 {
    instance["ports"][0]["host"].as_u64().unwrap()
}

#[test]
fn the_demo_answers_on_its_published_port_and_says_where_it_runs() {
    let toft = Appliance::start();
    assert_eq!(toft.good("run -n web -p 18080:8080 toft/demo"), "web\n");
    let node = toft.json("node ls --json")[0]["name"].clone();
    let said = demo(&toft, 18080);
    assert_eq!((&said["node"], &said["instance"]), (&node, &Value::from("web-0")), "{said}");
    let page = toft.machine.visit(18080, "/");
    assert!(page.text().contains("web-0"), "{}", page.text());
    let told = |line: &String| line.contains("GET /json");
    wait_until("the visit is in the log", || toft.logs("web").iter().any(told).then_some(()));
}

#[test]
fn lists_and_inspect_show_what_runs_for_people_and_programs() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 -l tier=front toft/demo");
    let ls = toft.good("ls");
    let words = |text: &str, line: usize| -> Vec<String> {
        text.lines().nth(line).unwrap().split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(words(&ls, 0), ["NAME", "STATUS", "RUNNING", "IMAGE", "PORTS", "AGE"]);
    assert_eq!(words(&ls, 1)[..5], ["web", "running", "1/1", "toft/demo:latest", "18080->8080/tcp"]);
    let ps = toft.good("ps");
    assert_eq!(words(&ps, 0), ["INSTANCE", "STATE", "IMAGE", "NODE", "PORTS", "RESTARTS", "AGE"]);
    assert_eq!(words(&ps, 1)[..2], ["web-0", "running"]);
    assert!(!ls.contains('\x1b') && !ps.contains('\x1b'), "no colours without a terminal");
    assert_eq!((toft.good("ls -q").as_str(), toft.good("ps -q").as_str()), ("web\n", "web-0\n"));

    let listed = toft.json("ls --json");
    let inspected = toft.json("inspect web");
    assert_eq!(listed[0], inspected);
    assert_eq!(inspected["spec"]["labels"], json!({"tier": "front"}));
    assert_eq!((&inspected["status"], &inspected["running"]), (&json!("running"), &json!(1)));
    let instance = &toft.json("ps --json")[0];
    assert_eq!(*instance, inspected["instances"][0]);
    assert_eq!(instance["ports"], json!([{"host": 18080, "container": 8080, "protocol": "tcp"}]));
    assert_eq!((&instance["state"], &instance["restarts"]), (&json!("running"), &json!(0)));
    let command = std::fs::read(format!("/proc/{}/cmdline", instance["pid"])).unwrap();
    assert!(command.starts_with(b"/demo"), "{command:?}");
    let events = toft.json("events web --json");
    assert!(events.as_array().unwrap().iter().any(|event| event["subject"] == "instance/web-0"), "{events}");
    assert_eq!(toft.json("image ls --json")[0]["name"], "toft/demo:latest");
}

#[test]
fn stopping_keeps_the_container_and_starting_runs_it_again() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    assert_eq!(toft.good("stop web"), "web\n");
    let stopped = toft.instance("web");
    assert_eq!((&stopped["state"], &stopped["id"]), (&json!("stopped"), &before["id"]));
    assert!(stopped.get("pid").is_none() && stopped["last_exit"]["code"].is_number(), "{stopped}");
    assert!(toft.machine.http(18080, "GET", "/", &[]).is_err(), "a stopped workload must not answer");
    assert!(toft.good("ls").contains("stopped"));
    assert!(!toft.logs("web").is_empty(), "what it wrote is still there");
    assert_eq!(toft.good("stop web"), "web\n", "once more is no fault");

    assert_eq!(toft.good("start web"), "web\n");
    let started = toft.instance("web");
    assert_eq!((&started["state"], &started["id"]), (&json!("running"), &before["id"]));
    assert_ne!(started["pid"], before["pid"]);
    assert_eq!(demo(&toft, 18080)["instance"], "web-0");
}

#[test]
fn restarting_replaces_the_process_and_keeps_the_instance() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    assert_eq!(toft.good("restart web"), "web\n");
    let after = toft.instance("web");
    assert_eq!((&after["state"], &after["id"]), (&json!("running"), &before["id"]));
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(after["restarts"], 0, "a restart that somebody asked for is not counted");
    assert_eq!(demo(&toft, 18080)["instance"], "web-0");
}

#[test]
fn scaling_adds_and_removes_instances_each_with_a_port_of_its_own() {
    let toft = Appliance::start();
    toft.good("run -n web -p 8080 toft/demo");
    assert_eq!(toft.good("scale web=3"), "web\n");
    let instances = toft.json("ps --json");
    let ports: BTreeSet<u64> = instances.as_array().unwrap().iter().map(host_port).collect();
    assert_eq!(ports.len(), 3, "{instances}");
    let said: BTreeSet<String> = ports.iter().map(|port| demo(&toft, *port)["instance"].to_string()).collect();
    assert_eq!(said.len(), 3);
    assert_eq!(toft.good("scale web=1"), "web\n");
    assert_eq!(toft.good("ps -q"), "web-0\n");
    assert_eq!(demo(&toft, host_port(&toft.instance("web")))["instance"], "web-0");
    assert_eq!(toft.good("scale web=0"), "web\n");
    assert_eq!(toft.good("ps -q"), "");
    assert!(toft.good("ls").contains("0/0"));
    assert!(toft.toft(&["scale", "web"]).bad(2).contains("web=3"));
    assert!(toft.toft(&["scale", "nobody=2"]).bad(1).contains("there is no workload `nobody`"));
}

#[test]
fn removing_leaves_nothing_behind() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let instance = toft.instance("web");
    let id = instance["id"].as_str().unwrap().to_owned();
    assert!(toft.data.join("logs").join(&id).exists());
    assert_eq!(toft.good("rm web"), "web\n");
    assert_eq!((toft.good("ls -q"), toft.good("ps -q")), (String::new(), String::new()));
    assert!(!std::path::Path::new(&format!("/proc/{}", instance["pid"])).exists());
    assert!(!toft.data.join("instances").join(&id).exists());
    assert!(toft.data.join("logs").join(&id).join("gone").exists(), "what it wrote stays for a while");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&id), "its file system is still mounted");
    let groups = toft.machine.control_groups(&toft.data);
    assert!(groups.iter().all(|group| !group.join(&id).exists()), "its control group is still there");
    assert!(toft.machine.http(18080, "GET", "/", &[]).is_err());
    let error = toft.toft(&["rm", "web"]).bad(1);
    assert!(error.contains("there is no workload `web`") && error.contains("hint:"), "{error}");
    toft.good("run -n web -p 18080:8080 toft/demo");
    assert_eq!(demo(&toft, 18080)["instance"], "web-0", "name and port are free again");
}

#[test]
fn several_names_are_done_one_by_one_and_a_failure_does_not_stop_the_others() {
    let toft = Appliance::start();
    toft.good("run -n a toft/demo");
    toft.good("run -n b toft/demo");
    let ran = toft.toft(&["stop", "a", "nobody", "b"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, "a\nb\n"));
    assert!(ran.err.contains("nobody"), "{}", ran.err);
    assert_eq!(toft.good("rm a b"), "a\nb\n");
}

#[test]
fn a_name_that_is_taken_is_refused_with_the_next_step() {
    let toft = Appliance::start();
    toft.good("run -n web toft/demo");
    let error = toft.toft(&["run", "-n", "web", "toft/demo"]).bad(125);
    assert!(error.contains("`web`") && error.contains("field: name") && error.contains("hint:"), "{error}");
    assert_eq!(toft.json("inspect web")["generation"], 1, "the one that is there is as it was");
}

#[test]
fn runs_without_a_name_get_one_each() {
    let toft = Appliance::start();
    let (first, second) = (toft.good("run toft/demo"), toft.good("run toft/demo"));
    assert_ne!(first, second);
    assert!(first.starts_with("demo-") && second.starts_with("demo-"), "{first} {second}");
    assert_eq!(toft.good("ls -q").lines().count(), 2);
    let printed = toft.json("run --json toft/demo");
    assert_eq!(printed["status"], "running");
}

#[test]
fn a_service_that_cannot_start_says_so_and_starts_once_its_image_is_there() {
    let toft = Appliance::start();
    let error = toft.toft(&["run", "-n", "late", "busybox", "--", "sleep", "1000"]).bad(125);
    assert!(error.contains("busybox") && error.contains("toft image import"), "{error}");
    toft.instance_until("late", "backs off", |instance| instance["state"] == "back_off");
    toft.import_busybox();
    toft.instance_until("late", "runs", |instance| instance["state"] == "running");
}

#[test]
fn commands_tell_when_no_appliance_answers() {
    let toft = Appliance::prepare(&Machine::new(), "d");
    let error = toft.toft(&["ls"]).bad(1);
    assert!(error.contains("no toft answers on") && error.contains("hint: start it with"), "{error}");
    let mut command = toft.client(&["ls"]);
    command.env("TOFT_CONNECT", "unix:///nowhere/toft.sock");
    let ran = command.output().unwrap();
    assert!(!String::from_utf8_lossy(&ran.stderr).contains("/nowhere/"), "the flag beats the environment");
    assert_eq!(toft.toft(&["ls", "--colour"]).code, 2);
    assert_eq!(toft.toft(&["dance"]).code, 2);
}

#[test]
fn down_ends_everything_and_up_runs_what_should_run_again() {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    let down = toft.down();
    assert!(down.good().contains("1 container(s) were ended"));
    assert!(!std::path::Path::new(&format!("/proc/{}", before["pid"])).exists());
    assert!(toft.machine.processes().is_empty(), "{:?}", toft.machine.processes());
    assert!(!toft.machine.run("ip", &["-br", "link"]).contains("toft-"), "the bridge is gone");
    assert!(!toft.machine.run("nft", &["list", "tables"]).contains("toft_"), "the rules are gone");
    toft.up();
    wait_until("the demo answers", || toft.machine.http(18080, "GET", "/json", &[]).ok());
    let after = toft.instance("web");
    assert_eq!((&after["state"], &after["id"]), (&json!("running"), &before["id"]));
}
