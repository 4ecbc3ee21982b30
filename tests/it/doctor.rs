//! `toft doctor`: what is made wrong with a machine is found, named, and told with what mends it.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    process::Command,
    sync::Arc,
};

use serde_json::Value;

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
};

/// A machine without an appliance, and a data directory.
struct Patient {
    machine: Arc<Machine>,
    data: String,
}

impl Patient {
    fn new() -> Self {
        let machine = Machine::new();
        let data = machine.dir.join("d");
        fs::create_dir(&data).unwrap();
        Self { data: data.display().to_string(), machine }
    }

    /// Examines after a script has changed mounts that only the examination sees.
    fn examined_after(&self, script: &str) -> (i32, Value) {
        let program = env!("CARGO_BIN_EXE_toft");
        let script = format!("set -e; {script}; exec {program} doctor --json --data-dir {}", self.data);
        let mut command = self.machine.command("unshare");
        examined(command.args(["-m", "sh", "-c", &script]))
    }

    fn examined(&self) -> (i32, Value) {
        self.examined_after(":")
    }
}

fn examined(command: &mut Command) -> (i32, Value) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let checks = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), checks)
}

fn check<'a>(checks: &'a Value, name: &str) -> &'a Value {
    checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {checks}"))
}

#[track_caller]
fn says(checks: &Value, name: &str, verdict: &str, words: &str, fix: &str) {
    let check = check(checks, name);
    let (message, told) = (check["message"].as_str().unwrap(), check["fix"].as_str().unwrap_or_default());
    assert!(check["verdict"] == verdict && message.contains(words) && told.contains(fix), "{check}");
}

#[test]
fn a_machine_that_has_everything_is_well() {
    let patient = Patient::new();
    // The machine has no way out, so a name server is put into it.
    let serving = patient.machine.spawn(|| {
        let server = UdpSocket::bind("127.0.0.53:53").unwrap();
        let mut question = [0; 512];
        let (length, from) = server.recv_from(&mut question).unwrap();
        question[2] |= 0x80;
        server.send_to(&question[..length], from).unwrap();
    });
    let file = patient.machine.dir.join("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.53\n").unwrap();
    let (code, checks) = patient.examined_after(&format!("mount --bind {} /etc/resolv.conf", file.display()));
    serving.join().unwrap();
    let failed: Vec<&Value> = checks.as_array().unwrap().iter().filter(|check| check["verdict"] == "failure").collect();
    assert_eq!((code, failed.len()), (0, 0), "{failed:?}");
    says(&checks, "dns", "ok", "127.0.0.53 answers", "");
    says(&checks, "containerd", "ok", "toft starts one of its own", "");
    for name in ["overlay", "bridge", "veth", "nftables", "control groups", "seccomp", "data directory", "runtimes"] {
        assert_eq!(check(&checks, name)["verdict"], "ok", "{checks}");
    }
    says(&checks, "api port", "ok", "127.0.0.1:7443 is free", "");
    says(&checks, "daemon", "not_applicable", "does not run", "");
}

#[test]
fn what_is_wrong_with_the_network_is_found() {
    let patient = Patient::new();
    patient.machine.run("sysctl", &["-qw", "net.ipv4.ip_forward=0"]);
    patient.machine.run(
        "nft",
        &["add table ip fw; add chain ip fw between { type filter hook forward priority 0; policy drop; }"],
    );
    let holder = patient.machine.spawn(|| TcpListener::bind("127.0.0.1:7443").unwrap()).join().unwrap();
    let (code, checks) = patient.examined();
    assert_eq!(code, 1);
    says(&checks, "forwarding", "warning", "is off", "sysctl -w net.ipv4.ip_forward=1");
    says(&checks, "firewall", "failure", "`ip fw between` drops", "nft insert rule ip fw between iifname");
    says(&checks, "api port", "failure", &format!("(process {})", std::process::id()), "api.bind");
    says(&checks, "dns", "failure", "", "");
    drop(holder);
    // What the remedy says mends it.
    let fix = check(&checks, "firewall")["fix"].as_str().unwrap().replace("sudo ", "");
    patient.machine.run("sh", &["-c", &fix]);
    let (_, checks) = patient.examined();
    says(&checks, "firewall", "ok", "", "");
    says(&checks, "api port", "ok", "is free", "");
}

