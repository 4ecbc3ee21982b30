use std::collections::BTreeMap;

use toft_model::{
    exec::{AttachOrder, ExecInput},
    workload::ProcessSpec,
};
use uuid::Uuid;

use super::*;
use crate::agent::runtime::{
    ContainerSpec, LoggerCommand, NetworkNamespace, Runtime, attach::AttachRuntime, fake::FakeRuntime,
};

struct House {
    runtime: FakeRuntime,
    id: InstanceId,
}

struct Person {
    input: mpsc::Sender<ExecInput>,
    output: mpsc::Receiver<ExecOutput>,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl House {
    async fn running(script: &str, process: ProcessSpec) -> Self {
        let runtime = FakeRuntime::new();
        let id = InstanceId(Uuid::new_v4());
        let image = "busybox".parse().unwrap();
        runtime.add_image(&image);
        let spec = ContainerSpec {
            id,
            image,
            entrypoint: None,
            command: vec!["sh".into(), "-c".into(), script.into()],
            env: BTreeMap::new(),
            hostname: "box".into(),
            network: NetworkNamespace::New,
            resources: Default::default(),
            labels: BTreeMap::new(),
            files: BTreeMap::new(),
            mounts: Vec::new(),
            edits: Default::default(),
            process,
            init: None,
        };
        runtime.create_container(&spec).await.unwrap();
        runtime.create_task(id, &LoggerCommand { program: "/bin/logger".into(), args: Vec::new() }).await.unwrap();
        Self { runtime, id }
    }

    async fn start(&self) {
        self.runtime.start_task(self.id).await.unwrap();
    }

    async fn attach(&self) -> Person {
        let order = AttachOrder { stdin: true, ..AttachOrder::default() };
        let attachment = self.runtime.attach(self.id, &order).await.unwrap();
        let (input, from_user) = mpsc::channel(4);
        let (to_user, output) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let done = tokio::spawn(run(attachment, Ways { input: from_user, output: to_user }, stop.clone()));
        Person { input, output, stop, done }
    }
}

impl Person {
    async fn types(&self, text: &str) {
        self.input.send(ExecInput::Bytes(text.into())).await.unwrap();
    }

    /// Reads until `text` was shown.
    async fn sees(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.output.recv().await {
                Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => seen += &String::from_utf8_lossy(&bytes),
                Some(ExecOutput::Taken(_)) => {}
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    }

    async fn last_word(&mut self) -> Option<ExecOutput> {
        let mut last = None;
        while let Some(next) = self.output.recv().await {
            last = Some(next);
        }
        last
    }
}

fn open() -> ProcessSpec {
    ProcessSpec { stdin: true, ..ProcessSpec::default() }
}

fn foreground() -> ProcessSpec {
    ProcessSpec { foreground: true, ..open() }
}

#[tokio::test]
async fn all_see_what_is_written_and_each_can_type() {
    let house = House::running("cat", open()).await;
    let (mut first, mut second) = (house.attach().await, house.attach().await);
    house.start().await;
    first.types("one\n").await;
    second.sees("one").await;
    second.types("two\n").await;
    first.sees("two").await;
    // Whoever leaves, and however, ends nothing.
    first.input.send(ExecInput::End).await.unwrap();
    drop(first);
    second.types("three\n").await;
    second.sees("three").await;
    drop(second);
    let mut third = house.attach().await;
    third.types("four\n").await;
    third.sees("four").await;
    house.runtime.signal_task(house.id, 15).await.unwrap();
    assert_eq!(third.last_word().await, Some(ExecOutput::Exited(143)));
}

#[tokio::test]
async fn in_the_foreground_the_end_of_the_input_is_the_containers() {
    let house = House::running("cat; exit 3", foreground()).await;
    let (mut person, mut other) = (house.attach().await, house.attach().await);
    house.start().await;
    person.types("hi\n").await;
    person.sees("hi").await;
    person.input.send(ExecInput::End).await.unwrap();
    assert_eq!(person.last_word().await, Some(ExecOutput::Exited(3)), "though another is attached");
    assert_eq!(other.last_word().await, Some(ExecOutput::Exited(3)));
}

#[tokio::test]
async fn who_vanishes_from_the_foreground_ends_its_input_and_who_detaches_or_is_cut_off_by_the_daemon_does_not() {
    let house = House::running("cat; exit 3", foreground()).await;
    house.start().await;
    let mut watcher = house.attach().await;
    let person = house.attach().await;
    person.types("last").await;
    person.input.send(ExecInput::Detach).await.unwrap();
    person.done.await.unwrap();
    watcher.sees("last").await;
    watcher.input.send(ExecInput::Detach).await.unwrap();
    watcher.done.await.unwrap();
    let mut person = house.attach().await;
    person.stop.cancel();
    assert!(matches!(person.last_word().await, Some(ExecOutput::Lost(why)) if why.contains("stopping")));
    drop(person.input);
    let mut person = house.attach().await;
    person.types("still\n").await;
    person.sees("still").await;
    let mut other = house.attach().await;
    drop(person);
    assert_eq!(other.last_word().await, Some(ExecOutput::Exited(3)));
}

#[tokio::test]
async fn input_that_nobody_reads_waits_and_signals_pass_it() {
    let house = House::running("serve", open()).await;
    house.start().await;
    let mut person = house.attach().await;
    let flood = async {
        let mut sent = 0_u64;
        loop {
            person.input.send(ExecInput::Bytes(vec![0; 64 * 1024])).await.unwrap();
            sent += 1;
            assert!(sent < 100, "it would go on for ever");
        }
    };
    assert!(timeout(Duration::from_secs(1), flood).await.is_err(), "it is slowed down");
    drop(person.input);
    let (mut taken, mut more) = (0, 0);
    while let Ok(Some(told)) = timeout(Duration::from_secs(1), person.output.recv()).await {
        match told {
            ExecOutput::Taken(bytes) => taken += bytes,
            _ => more += 1,
        }
    }
    // The pipe's, and no more.
    assert!(taken <= 128 * 1024, "{taken} bytes were taken");
    assert_eq!(more, 0);
    let patient = house.attach().await;
    patient.types("x").await;
    patient.input.send(ExecInput::Signal(15)).await.unwrap();
    let mut patient = patient;
    assert_eq!(patient.last_word().await, Some(ExecOutput::Exited(143)));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_the_others_go_on() {
    let echo = format!("echo {}", "x".repeat(2_000));
    let script = [echo.as_str(); 200].join(";");
    let house = House::running(&format!("{script};echo last;exit 5"), open()).await;
    let (mut deaf, mut other) = (house.attach().await, house.attach().await);
    house.start().await;
    other.sees("last").await;
    assert_eq!(other.last_word().await, Some(ExecOutput::Exited(5)));
    assert_eq!(deaf.last_word().await, Some(ExecOutput::Lost(CUT_OFF.to_owned())));
}

#[tokio::test]
async fn the_first_is_waited_for_and_not_for_ever() {
    let (audience, id) = (Audience::default(), InstanceId(Uuid::new_v4()));
    let (short, long) = (Duration::from_millis(50), Duration::from_secs(600));
    let first = async |limit| {
        let begun = tokio::time::Instant::now();
        audience.first(id, limit).await;
        begun.elapsed()
    };
    assert!(first(short).await >= short);
    let seats = (audience.seat(id), audience.seat(id));
    assert!(first(long).await < long);
    drop(seats.0);
    assert!(first(long).await < long);
    drop(seats.1);
    assert!(first(short).await >= short);
}
