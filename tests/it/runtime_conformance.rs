//! What every runtime must do, run against the fake and against a real containerd.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use serde_json::json;
use toft::agent::runtime::{
    Container, ContainerSpec, HostMount, LoggerCommand, Runtime, RuntimeError, RuntimeEvent, TaskState,
    fake::FakeRuntime,
};
use toft_model::{ids::InstanceId, instance::Exit};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::harness::{containerd::Lab, image};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// A runtime to be tested, and what it is fed with.
struct Subject {
    runtime: Arc<dyn Runtime>,
    logger: LoggerCommand,
    /// An archive of the image `busybox`, stop signal SIGQUIT.
    archive: Vec<u8>,
}

pub fn spec(command: &[&str]) -> ContainerSpec {
    ContainerSpec {
        labels: BTreeMap::from([("toft/epoch".to_owned(), "3".to_owned())]),
        ..ContainerSpec::plain(InstanceId(Uuid::now_v7()), "busybox".parse().unwrap(), command)
    }
}

pub async fn find(runtime: &dyn Runtime, id: InstanceId) -> Option<Container> {
    runtime.containers().await.unwrap().into_iter().find(|container| container.id == id)
}

pub async fn state(runtime: &dyn Runtime, id: InstanceId) -> TaskState {
    find(runtime, id).await.expect("the container is there").task
}

pub async fn next_end(events: &mut broadcast::Receiver<RuntimeEvent>, wanted: InstanceId) -> Exit {
    let wait = async {
        loop {
            if let RuntimeEvent::TaskEnded { id, exit } = events.recv().await.unwrap()
                && id == wanted
            {
                return exit;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the end is told")
}

impl Subject {
    async fn import(&self) {
        let archive = Box::new(std::io::Cursor::new(self.archive.clone()));
        self.runtime.import_image(archive, None).await.unwrap();
    }

    /// A container with its process running.
    async fn running(&self, command: &[&str]) -> InstanceId {
        self.import().await;
        let spec = spec(command);
        self.runtime.create_container(&spec).await.unwrap();
        self.runtime.create_task(spec.id, &self.logger).await.unwrap();
        self.runtime.start_task(spec.id).await.unwrap();
        spec.id
    }

    async fn clean(&self, id: InstanceId) {
        let mut events = self.runtime.events();
        if let TaskState::Running { .. } = state(&*self.runtime, id).await {
            self.runtime.signal_task(id, SIGKILL).await.unwrap();
            next_end(&mut events, id).await;
        }
        self.runtime.delete_task(id).await.unwrap();
        self.runtime.delete_container(id).await.unwrap();
    }
}

async fn images_come_and_go(s: Subject) {
    let archive = Box::new(std::io::Cursor::new(s.archive.clone()));
    let imported = s.runtime.import_image(archive, None).await.unwrap();
    assert_eq!(imported.len(), 1);
    assert_eq!(imported[0].name, "docker.io/library/busybox:latest");
    assert!(imported[0].digest.starts_with("sha256:") && imported[0].size_bytes > 0, "{imported:?}");
    assert!(imported[0].platform.starts_with("linux/"), "{imported:?}");
    s.import().await;
    assert_eq!(s.runtime.images().await.unwrap(), imported, "importing twice changes nothing");
    let room = s.runtime.room().await.unwrap();
    assert!(room.used_bytes > 0 && room.free_bytes > 0 && (1..=100).contains(&room.used_percent()), "{room:?}");
    let name = "busybox".parse().unwrap();
    assert!(s.runtime.remove_image(&name).await.unwrap());
    assert!(!s.runtime.remove_image(&name).await.unwrap());
    assert_eq!(s.runtime.images().await.unwrap(), []);
    for _ in 0..8 {
        tokio::join!(s.import(), s.import(), s.import());
        assert_eq!(s.runtime.images().await.unwrap().len(), 1, "importing at once makes one image");
        assert!(s.runtime.remove_image(&name).await.unwrap());
    }
    let error = s.runtime.create_container(&spec(&["true"])).await.unwrap_err();
    assert!(matches!(error, RuntimeError::ImageMissing { .. }), "{error}");
}

async fn a_damaged_archive_changes_nothing(s: Subject) {
    let archive = Box::new(std::io::Cursor::new(b"no archive at all".to_vec()));
    let error = s.runtime.import_image(archive, None).await.unwrap_err();
    assert!(matches!(error, RuntimeError::BadArchive { .. }), "{error}");
    assert_eq!(s.runtime.images().await.unwrap(), []);
}

async fn a_container_lives_and_lives_again(s: Subject) {
    s.import().await;
    let mut events = s.runtime.events();
    let spec = spec(&["sh", "-c", "exit 7"]);
    let id = spec.id;
    s.runtime.create_container(&spec).await.unwrap();
    let container = find(&*s.runtime, id).await.unwrap();
    assert_eq!((container.task, &container.labels), (TaskState::None, &spec.labels));
    assert_eq!(container.image, "docker.io/library/busybox:latest");
    for _ in 0..2 {
        let pid = s.runtime.create_task(id, &s.logger).await.unwrap();
        assert_eq!(state(&*s.runtime, id).await, TaskState::Created { pid });
        s.runtime.start_task(id).await.unwrap();
        let exit = next_end(&mut events, id).await;
        assert_eq!(exit.code, Some(7));
        assert_eq!(state(&*s.runtime, id).await, TaskState::Ended(exit));
        assert_eq!(s.runtime.delete_task(id).await.unwrap(), Some(exit));
        assert_eq!(s.runtime.delete_task(id).await.unwrap(), None);
        assert_eq!(state(&*s.runtime, id).await, TaskState::None);
    }
    s.runtime.delete_container(id).await.unwrap();
    s.runtime.delete_container(id).await.unwrap();
    assert_eq!(s.runtime.containers().await.unwrap(), []);
}

async fn signals_reach_the_process(s: Subject) {
    let mut events = s.runtime.events();
    let polite = s.running(&["sh", "-c", "trap 'exit 9' TERM; while true; do sleep 0.02; done"]).await;
    assert!(matches!(state(&*s.runtime, polite).await, TaskState::Running { pid } if pid > 0));
    // The shell may not have set its trap yet; as the first process it is immune until then.
    let asked = async {
        loop {
            s.runtime.signal_task(polite, SIGTERM).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let exit = tokio::select! {
        exit = next_end(&mut events, polite) => exit,
        () = asked => unreachable!(),
    };
    assert_eq!(exit.code, Some(9));
    s.runtime.signal_task(polite, SIGTERM).await.expect("a process that has ended is no error");
    s.runtime.signal_task(polite, SIGKILL).await.expect("a process that has ended is no error");
    s.clean(polite).await;
    let deaf = s.running(&["sleep", "1000"]).await;
    s.runtime.signal_task(deaf, SIGKILL).await.unwrap();
    assert_eq!(next_end(&mut events, deaf).await.code, Some(128 + SIGKILL));
    s.clean(deaf).await;
    let error = s.runtime.signal_task(deaf, SIGTERM).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound { .. }), "{error}");
}

async fn stop_signals_come_from_the_image(s: Subject) {
    s.import().await;
    let spec = spec(&["true"]);
    s.runtime.create_container(&spec).await.unwrap();
    assert_eq!(s.runtime.stop_signal(spec.id).await.unwrap(), 3);
    s.clean(spec.id).await;
    let error = s.runtime.stop_signal(spec.id).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound { .. }), "{error}");
}

async fn nothing_is_made_twice(s: Subject) {
    let id = s.running(&["sleep", "1000"]).await;
    let twice = ContainerSpec { id, ..spec(&["true"]) };
    let error = s.runtime.create_container(&twice).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Exists { .. }), "{error}");
    let error = s.runtime.create_task(id, &s.logger).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Exists { .. }), "{error}");
    assert!(s.runtime.delete_task(id).await.is_err(), "a running process is not removed");
    assert!(s.runtime.delete_container(id).await.is_err(), "a container with a process is not removed");
    assert!(matches!(state(&*s.runtime, id).await, TaskState::Running { .. }));
    s.clean(id).await;
    for error in
        [s.runtime.create_task(id, &s.logger).await.map(drop).unwrap_err(), s.runtime.start_task(id).await.unwrap_err()]
    {
        assert!(matches!(error, RuntimeError::NotFound { .. }), "{error}");
    }
}

