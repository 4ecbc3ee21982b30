//! `toft exec`: commands in containers, with streams, terminals, and users who vanish.

use std::{fs, io::Write, process::Stdio};

use nix::{
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{
    appliance::Appliance,
    machine::wait_until,
    person::Person,
    socket::{connect, last_word},
};

/// One with a container that runs.
fn with_web() -> Appliance {
    let toft = Appliance::start();
    toft.import_busybox();
    toft.good("run -n web busybox -- sleep 1000");
    toft
}

/// Pipes of processes that were not removed.
fn pipes(toft: &Appliance) -> usize {
    fs::read_dir(toft.data.join("execs")).map_or(0, Iterator::count)
}

/// Pids of the processes in the containers whose command line is this.
pub fn inside(toft: &Appliance, line: &str) -> Vec<i32> {
    let groups = toft.machine.control_groups(&toft.data);
    let below = groups.iter().flat_map(|group| fs::read_dir(group).into_iter().flatten().flatten());
    let texts = below.filter_map(|entry| fs::read_to_string(entry.path().join("cgroup.procs")).ok());
    let mut pids: Vec<i32> =
        texts.flat_map(|text| text.lines().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect();
    pids.sort_unstable();
    pids.dedup();
    let says = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|said| said == format!("{}\0", line.replace(' ', "\0")).as_bytes())
    };
    pids.into_iter().filter(says).collect()
}

fn gone(toft: &Appliance, line: &str) {
    wait_until("the process and its pipes are gone", || {
        (inside(toft, line).is_empty() && pipes(toft) == 0).then_some(())
    });
}

#[test]
fn a_command_gives_its_output_its_errors_and_its_code() {
    let toft = with_web();
    let ran = toft.toft(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (7, "out\n", "err\n"));
    assert_eq!(toft.good("exec web-0 -- echo by instance"), "by instance\n");
    assert_eq!(toft.good("exec --index 0 web -- echo by number"), "by number\n");
    let many = toft.good("exec web -- busybox seq 50000");
    assert!(many.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=50_000), "no line may be lost");
    let mut command = toft.client(&["exec", "-e", "A=b c", "-e", "HIDDEN", "-u", "web", "-w", "/tmp", "web", "--"]);
    let script = "echo $A $HIDDEN; id -u; busybox pwd; kill -9 $$";
    let ran = command.args(["sh", "-c", script]).env("HIDDEN", "verysecretvalue").output().unwrap();
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), "b c verysecretvalue\n1000\n/tmp\n");
    assert_eq!(ran.status.code(), Some(137), "killed by a signal");
    assert!(!toft.log().contains("verysecretvalue"));
    gone(&toft, "nothing");
}

#[test]
fn what_cannot_be_run_is_told_with_the_codes_of_a_shell() {
    let toft = with_web();
    let refused = |arguments: &[&str], code: i32, words: &str| {
        let error = toft.toft(&[&["exec"], arguments].concat()).bad(code);
        assert!(error.contains(words), "{arguments:?}: {error}");
    };
    refused(&["web", "--", "nosuchprogram"], 127, "`nosuchprogram` is not in the image");
    refused(&["web", "--", "/etc/noexec"], 126, "not executable");
    refused(&["-u", "nobody", "web", "--", "true"], 126, "user `nobody`");
    refused(&["-w", "relative", "web", "--", "true"], 125, "field: dir");
    refused(&["-e", "=x", "web", "--", "true"], 2, "KEY=VALUE");
    refused(&["nobody", "--", "true"], 125, "there is no instance `nobody`");
    refused(&["--index", "7", "web", "--", "true"], 125, "there is no instance `web-7`");
    refused(&["-it", "web", "--", "sh"], 2, "no terminal");
    refused(&["web"], 2, "CMD");
    toft.good("stop web");
    refused(&["web", "--", "true"], 125, "does not run");
    assert_eq!(pipes(&toft), 0);
}

