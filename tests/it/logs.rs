//! What workloads wrote, as it is kept and shown.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
};

fn with_busybox() -> Appliance {
    let toft = Appliance::start();
    toft.import_busybox();
    toft
}

/// Runs a script to its end and keeps the workload.
fn finished(toft: &Appliance, name: &str, script: &str) {
    let arguments = ["run", "-n", name, "--no-wait", "--restart", "no", "busybox", "--", "sh", "-c", script];
    toft.toft(&arguments).good();
    toft.instance_until(name, "is over", |instance| instance["state"] == "finished");
}

#[test]
fn both_streams_are_kept_with_their_time() {
    let toft = with_busybox();
    finished(&toft, "job", "echo one; echo two >&2; printf three");
    let ran = toft.toft(&["logs", "job"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("one\nthree\n", "two\n"));
    let stamped = toft.toft(&["logs", "-t", "job"]);
    for line in stamped.out.lines().chain(stamped.err.lines()) {
        let (time, text) = line.split_once(' ').unwrap();
        time.parse::<jiff::Timestamp>().unwrap();
        assert!(["one", "two", "three"].contains(&text), "{line}");
    }
    let json = toft.good("logs --json job");
    let records: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let streams: BTreeSet<_> =
        records.iter().map(|r| (r["stream"].as_str().unwrap(), r["text"].as_str().unwrap())).collect();
    assert_eq!(streams, BTreeSet::from([("stdout", "one"), ("stderr", "two"), ("stdout", "three")]));
    assert!(records.iter().all(|record| record["instance"] == "job-0"), "{json}");
    assert!(toft.toft(&["logs", "nobody"]).bad(1).contains("there is no workload `nobody`"));
}

#[test]
fn tail_and_since_choose_lines() {
    let toft = with_busybox();
    finished(&toft, "job", "busybox seq 100; busybox sleep 1; echo late");
    assert_eq!(toft.good("logs -n 3 job"), "99\n100\nlate\n");
    assert_eq!(toft.good("logs -n 0 job"), "");
    assert_eq!(toft.good("logs job").lines().count(), 101);
    let records = toft.records("job", "");
    let late = records.last().unwrap()["at"].as_str().unwrap();
    assert_eq!(toft.good(&format!("logs --since {late} job")), "late\n");
    assert_eq!(toft.good("logs --since 1h job").lines().count(), 101);
    assert_eq!(toft.good("logs --since 2099-01-01T00:00:00Z job"), "");
    let error = toft.toft(&["logs", "--since", "yesterday", "job"]).bad(1);
    assert!(error.contains("field: since") && error.contains("hint:"), "{error}");
}

#[test]
fn files_are_rotated_by_size_and_read_as_one() {
    let mut toft = Appliance::prepare(&Machine::new(), "d");
    fs::write(toft.data.join("toft.toml"), "[logs]\nmax_bytes = '64KiB'\nmax_files = 3\n").unwrap();
    toft.up();
    toft.import_busybox();
    finished(&toft, "job", "busybox seq 20000");
    let dir = toft.log_file(&toft.instance("job")).parent().unwrap().to_owned();
    let files = fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.file_name() != "about.json");
    let sizes: Vec<u64> = files.map(|entry| entry.metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 64 << 10), "{sizes:?}");
    let lines: Vec<u32> = toft.logs("job").iter().map(|line| line.parse().unwrap()).collect();
    assert!(lines.len() > 2_000, "most of the three files is used: {}", lines.len());
    assert!(lines.iter().copied().eq(20_001 - lines.len() as u32..=20_000), "the newest lines, without a gap");
    let tail: Vec<u32> = toft.good("logs -n 1500 job").lines().map(|line| line.parse().unwrap()).collect();
    assert!(tail.into_iter().eq(18_501..=20_000), "over more than one file");
}

#[test]
fn following_goes_on_over_rotations_and_to_the_very_end() {
    let mut toft = Appliance::prepare(&Machine::new(), "d");
    fs::write(toft.data.join("toft.toml"), "[logs]\nmax_bytes = '64KiB'\nmax_files = 20\n").unwrap();
    toft.up();
    toft.import_busybox();
    let script = "while [ ! -e /go ]; do busybox sleep 0.05; done; busybox seq 20000";
    toft.toft(&["run", "-n", "job", "--restart", "no", "busybox", "--", "sh", "-c", script]).good();
    let follower = toft.follow(&["logs", "-f", "job"]);
    let pid = toft.instance("job")["pid"].clone();
    fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
    let (code, lines) = follower.end();
    assert_eq!(code, 0, "the command ends with the workload");
    assert!(lines.iter().map(|line| line.parse::<u32>().unwrap()).eq(1..=20_000), "{} lines", lines.len());
}

