//! How a container's process runs: what `toft run` asks for is what the process finds, on a real containerd.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::json;

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
};

fn with_busybox() -> Appliance {
    let toft = Appliance::start();
    toft.import_busybox();
    toft
}

/// What a script in a container says, run with these flags.
fn says(toft: &Appliance, flags: &[&str], script: &str) -> String {
    let ran = toft.toft(&[&["run", "--rm"], flags, &["busybox", "--", "sh", "-c", script]].concat());
    assert_eq!(ran.code, 0, "{flags:?}: {ran:?}");
    ran.out.trim_end().to_owned()
}

#[test]
fn users_groups_and_rights_are_as_asked() {
    let toft = with_busybox();
    let ids = |flags: &[&str]| says(&toft, flags, "id -u; id -g; id -G");
    assert_eq!(ids(&["--user", "7:8"]), "7\n8\n8");
    assert_eq!(ids(&["-u", "web", "--group-add", "44"]), "1000\n1001\n1001 44 1002");
    assert_eq!(ids(&["-u", "web:log", "--group-add", "web"]), "1000\n1002\n1002 1001");
    let unknown = toft.toft(&["run", "--rm", "--no-wait", "-u", "nobody", "busybox"]);
    assert_eq!(unknown.code, 2, "these two do not go together: {unknown:?}");
    let unknown = toft.toft(&["run", "-n", "who", "-u", "stranger", "busybox"]).bad(125);
    assert!(unknown.contains("its user `stranger` is not in its /etc/passwd"), "{unknown}");
    toft.good("rm who");

    let rights = |flags: &[&str]| says(&toft, flags, "grep -E 'CapEff|NoNewPrivs|^Seccomp:' /proc/self/status");
    let usual = "CapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2";
    assert_eq!(rights(&[]), usual);
    let more = rights(&["--cap-add", "net_admin", "--cap-drop", "CAP_MKNOD"]);
    assert!(more.starts_with("CapEff:\t00000000a00435fb\n"), "{more}");
    assert!(rights(&["--cap-drop", "ALL"]).starts_with("CapEff:\t0000000000000000\n"));
    let open = rights(&["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges=false"]);
    assert!(open.ends_with("NoNewPrivs:\t0\nSeccomp:\t0"), "{open}");

    // The filter keeps from what only attacks the kernel, and a right opens what belongs to it.
    let unshare = |flags: &[&str]| says(&toft, flags, "busybox unshare -m true 2>/dev/null && echo can || echo cannot");
    assert_eq!(unshare(&[]), "cannot");
    assert_eq!(unshare(&["--cap-add", "SYS_ADMIN"]), "can");

    let privileged = rights(&["--privileged"]);
    assert!(privileged.ends_with("NoNewPrivs:\t0\nSeccomp:\t0") && !privileged.contains("a80425fb"), "{privileged}");
    let touch = "busybox touch /proc/sys/kernel/x 2>&1; test -e /dev/full && test -e /dev/kmsg && echo devices";
    assert!(says(&toft, &["--privileged"], touch).ends_with("devices"));
}

#[test]
fn files_and_memory_are_as_asked() {
    let toft = with_busybox();
    let script = "echo x 2>/dev/null >/root-file && echo written || echo read-only; \
                  echo x >/tmp/a && echo in-tmp; busybox mount | busybox grep -E ' /tmp | /dev/shm '";
    let out = says(&toft, &["--read-only", "--tmpfs", "/tmp:size=1m,mode=700", "--shm-size", "2m"], script);
    assert!(out.starts_with("read-only\nin-tmp\n"), "{out}");
    let options = |path: &str| out.lines().find(|line| line.contains(path)).unwrap_or_default().to_owned();
    assert!(options(" /tmp ").contains("size=1024k,mode=700"), "{out}");
    assert!(options(" /tmp ").contains("noexec") && options(" /dev/shm ").contains("size=2048k"), "{out}");
    assert!(says(&toft, &[], script).starts_with("written\n"), "writable unless asked otherwise");

    let script = "ulimit -n; ulimit -Hn; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced; hostname; \
                  grep -E 'nas|gate' /etc/hosts";
    let flags = [
        "--ulimit",
        "nofile=64:128",
        "--sysctl",
        "net.core.somaxconn=77",
        "--sysctl",
        "kernel.shm_rmid_forced=1",
        "--hostname",
        "cellar.lan",
        "--add-host",
        "nas:192.168.1.5",
        "--add-host",
        "gate:host-gateway",
    ];
    let out = says(&toft, &flags, script);
    let gateway = toft.json("node ls --json")[0]["inventory"]["subnet"].as_str().unwrap().replace("0/24", "1");
    assert_eq!(out, format!("64\n128\n77\n1\ncellar.lan\n192.168.1.5\tnas\n{gateway}\tgate"));
    let out = says(&toft, &["--network", "host", "--add-host", "nas:10.0.0.1"], "cat /etc/hosts");
    let own = fs::read_to_string("/etc/hosts").unwrap();
    assert_eq!(out.trim_end(), format!("{}\n10.0.0.1\tnas", own.trim_end()));
    let refused = toft.toft(&["run", "--network", "host", "--sysctl", "net.core.somaxconn=1", "busybox"]).bad(125);
    assert!(refused.contains("field: process.sysctls"), "{refused}");
}