#[test]
fn a_firewall_that_drops_names_or_published_ports_is_found_and_mended() {
    let toft = Appliance::start();
    toft.import_busybox();
    toft.good("run -n web -p 18081:80 busybox -- busybox httpd -f -p 80 -h /etc");
    let own = || {
        let ran = toft.own(&["doctor", "--json"]);
        serde_json::from_str::<Value>(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
    };
    let asks = || toft.toft(&["exec", "web", "--", "busybox", "nslookup", "web.toft.internal"]).code == 0;
    let nft = |script: &str| drop(toft.machine.run("nft", &[script]));
    let mend = |checks: &Value, name: &str| {
        let fix = check(checks, name)["fix"].as_str().unwrap().replace("sudo ", "");
        toft.machine.run("sh", &["-c", &fix]);
    };
    wait_until("names are answered", || asks().then_some(()));
    let checks = own();
    says(&checks, "firewall", "ok", "", "");
    says(&checks, "firewall for names", "ok", "", "");
    for closed in [
        "policy drop; }; add rule inet fw in iif lo accept",
        "}; add rule inet fw in iif lo accept; add rule inet fw in counter drop",
    ] {
        nft(&format!("add table inet fw; add chain inet fw in {{ type filter hook input priority 0; {closed}"));
        assert!(!asks(), "the firewall is in force");
        let checks = own();
        says(&checks, "firewall for names", "failure", "`inet fw in` drops", "th dport 10053 accept");
        says(&checks, "firewall", "ok", "", "");
        mend(&checks, "firewall for names");
        wait_until("names are answered again", || asks().then_some(()));
        says(&own(), "firewall for names", "ok", "", "");
        nft("delete table inet fw");
    }
    nft("add table inet fw; add chain inet fw through { type filter hook forward priority 0; policy drop; }; \
        add rule inet fw through iifname \"toft*\" accept");
    let checks = own();
    says(&checks, "firewall", "failure", "drops packets to published ports", "oifname \"toft*\" accept");
    mend(&checks, "firewall");
    says(&own(), "firewall", "ok", "", "");
}

#[test]
fn programs_that_are_missing_are_named_with_what_installs_them() {
    let patient = Patient::new();
    let (code, checks) = patient.examined_after("mkdir -p /tmp/none; export PATH=/tmp/none");
    assert_eq!(code, 1);
    says(&checks, "nftables", "failure", "`nft` is not in PATH", "apt-get install nftables");
    let hidden = "for d in /usr/local/sbin /usr/local/bin /usr/sbin; do [ -d $d ] && mount -t tmpfs none $d; done; \
        for p in /usr/bin/containerd /usr/bin/containerd-shim-runc-v2 /usr/bin/runc; do \
        if [ -e $p ]; then mount --bind /dev/null $p; fi; done";
    let (code, checks) = patient.examined_after(hidden);
    assert_eq!(code, 1);
    says(&checks, "containerd", "failure", "is not installed", "apt-get install containerd");
    says(&checks, "runtimes", "failure", "", "apt-get install runc");
}

#[test]
fn what_is_wrong_with_the_disk_is_found() {
    let patient = Patient::new();
    let data = &patient.data;
    let (code, checks) = patient.examined_after(&format!("mount -t tmpfs -o ro none {data}"));
    assert_eq!(code, 1);
    says(&checks, "data directory", "failure", "read-only", &format!("mount -o remount,rw {data}"));
    let (_, checks) = patient.examined_after(&format!("mount -t tmpfs -o noexec none {data}"));
    says(&checks, "data directory", "failure", "runs no programs", "remount,exec");
    let full = format!("mount -t tmpfs -o size=1M none {data}; head -c 2M /dev/zero >{data}/all 2>/dev/null || :");
    let (code, checks) = patient.examined_after(&full);
    assert_eq!(code, 1);
    says(&checks, "free space", "failure", "0 B of 1.0 MiB", "toft image prune");
    says(&checks, "write latency", "failure", "No space left", "df -hi");
    let (_, checks) = patient.examined_after(&format!("mount -t tmpfs -o nr_inodes=20 none {data}"));
    says(&checks, "free inodes", "failure", "more files", "--inodes");
}

#[test]
fn a_running_appliance_is_known_and_its_faults_too() {
    let toft = Appliance::start();
    let own = |toft: &Appliance| {
        let ran = toft.own(&["doctor", "--json"]);
        serde_json::from_str::<Value>(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
    };
    toft.good("run -n web toft/demo");
    let checks = own(&toft);
    says(&checks, "daemon", "ok", &format!("process {}", toft.pid()), "");
    says(&checks, "containerd", "ok", "answers on", "");
    says(&checks, "forwarding", "ok", "", "");
    toft.machine.run("sysctl", &["-qw", "net.ipv4.ip_forward=0"]);
    says(&own(&toft), "forwarding", "failure", "something turned it off", "sysctl");
    fs::write(toft.data.join("toft.toml"), "[logs]\ncolour = 1\n").unwrap();
    let ran = toft.own(&["doctor"]);
    assert!(ran.code == 1 && ran.out.contains("FAILURE  configuration") && ran.out.contains("colour"), "{ran:?}");
    assert!(ran.out.contains("\n  ok       overlay") && !ran.out.contains('\u{1b}'), "{}", ran.out);
}

#[test]
fn a_node_tells_of_its_machine() {
    let toft = Appliance::start();
    let name = toft.get("/api/v1/nodes").good()["items"][0]["name"].as_str().unwrap().to_owned();
    let node = toft.json(&format!("node inspect --json {name}"));
    let facts = &node["facts"];
    assert_eq!(node["name"], name.as_str());
    assert!(facts["memory_bytes"].as_u64().unwrap() > facts["memory_available_bytes"].as_u64().unwrap(), "{facts}");
    assert!(facts["disk"]["free_bytes"].as_u64().unwrap() > 0 && facts["cpus"].as_u64().unwrap() > 0, "{facts}");
    assert!(facts["runtime"].as_str().unwrap().starts_with("containerd "), "{facts}");
    assert!(facts["isolation"].as_array().unwrap().iter().any(|name| name.as_str().unwrap().starts_with("runc ")));
    let booted = facts["booted_at_ms"].as_i64().unwrap();
    assert!(booted > 0 && booted < jiff::Timestamp::now().as_millisecond());
    let text = toft.good(&format!("node inspect {name}"));
    for words in ["Kernel", "Memory", "Disk", " free", "Booted", "containerd"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(toft.toft(&["node", "inspect", "nobody"]).bad(1).contains("there is no node `nobody`"));
    toft.get("/api/v1/nodes/nobody/facts").refusal(404);
}