async fn a_command_that_is_not_there_is_told_in_plain_words(s: Subject) {
    s.import().await;
    let spec = spec(&["no-such-command"]);
    s.runtime.create_container(&spec).await.unwrap();
    let mut result = s.runtime.create_task(spec.id, &s.logger).await.map(drop);
    if result.is_ok() {
        result = s.runtime.start_task(spec.id).await;
    }
    let error = result.unwrap_err().to_string();
    assert_eq!(error, "the process could not be started: the command `no-such-command` is not in the image");
    s.clean(spec.id).await;
}

async fn a_prepared_process_can_be_removed(s: Subject) {
    s.import().await;
    let spec = spec(&["sleep", "1000"]);
    s.runtime.create_container(&spec).await.unwrap();
    s.runtime.create_task(spec.id, &s.logger).await.unwrap();
    s.runtime.delete_task(spec.id).await.unwrap();
    assert_eq!(state(&*s.runtime, spec.id).await, TaskState::None);
    s.clean(spec.id).await;
    assert_eq!(s.runtime.containers().await.unwrap(), []);
}

async fn what_is_bound_must_be_there_and_can_be_read(s: Subject) {
    s.import().await;
    let mut events = s.runtime.events();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "x").unwrap();
    let script = "test -e /run/secrets/token || exit 4; test -e /run/secrets/absent || exit 5";
    let order = ContainerSpec {
        files: BTreeMap::from([("/run/secrets".into(), dir.path().into())]),
        ..spec(&["sh", "-c", script])
    };
    s.runtime.create_container(&order).await.unwrap();
    s.runtime.create_task(order.id, &s.logger).await.unwrap();
    s.runtime.start_task(order.id).await.unwrap();
    assert_eq!(next_end(&mut events, order.id).await.code, Some(5));
    s.runtime.delete_task(order.id).await.unwrap();

    // The container outlives the folder, as after a reboot; once the folder is there again, it starts again.
    drop(dir);
    let error = s.runtime.create_task(order.id, &s.logger).await.map(drop).unwrap_err();
    assert!(matches!(error, RuntimeError::StartFailed { .. }), "{error}");
    let ContainerSpec { files, .. } = &order;
    std::fs::create_dir(&files[std::path::Path::new("/run/secrets")]).unwrap();
    s.runtime.create_task(order.id, &s.logger).await.unwrap();
    s.runtime.start_task(order.id).await.unwrap();
    assert_eq!(next_end(&mut events, order.id).await.code, Some(4), "it sees what is there now");
    s.clean(order.id).await;
    std::fs::remove_dir(&files[std::path::Path::new("/run/secrets")]).unwrap();
}

