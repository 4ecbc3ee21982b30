//! containerd dies under running workloads.

use std::fs;

use serde_json::json;

use crate::harness::{
    appliance::Appliance,
    machine::{end, wait_until},
    prober::Prober,
};

/// Kills containerd and keeps it from coming back until the second function.
fn take_away(toft: &Appliance) -> String {
    let path = toft.data.join("containerd/config.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, "this is no configuration").unwrap();
    end(toft.containerd_pid());
    config
}

fn bring_back(toft: &Appliance, config: &str) {
    fs::write(toft.data.join("containerd/config.toml"), config).unwrap();
}

fn until_ready(toft: &Appliance, status: u16) -> String {
    wait_until(&format!("/ready tells {status}"), || {
        let answer = toft.get("/ready");
        (answer.status == status).then(|| answer.text())
    })
}

#[test]
fn workloads_go_on_while_containerd_is_away_and_the_appliance_says_so() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    let visits = Prober::start(&toft.machine, 18080);
    let config = take_away(&toft);
    let why = until_ready(&toft, 503);
    assert!(why.starts_with("not ready: the container runtime does not answer"), "{why}");
    assert_eq!(toft.get("/health").status, 200, "the process itself lives");
    assert_eq!(toft.json("ps --json")[0], before, "what is known is still told");
    let refused = toft.get("/api/v1/images").refusal(503);
    assert_eq!(refused["code"], "unavailable");
    assert!(refused["hint"].is_string());
    assert!(!toft.logs("web").is_empty(), "logs need no containerd");
    visits.some_more();
    bring_back(&toft, &config);
    until_ready(&toft, 200);
    assert_eq!(visits.end(), [""; 0], "every visit was answered");
    assert_eq!(toft.instance("web"), before);
    assert!(toft.get("/metrics").text().contains("toft_runtime_up 1"));
    toft.good("restart web");
}

#[test]
fn containerd_that_just_crashes_is_back_at_once() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    for _ in 0..3 {
        let pid = toft.containerd_pid();
        end(pid);
        wait_until("another containerd runs", || {
            let config = format!("--config {}/containerd/config.toml", toft.data.display());
            toft.machine.processes().into_iter().find(|(other, line)| *other != pid && line.contains(&config))
        });
        until_ready(&toft, 200);
    }
    assert_eq!(toft.instance("web"), before);
    toft.good("run -n other toft/demo");
    toft.good("rm web other");
}

#[test]
fn what_is_asked_for_meanwhile_is_done_afterwards() {
    let toft = Appliance::start();
    toft.good("run -n old toft/demo");
    toft.good("run -n going toft/demo");
    let config = take_away(&toft);
    until_ready(&toft, 503);
    let run = toft.follow(&["run", "-n", "late", "-p", "18080:8080", "toft/demo"]);
    let rm = toft.follow(&["rm", "going"]);
    let stop = toft.follow(&["stop", "old"]);
    wait_until("they are noted", || {
        let late = toft.get("/api/v1/workloads/late").status == 200;
        let going = toft.json("inspect going")["status"] == "removing";
        (late && going && toft.json("inspect old")["status"] == "stopping").then_some(())
    });
    bring_back(&toft, &config);
    assert_eq!(run.end(), (0, vec!["late".to_owned()]));
    assert_eq!(rm.end(), (0, vec!["going".to_owned()]));
    assert_eq!(stop.end(), (0, vec!["old".to_owned()]));
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "late-0");
    assert_eq!(toft.instance("old")["state"], "stopped");
    assert_eq!(toft.good("ls -q"), "late\nold\n");
}

#[test]
fn an_end_that_happened_while_containerd_was_away_is_noticed() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    toft.good("run -n once --restart no toft/demo");
    let (web, once) = (toft.instance("web"), toft.instance("once"));
    let config = take_away(&toft);
    until_ready(&toft, 503);
    for instance in [&web, &once] {
        end(instance["pid"].as_i64().unwrap() as i32);
    }
    bring_back(&toft, &config);
    let again = toft.instance_until("web", "runs again", |i| i["state"] == "running" && i["restarts"] == 1);
    assert_eq!(again["last_exit"]["code"], 137);
    assert_ne!(again["pid"], web["pid"]);
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
    let over = toft.instance_until("once", "is over", |instance| instance["state"] == "finished");
    assert_eq!((&over["restarts"], &over["last_exit"]["code"]), (&json!(0), &json!(137)));
}

#[test]
fn a_container_that_vanished_with_its_shim_is_started_again() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let config = take_away(&toft);
    until_ready(&toft, 503);
    toft.machine.kill_processes("containerd-shim");
    toft.machine.kill_containers(&toft.data);
    bring_back(&toft, &config);
    toft.instance_until("web", "runs again", |i| i["state"] == "running" && i["restarts"] == 1);
    let said = wait_until("it answers", || toft.machine.http(18080, "GET", "/json", &[]).ok()).good();
    assert_eq!(said["instance"], "web-0");
}
