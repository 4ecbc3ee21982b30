//! `toft run -it` and `toft attach`: a container's own process with the terminal or the streams of whoever sits in front.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    termios::{LocalFlags, tcgetattr},
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, client};

use crate::{
    exec::inside,
    harness::{
        appliance::Appliance,
        machine::wait_until,
        person::Person,
        socket::{connect, last_word},
    },
};

fn with_busybox() -> Appliance {
    let toft = Appliance::start();
    toft.import_busybox();
    toft
}

/// Directories of pipes that are there.
fn pipes(toft: &Appliance) -> usize {
    fs::read_dir(toft.data.join("attach")).map_or(0, Iterator::count)
}

fn nothing_is_left(toft: &Appliance) {
    assert_eq!(toft.good("ls -q"), "");
    assert_eq!(pipes(toft), 0);
    wait_until("the loggers have ended", || {
        let processes = toft.machine.processes();
        let beside = format!("pipes {}/attach/", toft.data.display());
        processes.iter().all(|(_, line)| !line.contains(&beside)).then_some(())
    });
}

/// What a command gives that reads `input` and whose output is read at once.
fn piped(toft: &Appliance, arguments: &[&str], input: Vec<u8>) -> (Option<i32>, Vec<u8>, String) {
    let mut command = toft.client(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_shell_run_in_front_feels_like_one_and_nothing_is_left_of_it() {
    let toft = with_busybox();
    let (mut person, before) = Person::at(toft.client(&["run", "-it", "--rm", "-n", "front", "busybox", "sh"]), 31, 93);
    let first = person.sees("#");
    assert!(!first.contains("front") && !first.contains("toft"), "nothing but the session: {first:?}");
    assert!(!tcgetattr(&person.terminal).unwrap().local_flags.contains(LocalFlags::ECHO), "keys are handed over");
    person.types("busybox stty size; busybox tty\n");
    person.sees("31 93");
    person.sees("/dev/");
    person.resizes(40, 120);
    person.types("while [ \"$(busybox stty size)\" != '40 120' ]; do busybox sleep 0.1; done; echo re''sized\n");
    person.sees("resized");
    person.types("echo sl''eeps; busybox sleep 1111\n");
    person.sees("sleeps");
    wait_until("it sleeps", || (!inside(&toft, "busybox sleep 1111").is_empty()).then_some(()));
    person.types("\x03");
    person.types("echo interr''upted; exit 5\n");
    person.sees("interrupted");
    assert_eq!(person.ends(), 5);
    assert!(tcgetattr(&person.terminal).unwrap() == before, "the terminal is as it was");
    nothing_is_left(&toft);
}

#[test]
fn what_is_typed_before_the_container_is_there_reaches_it() {
    let toft = with_busybox();
    let (mut person, _) = Person::at(toft.client(&["run", "-it", "--rm", "busybox", "sh"]), 24, 80);
    person.types("echo ear''ly $((6*7)); exit 4\n");
    person.sees("early 42");
    assert_eq!(person.ends(), 4);
    nothing_is_left(&toft);
}

#[test]
fn pipes_go_through_a_container_whole_and_their_end_too() {
    let toft = with_busybox();
    let hi = piped(&toft, &["run", "--rm", "-i", "busybox", "cat"], b"hi\n".to_vec());
    assert_eq!(hi, (Some(0), b"hi\n".to_vec(), String::new()));
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (code, got, _) = piped(&toft, &["run", "--rm", "-i", "busybox", "--", "cat"], sent.clone());
    assert_eq!((code, got == sent), (Some(0), true), "{} bytes", got.len());
    let script = "echo out; echo err >&2; read a; echo got $a; exit 7";
    let both = piped(&toft, &["run", "--rm", "-i", "busybox", "sh", "-c", script], b"it\n".to_vec());
    assert_eq!(both, (Some(7), b"out\ngot it\n".to_vec(), "err\n".to_owned()));
    let unread = piped(&toft, &["run", "--rm", "-i", "busybox", "echo", "no thanks"], vec![b'x'; 1 << 20]);
    assert_eq!((unread.0, unread.1), (Some(0), b"no thanks\n".to_vec()));
    nothing_is_left(&toft);
}

#[test]
fn who_reads_late_loses_nothing_in_the_foreground() {
    let toft = with_busybox();
    let mut command = toft.client(&["run", "--rm", "-i", "busybox", "busybox", "seq", "400000"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Longer than somebody beside would be waited for.
    std::thread::sleep(Duration::from_secs(8));
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=400_000), "no line may be lost");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    nothing_is_left(&toft);
}

#[test]
fn what_cannot_be_run_in_front_is_told_and_leaves_nothing() {
    let toft = with_busybox();
    for (program, code, why) in [("nosuchprogram", 127, "not in the image"), ("/etc/noexec", 126, "not executable")] {
        let (got, out, err) = piped(&toft, &["run", "--rm", "-i", "busybox", program], Vec::new());
        assert_eq!((got, out), (Some(code), Vec::new()), "{err}");
        assert!(err.ends_with(&format!("error: the command `{program}` is {why}\n")), "{err}");
    }
    let (mut person, before) = Person::at(toft.client(&["run", "--rm", "-it", "busybox", "nosuchprogram"]), 24, 80);
    person.sees("the command `nosuchprogram` is not in the image");
    assert_eq!(person.ends(), 127);
    assert!(tcgetattr(&person.terminal).unwrap() == before);
    let refused = |arguments: &[&str], code: i32, words: &str| {
        let error = toft.toft(arguments).bad(code);
        assert!(error.contains(words), "{arguments:?}: {error}");
    };
    refused(&["run", "-it", "busybox", "sh"], 2, "no terminal");
    refused(&["run", "-i", "--replicas", "2", "busybox", "cat"], 2, "--replicas");
    refused(&["run", "-i", "--json", "busybox", "cat"], 2, "--json");
    refused(&["run", "-d", "--rm", "busybox", "cat"], 2, "--rm");
    refused(&["run", "-it", "--detach-keys", "ctrl-é", "busybox", "sh"], 2, "ctrl-p,ctrl-q");
    refused(&["run", "-i", "--rm", "nosuchimage"], 125, "nosuchimage");
    nothing_is_left(&toft);
}

#[test]
fn several_sit_at_one_terminal_and_leave_it_as_it_is() {
    let toft = with_busybox();
    assert_eq!(toft.good("run -d -it -n shell busybox sh"), "shell\n");
    let pid = toft.instance("shell")["pid"].clone();
    let error = toft.toft(&["attach", "shell"]).bad(1);
    assert!(error.contains("terminal") && error.contains("--no-stdin"), "{error}");
    let (mut first, before) = Person::at(toft.client(&["attach", "shell"]), 24, 80);
    let (mut second, _) = Person::at(toft.client(&["attach", "--detach-keys", "ctrl-],q", "shell"]), 24, 80);
    let watcher = toft.follow(&["attach", "--no-stdin", "shell"]);
    let together = |first: &mut Person, second: &mut Person| {
        // Whoever comes sees what comes from then on.
        wait_until("both are there", || {
            first.types("echo he''re\n");
            std::thread::sleep(Duration::from_millis(200));
            first.types("echo bo''th\n");
            first.sees("both");
            second.sees("both");
            Some(())
        });
    };
    together(&mut first, &mut second);
    second.types("X=kept; echo sec''ond\n");
    first.sees("second");
    assert!((0..1000).any(|_| watcher.line().contains("second")));
    second.types("\x1dx\x1d\x1dq");
    second.sees("detached");
    assert_eq!(second.ends(), 0);
    first.types("\x10x\x10\x11");
    assert_eq!(first.ends(), 0);
    assert!(tcgetattr(&first.terminal).unwrap() == before, "the terminal is as it was");
    drop(watcher);
    let (mut third, _) = Person::at(toft.client(&["attach", "shell"]), 24, 80);
    third.types("\necho is $X\n");
    third.sees("is kept");
    assert_eq!(toft.instance("shell")["pid"], pid);
    assert!(toft.logs("shell").iter().any(|line| line == "is kept"), "lines end as lines");
    third.types("exit 3\n");
    assert_eq!(third.ends(), 3);
    toft.good("rm shell");
    nothing_is_left(&toft);
}

#[test]
fn a_terminal_outlives_the_daemon_whether_it_is_killed_or_stopped() {
    let mut toft = with_busybox();
    let (mut person, before) = Person::at(toft.client(&["run", "-it", "-n", "shell", "busybox", "sh"]), 24, 80);
    person.sees("#");
    let pid = toft.instance_until("shell", "runs", |instance| instance["state"] == "running")["pid"].clone();
    person.types("X=kept; echo re''ady\n");
    person.sees("ready");
    let script = "read a; echo got $a; sleep 1000";
    toft.toft(&["run", "-d", "-i", "-n", "reader", "busybox", "sh", "-c", script]).good();
    for killed in [true, false] {
        if killed {
            toft.kill();
        } else {
            assert_eq!(toft.stop(), 0);
        }
        assert_eq!(person.ends(), 125);
        person.sees("`toft attach shell` goes back");
        assert!(tcgetattr(&person.terminal).unwrap() == before, "the terminal is as it was");
        toft.up();
        toft.instance_until("shell", "runs", |instance| instance["state"] == "running");
        assert_eq!(toft.instance("shell")["pid"], pid, "it was not touched");
        person = Person::at(toft.client(&["attach", "shell"]), 24, 80).0;
        person.types("\necho still $X\n");
        person.sees("still kept");
    }
    assert!(toft.logs("reader").is_empty(), "it read no end");
    let mut socket = attached(&toft, "reader-0");
    socket.send(Message::Binary(b"me\n".to_vec().into())).unwrap();
    wait_until("it was read", || (toft.logs("reader") == ["got me"]).then_some(()));
    drop(socket);
    person.types("exit 6\n");
    assert_eq!(person.ends(), 6);
    toft.good("rm shell reader");
    nothing_is_left(&toft);
}

#[test]
fn who_vanishes_from_the_foreground_hangs_up_and_who_detaches_does_not() {
    let toft = with_busybox();
    let (mut person, _) = Person::at(toft.client(&["run", "-it", "-n", "shell", "busybox", "sh"]), 24, 80);
    person.sees("#");
    person.types("\x10\x11");
    assert_eq!(person.ends(), 0);
    person.sees("`toft attach shell`");
    toft.instance_until("shell", "runs", |instance| instance["state"] == "running");
    let (mut person, _) = Person::at(toft.client(&["attach", "shell"]), 24, 80);
    person.types("\n");
    person.sees("#");
    person.child.kill().unwrap();
    drop(person);
    toft.instance_until("shell", "has ended", |instance| instance["state"] == "finished");
    let mut command = toft.client(&["run", "-i", "-n", "cat", "busybox", "sh", "-c", "cat; exit 8"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"hi\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let ended = toft.instance_until("cat", "has ended", |instance| instance["state"] == "finished");
    assert_eq!(ended["last_exit"]["code"], 8, "it read the end");
    toft.good("rm shell cat");
    nothing_is_left(&toft);
}

#[test]
fn signals_go_to_the_process_unless_that_is_not_wanted() {
    let toft = with_busybox();
    let script = "trap 'echo caught; exit 9' TERM; while :; do echo tick; busybox sleep 0.1; done";
    toft.toft(&["run", "-d", "-i", "-n", "trap", "busybox", "sh", "-c", script]).good();
    let bystander = toft.follow(&["attach", "--sig-proxy=false", "trap"]);
    assert_eq!(bystander.line(), "tick");
    bystander.signal(Signal::SIGTERM);
    assert_eq!(bystander.end().0, 143);
    assert_eq!(toft.instance("trap")["state"], "running");
    let follower = toft.follow(&["attach", "trap"]);
    assert_eq!(follower.line(), "tick");
    follower.signal(Signal::SIGTERM);
    let (code, lines) = follower.end();
    assert_eq!((code, lines.last().map(String::as_str)), (9, Some("caught")));
    toft.good("rm trap");
    let mut command = toft.client(&["run", "--rm", "-i", "busybox", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    nothing_is_left(&toft);
}

#[test]
fn those_attached_see_the_end_when_somebody_else_ends_it() {
    let toft = with_busybox();
    let (mut person, before) = Person::at(toft.client(&["run", "-it", "-n", "shell", "busybox", "sh"]), 24, 80);
    person.sees("#");
    toft.good("rm shell");
    assert_eq!(person.ends(), 137);
    assert!(tcgetattr(&person.terminal).unwrap() == before);
    nothing_is_left(&toft);
}

fn attached(toft: &Appliance, instance: &str) -> WebSocket<UnixStream> {
    let mut socket = connect(toft, instance, "attach");
    let order = json!({"type": "attach", "order": {"stdin": true}}).to_string();
    socket.send(Message::Text(order.into())).unwrap();
    loop {
        match socket.read().unwrap() {
            Message::Text(text) => {
                assert_eq!(text.as_str(), r#"{"type":"started"}"#);
                return socket;
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Kilobytes of memory of the daemon itself.
fn memory_kib(toft: &Appliance) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", toft.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_flood_of_input_is_slowed_down_and_a_client_that_does_not_read_is_left_behind() {
    let toft = with_busybox();
    toft.good("run -d -i -n deaf busybox sleep 1000");
    let before = memory_kib(&toft);
    let mut flood = attached(&toft, "deaf-0");
    flood.get_mut().set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut sent = 0_u64;
    let stuck = loop {
        match flood.send(Message::Binary(vec![b'x'; 256 * 1024].into())) {
            Ok(()) => sent += 256 * 1024,
            Err(error) => break error,
        }
        assert!(sent < 256 << 20, "nobody slows it down");
    };
    assert!(matches!(&stuck, Error::Io(error) if error.kind() == ErrorKind::WouldBlock), "{stuck}");
    let more = memory_kib(&toft).saturating_sub(before);
    assert!(more < 48 << 10, "{more} KiB more for {sent} bytes");
    // Others get on.
    let mut other = attached(&toft, "deaf-0");
    other.send(Message::Text(json!({"type": "signal", "number": 9}).to_string().into())).unwrap();
    assert_eq!(last_word(other), json!({"type": "exited", "code": 137}));
    drop(flood);

    let script = "i=0; while [ $i -lt 40000 ]; do echo $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); done; read a; exit 2";
    toft.toft(&[
        "run",
        "-d",
        "-i",
        "-n",
        "loud",
        "--restart",
        "no",
        "busybox",
        "sh",
        "-c",
        &format!("read a; {script}"),
    ])
    .good();
    let silent = attached(&toft, "loud-0");
    let mut child = toft.client(&["attach", "loud"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut listening = attached(&toft, "loud-0");
    listening.send(Message::Binary(b"go\n".to_vec().into())).unwrap();
    // What is still under way when a client vanishes may be lost with it.
    wait_until("it has begun", || (!toft.logs("loud").is_empty()).then_some(()));
    drop(listening);
    let begun = Instant::now();
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        drop(out.read_to_string(&mut text));
        text
    });
    wait_until("all is written", || {
        toft.logs("loud").last().is_some_and(|line| line.starts_with("39999 ")).then_some(())
    });
    keys.write_all(b"end\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    let text = reading.join().unwrap();
    assert!(text.lines().last().is_some_and(|line| line.starts_with("39999 ")), "{:?}", begun.elapsed());
    let last = last_word(silent);
    assert_eq!(last["type"], "failed", "{last}");
}

#[test]
fn hostile_messages_are_refused_and_change_nothing() {
    let toft = with_busybox();
    toft.good("run -d -i -n cat busybox cat");
    toft.good("run -n web busybox -- sleep 1000");
    let plain = toft.get("/api/v1/instances/cat-0/attach").refusal(400);
    assert!(plain["message"].as_str().unwrap().contains("WebSocket"), "{plain}");
    for (instance, status) in [("web-0", "409"), ("nobody-0", "404")] {
        let stream = UnixStream::connect(toft.data.join("toft.sock")).unwrap();
        let url = format!("ws://localhost/api/v1/instances/{instance}/attach");
        let refused = client(url, stream).err().unwrap().to_string();
        assert!(refused.contains(status), "{instance}: {refused}");
    }
    let order = |order: Value| json!({"type": "attach", "order": order}).to_string();
    for first in [
        "{".to_owned(),
        "null".into(),
        format!("{{\"type\":\"attach\",\"order\":{}", "[".repeat(50_000)),
        json!({"type": "start", "order": {"command": ["sh"]}}).to_string(),
        json!({"type": "detach"}).to_string(),
        json!({"type": "attach"}).to_string(),
        order(json!({"stdin": "yes"})),
        order(json!({"hunter2": true})),
        order(json!({"terminal": {"columns": 0, "rows": 7}})),
        order(json!({"terminal": {"columns": 70_000, "rows": 7}})),
    ] {
        let mut socket = connect(&toft, "cat-0", "attach");
        socket.send(Message::Text(first.clone().into())).unwrap();
        let last = last_word(socket);
        let shown: String = first.chars().take(80).collect();
        assert_eq!((&last["type"], &last["error"]["code"]), (&json!("failed"), &json!("invalid")), "{shown}: {last}");
        assert!(last.to_string().len() < 2_000, "{shown}");
    }
    let mut huge = attached(&toft, "cat-0");
    // It may be cut off while it is still being sent.
    drop(huge.send(Message::Binary(vec![0; 4 << 20].into())));
    assert_eq!(last_word(huge), Value::Null);
    let mut confused = attached(&toft, "cat-0");
    confused.send(Message::Text(json!({"type": "signal", "number": -9}).to_string().into())).unwrap();
    assert_eq!(last_word(confused)["error"]["code"], "invalid");
    let mut crowd: Vec<_> = (0..64).map(|_| attached(&toft, "cat-0")).collect();
    let mut surplus = connect(&toft, "cat-0", "attach");
    surplus.send(Message::Text(order(json!({})).into())).unwrap();
    let refused = last_word(surplus);
    assert_eq!(refused["error"]["code"], "unavailable", "{refused}");
    crowd[0].send(Message::Binary(b"to all\n".to_vec().into())).unwrap();
    for socket in &mut crowd[1..] {
        loop {
            if let Message::Binary(bytes) = socket.read().unwrap() {
                assert_eq!(&bytes[..], b"\x01to all\n");
                break;
            }
        }
    }
    drop(crowd);
    assert_eq!(toft.instance("cat")["state"], "running");
    assert_eq!(toft.instance("cat")["restarts"], 0);
}
