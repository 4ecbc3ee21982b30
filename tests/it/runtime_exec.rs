//! What every runtime must do with processes inside containers, run against the fake and against a real containerd; and
//! what only the real one has.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use serde_json::json;
use toft::agent::runtime::{
    LoggerCommand, Runtime, RuntimeError, TaskState,
    exec::{Exec, ExecProcess, ExecRuntime},
    fake::FakeRuntime,
    usage::RunningTask,
};
use toft_model::{
    exec::{ExecOrder, TerminalSize},
    ids::InstanceId,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::{
    harness::{containerd::Lab, image},
    runtime_conformance::spec,
};

/// A runtime with one container that runs.
struct Subject {
    runtime: Arc<dyn Runtime>,
    id: InstanceId,
}

pub fn order(command: &[&str]) -> ExecOrder {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    ExecOrder { command, env: BTreeMap::new(), user: None, dir: None, stdin: false, terminal: None }
}

async fn read(mut from: Box<dyn AsyncRead + Send + Unpin>) -> String {
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(20), from.read_to_string(&mut text)).await.expect("it ends").unwrap();
    text
}

async fn code(process: &dyn ExecProcess) -> i32 {
    tokio::time::timeout(Duration::from_secs(20), process.wait()).await.expect("it ends").unwrap()
}

/// Runs a process to its end; gives output, errors and code.
async fn ran(runtime: &dyn Runtime, id: InstanceId, order: &ExecOrder) -> (String, String, i32) {
    let Exec { output, errors, process, .. } = runtime.exec(id, order).await.unwrap();
    let errors = async {
        match errors {
            Some(errors) => read(errors).await,
            None => String::new(),
        }
    };
    let (output, errors, code) = tokio::join!(read(output), errors, code(&*process));
    process.remove().await;
    (output, errors, code)
}

async fn output_errors_and_code_come_apart(s: Subject) {
    let got = ran(&*s.runtime, s.id, &order(&["sh", "-c", "echo out; echo err >&2; exit 3"])).await;
    assert_eq!(got, ("out\n".to_owned(), "err\n".to_owned(), 3));
    let got = ran(&*s.runtime, s.id, &order(&["sh", "-c", "exit 0"])).await;
    assert_eq!(got, (String::new(), String::new(), 0));
}

async fn input_reaches_the_process_to_its_end(s: Subject) {
    let order = ExecOrder { stdin: true, ..order(&["cat"]) };
    let Exec { input, output, process, .. } = s.runtime.exec(s.id, &order).await.unwrap();
    let mut input = input.unwrap();
    let sending = async {
        input.write_all(&b"line\n".repeat(20_000)).await.unwrap();
        drop(input);
        process.close_input().await.unwrap();
    };
    let ((), text, code) = tokio::join!(sending, read(output), code(&*process));
    assert_eq!((text.len(), code), (100_000, 0));
    process.remove().await;
}

async fn without_input_its_end_is_read_at_once(s: Subject) {
    assert_eq!(ran(&*s.runtime, s.id, &order(&["cat"])).await.2, 0);
}

async fn a_signal_ends_a_process_and_its_code_says_so(s: Subject) {
    let Exec { process, .. } = s.runtime.exec(s.id, &order(&["sleep", "1000"])).await.unwrap();
    process.signal(15).await.unwrap();
    assert_eq!(code(&*process).await, 143);
    process.signal(15).await.expect("one that has ended is no error");
    process.remove().await;
}

async fn a_process_that_runs_can_be_removed(s: Subject) {
    let Exec { process, output, .. } = s.runtime.exec(s.id, &order(&["sleep", "1000"])).await.unwrap();
    process.remove().await;
    assert_eq!(read(output).await, "");
    process.remove().await;
}

async fn a_terminal_shows_both_streams(s: Subject) {
    let terminal = Some(TerminalSize { columns: 93, rows: 31 });
    let order = ExecOrder { terminal, ..order(&["sh", "-c", "echo out; echo err >&2; exit 4"]) };
    let exec = s.runtime.exec(s.id, &order).await.unwrap();
    assert!(exec.errors.is_none());
    exec.process.remove().await;
    assert_eq!(ran(&*s.runtime, s.id, &order).await, ("out\r\nerr\r\n".to_owned(), String::new(), 4));
}

