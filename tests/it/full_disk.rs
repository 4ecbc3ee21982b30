//! The disk under the data directory is full: errors say so, nothing acknowledged is lost, and it goes on by itself.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
};

use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::harness::{
    appliance::Appliance,
    lan::Lan,
    machine::{Machine, wait_until},
    outage::{local, name, running_on, state_of},
};

/// An appliance whose data lies on a disk of 24 MB.
fn small() -> Appliance {
    let machine = Machine::new();
    let toft = Appliance::prepare(&machine, "d");
    mount(Some("tmpfs"), &toft.data, Some("tmpfs"), MsFlags::empty(), Some("size=24m")).unwrap();
    toft
}

/// Takes all the space that is left.
fn fill(toft: &Appliance) -> PathBuf {
    let path = toft.data.join("ballast");
    let mut file = File::options().create(true).append(true).open(&path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

#[test]
fn a_full_disk_is_told_and_nothing_acknowledged_is_lost() {
    let mut toft = small();
    toft.up();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let ballast = fill(&toft);
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for number in 0..500 {
        let name = format!("w{number}");
        let body = json!({"name": name, "image": "toft/demo", "replicas": 0, "env": {"PAD": "x".repeat(4_000)}});
        let answer = toft.post("/api/v1/workloads", &body);
        if answer.status == 201 {
            acknowledged.push(name);
            continue;
        }
        let error = answer.refusal(507);
        assert_eq!(error["code"], "disk_full", "{error}");
        assert!(error["hint"].as_str().unwrap().contains("free some space"), "{error}");
        refused += 1;
        if refused == 5 {
            break;
        }
        drop(fill(&toft));
    }
    assert_eq!(refused, 5, "the disk was full");
    let told = toft.toft(&["run", "-n", "more", "toft/demo"]).bad(125);
    assert!(told.contains("no space") && told.contains("hint:"), "{told}");
    assert_eq!(toft.get("/health").status, 200);
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
    let listed = |toft: &Appliance| -> Vec<String> {
        let mut names: Vec<String> = toft.good("ls -q").lines().map(str::to_owned).collect();
        names.retain(|name| name != "web");
        names.sort();
        names
    };
    acknowledged.sort();
    assert_eq!(listed(&toft), acknowledged);
    toft.kill();
    fs::remove_file(ballast).unwrap();
    toft.up();
    assert_eq!(listed(&toft), acknowledged, "also after a crash");
    toft.good("run -n more toft/demo");
    let web = toft.instance("web");
    assert_eq!((&web["state"], &web["restarts"]), (&json!("running"), &json!(0)));
}

#[test]
fn it_goes_on_by_itself_once_there_is_space() {
    let mut toft = small();
    toft.up();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let ballast = fill(&toft);
    let body = json!({"name": "late", "image": "toft/demo", "ports": [{"host": 18081, "container": 8080}]});
    let first = toft.post("/api/v1/workloads", &body).status;
    assert!([201, 507].contains(&first), "{first}");
    // Its end cannot be written down now.
    crate::harness::machine::end(toft.instance("web")["pid"].as_i64().unwrap() as i32);
    wait_until("its end is noticed", || toft.machine.http(18080, "GET", "/json", &[]).is_err().then_some(()));
    fs::remove_file(ballast).unwrap();
    if first == 507 {
        assert_eq!(toft.post("/api/v1/workloads", &body).status, 201);
    }
    for (name, port) in [("web", 18080), ("late", 18081)] {
        toft.instance_until(name, "runs", |instance| instance["state"] == "running");
        let said = wait_until("it answers", || toft.machine.http(port, "GET", "/json", &[]).ok()).good();
        assert_eq!(said["instance"], format!("{name}-0"));
    }
    assert!(toft.get("/ready").status == 200);
}

#[test]
fn an_import_that_does_not_fit_is_told_and_leaves_nothing() {
    let mut toft = small();
    toft.up();
    let archive = crate::harness::image::busybox("big", json!({"Cmd": ["sh"]}));
    let mut layout = crate::harness::image::Layout::new();
    let noise: Vec<u8> = (0_u32..6_000_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    layout.blob("application/octet-stream", noise);
    let big = [layout.archive(), archive].concat();
    let error = toft.request("POST", "/api/v1/images/import", &[], &big);
    assert!([507, 400].contains(&error.status), "{}", error.text());
    assert_eq!(toft.get("/api/v1/images").good()["items"], json!([]));
    toft.good("run -n web -p 18080:8080 toft/demo");
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
}

#[test]
fn a_start_on_a_full_disk_is_refused_with_the_reason() {
    let mut toft = small();
    drop(fill(&toft));
    let error = toft.up_refuses().bad(1);
    assert!(error.to_lowercase().contains("space"), "{error}");
    fs::remove_file(toft.data.join("ballast")).unwrap();
    toft.up();
    toft.good("run -n web toft/demo");
}

/// The state lies elsewhere: it is containerd that cannot write down a removal.
#[test]
fn a_container_that_filled_the_disk_can_be_removed() {
    let machine = Machine::new();
    let mut toft = Appliance::prepare(&machine, "d");
    let disk = toft.data.join("containerd/root");
    fs::create_dir_all(&disk).unwrap();
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=24m")).unwrap();
    toft.up();
    toft.import_busybox();
    let used = || {
        let disk = nix::sys::statvfs::statvfs(&disk).unwrap();
        (disk.blocks() - disk.blocks_free()) * disk.fragment_size()
    };
    for round in 0..3 {
        let before = used();
        let fill = "cat /dev/zero >/fill; echo full; busybox sleep 1000";
        toft.toft(&["run", "-n", "hog", "--stop-timeout", "0", "busybox", "--", "sh", "-c", fill]).good();
        wait_until("the disk is full", || toft.logs("hog").contains(&"full".to_owned()).then_some(()));
        toft.good("rm hog");
        assert_eq!(toft.good("ps -q"), "");
        wait_until("its space is free", || (used() < before + (1 << 20)).then_some(()));
        assert!(!toft.log().contains("could not be stopped or removed"), "round {round}");
    }
    toft.good("run -n web -p 18080:8080 toft/demo");
}

/// Writes a workload that nothing runs of, with so many bytes; gives the answer's status.
fn note(toft: &Appliance, name: &str, bytes: usize) -> u16 {
    let body = json!({"name": name, "image": "toft/demo", "replicas": 0, "env": {"PAD": "x".repeat(bytes)}});
    toft.post("/api/v1/workloads", &body).status
}

#[test]
fn a_leader_whose_disk_is_full_gives_way_and_nothing_acknowledged_is_lost() {
    let mut lan = Lan::prepare(&["server", "server", "server", "server"]);
    let data = lan.nodes[0].data.clone();
    let settings = fs::read(data.join("toft.toml")).unwrap();
    mount(Some("tmpfs"), &data, Some("tmpfs"), MsFlags::empty(), Some("size=40m")).unwrap();
    fs::write(data.join("toft.toml"), settings).unwrap();
    lan.nodes[0].up();
    for i in [1, 2] {
        let token = lan.nodes[0].good("token create -q");
        lan.join(i, &token);
    }
    lan.until_voters(3);
    lan.until_ready(&[0, 1, 2]);
    lan.nodes[0].good("run -n web --replicas 3 -p 18080:8080 toft/demo");
    wait_until("three of it run", || (running_on(&lan.nodes[1], "web")? == ["a", "b", "c"]).then_some(()));
    let token = lan.nodes[0].good("token create -q");
    lan.join(3, &token);
    lan.until_ready(&[0, 1, 2, 3]);
    assert_eq!(lan.leader_among(&[0, 1, 2]), 0);
    let ballast = fill(&lan.nodes[0]);

    // Whoever is asked elsewhere is served, by the leader that is full as long as it can, and then by another.
    let mut acknowledged = Vec::new();
    let began = std::time::Instant::now();
    for number in 0..60 {
        let name = format!("w{number}");
        let asked = &lan.nodes[1 + number % 2];
        wait_until("a change is taken", || match note(asked, &name, 20_000) {
            // It was taken before, by who could not say so any more.
            201 | 409 => Some(()),
            503 | 504 | 507 => None,
            other => panic!("{name}: {other}"),
        });
        acknowledged.push(name);
        if number == 30 {
            // Not a byte is to be had any more.
            drop(fill(&lan.nodes[0]));
        }
    }
    println!("60 changes took {:?}", began.elapsed());
    let leader = lan.leader_among(&[1, 2]);
    wait_until("who is full knows who leads", || {
        (local(&lan.nodes[0], "/api/v1/cluster")?["leader"] == name(leader).as_str()).then_some(())
    });
    assert!(lan.nodes[0].log().contains("falls silent"), "{}", lan.nodes[0].log());

    // Who leads now notes who is lost, and does not take the one for it that is only full.
    lan.nodes[3].kill();
    wait_until("the dead one is down", || (state_of(&lan.nodes[leader], "d")? == "down").then_some(()));
    wait_until("it is listed as full", || {
        let told = lan.nodes[leader].good("node ls");
        told.lines().any(|line| line.starts_with("a ") && line.contains("ready (disk full)")).then_some(())
    });

    // It is told where it is full, and what it runs goes on.
    let refused = wait_until("it says so", || {
        let body = json!({"name": "late", "image": "toft/demo", "replicas": 0});
        let answer = lan.nodes[0].post("/api/v1/workloads", &body);
        (answer.status == 507).then(|| answer.refusal(507))
    });
    assert_eq!(refused["code"], "disk_full", "{refused}");
    let outdated = lan.nodes[0].get("/api/v1/workloads").refusal(507);
    assert!(outdated["hint"].as_str().unwrap().contains("consistency=local"), "{outdated}");
    assert!(lan.nodes[0].log().contains("no space is left"), "{}", lan.nodes[0].log());
    let checks = lan.nodes[0].own(&["doctor", "--json"]).out;
    let checks: serde_json::Value = serde_json::from_str(&checks).unwrap();
    let room = checks.as_array().unwrap().iter().find(|check| check["name"] == "free space").unwrap();
    assert_eq!(room["verdict"], "failure", "{room}");
    assert!(lan.visit(0, 18_080).is_some(), "its container does not answer");

    fs::remove_file(ballast).unwrap();
    let freed = std::time::Instant::now();
    let all = |toft: &Appliance| {
        let told = local(toft, "/api/v1/workloads")?;
        let names: Vec<String> =
            told["items"].as_array()?.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
        acknowledged.iter().all(|name| names.contains(name)).then_some(())
    };
    for toft in &lan.nodes[..3] {
        wait_until("all that was acknowledged is there", || all(toft));
    }
    println!("it has all of it {:?} after there was room", freed.elapsed());
    lan.until_ready(&[0, 1, 2]);
    lan.nodes[0].good("run -n after toft/demo");
    wait_until("three of it run", || (running_on(&lan.nodes[0], "web")? == ["a", "b", "c"]).then_some(()));
    assert_eq!(lan.nodes[0].get("/ready").status, 200);
    // It may lead again.
    lan.nodes[leader].kill();
    lan.until_written(0, "scale after=2 --no-wait");
}