#[test]
fn following_goes_on_over_a_restart_of_the_container() {
    let toft = with_busybox();
    let script = "trap 'echo bye; exit 0' TERM; echo hello; while :; do busybox sleep 0.05; done";
    toft.toft(&["run", "-n", "web", "busybox", "--", "sh", "-c", script]).good();
    let follower = toft.follow(&["logs", "-f", "web"]);
    assert_eq!(follower.line(), "hello");
    toft.good("restart web");
    assert_eq!([follower.line(), follower.line()], ["bye", "hello"]);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(toft.instance("web")["pid"].as_i64().unwrap() as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    assert_eq!(follower.line(), "hello", "it was started again by itself");
    toft.good("stop web");
    assert_eq!(follower.end(), (0, vec!["bye".to_owned()]), "the command ends when the workload is stopped");
}

#[test]
fn lines_of_several_instances_tell_whose_they_are() {
    let toft = with_busybox();
    let script = "echo I am $TOFT_INSTANCE; busybox sleep 1000";
    toft.toft(&["run", "-n", "many", "--replicas", "3", "busybox", "--", "sh", "-c", script]).good();
    let lines = wait_until("all have spoken", || {
        let lines: BTreeSet<String> = toft.good("logs many").lines().map(str::to_owned).collect();
        (lines.len() == 3).then_some(lines)
    });
    assert_eq!(lines, BTreeSet::from([0, 1, 2].map(|n| format!("many-{n}  I am many-{n}"))));
    let record = toft.records("many", "?tail=1");
    assert_eq!(record.len(), 3, "so many of each: {record:?}");
}

#[test]
fn odd_output_is_kept_whole() {
    let toft = with_busybox();
    let long = "x".repeat(40_000);
    let script = "printf '\\033[31mred\\033[0m\\n'; printf 'a\\000b\\n'; printf '\\377\\n'; echo; busybox yes x | busybox head -n 40000 | busybox tr -d '\\n'; echo";
    finished(&toft, "odd", script);
    let out = toft.good("logs odd");
    let lines: Vec<&str> = out.split('\n').collect();
    assert_eq!(lines[..4], ["\u{1b}[31mred\u{1b}[0m", "a\0b", "\u{fffd}", ""]);
    assert_eq!(lines[4], long, "a long line is one line again");
}

#[test]
fn until_and_grep_choose_lines_before_the_last_are_counted() {
    let toft = with_busybox();
    finished(&toft, "job", "busybox seq 100; echo Error: one >&2; busybox sleep 1; echo error: two");
    assert_eq!(toft.good("logs --grep ^[0-9]0$ -n 2 job"), "80\n90\n");
    let both = toft.toft(&["logs", "--grep", "(?i)^error: (one|two)$", "job"]);
    assert_eq!((both.out.as_str(), both.err.as_str()), ("error: two\n", "Error: one\n"));
    assert_eq!(toft.good("logs --grep nothing-of-that job"), "");
    let records = toft.records("job", "");
    let last = records.last().unwrap()["at"].as_str().unwrap();
    let early = toft.toft(&["logs", "--until", last, "-n", "3", "job"]);
    assert_eq!((early.out.as_str(), early.err.as_str()), ("99\n100\n", "Error: one\n"), "it is before, not at");
    assert_eq!(toft.good("logs --until 1h job"), "");
    for (arguments, field, words) in [
        (&["--grep", "("][..], "grep", "unclosed"),
        (&["--grep", "((a{99}){99}){99}"], "grep", "too large"),
        (&["--until", "tomorrow"], "until", "`tomorrow`"),
    ] {
        let error = toft.toft(&[&["logs"], arguments, &["job"]].concat()).bad(1);
        assert!(error.contains(&format!("field: {field}")) && error.contains(words), "{error}");
    }
    let long = format!("/api/v1/workloads/job/logs?grep={}", "x".repeat(2_000));
    assert_eq!(toft.get(&long).refusal(400)["field"], "grep");
    assert_eq!(toft.get("/api/v1/workloads/job/logs?follow=true&until=1h").refusal(400)["field"], "until");
    assert_eq!(toft.toft(&["logs", "-f", "--until", "1h", "job"]).code, 2);
}

#[test]
fn several_workloads_and_single_instances_can_be_asked_for() {
    let toft = with_busybox();
    finished(&toft, "one", "echo a");
    toft.toft(&[
        "run",
        "-n",
        "two",
        "--replicas",
        "2",
        "--restart",
        "no",
        "busybox",
        "--",
        "sh",
        "-c",
        "echo $TOFT_INSTANCE",
    ])
    .good();
    wait_until("both are over", || (toft.get("/api/v1/workloads/two").good()["status"] == "finished").then_some(()));
    assert_eq!(toft.good("logs two-1"), "two-1\n");
    assert_eq!(toft.good("logs one two-1"), "one-0  a\ntwo-1  two-1\n");
    let followed = toft.good("logs -f one two-0");
    let lines: BTreeSet<&str> = followed.lines().collect();
    assert_eq!(lines, BTreeSet::from(["one-0  a", "two-0  two-0"]));
    assert!(toft.toft(&["logs", "two-7"]).bad(1).contains("there is no instance `two-7`"));
    assert!(toft.toft(&["logs", "nobody-1"]).bad(1).contains("there is no workload `nobody-1`"));
}

#[test]
fn logs_outlive_their_workload_until_they_are_too_old_or_too_many() {
    let mut toft = Appliance::prepare(&Machine::new(), "d");
    fs::write(toft.data.join("toft.toml"), "[logs]\ngone_max_age = '1h'\ngone_max_bytes = '300KiB'\n").unwrap();
    toft.up();
    toft.import_busybox();
    finished(&toft, "job", "echo first life; echo an error >&2");
    let id = toft.instance("job")["id"].as_str().unwrap().to_owned();
    let folder = toft.data.join("logs").join(&id);
    toft.good("rm job");
    assert_eq!(toft.good("ls -q"), "");
    let ran = toft.toft(&["logs", "job"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "job-0  first life\n", "job-0  an error\n"));
    assert_eq!(toft.good("logs job-0"), "first life\n");
    assert_eq!(toft.good("logs --grep error job"), "");
    assert_eq!(toft.good("logs -f -n 1 --grep life job"), "job-0  first life\n", "there is nothing to wait for");
    assert!(toft.toft(&["logs", "job-1"]).bad(1).contains("there is no workload `job-1`"));
    assert_eq!(toft.get("/api/v1/workloads/job/logs?index=1").refusal(404)["code"], "not_found");

    // A new one of that name has its own; those before are shown on demand.
    finished(&toft, "job", "echo second life");
    assert_eq!(toft.good("logs job"), "second life\n");
    assert_eq!(toft.good("logs --gone job"), "job-0  first life\njob-0  second life\n");
    // So it is with an instance that a smaller number of copies made superfluous.
    let serve = ["run", "-n", "web", "--replicas", "2", "busybox", "--", "sh", "-c", "echo here; sleep 1000"];
    toft.toft(&serve).good();
    wait_until("both wrote", || (toft.logs("web").len() == 2).then_some(()));
    toft.good("scale web=1");
    wait_until("one is gone", || (toft.good("logs web") == "here\n").then_some(()));
    assert_eq!(toft.good("logs web-1"), "here\n");

    // Age: a file says when it went.
    let gone = folder.join("gone");
    let hours_ago = jiff::Timestamp::now().as_millisecond() - 2 * 3_600_000;
    fs::write(&gone, hours_ago.to_string()).unwrap();
    toft.stop();
    toft.up();
    wait_until("what is too old is removed", || (!folder.exists()).then_some(()));
    assert_eq!(toft.good("logs --gone job"), "job-0  second life\n");

    // Size: of what is too much the oldest goes. It is looked at soon after something has left.
    for name in ["big-a", "big-b"] {
        finished(&toft, name, "busybox seq 5000");
        toft.good(&format!("rm {name}"));
    }
    let lines = |name: &str| toft.toft(&["logs", name]).out.lines().count();
    wait_until("the older is removed", || (lines("big-a") == 0).then_some(()));
    assert_eq!(lines("big-b"), 5_000);
    assert!(toft.toft(&["logs", "big-a"]).bad(1).contains("there is no workload `big-a`"));
}
