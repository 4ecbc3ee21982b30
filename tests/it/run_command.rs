//! `toft run`: in the foreground it behaves as `docker run` does, and what it asks for reaches the container.

use std::{fs, path::Path};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{appliance::Appliance, machine::wait_until};

fn with_busybox() -> Appliance {
    let toft = Appliance::start();
    toft.import_busybox();
    toft
}

#[test]
fn a_command_in_the_foreground_passes_on_its_output_and_exit_code() {
    let toft = with_busybox();
    let ran = toft.toft(&["run", "--rm", "busybox", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (7, "out\n", "err\n"));
    assert_eq!(toft.good("ls -q"), "", "it is removed afterwards");
    assert_eq!(toft.good("run --rm busybox -- true"), "");
    let many = toft.good("run --rm busybox -- busybox seq 20000");
    assert!(many.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=20_000), "no line may be lost");
}

#[test]
fn a_command_that_cannot_be_executed_gives_the_codes_of_a_shell_and_says_why() {
    let toft = with_busybox();
    for (program, code, why) in [
        ("/no/such/program", 127, "not in the image"),
        ("nosuchprogram", 127, "not in the image"),
        ("/etc/noexec", 126, "not executable"),
        ("/etc", 126, "not executable"),
    ] {
        let ran = toft.toft(&["run", "--rm", "busybox", "--", program]);
        assert_eq!(ran.out, "");
        let error = ran.bad(code);
        let line = format!("error: the command `{program}` is {why}\n");
        assert!(error.ends_with(&line), "{program}: {error}");
    }
    let own = toft.toft(&["run", "--rm", "busybox", "--", "sh", "-c", "exit 127"]);
    assert_eq!((own.code, own.err.as_str()), (127, ""), "a program's own code needs no word");
    let error = toft.toft(&["run", "--rm", "nosuchimage"]).bad(125);
    assert!(error.contains("nosuchimage") && error.contains("hint:"), "{error}");
    assert_eq!(toft.good("ls -q"), "", "nothing of them is left");
}

