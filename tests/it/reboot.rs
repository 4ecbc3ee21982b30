//! A reboot: nothing of what ran is left but the files, and everything that should run comes back.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{appliance::Appliance, machine::wait_until};

/// Ends everything at once and takes away what does not outlive the kernel.
pub fn power_cut(toft: &mut Appliance) {
    toft.kill();
    // containerd and shims first: nobody shall take note of the containers' end.
    toft.machine.kill_processes("containerd");
    toft.machine.kill_containers(&toft.data);
    toft.machine.kill_processes("/");
    toft.machine.unmount();
    toft.machine.remove_control_groups(&toft.data);
    toft.machine.run("nft", &["flush", "ruleset"]);
    let links = toft.machine.run("ip", &["-br", "link"]);
    for link in links.lines().filter_map(|line| line.split_whitespace().next()).filter(|link| link.starts_with("toft-"))
    {
        toft.machine.run("ip", &["link", "delete", link]);
    }
    fs::remove_dir_all(toft.data.join("containerd/state")).unwrap();
    let ids: Vec<_> = fs::read_dir(toft.data.join("logs")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    for namespace in fs::read_dir("/run/containerd/runc").into_iter().flatten().flatten() {
        ids.iter().for_each(|id| drop(fs::remove_dir_all(namespace.path().join(id))));
    }
}

/// Whether the process it tells of is there. After a reboot, the old one is told of until the node has looked.
fn alive(instance: &Value) -> bool {
    fs::read(format!("/proc/{}/cmdline", instance["pid"])).is_ok_and(|line| line.starts_with(b"/demo"))
}

/// Something that runs, something stopped, something finished.
fn three_kinds() -> (Appliance, Vec<Value>) {
    let toft = Appliance::start();
    toft.import_busybox();
    toft.good("run -n web -p 18080:8080 -p 8081:8080 toft/demo");
    toft.good("run -n idle toft/demo");
    toft.good("stop idle");
    let script = "echo done; exit 3";
    let job = json!({"name": "job", "kind": "job", "image": "busybox", "command": ["sh", "-c", script]});
    assert_eq!(toft.post("/api/v1/workloads", &job).status, 201);
    toft.instance_until("job", "is over", |instance| instance["state"] == "finished");
    toft.machine.visit(18080, "/before");
    let before = ["web", "idle", "job"].iter().map(|name| toft.instance(name)).collect();
    (toft, before)
}

fn assert_back(toft: &Appliance, before: &[Value]) {
    let runs = |instance: &Value| instance["state"] == "running" && alive(instance);
    let web = toft.instance_until("web", "runs", runs);
    for field in ["id", "ports", "address", "created_at"] {
        assert_eq!(web[field], before[0][field], "{field}");
    }
    for port in [18080, 8081] {
        let said = wait_until("it answers", || toft.machine.http(port, "GET", "/json", &[]).ok()).good();
        assert_eq!(said["instance"], "web-0");
    }
    assert_eq!(toft.instance("idle"), before[1], "what was stopped stays stopped");
    assert_eq!(toft.instance("job"), before[2], "what was finished stays finished");
    assert_eq!(toft.logs("job"), ["done"]);
    let lines = toft.logs("web");
    let position = |text: &str| lines.iter().position(|line| line.contains(text));
    assert!(position("GET /before") < position("GET /json"), "logs go on where they were: {lines:?}");
    assert!(position("GET /before").is_some(), "{lines:?}");
    assert_eq!(toft.shims(), 1, "only the one that should run does");
}

#[test]
fn everything_that_should_run_runs_again_after_a_power_cut() {
    let (mut toft, before) = three_kinds();
    for _ in 0..2 {
        power_cut(&mut toft);
        toft.up();
        assert_back(&toft, &before);
    }
    toft.good("start idle");
    assert_eq!(toft.instance("idle")["id"], before[1]["id"]);
    toft.good("rm web idle job");
}

#[test]
fn containers_are_made_anew_when_containerd_lost_everything() {
    let (mut toft, before) = three_kinds();
    power_cut(&mut toft);
    fs::remove_dir_all(toft.data.join("containerd")).unwrap();
    toft.up();
    assert_back(&toft, &before);
    assert_eq!(toft.json("image ls --json")[0]["name"], "toft/demo:latest", "the demo was brought along again");
    toft.good("start idle");
    assert_eq!(toft.instance("idle")["state"], "running");
    let error = toft.toft(&["start", "job"]);
    assert_eq!(error.code, 1, "its image is lost: {error:?}");
    assert!(error.err.contains("busybox") && error.err.contains("toft image import"), "{error:?}");
    toft.import_busybox();
    toft.instance_until("job", "is over", |instance| instance["state"] == "finished");
    assert_eq!(toft.logs("job"), ["done"; 2]);
}

#[test]
fn a_power_cut_in_the_middle_of_starts_loses_none_of_them() {
    let mut toft = Appliance::start();
    for name in ["a", "b", "c", "d"] {
        toft.good(&format!("run -n {name} --no-wait -p 8080 toft/demo"));
    }
    power_cut(&mut toft);
    toft.up();
    for name in ["a", "b", "c", "d"] {
        let instance = toft.instance_until(name, "runs", |i| i["state"] == "running" && alive(i));
        let port = instance["ports"][0]["host"].as_u64().unwrap() as u16;
        let said = wait_until("it answers", || toft.machine.http(port, "GET", "/json", &[]).ok()).good();
        assert_eq!(said["instance"], format!("{name}-0"));
    }
}
