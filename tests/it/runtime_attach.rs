//! What every runtime must do for those who attach to a container's own process, run against the fake and against a real
//! containerd; and what only the real one has.

use std::{
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use toft::{
    agent::runtime::{
        ContainerSpec, LoggerCommand, Runtime, RuntimeError,
        attach::{Attachment, Output, Written},
        exec::ProcessHandle,
        fake::FakeRuntime,
    },
    embedded,
};
use toft_model::{
    exec::{AttachOrder, TerminalSize},
    ids::InstanceId,
    workload::ProcessSpec,
};
use tokio::io::AsyncWriteExt;

use crate::{
    harness::{containerd::Lab, image},
    runtime_conformance::spec,
};

const PATIENCE: Duration = Duration::from_secs(30);

struct Subject {
    runtime: Arc<dyn Runtime>,
    logger: LoggerCommand,
}

impl Subject {
    /// A container whose process is prepared.
    async fn prepared(&self, command: &[&str], process: ProcessSpec) -> InstanceId {
        let spec = ContainerSpec { process, ..spec(command) };
        self.runtime.create_container(&spec).await.unwrap();
        self.runtime.create_task(spec.id, &self.logger).await.unwrap();
        spec.id
    }

    async fn running(&self, command: &[&str], process: ProcessSpec) -> InstanceId {
        let id = self.prepared(command, process).await;
        self.runtime.start_task(id).await.unwrap();
        id
    }

    async fn attach(&self, id: InstanceId) -> Attachment {
        self.runtime.attach(id, &order()).await.unwrap()
    }

    async fn clean(&self, id: InstanceId) {
        self.runtime.signal_task(id, 9).await.unwrap();
        let begun = Instant::now();
        while let Err(error) = self.runtime.delete_task(id).await {
            assert!(begun.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.runtime.delete_container(id).await.unwrap();
    }
}

fn order() -> AttachOrder {
    AttachOrder { stdin: true, ..AttachOrder::default() }
}

fn open() -> ProcessSpec {
    ProcessSpec { stdin: true, ..ProcessSpec::default() }
}

fn foreground() -> ProcessSpec {
    ProcessSpec { foreground: true, ..open() }
}

fn terminal() -> ProcessSpec {
    ProcessSpec { tty: true, ..open() }
}

async fn types(attachment: &mut Attachment, text: &str) {
    let typed = attachment.input.as_mut().unwrap().write_all(text.as_bytes());
    tokio::time::timeout(PATIENCE, typed).await.expect("it is taken").unwrap();
}

async fn next(output: &mut dyn Output) -> Option<Written> {
    tokio::time::timeout(PATIENCE, output.next()).await.expect("something comes").unwrap()
}

/// Reads until `text` was written.
async fn sees(attachment: &mut Attachment, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        match next(&mut *attachment.output).await {
            Some(Written::Stdout(bytes) | Written::Stderr(bytes)) => seen += &String::from_utf8_lossy(&bytes),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
}

/// Everything to the end, which must be told.
async fn rest(attachment: &mut Attachment) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match next(&mut *attachment.output).await {
            Some(Written::Stdout(bytes)) => out.extend(bytes),
            Some(Written::Stderr(bytes)) => err.extend(bytes),
            Some(Written::End) => break,
            None => panic!("it was cut off"),
        }
    }
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

async fn code(process: &dyn ProcessHandle) -> i32 {
    tokio::time::timeout(PATIENCE, process.wait()).await.expect("it ends").unwrap()
}

async fn all_see_what_is_written_and_each_can_type(s: Subject) {
    let id = s.prepared(&["cat"], open()).await;
    let (mut first, mut second) = (s.attach(id).await, s.attach(id).await);
    s.runtime.start_task(id).await.unwrap();
    types(&mut first, "one\n").await;
    sees(&mut second, "one").await;
    types(&mut second, "two\n").await;
    sees(&mut first, "two").await;
    // Nobody's leaving is an end.
    drop((first, second));
    let mut third = s.attach(id).await;
    types(&mut third, "three\n").await;
    sees(&mut third, "three").await;
    third.process.signal(9).await.unwrap();
    assert_eq!(rest(&mut third).await, Default::default());
    assert_eq!(code(&*third.process).await, 137);
    s.clean(id).await;
}

async fn the_first_words_and_the_code_are_told(s: Subject) {
    let id = s.prepared(&["sh", "-c", "echo out; echo err >&2; exit 3"], foreground()).await;
    let mut attachment = s.attach(id).await;
    assert!(attachment.foreground && !attachment.terminal);
    s.runtime.start_task(id).await.unwrap();
    let process = Arc::clone(&attachment.process);
    let (written, code) = tokio::join!(rest(&mut attachment), code(&*process));
    assert_eq!((written, code), (("out\n".to_owned(), "err\n".to_owned()), 3));
    let gone = s.runtime.attach(id, &order()).await.err().unwrap();
    assert!(matches!(gone, RuntimeError::NotRunning { .. }), "{gone}");
    s.clean(id).await;
}

async fn the_end_of_the_input_is_told_to_the_process_whoever_else_is_attached(s: Subject) {
    let id = s.running(&["sh", "-c", "cat; exit 4"], foreground()).await;
    let mut attachment = s.attach(id).await;
    let other = s.attach(id).await;
    types(&mut attachment, "hi\n").await;
    sees(&mut attachment, "hi").await;
    drop(attachment.input.take());
    let Attachment { input, input_ended, process, .. } = other;
    let holding = tokio::spawn(async move {
        input_ended.cancelled().await;
        drop(input);
    });
    attachment.process.close_input().await.unwrap();
    assert_eq!(code(&*process).await, 4);
    holding.await.unwrap();
    s.clean(id).await;
}

async fn a_terminal_shows_both_streams(s: Subject) {
    let id = s.prepared(&["sh", "-c", "echo out; echo err >&2; exit 4"], terminal()).await;
    let size = Some(TerminalSize { columns: 93, rows: 31 });
    let mut attachment = s.runtime.attach(id, &AttachOrder { terminal: size, ..order() }).await.unwrap();
    assert!(attachment.terminal && !attachment.foreground);
    attachment.process.resize(TerminalSize { columns: 40, rows: 12 }).await.unwrap();
    s.runtime.start_task(id).await.unwrap();
    let process = Arc::clone(&attachment.process);
    let (written, code) = tokio::join!(rest(&mut attachment), code(&*process));
    assert_eq!((written, code), (("out\r\nerr\r\n".to_owned(), String::new()), 4));
    s.clean(id).await;
}

async fn input_that_nobody_reads_waits(s: Subject) {
    let id = s.running(&["sleep", "1000"], open()).await;
    let mut attachment = s.attach(id).await;
    let flood = vec![b'x'; 1 << 20];
    let mut input = attachment.input.take().unwrap();
    let written = tokio::time::timeout(Duration::from_secs(2), input.write_all(&flood)).await;
    assert!(written.is_err(), "it is taken by nobody");
    s.clean(id).await;
}

async fn who_does_not_read_is_cut_off_and_holds_nobody_up_for_long(s: Subject) {
    let id = s.running(&["cat"], open()).await;
    let mut deaf = s.attach(id).await;
    let mut attentive = s.attach(id).await;
    let mut input = attentive.input.take().unwrap();
    let sending = tokio::spawn(async move {
        for _ in 0..4_096 {
            input.write_all(&[b'x'; 1024]).await.unwrap();
        }
        input
    });
    let reading = async {
        let mut count = 0;
        while count < 4 << 20 {
            match next(&mut *attentive.output).await {
                Some(Written::Stdout(bytes)) => count += bytes.len(),
                other => panic!("{other:?} after {count} bytes"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("it goes on");
    let mut count = 0;
    while let Some(Written::Stdout(bytes)) = next(&mut *deaf.output).await {
        count += bytes.len();
    }
    assert!(count < 4 << 20, "it was cut off");
    sending.await.unwrap();
    s.clean(id).await;
}

async fn who_wants_no_loss_holds_the_container_up(s: Subject) {
    let id = s.running(&["cat"], open()).await;
    let mut patient = s.runtime.attach(id, &AttachOrder { lossless: true, ..order() }).await.unwrap();
    let mut input = patient.input.take().unwrap();
    let sending = tokio::spawn(async move {
        for _ in 0..4_096 {
            input.write_all(&[b'y'; 1024]).await.unwrap();
        }
        input
    });
    // Longer than another would be waited for.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!sending.is_finished());
    let mut count = 0;
    while count < 4 << 20 {
        match next(&mut *patient.output).await {
            Some(Written::Stdout(bytes)) => count += bytes.len(),
            other => panic!("{other:?} after {count} bytes"),
        }
    }
    sending.await.unwrap();
    s.clean(id).await;
}

async fn what_cannot_be_attached_to_says_so(s: Subject) {
    let id = s.running(&["sleep", "1000"], ProcessSpec::default()).await;
    let error = s.runtime.attach(id, &order()).await.err().unwrap();
    assert!(matches!(error, RuntimeError::NotInteractive { .. }), "{error}");
    s.clean(id).await;
    let error = s.runtime.attach(id, &order()).await.err().unwrap();
    assert!(matches!(error, RuntimeError::NotRunning { .. }), "{error}");
    // A terminal alone has no keyboard.
    let id = s.running(&["sleep", "1000"], ProcessSpec { tty: true, ..ProcessSpec::default() }).await;
    assert!(s.attach(id).await.input.is_none());
    let silent = s.runtime.attach(id, &AttachOrder::default()).await.unwrap();
    assert!(silent.input.is_none());
    s.clean(id).await;
}

async fn a_container_can_be_attached_to_at_its_second_start_too(s: Subject) {
    let id = s.running(&["sh", "-c", "cat; exit 6"], foreground()).await;
    for _ in 0..2 {
        let mut attachment = s.attach(id).await;
        types(&mut attachment, "hi\n").await;
        sees(&mut attachment, "hi").await;
        drop(attachment.input.take());
        attachment.process.close_input().await.unwrap();
        assert_eq!(code(&*attachment.process).await, 6);
        drop(attachment);
        let begun = Instant::now();
        while let Err(error) = s.runtime.delete_task(id).await {
            assert!(begun.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        s.runtime.create_task(id, &s.logger).await.unwrap();
        s.runtime.start_task(id).await.unwrap();
    }
    s.clean(id).await;
}

fn archive() -> Vec<u8> {
    image::busybox("busybox", json!({"Cmd": ["sh"]}))
}

async fn import(runtime: &dyn Runtime, archive: Vec<u8>) {
    runtime.import_image(Box::new(std::io::Cursor::new(archive)), None).await.unwrap();
}

fn logger(lab: &Lab) -> LoggerCommand {
    let program = embedded::install_logger(&lab.dir.join("programs")).unwrap();
    LoggerCommand { program, args: vec![("dir".into(), lab.dir.join("logs").display().to_string())] }
}

async fn on_fake<F: Future<Output = ()>>(test: impl FnOnce(Subject) -> F) {
    let runtime = Arc::new(FakeRuntime::new());
    import(&*runtime, FakeRuntime::archive("busybox", "SIGTERM")).await;
    let logger = LoggerCommand { program: "/bin/logger".into(), args: Vec::new() };
    test(Subject { runtime, logger }).await;
}

async fn on_containerd<F: Future<Output = ()>>(test: impl FnOnce(Subject) -> F) {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    import(&*connected.runtime, archive()).await;
    test(Subject { runtime: connected.runtime.clone(), logger: logger(&lab) }).await;
    let left: Vec<PathBuf> = pipes(&lab);
    assert!(left.is_empty(), "{left:?}");
    until("the loggers have ended", || loggers(&lab).is_empty()).await;
}

fn pipes(lab: &Lab) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lab.dir.join("attach")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Loggers that run.
fn loggers(lab: &Lab) -> Vec<String> {
    let programs = lab.dir.join("programs");
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let program = |entry: &std::fs::DirEntry| std::fs::read_link(entry.path().join("exe")).ok();
    let ours = entries.filter(|entry| program(entry).is_some_and(|program| program.starts_with(&programs)));
    ours.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

crate::harness::conformance!(
    all_see_what_is_written_and_each_can_type,
    the_first_words_and_the_code_are_told,
    the_end_of_the_input_is_told_to_the_process_whoever_else_is_attached,
    a_terminal_shows_both_streams,
    input_that_nobody_reads_waits,
    who_does_not_read_is_cut_off_and_holds_nobody_up_for_long,
    who_wants_no_loss_holds_the_container_up,
    what_cannot_be_attached_to_says_so,
    a_container_can_be_attached_to_at_its_second_start_too,
);

#[tokio::test(flavor = "multi_thread")]
async fn input_and_log_outlive_whoever_watches_the_container() {
    let lab = Lab::start().await;
    let first = lab.connect().await;
    import(&*first.runtime, archive()).await;
    let subject = Subject { runtime: first.runtime.clone(), logger: logger(&lab) };
    let script = "read a; echo got $a; read b; echo got $b; cat; exit 7";
    let id = subject.running(&["sh", "-c", script], foreground()).await;
    let mut attachment = subject.attach(id).await;
    types(&mut attachment, "one\n").await;
    sees(&mut attachment, "got one").await;
    drop((attachment, subject, first));
    let second = lab.connect().await;
    let subject = Subject { runtime: second.runtime.clone(), logger: logger(&lab) };
    let mut attachment = subject.attach(id).await;
    types(&mut attachment, "two\n").await;
    sees(&mut attachment, "got two").await;
    // containerd's end is none of the container's either.
    let pid = nix::unistd::Pid::from_raw(lab.pid().unwrap() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    types(&mut attachment, "three\n").await;
    sees(&mut attachment, "three").await;
    crate::harness::containerd::wait_up(&*second.runtime).await;
    drop(attachment.input.take());
    let begun = Instant::now();
    while attachment.process.close_input().await.is_err() {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(code(&*attachment.process).await, 7);
    drop(attachment);
    subject.clean(id).await;
    let log = std::fs::read_to_string(lab.dir.join("logs/current.log")).unwrap();
    let said: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    assert_eq!(said, ["got one", "got two", "three"]);
    assert!(pipes(&lab).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_begins_with_the_size_of_the_terminal_in_front_of_it() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    import(&*connected.runtime, archive()).await;
    let subject = Subject { runtime: connected.runtime.clone(), logger: logger(&lab) };
    let id =
        subject.prepared(&["sh", "-c", "busybox stty size; echo $TERM; read a; busybox stty size"], terminal()).await;
    let size = Some(TerminalSize { columns: 93, rows: 31 });
    let mut attachment = subject.runtime.attach(id, &AttachOrder { terminal: size, ..order() }).await.unwrap();
    subject.runtime.start_task(id).await.unwrap();
    sees(&mut attachment, "31 93\r\nxterm\r\n").await;
    attachment.process.resize(TerminalSize { columns: 120, rows: 40 }).await.unwrap();
    types(&mut attachment, "\n").await;
    assert!(rest(&mut attachment).await.0.contains("40 120\r\n"));
    drop(attachment);
    subject.clean(id).await;
    let log = std::fs::read_to_string(lab.dir.join("logs/current.log")).unwrap();
    assert!(log.contains("stdout F 31 93\n") && !log.contains('\r'), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_there_leaves_neither_pipes_nor_a_logger() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    import(&*connected.runtime, archive()).await;
    for process in [open(), terminal()] {
        let order = ContainerSpec { process, ..spec(&["no-such-command"]) };
        connected.runtime.create_container(&order).await.unwrap();
        let mut result = connected.runtime.create_task(order.id, &logger(&lab)).await.map(drop);
        if result.is_ok() {
            result = connected.runtime.start_task(order.id).await;
        }
        let error = result.unwrap_err().to_string();
        assert!(error.ends_with("the command `no-such-command` is not in the image"), "{error}");
        connected.runtime.delete_task(order.id).await.unwrap();
        assert!(pipes(&lab).is_empty());
        until("the logger has ended", || loggers(&lab).is_empty()).await;
        connected.runtime.delete_container(order.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_starts_and_attachments_leave_nothing_open() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    import(&*connected.runtime, archive()).await;
    let subject = Subject { runtime: connected.runtime.clone(), logger: logger(&lab) };
    let descriptors = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let paths = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        paths.filter(|path| path.starts_with(lab.dir.join("attach"))).count()
    };
    for round in 0..10 {
        let process = if round % 2 == 0 { open() } else { terminal() };
        let id = subject.running(&["cat"], process).await;
        let mut crowd = Vec::new();
        for _ in 0..8 {
            crowd.push(subject.attach(id).await);
        }
        types(&mut crowd[3], "hi\n").await;
        sees(&mut crowd[7], "hi").await;
        assert_eq!(descriptors(), 8, "the inputs");
        drop(crowd);
        assert_eq!(descriptors(), 0);
        subject.clean(id).await;
        assert!(pipes(&lab).is_empty());
    }
    until("the loggers have ended", || loggers(&lab).is_empty()).await;
}