async fn what_is_mounted_is_written_to_unless_it_is_read_only(s: Subject) {
    s.import().await;
    let mut events = s.runtime.events();
    let dir = tempfile::tempdir().unwrap();
    let [data, outer] = ["data", "outer"].map(|name| dir.path().join(name));
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir_all(outer.join("inner")).unwrap();
    std::fs::write(data.join("there"), "").unwrap();
    let mount = |source: &std::path::Path, target: &str, read_only| HostMount {
        source: source.to_owned(),
        target: target.into(),
        read_only,
    };
    // The inner one first: the outer one does not hide it.
    let mounts =
        vec![mount(&data, "/outer/inner", false), mount(&outer, "/outer", false), mount(&data, "/fixed", true)];
    let script = "test -e /outer/inner/there || exit 4; test -e /fixed/there || exit 5; \
                  echo new >/outer/inner/new || exit 6; echo no >/fixed/no || exit 7";
    let order = ContainerSpec { mounts, ..spec(&["sh", "-c", script]) };
    s.runtime.create_container(&order).await.unwrap();
    for _ in 0..2 {
        s.runtime.create_task(order.id, &s.logger).await.unwrap();
        s.runtime.start_task(order.id).await.unwrap();
        assert_eq!(next_end(&mut events, order.id).await.code, Some(7));
        s.runtime.delete_task(order.id).await.unwrap();
        assert_eq!(std::fs::read_to_string(data.join("new")).unwrap(), "new\n");
        assert!(!data.join("no").exists());
    }
    std::fs::remove_dir_all(&data).unwrap();
    let error = s.runtime.create_task(order.id, &s.logger).await.map(drop).unwrap_err();
    assert!(matches!(error, RuntimeError::StartFailed { .. }), "{error}");
    s.clean(order.id).await;
}

async fn the_files_of_a_container_can_be_opened_before_it_runs(s: Subject) {
    s.import().await;
    let order = spec(&["true"]);
    let absent = s.runtime.root(order.id).await.map(drop).unwrap_err();
    assert!(matches!(absent, RuntimeError::NotFound { .. }), "{absent}");
    s.runtime.create_container(&order).await.unwrap();
    let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap().lines().count();
    let before = mounts();
    let root = s.runtime.root(order.id).await.unwrap();
    let path = format!("/proc/self/fd/{}/etc/passwd", std::os::fd::AsRawFd::as_raw_fd(&root.directory));
    assert!(std::fs::read_to_string(path).unwrap().starts_with("root:"));
    assert!(mounts() <= before, "nothing is left mounted");
    drop(root);
    s.clean(order.id).await;
}

async fn on_fake<F: Future<Output = ()>>(test: impl FnOnce(Subject) -> F) {
    let runtime = Arc::new(FakeRuntime::new());
    let archive = FakeRuntime::archive("busybox", "SIGQUIT");
    let logger = LoggerCommand { program: "/bin/logger".into(), args: Vec::new() };
    test(Subject { runtime, logger, archive }).await;
}

async fn on_containerd<F: Future<Output = ()>>(test: impl FnOnce(Subject) -> F) {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let archive = image::busybox("busybox", json!({"Cmd": ["sh"], "StopSignal": "SIGQUIT"}));
    test(Subject { runtime: connected.runtime.clone(), logger: lab.logger(), archive }).await;
}

crate::harness::conformance!(
    images_come_and_go,
    a_damaged_archive_changes_nothing,
    a_container_lives_and_lives_again,
    signals_reach_the_process,
    stop_signals_come_from_the_image,
    nothing_is_made_twice,
    a_command_that_is_not_there_is_told_in_plain_words,
    a_prepared_process_can_be_removed,
    what_is_bound_must_be_there_and_can_be_read,
    what_is_mounted_is_written_to_unless_it_is_read_only,
    the_files_of_a_container_can_be_opened_before_it_runs,
);
