//! Health checks of real containers: over HTTP and TCP from inside their networks, and with commands.

use serde_json::json;

use crate::harness::appliance::Appliance;

fn with_busybox() -> Appliance {
    let toft = Appliance::start();
    toft.import_busybox();
    toft
}

fn healthy(toft: &Appliance, workload: &str) {
    toft.instance_until(workload, "is healthy", |instance| instance["health"] == "healthy");
}

#[test]
fn every_kind_of_check_finds_out_whether_a_container_works() {
    let toft = with_busybox();
    let every = "--health-interval 1s --health-timeout 5s";
    toft.good(&format!("run -n web --health-http 8080/json {every} toft/demo"));
    // It listens on loopback only, and has no shell.
    toft.good(&format!("run -n alone --network none --health-tcp 8080 {every} toft/demo"));
    let check = ["--health-cmd", "test -e /tmp/ready", "--health-interval", "1s", "--health-retries", "1000"];
    let command = ["busybox", "--", "sh", "-c", "busybox sleep 4; echo >/tmp/ready; busybox sleep 1000"];
    toft.toft(&[&["run", "-n", "slow"], &check[..], &command].concat()).good();
    assert_eq!(toft.instance("slow")["health"], "starting");
    for workload in ["web", "alone", "slow"] {
        healthy(&toft, workload);
    }
    assert!(toft.good("ps").contains("(healthy)"));
    let spec = &toft.json("inspect web")["spec"]["health"];
    let test = json!({"http": {"port": 8080, "path": "/json"}});
    assert_eq!(*spec, json!({"test": test, "interval_ms": 1000, "timeout_ms": 5000, "retries": 3}));
}

#[test]
fn what_does_not_work_is_started_again_or_shown() {
    let toft = with_busybox();
    let check = ["--health-interval", "1s", "--health-retries", "2", "--stop-timeout", "0"];
    let run = |name: &str, flags: &[&str]| {
        toft.toft(&[&["run", "-n", name], &check[..], flags, &["busybox", "--", "sleep", "1000"]].concat()).good();
    };
    run("again", &["--health-tcp", "9"]);
    run("left", &["--health-cmd", "echo broken; exit 3", "--restart", "no"]);
    run("lost", &["--health-cmd", "busybox sleep 1000", "--health-timeout", "1s", "--restart", "no"]);
    toft.instance_until("again", "was restarted", |instance| instance["restarts"].as_u64() > Some(0));
    for workload in ["left", "lost"] {
        toft.instance_until(workload, "is unhealthy", |instance| instance["health"] == "unhealthy");
        assert_eq!(toft.instance(workload)["state"], "running");
    }
    assert!(toft.good("ls").contains("(1 unhealthy)"));
    assert!(toft.good("events again").contains("unhealthy; will be tried again"));
    for (flags, code) in [
        (&["--health-tcp", "0"][..], 125),
        (&["--health-tcp", "70000"], 2),
        (&["--health-http", "/health"], 2),
        (&["--health-http", "80", "--health-tcp", "80"], 2),
        (&["--health-interval", "5s"], 2),
        (&["--health-tcp", "80", "--health-retries", "0"], 125),
    ] {
        let ran = toft.toft(&[&["run", "-n", "bad"], flags, &["busybox"]].concat());
        assert_eq!(ran.code, code, "{flags:?}: {ran:?}");
    }
}