#[test]
fn what_is_piped_in_arrives_whole_and_its_end_too() {
    let toft = with_web();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let piped = |arguments: &[&str]| {
        let mut child = toft.client(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut input, bytes) = (child.stdin.take().unwrap(), sent.clone());
        let writing = std::thread::spawn(move || drop(input.write_all(&bytes)));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap();
        output
    };
    let output = piped(&["exec", "-i", "web", "--", "cat"]);
    assert_eq!((output.status.code(), output.stdout == sent), (Some(0), true), "{} bytes", output.stdout.len());
    let counted = piped(&["exec", "-i", "web", "--", "busybox", "wc", "-c"]);
    assert_eq!(String::from_utf8(counted.stdout).unwrap().trim(), "3000000");
    let ignored = piped(&["exec", "-i", "web", "--", "echo", "no thanks"]);
    assert_eq!((ignored.status.code(), ignored.stdout.as_slice()), (Some(0), &b"no thanks\n"[..]));
    let closed = piped(&["exec", "-i", "web", "--", "sh", "-c", "exec <&-; busybox sleep 1; exit 6"]);
    assert_eq!(closed.status.code(), Some(6));
    gone(&toft, "cat");
}

#[test]
fn signals_are_passed_on() {
    let toft = with_web();
    let script = "trap 'exit 9' TERM; echo ready; while :; do busybox sleep 0.1; done";
    let follower = toft.follow(&["exec", "-i", "web", "--", "sh", "-c", script]);
    assert_eq!(follower.line(), "ready");
    follower.signal(Signal::SIGTERM);
    assert_eq!(follower.end().0, 9);
    gone(&toft, "nothing");
}

#[test]
fn a_shell_on_a_terminal_feels_like_one() {
    let toft = with_web();
    let (mut person, before) = Person::at(toft.client(&["exec", "-it", "web", "--", "sh"]), 31, 93);
    person.sees("#");
    assert!(!tcgetattr(&person.terminal).unwrap().local_flags.contains(LocalFlags::ECHO), "keys are handed over");
    person.types("busybox stty size; busybox tty\n");
    person.sees("31 93");
    person.sees("/dev/pts/");
    person.resizes(40, 120);
    // The size comes on its own way.
    person.types("while [ \"$(busybox stty size)\" != '40 120' ]; do busybox sleep 0.1; done; echo re''sized\n");
    person.sees("resized");
    person.types("sleep 1111\n");
    wait_until("it sleeps", || (!inside(&toft, "sleep 1111").is_empty()).then_some(()));
    person.types("\x03");
    person.types("echo interr''upted; exit 5\n");
    person.sees("interrupted");
    assert_eq!(person.ends(), 5);
    assert!(tcgetattr(&person.terminal).unwrap() == before, "the terminal is as it was");
    gone(&toft, "sh");
}

#[test]
fn a_terminal_is_as_it_was_also_when_the_daemon_dies_and_nothing_stays_behind() {
    let mut toft = with_web();
    let (mut person, before) = Person::at(toft.client(&["exec", "-it", "web", "--", "sh"]), 24, 80);
    person.sees("#");
    toft.kill();
    assert_eq!(person.ends(), 125);
    person.sees("the connection to toft broke");
    assert!(tcgetattr(&person.terminal).unwrap() == before, "the terminal is as it was");
    assert_eq!(pipes(&toft), 1, "a killed daemon cannot tidy up");
    toft.up();
    gone(&toft, "sh");
    assert_eq!(toft.good("exec web -- echo on"), "on\n");
    let (mut person, before) = Person::at(toft.client(&["exec", "-it", "web", "--", "sh"]), 24, 80);
    person.sees("#");
    assert_eq!(toft.stop(), 0);
    assert_eq!(person.ends(), 125);
    assert!(tcgetattr(&person.terminal).unwrap() == before, "the terminal is as it was");
    gone(&toft, "sh");
    toft.up();
}

#[test]
fn a_process_ends_when_its_user_vanishes() {
    let toft = with_web();
    let (mut person, _) = Person::at(toft.client(&["exec", "-it", "web", "--", "sh"]), 24, 80);
    person.sees("#");
    person.types("sleep 1234\n");
    wait_until("it sleeps", || (!inside(&toft, "sleep 1234").is_empty()).then_some(()));
    drop(person);
    gone(&toft, "sleep 1234");
    gone(&toft, "sh");
    let follower = toft.follow(&["exec", "web", "--", "sh", "-c", "echo ready; sleep 1234; :"]);
    assert_eq!(follower.line(), "ready");
    drop(follower);
    gone(&toft, "sleep 1234");
}