async fn what_cannot_be_started_is_told_in_plain_words(s: Subject) {
    let error = s.runtime.exec(s.id, &order(&["no-such-command"])).await.err().unwrap();
    assert!(matches!(error, RuntimeError::StartFailed { exit_code: 127, .. }), "{error}");
    assert!(error.to_string().ends_with("the command `no-such-command` is not in the image"), "{error}");
    s.runtime.signal_task(s.id, 9).await.unwrap();
    let mut last = None;
    for _ in 0..500 {
        last = s.runtime.exec(s.id, &order(&["sh", "-c", "exit 0"])).await.err();
        if matches!(last, Some(RuntimeError::NotRunning { .. })) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(matches!(last, Some(RuntimeError::NotRunning { .. })), "{last:?}");
}

async fn what_it_uses_is_counted_while_it_runs(s: Subject) {
    let find =
        async || s.runtime.containers().await.unwrap().into_iter().find(|container| container.id == s.id).unwrap();
    let TaskState::Running { pid } = find().await.task else { panic!("it runs") };
    let task = RunningTask { id: s.id, pid };
    let mut first = s.runtime.usage(vec![task], false).await.unwrap().remove(0).1;
    for _ in 0..1000 {
        if first.pids == 1 {
            break;
        }
        // The runtime's own threads have yet to become the process.
        tokio::time::sleep(Duration::from_millis(20)).await;
        first = s.runtime.usage(vec![task], false).await.unwrap().remove(0).1;
    }
    assert!(first.memory_bytes > 0 && first.pids == 1 && first.memory_pss_bytes.is_none(), "{first:?}");
    let busy = s.runtime.exec(s.id, &order(&["sh", "-c", "while :; do :; done"])).await.unwrap();
    let mut more = first.cpu_ns;
    for _ in 0..1000 {
        more = s.runtime.usage(vec![task], false).await.unwrap()[0].1.cpu_ns;
        if more > first.cpu_ns + 20_000_000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(more > first.cpu_ns + 20_000_000, "{more}");
    busy.process.remove().await;
    assert!(s.runtime.usage(vec![task], true).await.unwrap()[0].1.memory_pss_bytes.is_some_and(|bytes| bytes > 0));
    let processes = s.runtime.processes(task).await.unwrap();
    assert_eq!((processes[0].pid, processes[0].command.as_str()), (pid, "sleep 1000"), "{processes:?}");

    let stranger = RunningTask { id: spec(&[]).id, pid };
    assert_eq!(s.runtime.usage(vec![stranger], false).await.unwrap(), [], "another's process is not told");
    let error = s.runtime.processes(stranger).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotRunning { .. }), "{error}");
    s.runtime.signal_task(s.id, 9).await.unwrap();
    for _ in 0..1000 {
        if matches!(find().await.task, TaskState::Ended(_))
            && s.runtime.usage(vec![task], false).await.unwrap().is_empty()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("what has ended uses something");
}

async fn running(runtime: &dyn Runtime, archive: Vec<u8>, logger: &LoggerCommand) -> InstanceId {
    runtime.import_image(Box::new(std::io::Cursor::new(archive)), None).await.unwrap();
    let spec = spec(&["sleep", "1000"]);
    runtime.create_container(&spec).await.unwrap();
    runtime.create_task(spec.id, logger).await.unwrap();
    runtime.start_task(spec.id).await.unwrap();
    spec.id
}

async fn on_fake<F: Future<Output = ()>>(test: impl FnOnce(Subject) -> F) {
    let runtime = Arc::new(FakeRuntime::new());
    let logger = LoggerCommand { program: "/bin/logger".into(), args: Vec::new() };
    let id = running(&*runtime, FakeRuntime::archive("busybox", "SIGTERM"), &logger).await;
    test(Subject { runtime, id }).await;
}

fn archive() -> Vec<u8> {
    image::busybox("busybox", json!({"Cmd": ["sh"], "Env": ["KEPT=yes"]}))
}

async fn on_containerd<F: Future<Output = ()>>(test: impl FnOnce(Subject) -> F) {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let id = running(&*connected.runtime, archive(), &lab.logger()).await;
    test(Subject { runtime: connected.runtime.clone(), id }).await;
    let left: Vec<_> = std::fs::read_dir(lab.dir.join("execs")).unwrap().collect();
    assert!(left.is_empty(), "pipes are left: {left:?}");
}

crate::harness::conformance!(
    output_errors_and_code_come_apart,
    input_reaches_the_process_to_its_end,
    without_input_its_end_is_read_at_once,
    a_signal_ends_a_process_and_its_code_says_so,
    a_process_that_runs_can_be_removed,
    a_terminal_shows_both_streams,
    what_cannot_be_started_is_told_in_plain_words,
    what_it_uses_is_counted_while_it_runs,
);

#[tokio::test(flavor = "multi_thread")]
async fn user_directory_and_environment_are_those_of_the_order_else_the_containers() {
    on_containerd(async |s| {
        let run = async |order: ExecOrder| ran(&*s.runtime, s.id, &order).await;
        assert_eq!(run(order(&["sh", "-c", "id -u; busybox pwd; echo $KEPT"])).await.0, "0\n/\nyes\n");
        let mut changed = order(&["sh", "-c", "id -u; id -g; id -G; busybox pwd; echo $KEPT $OWN; busybox tty"]);
        changed.user = Some("web".into());
        changed.dir = Some("/tmp".into());
        changed.env = BTreeMap::from([("KEPT".into(), "no".into()), ("OWN".into(), "a b".into())]);
        let (out, _, code) = run(changed).await;
        assert_eq!((out.as_str(), code), ("1000\n1001\n1001 1002\n/tmp\nno a b\nnot a tty\n", 1));
        let mut terminal = order(&["sh", "-c", "busybox stty size; echo $TERM"]);
        terminal.terminal = Some(TerminalSize { columns: 93, rows: 31 });
        assert_eq!(run(terminal).await.0, "31 93\r\nxterm\r\n");
        let refused = async |change: &dyn Fn(&mut ExecOrder)| {
            let mut order = order(&["true"]);
            change(&mut order);
            s.runtime.exec(s.id, &order).await.err().unwrap().to_string()
        };
        assert!(refused(&|order| order.user = Some("nobody".into())).await.contains("user `nobody`"));
        let error = refused(&|order| order.dir = Some("/nowhere".into())).await;
        assert!(error.contains("/nowhere"), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_behind_is_ended_by_the_next() {
    let lab = Lab::start().await;
    let first = lab.connect().await;
    let id = running(&*first.runtime, archive(), &lab.logger()).await;
    let seconds = (100_000 + std::process::id()).to_string();
    let nested = order(&["sh", "-c", &format!("busybox sleep {seconds} & busybox sleep {seconds}")]);
    let exec = first.runtime.exec(id, &nested).await.unwrap();
    let sleeping = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        let sleeps = format!("busybox\0sleep\0{seconds}\0");
        lines.filter(|line| line == sleeps.as_bytes()).count()
    };
    let until = async |count: usize| {
        for _ in 0..1000 {
            if sleeping() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} processes sleep", sleeping());
    };
    until(2).await;
    drop((exec, first));
    let execs = lab.dir.join("execs");
    assert_eq!(std::fs::read_dir(&execs).unwrap().count(), 1);
    let second = lab.connect().await;
    until(0).await;
    for _ in 0..1000 {
        if std::fs::read_dir(&execs).unwrap().count() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(std::fs::read_dir(&execs).unwrap().count(), 0);
    assert_eq!(ran(&*second.runtime, id, &order(&["sh", "-c", "echo on"])).await.0, "on\n", "the container goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_goes_on_while_containerd_is_away() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let id = running(&*connected.runtime, archive(), &lab.logger()).await;
    let order = ExecOrder { stdin: true, ..order(&["sh", "-c", "echo ready; cat; exit 5"]) };
    let Exec { input, mut output, process, .. } = connected.runtime.exec(id, &order).await.unwrap();
    let mut ready = [0; 6];
    output.read_exact(&mut ready).await.unwrap();
    let wait = tokio::spawn({
        let process = Arc::clone(&process);
        async move { process.wait().await }
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(lab.pid().unwrap() as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    let mut input = input.unwrap();
    input.write_all(b"on\n").await.unwrap();
    drop(input);
    for _ in 0..200 {
        if process.close_input().await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read(output).await, "on\n");
    let code = tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it ends").unwrap().unwrap();
    assert_eq!(code, 5);
    process.remove().await;
}