#[test]
fn devices_of_the_node_are_given_one_by_one() {
    let toft = with_busybox();
    let script = "test -c /dev/story && echo there; busybox head -c 1 /dev/story >/dev/null 2>&1 && echo read";
    // The kernel's own log is no device that a container has by itself.
    assert_eq!(
        says(&toft, &["--cap-add", "SYSLOG", "--device", "/dev/kmsg:/dev/story:r"], &format!("{script}; true")),
        "there\nread"
    );
    assert_eq!(says(&toft, &[], &format!("{script}; true")), "");
    let refused = toft.toft(&["run", "-n", "none", "--device", "/dev/no-such", "busybox"]).bad(125);
    assert!(refused.contains("the device `/dev/no-such` is not on this node"), "{refused}");
    assert_eq!(toft.toft(&["run", "--device", "/etc/shadow", "busybox"]).code, 2);
}

#[test]
fn the_first_process_passes_on_signals_and_buries_orphans() {
    let toft = with_busybox();
    // An orphan is left behind, and the shell that was its grandparent never asks for it.
    let script = "trap 'exit 9' USR1; (busybox sleep 0.2 & ) ; echo ready; while :; do busybox sleep 0.1; done";
    toft.toft(&["run", "-n", "first", "--init", "--stop-signal", "USR1", "busybox", "--", "sh", "-c", script]).good();
    let pid = toft.instance("first")["pid"].as_u64().unwrap();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.starts_with(b"/run/toft-init\0init\0sh\0"), "{}", String::from_utf8_lossy(&line));
    let children = || {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().count()
    };
    wait_until("the orphan is buried", || (children() == 1).then_some(()));
    toft.good("stop first");
    assert_eq!(toft.instance("first")["last_exit"]["code"], 9, "the signal asked for reached the command");
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137)] {
        assert_eq!(toft.toft(&["run", "--rm", "--init", "busybox", "--", "sh", "-c", script]).code, code);
    }
    let ran = toft.toft(&["run", "--rm", "--init", "busybox", "--", "/no/such/program"]);
    assert!(ran.code == 127 && ran.err.contains("/no/such/program"), "{ran:?}");
}

