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
    machine::{Machine, wait_until},
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
