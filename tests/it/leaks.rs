//! Containers come and go in great numbers, and nothing of them stays: not in the kernel, not in containerd, not on the
//! disk, not in the names.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    harness::{
        appliance::Appliance,
        census::Census,
        full,
        machine::{end, wait_until},
    },
    names::found,
};

/// How many come and go at the same time.
const SIDE_BY_SIDE: usize = 3;
/// Most bytes that toft may have more in memory after all cycles; a megabyte a cycle would be far more.
const MOST_GROWTH_BYTES: u64 = 96 << 20;

fn cycles() -> usize {
    if full() { 1_000 } else { 36 }
}

/// Serves what lies in its volume.
fn spec(worker: usize) -> Value {
    let script = "echo here >/data/file && echo there >/scratch/file && exec busybox httpd -f -p 8080 -h /data";
    json!({
        "name": format!("w{worker}"), "image": "busybox", "command": ["sh", "-c", script],
        "ports": [{"host": 20_000 + worker, "container": 8080}],
        "mounts": [{"type": "volume", "name": format!("data-{worker}"), "target": "/data"}],
        "process": {"tmpfs": [{"path": "/scratch"}], "init": worker == 0},
        "stop_grace_ms": 0,
    })
}

fn runs(toft: &Appliance, name: &str) -> Value {
    toft.instance_until(name, "runs", |instance| instance["state"] == "running")
}

fn answers(toft: &Appliance, worker: usize) {
    let path = "the port answers";
    let said = wait_until(path, || toft.machine.http(20_000 + worker as u16, "GET", "/file", &[]).ok());
    assert_eq!(said.text(), "here\n");
}

/// One workload from its start to its end, and what may happen to it meanwhile.
fn cycle(toft: &Appliance, worker: usize, number: usize) {
    let name = format!("w{worker}");
    let mut spec = spec(worker);
    let created = toft.post("/api/v1/workloads", &spec);
    assert_eq!(created.status, 201, "{}", created.text());
    if number % 9 == 8 {
        // Cut short, at one point of its start or another.
        std::thread::sleep(Duration::from_millis((number * 7 % 160) as u64));
        toft.good(&format!("rm {name}"));
        return;
    }
    let first = runs(toft, &name);
    answers(toft, worker);
    match number % 9 {
        0 => assert_eq!(toft.good(&format!("exec {name}-0 -- cat /data/file /scratch/file")), "here\nthere\n"),
        1 => {
            end(first["pid"].as_i64().unwrap() as i32);
            toft.instance_until(&name, "runs again", |now| now["state"] == "running" && now["restarts"] == 1);
        }
        2 => {
            toft.good(&format!("stop {name}"));
            toft.good(&format!("start {name}"));
        }
        3 => {
            spec["env"] = json!({"ANOTHER": number.to_string()});
            toft.put(&format!("/api/v1/workloads/{name}"), &[], &spec).good();
            toft.instance_until(&name, "is another", |now| now["id"] != first["id"] && now["state"] == "running");
        }
        4 => drop(toft.good(&format!("restart {name}"))),
        5 => {
            // Whoever asked for the process goes away before it ends.
            let left = toft.follow(&["exec", &format!("{name}-0"), "--", "sh", "-c", "echo on; exec sleep 1000"]);
            assert_eq!(left.line(), "on");
        }
        6 => {
            toft.good(&format!("scale {name}=0"));
            toft.good(&format!("scale {name}=1"));
        }
        7 => {
            let file = toft.machine.dir.join(format!("copied-{worker}"));
            toft.good(&format!("cp {name}-0:/data/file {}", file.display()));
            assert_eq!(fs::read_to_string(&file).unwrap(), "here\n");
            fs::remove_file(file).unwrap();
        }
        _ => {}
    }
    runs(toft, &name);
    answers(toft, worker);
    toft.good(&format!("rm {name}"));
    if number.is_multiple_of(4) {
        toft.good(&format!("volume rm data-{worker}"));
    }
}

/// Goes through all cycles, a few side by side.
fn go_through(toft: &Appliance, numbers: std::ops::Range<usize>) {
    let next = AtomicUsize::new(numbers.start);
    std::thread::scope(|scope| {
        for worker in 0..SIDE_BY_SIDE {
            let (next, end) = (&next, numbers.end);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        break;
                    }
                    cycle(toft, worker, number);
                }
            });
        }
    });
    let volumes = toft.good("volume ls -q");
    volumes.lines().for_each(|volume| drop(toft.good(&format!("volume rm {volume}"))));
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn nothing_stays_of_containers_that_came_and_went() {
    let toft = Appliance::start();
    toft.import_busybox();
    toft.good("run -n witness busybox -- sleep 100000");
    let witness = toft.instance("witness");
    // What is made once and kept, such as lines to the database, is there after the first few.
    go_through(&toft, 0..9);
    let (before, memory) = (Census::settled(&toft), resident_bytes(toft.pid()));
    for kind in
        ["mounts of toft", "processes", "control groups", "links", "packet rules", "snapshots", "open files of toft"]
    {
        assert!(before.count(kind) > 0, "`{kind}` are counted");
    }
    toft.post("/api/v1/workloads", &spec(0));
    runs(&toft, "w0");
    let meanwhile = Census::of(&toft);
    for kind in
        ["mounts of containerd", "processes", "control groups", "links", "packet rules", "snapshots", "tasks", "files"]
    {
        assert!(meanwhile.count(kind) > before.count(kind), "one more container shows in `{kind}`");
    }
    assert_eq!(found(&witness, "w0.toft.internal."), toft.instance("w0")["address"].as_str().unwrap());
    toft.good("rm w0");
    toft.good("volume rm data-0");

    let began = Instant::now();
    go_through(&toft, 9..9 + cycles());
    println!("{} cycles in {:.1} s", cycles(), began.elapsed().as_secs_f32());
    before.wait_until_again(&toft);
    for worker in 0..SIDE_BY_SIDE {
        for name in [format!("w{worker}"), format!("w{worker}-0")] {
            assert_eq!(found(&witness, &format!("{name}.toft.internal.")), "Non-Existent Domain");
        }
    }
    let grown = resident_bytes(toft.pid()).saturating_sub(memory);
    assert!(grown < MOST_GROWTH_BYTES, "toft has {grown} bytes more in memory");
    // What they wrote is kept for a while, a folder for each and nothing else.
    let kept = fs::read_dir(toft.data.join("logs")).unwrap().count();
    assert!(kept <= cycles() * 2 + 20, "{kept} folders of logs");
    assert_eq!(toft.instance("witness")["pid"], witness["pid"]);
}