#[test]
fn counts_and_reservations_are_those_of_the_control_group() {
    let toft = with_busybox();
    toft.good("run -n few --pids-limit 7 --memory-reservation 8MiB --cpu-reservation 0.5 busybox -- sleep 1000");
    toft.good("run -n usual busybox -- sleep 1000");
    toft.good("run -n many --pids-limit -1 busybox -- sleep 1000");
    let groups = toft.machine.control_groups(&toft.data);
    let value = |workload: &str, names: &[&str]| {
        let id = toft.instance(workload)["id"].as_str().unwrap().to_owned();
        let paths = groups.iter().flat_map(|group| names.iter().map(|name| group.join(&id).join(name)));
        let path = paths.into_iter().find(|path| path.exists()).expect("the kernel has such a group");
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(value("few", &["pids.max"]), "7");
    assert_eq!(value("usual", &["pids.max"]), "4096");
    assert_eq!(value("many", &["pids.max"]), "max");
    assert_eq!(value("few", &["memory.low", "memory.soft_limit_in_bytes"]), "8388608");
    assert!(["512", "20"].contains(&value("few", &["cpu.shares", "cpu.weight"]).as_str()));
    let error = toft.toft(&["run", "-n", "huge", "--memory-reservation", "900TiB", "busybox"]).bad(125);
    assert!(error.contains("of memory are to be reserved and"), "{error}");
}

#[test]
fn want_of_memory_is_told_apart_from_other_ends() {
    let toft = with_busybox();
    let hog = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
    let run = |flags: &[&str]| toft.toft(&[&["run", "--memory", "8MiB"], flags, &["busybox", "--"], &hog].concat());
    run(&["-n", "once", "--restart", "no", "--no-wait"]).good();
    let ended = toft.instance_until("once", "ends", |instance| instance["state"] == "finished");
    assert_eq!((&ended["last_exit"]["code"], &ended["last_exit"]["out_of_memory"]), (&json!(137), &json!(true)));
    assert!(toft.good("ps").contains("finished (out of memory)"));
    assert!(toft.good("events once").contains("out of memory"));
    run(&["-n", "again", "--no-wait"]).good();
    toft.instance_until("again", "waits", |instance| instance["reason"] == "out of memory");

    toft.toft(&["run", "-n", "killed", "--restart", "no", "--no-wait", "busybox", "--", "sh", "-c", "exit 137"]).good();
    let ended = toft.instance_until("killed", "ends", |instance| instance["state"] == "finished");
    assert_eq!(ended["last_exit"]["code"], 137);
    assert_eq!(ended["last_exit"].get("out_of_memory"), None);
    // A helper that was killed is no end of the container.
    let script = "dd if=/dev/zero of=/dev/null bs=64M count=1; exit 0";
    let command = ["busybox", "--", "sh", "-c", script];
    let flags = ["run", "-n", "copes", "--memory", "8MiB", "--restart", "no", "--no-wait"];
    toft.toft(&[&flags[..], &command].concat()).good();
    let ended = toft.instance_until("copes", "ends", |instance| instance["state"] == "finished");
    assert_eq!((&ended["last_exit"]["code"], ended["last_exit"].get("out_of_memory")), (&json!(0), None));
}

#[test]
fn a_changed_process_replaces_the_container() {
    let toft = with_busybox();
    toft.good("run -n web --read-only busybox -- sleep 1000");
    let before = toft.instance("web");
    let mut workload = toft.json("inspect web");
    assert_eq!(workload["spec"]["process"], json!({"read_only": true}));
    workload["spec"]["process"] = json!({"read_only": true, "hostname": "other"});
    toft.put("/api/v1/workloads/web", &[], &workload["spec"]).good();
    let after = toft.instance_until("web", "is another", |instance| {
        instance["id"] != before["id"] && instance["state"] == "running"
    });
    let hostname = fs::read_link(format!("/proc/{}/ns/uts", after["pid"])).unwrap();
    assert_ne!(hostname, fs::read_link("/proc/self/ns/uts").unwrap());
    for (field, value) in [
        ("process.user", json!({"user": "a b"})),
        ("process.cap_add[0]", json!({"cap_add": ["NOPE"]})),
        ("process.devices[0].host", json!({"devices": [{"host": "/etc/shadow"}]})),
        ("process.colour", json!({"colour": "red"})),
    ] {
        workload["spec"]["process"] = value;
        let refusal = toft.put("/api/v1/workloads/web", &[], &workload["spec"]).refusal(400);
        assert_eq!(refusal["field"], field, "{refusal}");
    }
}

#[test]
fn isolation_names_a_runtime_of_the_node() {
    // A stand-in for runc, which leaves a trace and hands over.
    let machine = Machine::new();
    let mut toft = Appliance::prepare(&machine, "d");
    let bin = machine.dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let (crun, trace) = (bin.join("crun"), bin.join("trace"));
    fs::write(&crun, format!("#!/bin/sh\necho used >>{}\nexec runc \"$@\"\n", trace.display())).unwrap();
    fs::set_permissions(&crun, fs::Permissions::from_mode(0o755)).unwrap();
    toft.set_programs(&bin);
    toft.up();
    toft.import_busybox();
    let has = toft.json("node ls --json")[0]["inventory"]["isolation"].clone();
    assert!(
        has.as_array().unwrap().contains(&json!("runc")) && has.as_array().unwrap().contains(&json!("crun")),
        "{has}"
    );
    toft.good("run -n usual busybox -- sleep 1000");
    assert!(!Path::new(&trace).exists());
    toft.good("run -n other --isolation crun busybox -- sleep 1000");
    assert!(trace.exists(), "the runtime that was asked for started it");
    toft.good("rm usual other");
    let error = toft.toft(&["run", "-n", "none", "--runtime", "nosuch", "busybox"]).bad(125);
    assert!(error.contains("it has no runtime `nosuch` (it has crun, "), "{error}");
}
