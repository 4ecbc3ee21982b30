//! The daemon goes and comes back; what it started goes on as if nothing had happened.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    appliance::Appliance,
    machine::{end, wait_until},
    prober::Prober,
};

/// Counts aloud for ever.
const COUNT: &str = "i=0; while :; do echo $i; i=$((i+1)); busybox sleep 0.02; done";

fn counting(toft: &Appliance) -> Value {
    toft.import_busybox();
    assert_eq!(toft.toft(&["run", "-n", "count", "busybox", "--", "sh", "-c", COUNT]).code, 0);
    toft.instance("count")
}

/// Waits until a few more lines are on disk.
fn more_lines(toft: &Appliance, instance: &Value) {
    let lines = || fs::read_to_string(toft.log_file(instance)).unwrap_or_default().lines().count();
    let before = lines();
    wait_until("lines are written", || (lines() > before + 5).then_some(()));
}

fn assert_uninterrupted(toft: &Appliance) {
    let lines = toft.logs("count");
    assert!(lines.len() > 10);
    assert!(lines.iter().enumerate().all(|(i, line)| *line == i.to_string()), "{lines:?}");
}

#[test]
fn a_crash_of_the_daemon_touches_no_container() {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let count = counting(&toft);
    let before = toft.json("ps --json");
    let visits = Prober::start(&toft.machine, 18080);
    for _ in 0..2 {
        let containerd = toft.containerd_pid();
        toft.kill();
        visits.some_more();
        more_lines(&toft, &count);
        toft.up();
        assert_eq!(toft.containerd_pid(), containerd, "containerd is adopted");
        toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
        visits.some_more();
    }
    assert_eq!(visits.end(), [""; 0], "every visit was answered");
    let after = toft.json("ps --json");
    for (before, after) in before.as_array().unwrap().iter().zip(after.as_array().unwrap()) {
        for field in ["name", "id", "pid", "state", "ports", "restarts", "address", "created_at"] {
            assert_eq!(before[field], after[field], "{field}");
        }
    }
    more_lines(&toft, &count);
    assert_uninterrupted(&toft);
    toft.good("rm web count");
}

#[test]
fn a_restart_of_the_daemon_touches_no_container_though_containerd_stops_too() {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let count = counting(&toft);
    let before = toft.instance("web");
    let visits = Prober::start(&toft.machine, 18080);
    for _ in 0..2 {
        let containerd = toft.containerd_pid();
        assert_eq!(toft.stop(), 0);
        assert!(!Path::new(&format!("/proc/{containerd}")).exists(), "the private containerd ends with it");
        for trace in ["toft.sock", "toft.pid", "toft.url"] {
            assert!(!toft.data.join(trace).exists(), "{trace}");
        }
        visits.some_more();
        more_lines(&toft, &count);
        toft.up();
        let after = toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
        assert_eq!((&after["pid"], &after["id"]), (&before["pid"], &before["id"]));
    }
    assert_eq!(visits.end(), [""; 0], "every visit was answered");
    more_lines(&toft, &count);
    assert_uninterrupted(&toft);
    assert_eq!(toft.instance("count")["pid"], count["pid"]);
}

#[test]
fn an_adopted_process_keeps_its_story() {
    let mut toft = Appliance::start();
    toft.good("run -n web toft/demo");
    end(toft.instance("web")["pid"].as_i64().unwrap() as i32);
    let before = toft.instance_until("web", "runs again", |i| i["state"] == "running" && i["restarts"] == 1);
    toft.kill();
    toft.up();
    let after = toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
    let time = |instance: &Value| -> jiff::Timestamp { instance["started_at"].as_str().unwrap().parse().unwrap() };
    // It is noted when the start begins, and told when it is done.
    let apart = time(&before).as_millisecond() - time(&after).as_millisecond();
    let since = jiff::Timestamp::now().as_millisecond() - time(&after).as_millisecond();
    assert!(apart >= 0 && apart < since, "{before} {after}");
    assert_eq!(after["last_exit"], before["last_exit"]);
}

#[test]
fn a_process_that_ended_while_the_daemon_was_away_is_noticed() {
    let mut toft = Appliance::start();
    toft.import_busybox();
    toft.good("run -n always -p 18080:8080 toft/demo");
    toft.good("run -n once --restart no toft/demo");
    let (always, once) = (toft.instance("always"), toft.instance("once"));
    toft.kill();
    for instance in [&always, &once] {
        end(instance["pid"].as_i64().unwrap() as i32);
    }
    toft.up();
    let again = toft.instance_until("always", "runs again", |i| i["state"] == "running" && i["restarts"] == 1);
    assert_eq!((&again["id"], &again["last_exit"]["code"]), (&always["id"], &json!(137)));
    assert_ne!(again["pid"], always["pid"]);
    wait_until("it answers", || toft.machine.http(18080, "GET", "/json", &[]).ok());
    let over = toft.instance_until("once", "is over", |instance| instance["state"] == "finished");
    assert_eq!((&over["restarts"], &over["last_exit"]["code"]), (&json!(0), &json!(137)));
}

/// Starts a workload, crashes after a pause, and sees it run all the same: for each pause one.
fn crash_after(toft: &mut Appliance, pauses_ms: &[u64]) {
    for (number, pause_ms) in pauses_ms.iter().enumerate() {
        let name = format!("w{number}");
        toft.good(&format!("run -n {name} --no-wait -p 8080 toft/demo"));
        std::thread::sleep(Duration::from_millis(*pause_ms));
        toft.kill();
        toft.up();
        let instance = toft.instance_until(&name, "runs", |instance| instance["state"] == "running");
        assert_eq!(instance["restarts"], 0, "a start that was cut short is no restart: {instance}");
        let port = instance["ports"][0]["host"].as_u64().unwrap() as u16;
        let said = wait_until("it answers", || toft.machine.http(port, "GET", "/json", &[]).ok()).good();
        assert_eq!(said["instance"], format!("{name}-0"));
    }
}

#[test]
fn orders_given_before_a_crash_are_carried_out_after_it() {
    let mut toft = Appliance::start();
    toft.good("run -n stopping toft/demo");
    toft.good("run -n removing toft/demo");
    crash_after(&mut toft, &[0, 500]);
    toft.good("stop --no-wait stopping");
    toft.good("rm --no-wait removing");
    toft.kill();
    toft.up();
    toft.instance_until("stopping", "is stopped", |instance| instance["state"] == "stopped");
    wait_until("it is gone", || (toft.get("/api/v1/workloads/removing").status == 404).then_some(()));
    wait_until("only what runs has a shim", || (toft.shims() == 2).then_some(()));
    toft.good("start stopping");
}

/// Now and then a shim of containerd 1.6 hangs for good when its creation is cut short.
#[test]
fn a_crash_in_the_middle_of_a_start_is_no_harm() {
    let mut toft = Appliance::start();
    let pauses: Vec<u64> = (4..100).step_by(4).chain([150, 300]).collect();
    crash_after(&mut toft, &pauses);
    wait_until("only what runs has a shim", || (toft.shims() == pauses.len()).then_some(()));
}
