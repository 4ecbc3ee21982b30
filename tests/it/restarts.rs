//! What follows the end of a process: the restart policy, the back-off, the counters.

use serde_json::{Value, json};

use crate::harness::{
    appliance::Appliance,
    machine::{end, wait_until},
};

fn with_busybox() -> Appliance {
    let toft = Appliance::start();
    toft.import_busybox();
    toft
}

fn run(toft: &Appliance, name: &str, restart: &str, script: &str) {
    let ran = toft.toft(&["run", "-n", name, "--no-wait", "--restart", restart, "busybox", "--", "sh", "-c", script]);
    ran.good();
}

#[test]
fn a_process_that_dies_is_started_again_on_the_same_port() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    end(before["pid"].as_i64().unwrap() as i32);
    let after = toft.instance_until("web", "runs again", |i| i["state"] == "running" && i["restarts"] == 1);
    assert_eq!((&after["id"], &after["last_exit"]["code"]), (&before["id"], &json!(137)));
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
    let metrics = toft.get("/metrics").text();
    assert!(metrics.contains("toft_instance_restarts_total 1"), "{metrics}");
    toft.good("restart web");
    assert_eq!(toft.instance("web")["restarts"], 0, "who restarts it begins to count anew");
}

#[test]
fn a_service_that_keeps_failing_is_started_ever_less_often_and_says_why() {
    let toft = with_busybox();
    run(&toft, "bad", "always", "echo once more; exit 3");
    let tried =
        toft.instance_until("bad", "was tried", |i| i["state"] == "back_off" && i["restarts"].as_u64() > Some(3));
    assert_eq!((&tried["reason"], &tried["last_exit"]["code"]), (&json!("exited with code 3"), &json!(3)));
    assert!(tried["retry_at"].is_string());
    assert!(toft.good("ps").contains("back_off (exited with code 3)"));
    let times: Vec<jiff::Timestamp> =
        toft.records("bad", "").iter().map(|record| record["at"].as_str().unwrap().parse().unwrap()).collect();
    for (i, pair) in times.windows(2).enumerate() {
        let gap = (pair[1] - pair[0]).get_milliseconds() + (pair[1] - pair[0]).get_seconds() * 1_000;
        assert!(gap >= 100 << i, "pause {i} was {gap} ms");
    }
    let error = toft.toft(&["restart", "bad"]);
    assert!(error.code == 0 || error.err.contains("exited with code 3"), "{error:?}");
    toft.good("stop bad");
    assert_eq!(toft.instance("bad")["state"], "stopped");
    assert_eq!(toft.json("inspect bad")["status"], "stopped");
}

#[test]
fn on_failure_gives_up_after_its_count() {
    let toft = with_busybox();
    run(&toft, "bad", "on-failure:2", "echo try; exit 3");
    let over = toft.instance_until("bad", "is over", |instance| instance["state"] == "finished");
    assert_eq!((&over["restarts"], &over["last_exit"]["code"]), (&json!(2), &json!(3)));
    assert_eq!(toft.logs("bad"), ["try"; 3]);
    assert_eq!(toft.json("inspect bad")["status"], "finished");
    run(&toft, "good", "on-failure", "echo done");
    let over = toft.instance_until("good", "is over", |instance| instance["state"] == "finished");
    assert_eq!((&over["restarts"], &over["last_exit"]["code"]), (&json!(0), &json!(0)));
    toft.good("start good");
    toft.instance_until("good", "ran again", |instance| instance["state"] == "finished");
    assert_eq!(toft.logs("good"), ["done"; 2], "who asks for it runs it again");
}

#[test]
fn what_finished_does_not_run_again_after_a_restart_of_the_daemon() {
    let mut toft = with_busybox();
    run(&toft, "never", "no", "echo never; exit 4");
    run(&toft, "given-up", "on-failure:1", "echo given-up; exit 5");
    let job = json!({"name": "job", "kind": "job", "image": "busybox", "command": ["echo", "job"]});
    assert_eq!(toft.post("/api/v1/workloads", &job).status, 201);
    let finished = |toft: &Appliance| -> Vec<Value> {
        ["never", "given-up", "job"]
            .iter()
            .map(|name| toft.instance_until(name, "is over", |instance| instance["state"] == "finished"))
            .collect()
    };
    let before = finished(&toft);
    for crash in [true, false] {
        if crash {
            toft.kill();
        } else {
            assert_eq!(toft.stop(), 0);
        }
        toft.up();
        // One that is started later than those would be shows that the agent went through all of them.
        toft.good("run -n after toft/demo");
        toft.good("rm after");
        assert_eq!(finished(&toft), before);
    }
    assert_eq!(before[0]["last_exit"]["code"], 4);
    assert_eq!((&before[1]["restarts"], &before[1]["last_exit"]["code"]), (&json!(1), &json!(5)));
    assert_eq!(toft.logs("never"), ["never"]);
    assert_eq!(toft.logs("given-up"), ["given-up"; 2]);
    assert_eq!(toft.logs("job"), ["job"]);
}

#[test]
fn restart_counters_survive_the_daemon() {
    let mut toft = Appliance::start();
    toft.good("run -n web toft/demo");
    for restarts in 1..=2 {
        let pid = toft.instance("web")["pid"].as_i64().unwrap();
        end(pid as i32);
        toft.instance_until("web", "runs again", |i| i["state"] == "running" && i["restarts"] == restarts);
    }
    toft.kill();
    toft.up();
    let adopted = toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
    assert_eq!(adopted["restarts"], 2);
    end(adopted["pid"].as_i64().unwrap() as i32);
    toft.instance_until("web", "runs again", |i| i["state"] == "running" && i["restarts"] == 3);
}

#[test]
fn a_job_with_several_copies_is_over_when_all_are() {
    let toft = with_busybox();
    let job = json!({"name": "job", "kind": "job", "image": "busybox", "replicas": 3,
        "command": ["sh", "-c", "echo $TOFT_INSTANCE; test $TOFT_INSTANCE != job-1"]});
    assert_eq!(toft.post("/api/v1/workloads", &job).status, 201);
    let ended = toft.get("/api/v1/workloads/job/wait?for=ended").good();
    assert_eq!((&ended["reached"], &ended["workload"]["status"]), (&json!(true), &json!("finished")));
    let codes: Vec<_> =
        ended["workload"]["instances"].as_array().unwrap().iter().map(|i| i["last_exit"]["code"].clone()).collect();
    assert_eq!(codes, [json!(0), json!(1), json!(0)]);
    let mut lines = toft.logs("job");
    lines.sort();
    assert_eq!(lines, ["job-0", "job-1", "job-2"]);
}

#[test]
fn a_start_starts_only_the_copies_that_are_down() {
    let toft = Appliance::start();
    toft.good("run -n web --replicas 2 --restart no toft/demo");
    let copies = || toft.get("/api/v1/workloads/web").good()["instances"].as_array().unwrap().clone();
    let before = copies();
    end(before[1]["pid"].as_i64().unwrap() as i32);
    wait_until("one is down", || (copies()[1]["state"] == "finished").then_some(()));
    toft.good("start web");
    let after = copies();
    assert_eq!((&after[0]["pid"], &after[0]["state"]), (&before[0]["pid"], &json!("running")));
    assert_eq!((&after[1]["id"], &after[1]["state"]), (&before[1]["id"], &json!("running")));
    assert_ne!(after[1]["pid"], before[1]["pid"]);
    toft.good("restart web");
    let restarted = copies();
    assert!(
        (0..2).all(|i| restarted[i]["pid"] != after[i]["pid"] && restarted[i]["state"] == "running"),
        "{restarted:?}"
    );
}