#[test]
fn usage_errors_are_told_apart_from_failures() {
    let toft = with_busybox();
    for arguments in [
        &["run"][..],
        &["run", "-p", "70000:1", "busybox"],
        &["run", "-p", "80/sctp", "busybox"],
        &["run", "--memory", "much", "busybox"],
        &["run", "--cpu", "-1", "busybox"],
        &["run", "-n", "Bad_Name", "busybox"],
        &["run", "--restart", "sometimes", "busybox"],
        &["run", "BAD IMAGE"],
        &["run", "-e", "=x", "busybox"],
        &["run", "--rm", "--json", "busybox"],
    ] {
        let ran = toft.toft(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
        assert!(ran.err.starts_with("error:"), "{arguments:?}: {ran:?}");
    }
    assert_eq!(toft.good("ls -q"), "");
}

#[test]
fn an_interrupted_command_is_ended_and_removed() {
    let toft = with_busybox();
    let script = "trap 'exit 0' TERM; echo ready; while :; do busybox sleep 0.1; done";
    let follower = toft.follow(&["run", "--rm", "-n", "once", "busybox", "--", "sh", "-c", script]);
    assert_eq!(follower.line(), "ready");
    follower.signal(Signal::SIGINT);
    assert_eq!(follower.end().0, 130);
    assert_eq!(toft.good("ls -q"), "");
}

#[test]
fn environment_hostname_and_entrypoint_reach_the_process() {
    let toft = with_busybox();
    let mut command =
        toft.client(&["run", "--rm", "-n", "job", "-e", "MODE=fast car", "-e", "FROM_SHELL", "-e", "UNSET"]);
    let ran = command.args(["busybox", "--", "env"]).env("FROM_SHELL", "yes").output().unwrap();
    let out = String::from_utf8(ran.stdout).unwrap();
    let has = |line: &str| out.lines().any(|other| other == line);
    assert!(has("MODE=fast car") && has("FROM_SHELL=yes") && !out.contains("UNSET"), "{out}");
    assert!(has("TOFT_WORKLOAD=job") && has("TOFT_INSTANCE=job-0") && has("HOSTNAME=job-0"), "{out}");
    let said = toft.good("run --rm -n job --entrypoint echo busybox -- a b");
    assert_eq!(said, "a b\n");
    let hosts = toft.good("run --rm -n job busybox -- cat /etc/hosts");
    assert!(hosts.contains("\tjob-0\n"), "{hosts}");
}

#[test]
fn limits_are_those_of_the_control_group() {
    let toft = Appliance::start();
    toft.good("run -n web --cpu 0.5 --memory 64MiB toft/demo");
    let id = toft.instance("web")["id"].as_str().unwrap().to_owned();
    let groups: Vec<_> = toft.machine.control_groups(&toft.data).into_iter().map(|group| group.join(&id)).collect();
    let value = |names: &[&str]| -> Option<String> {
        let found =
            groups.iter().flat_map(|group| names.iter().map(|name| group.join(name))).find(|path| path.exists());
        Some(fs::read_to_string(found?).unwrap().trim().to_owned())
    };
    assert_eq!(value(&["memory.max", "memory.limit_in_bytes"]).as_deref(), Some("67108864"));
    let quota = value(&["cpu.max"]).or_else(|| Some(format!("{} 100000", value(&["cpu.cfs_quota_us"])?)));
    assert_eq!(quota.as_deref(), Some("50000 100000"));
    assert_eq!(toft.json("inspect web")["spec"]["resources"], json!({"cpu_millis": 500, "memory_bytes": 67108864}));
}

#[test]
fn a_process_that_takes_too_much_memory_is_killed_and_its_code_says_so() {
    let toft = with_busybox();
    let ran = toft.toft(&[
        "run",
        "--rm",
        "--memory",
        "8MiB",
        "busybox",
        "--",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=64M",
        "count=1",
    ]);
    assert_eq!(ran.code, 137, "{ran:?}");
}

#[test]
fn networks_differ_as_asked() {
    let toft = with_busybox();
    let interfaces = |network: &str| {
        toft.toft(&["run", "--rm", "--network", network, "busybox", "--", "cat", "/proc/net/dev"]).good()
    };
    assert!(interfaces("bridge").contains("eth0:"));
    assert!(!interfaces("none").contains("eth0:"));
    assert!(interfaces("host").contains("toft-"), "the host's bridge is seen");
    let error = toft.toft(&["run", "--network", "host", "-p", "80", "busybox"]).bad(125);
    assert!(error.contains("field: ports"), "{error}");
}

#[test]
fn several_ports_of_both_protocols_are_published() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 -p 8080 -p 5353:53/udp toft/demo");
    let ports = toft.instance("web")["ports"].clone();
    let host: Vec<u64> = ports.as_array().unwrap().iter().map(|port| port["host"].as_u64().unwrap()).collect();
    assert_eq!((host.len(), host[0], host[2]), (3, 18080, 5353), "{ports}");
    assert!(host[1] >= 1024, "a port was chosen: {ports}");
    for port in &host[..2] {
        let said = toft.machine.visit(*port as u16, "/json").good();
        assert_eq!(said["instance"], "web-0");
    }
    assert!(toft.good("ls").contains("5353->53/udp"));
}

#[test]
fn without_waiting_the_command_returns_at_once() {
    let toft = with_busybox();
    assert_eq!(toft.good("run -n web --no-wait toft/demo"), "web\n");
    toft.instance_until("web", "runs", |instance| instance["state"] == "running");
    let pid = toft.instance("web")["pid"].clone();
    assert_eq!(toft.good("stop --no-wait web"), "web\n");
    wait_until("it ends", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
}

#[test]
fn a_container_that_has_no_ear_for_the_stop_signal_is_killed_after_its_grace() {
    let toft = with_busybox();
    toft.good("run -n deaf --stop-timeout 1 busybox -- sleep 1000");
    let begun = std::time::Instant::now();
    toft.good("stop deaf");
    assert!(begun.elapsed().as_millis() >= 1_000, "it had its second");
    assert_eq!(toft.instance("deaf")["last_exit"]["code"], 137);
}