#[test]
fn who_attaches_sees_what_is_written_from_then_on_and_detaches_without_harm() {
    let toft = with_web();
    let script = "echo early; until [ -e /tmp/go ]; do busybox sleep 0.1; done; \
        until [ -e /tmp/end ]; do echo tick; busybox sleep 0.1; done; exit 4";
    toft.toft(&["run", "-n", "job", "--restart", "no", "busybox", "--", "sh", "-c", script]).good();
    wait_until("it has begun", || (toft.logs("job") == ["early"]).then_some(()));
    let (mut person, before) = Person::at(toft.client(&["attach", "job"]), 24, 80);
    person.sees("takes no input");
    toft.good("exec job -- busybox touch /tmp/go");
    person.sees("tick");
    assert!(!person.screen.contains("early"), "{}", person.screen);
    person.types("x\x10x\x10\x11");
    assert_eq!(person.ends(), 0);
    assert!(tcgetattr(&person.terminal).unwrap() == before, "the terminal is as it was");
    assert_eq!(toft.instance("job")["state"], "running");
    let (mut person, before) = Person::at(toft.client(&["attach", "job"]), 24, 80);
    person.sees("tick");
    kill(Pid::from_raw(person.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(person.ends(), 143);
    assert!(tcgetattr(&person.terminal).unwrap() == before, "the terminal is as it was");
    let follower = toft.follow(&["attach", "job"]);
    assert_eq!(follower.line(), "tick");
    toft.good("exec job -- busybox touch /tmp/end");
    assert_eq!(follower.end().0, 4);
    assert!(toft.toft(&["attach", "nobody"]).bad(1).contains("there is no workload `nobody`"));
}

#[test]
fn hostile_messages_are_refused_and_start_nothing() {
    let toft = with_web();
    let plain = toft.get("/api/v1/instances/web-0/exec").refusal(400);
    assert!(plain["message"].as_str().unwrap().contains("WebSocket"), "{plain}");
    let order = |order: Value| json!({"type": "start", "order": order}).to_string();
    let deep = format!("{{\"type\":\"start\",\"order\":{}", "[".repeat(50_000));
    for first in [
        "{".to_owned(),
        "null".into(),
        deep,
        json!({"type": "resize", "size": {"columns": 1, "rows": 1}}).to_string(),
        json!({"type": "start"}).to_string(),
        order(json!({})),
        order(json!({"command": []})),
        order(json!({"command": "sh"})),
        order(json!({"command": ["a\0b"]})),
        order(json!({"command": ["sh"], "privileged": true})),
        order(json!({"command": vec!["x"; 2_000]})),
        order(json!({"command": ["true"], "env": {"A": "hunter2".repeat(30_000)}})),
        order(json!({"command": ["true"], "dir": "../etc"})),
        order(json!({"command": ["true"], "terminal": {"columns": 0, "rows": -1}})),
    ] {
        let mut socket = connect(&toft, "web-0", "exec");
        socket.send(Message::Text(first.clone().into())).unwrap();
        let last = last_word(socket);
        let shown: String = first.chars().take(80).collect();
        assert_eq!((&last["type"], &last["error"]["code"]), (&json!("failed"), &json!("invalid")), "{shown}: {last}");
        assert!(last.to_string().len() < 2_000 && !last.to_string().contains("hunter2"), "{shown}");
    }
    let mut huge = connect(&toft, "web-0", "exec");
    // It may be cut off while it is still being sent.
    drop(huge.send(Message::Text("x".repeat(4 << 20).into())));
    assert_eq!(last_word(huge), Value::Null);
    let mut confused = connect(&toft, "web-0", "exec");
    confused.send(Message::Text(order(json!({"command": ["sleep", "4000"], "stdin": true})).into())).unwrap();
    assert_eq!(confused.read().unwrap().into_text().unwrap().as_str(), r#"{"type":"started"}"#);
    confused.send(Message::Text(json!({"type": "signal", "number": 1_000_000}).to_string().into())).unwrap();
    assert_eq!(last_word(confused)["error"]["code"], "invalid");
    gone(&toft, "sleep 4000");
}
