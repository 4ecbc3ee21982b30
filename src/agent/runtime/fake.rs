//! A runtime in memory, for tests of everything above the runtime. It behaves as the real one does, as far as can be
//! seen from outside, and does as it is told: processes end by command (`exit 3`, `sleep 2`, `true`), by signal, or by
//! [`FakeRuntime::end`]; the whole runtime goes away and comes back; calls fail on request.
//!
//! Time is tokio's, so tests can pause it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use toft_model::{ids::InstanceId, image::ImageRef, instance::Exit, usage::Room};
use tokio::{
    io::AsyncReadExt,
    sync::{broadcast, watch},
};

use super::{
    ArchiveReader, Availability, Container, ContainerSpec, Image, LoggerCommand, RanInside, Runtime, RuntimeError,
    RuntimeEvent, TaskState,
};
use crate::agent::{
    gpu::cdi::Edits,
    image::{PullError, PullReporter, Repository, Trouble},
};

mod attach;
mod blobs;
mod exec;
mod root;
mod script;
mod usage;
mod words;

use script::Script;

/// How an archive made by [`FakeRuntime::archive`] begins.
const MAGIC: &str = "toft fake image\n";
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// The calls that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Runtime::containers`]
    Containers,
    /// [`Runtime::create_container`]
    CreateContainer,
    /// [`Runtime::create_task`]
    CreateTask,
    /// [`Runtime::start_task`]
    StartTask,
    /// [`Runtime::signal_task`]
    SignalTask,
    /// [`Runtime::stop_signal`]
    StopSignal,
    /// [`Runtime::delete_task`]
    DeleteTask,
    /// [`Runtime::delete_container`]
    DeleteContainer,
    /// [`Runtime::run_inside`]
    RunInside,
    /// [`Runtime::import_image`]
    ImportImage,
    /// [`Runtime::pull_image`]
    PullImage,
    /// [`Runtime::images`]
    Images,
    /// [`Runtime::remove_image`]
    RemoveImage,
    /// [`Runtime::room`]
    Room,
    /// [`super::blobs::BlobRuntime::named`]
    Named,
    /// [`super::blobs::BlobRuntime::blob_size`]
    BlobSize,
    /// [`super::blobs::BlobRuntime::read_blob`]
    ReadBlob,
    /// [`super::exec::ExecRuntime::exec`]
    Exec,
    /// [`super::attach::AttachRuntime::attach`]
    Attach,
    /// [`super::root::RootRuntime::root`]
    Root,
    /// [`super::usage::UsageRuntime::usage`]
    Usage,
    /// [`super::usage::UsageRuntime::processes`]
    Processes,
}

#[derive(Debug)]
struct FakeContainer {
    spec: ContainerSpec,
    stop_signal: i32,
    task: TaskState,
    /// Tells the tasks of one container apart.
    task_number: u64,
    started: Option<tokio::time::Instant>,
    root: Option<Arc<root::FakeRoot>>,
    console: Option<Arc<attach::Console>>,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<String, (Image, i32)>,
    containers: BTreeMap<InstanceId, FakeContainer>,
    blobs: BTreeMap<String, Bytes>,
    failures: HashMap<Call, VecDeque<RuntimeError>>,
    calls: HashMap<Call, usize>,
    next_pid: u32,
    /// No registry is asked for images.
    has_every_image: bool,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    availability: watch::Sender<Availability>,
    events: broadcast::Sender<RuntimeEvent>,
}

/// A runtime in memory.
#[derive(Debug, Clone)]
pub struct FakeRuntime {
    inner: Arc<Inner>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// An empty one, up.
    pub fn new() -> Self {
        Self::with(State { next_pid: 1000, ..State::default() })
    }

    /// One that has every image that is asked for.
    pub fn with_every_image() -> Self {
        Self::with(State { next_pid: 1000, has_every_image: true, ..State::default() })
    }

    fn with(state: State) -> Self {
        let state = Mutex::new(state);
        let availability = watch::Sender::new(Availability::Up("fake 1.0".to_owned()));
        Self { inner: Arc::new(Inner { state, availability, events: broadcast::Sender::new(1024) }) }
    }

    /// An archive that [`Runtime::import_image`] of the fake takes. `name` may be empty.
    pub fn archive(name: &str, stop_signal: &str) -> Vec<u8> {
        format!("{MAGIC}{name}\n{stop_signal}\n").into_bytes()
    }

    /// Puts an image into the store.
    pub fn add_image(&self, image: &ImageRef) {
        let image = made_up_image(image.as_str());
        self.state().images.insert(image.name.clone(), (image, SIGTERM));
    }

    /// Ends the process of a container that runs; tells the event unless the runtime is down.
    pub fn end(&self, id: InstanceId, code: i32) {
        self.inner.end(id, None, Some(code));
    }

    /// As after a power cut: no container has a process any more, and nobody was told.
    pub fn lose_tasks(&self) {
        for container in self.state().containers.values_mut() {
            container.task = TaskState::None;
            container.task_number += 1;
            if let Some(console) = container.console.take() {
                console.end(128 + SIGKILL);
            }
        }
    }

    /// Says that the kernel killed a process for want of memory.
    pub fn out_of_memory(&self, id: InstanceId) {
        self.inner.tell(RuntimeEvent::OutOfMemory { id });
    }

    /// Goes away: every call fails until [`FakeRuntime::set_up`]. Processes go on.
    pub fn set_down(&self, reason: &str) {
        self.inner.availability.send_replace(Availability::Down(reason.to_owned()));
    }

    /// Comes back.
    pub fn set_up(&self) {
        self.inner.availability.send_replace(Availability::Up("fake 1.0".to_owned()));
    }

    /// The next call of this kind fails with `error`. Several are used up in order.
    pub fn fail_next(&self, call: Call, error: RuntimeError) {
        self.state().failures.entry(call).or_default().push_back(error);
    }

    /// How many calls of this kind were made.
    pub fn calls(&self, call: Call) -> usize {
        self.state().calls.get(&call).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state()
    }

    /// Notes a call, and gives the state unless the call is to fail.
    fn begin(&self, call: Call) -> Result<MutexGuard<'_, State>, RuntimeError> {
        if let Availability::Down(reason) = &*self.inner.availability.borrow() {
            return Err(RuntimeError::Unavailable { reason: reason.clone() });
        }
        let mut state = self.state();
        *state.calls.entry(call).or_default() += 1;
        match state.failures.get_mut(&call).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: RuntimeEvent) {
        if matches!(*self.availability.borrow(), Availability::Up(_)) {
            // Nobody listening is fine.
            let _ = self.events.send(event);
        }
    }

    /// Ends a running process; with `task_number` only that one.
    fn end(&self, id: InstanceId, task_number: Option<u64>, code: Option<i32>) {
        let exit = Exit::new(code, jiff::Timestamp::now().as_millisecond());
        {
            let mut state = self.state();
            let Some(container) = state.containers.get_mut(&id) else { return };
            let another = task_number.is_some_and(|number| number != container.task_number);
            if another || !matches!(container.task, TaskState::Running { .. } | TaskState::Created { .. }) {
                return;
            }
            container.task = TaskState::Ended(exit);
            if let Some(console) = &container.console {
                console.end(code.unwrap_or(128 + SIGKILL));
            }
        }
        self.tell(RuntimeEvent::TaskEnded { id, exit });
    }
}

/// An image as people have them: some days old, and larger than nothing.
fn aged(image: &Image) -> Image {
    let number = crate::agent::made_up::hash(&image.name);
    let hours = i64::try_from(number % 700).unwrap_or(0) + 5;
    let created_at_ms = jiff::Timestamp::now().as_millisecond() - hours * 3_600_000;
    Image { created_at_ms, size_bytes: (40 + number % 6_000) << 20, ..image.clone() }
}

fn made_up_image(name: &str) -> Image {
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(name)));
    let platform = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    Image { name: name.to_owned(), digest, size_bytes: 1 << 20, created_at_ms: 1, platform: platform.to_owned() }
}

async fn end_later(inner: Weak<Inner>, id: InstanceId, number: u64, after: Duration, code: i32) {
    tokio::time::sleep(after).await;
    if let Some(inner) = inner.upgrade() {
        inner.end(id, Some(number), Some(code));
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn availability(&self) -> watch::Receiver<Availability> {
        self.inner.availability.subscribe()
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let state = self.begin(Call::Containers)?;
        let one = |(id, container): (&InstanceId, &FakeContainer)| Container {
            id: *id,
            image: container.spec.image.as_str().to_owned(),
            labels: container.spec.labels.clone(),
            task: container.task,
        };
        Ok(state.containers.iter().map(one).collect())
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let mut state = self.begin(Call::CreateContainer)?;
        let image = spec.image.as_str();
        let Some((_, stop_signal)) = state.images.get(image) else {
            return Err(RuntimeError::ImageMissing { image: image.to_owned() });
        };
        let stop_signal = *stop_signal;
        if state.containers.contains_key(&spec.id) {
            return Err(RuntimeError::Exists { id: spec.id });
        }
        let (task, task_number, started, root, console) = (TaskState::None, 0, None, None, None);
        let container = FakeContainer { spec: spec.clone(), stop_signal, task, task_number, started, root, console };
        state.containers.insert(spec.id, container);
        Ok(())
    }

    async fn edit_container(&self, id: InstanceId, edits: &Edits) -> Result<(), RuntimeError> {
        let mut state = self.begin(Call::CreateContainer)?;
        let container = state.containers.get_mut(&id).ok_or(RuntimeError::NotFound { id })?;
        if container.spec.edits.is_empty() {
            let reason = "it was made without GPUs".to_owned();
            return Err(RuntimeError::Failed { doing: "changing a container", reason });
        }
        container.spec.edits = edits.clone();
        Ok(())
    }

    async fn create_task(&self, id: InstanceId, logger: &LoggerCommand) -> Result<u32, RuntimeError> {
        let mut state = self.begin(Call::CreateTask)?;
        let pid = state.next_pid;
        state.next_pid += 1;
        let is_made_up = state.has_every_image;
        let container = state.containers.get_mut(&id).ok_or(RuntimeError::NotFound { id })?;
        if container.task != TaskState::None {
            return Err(RuntimeError::Exists { id });
        }
        let mounted = container.spec.mounts.iter().map(|mount| &mount.source);
        if let Some(outside) = container.spec.files.values().chain(mounted).find(|outside| !outside.exists()) {
            let reason = format!("`{}` is not there", outside.display());
            return Err(RuntimeError::StartFailed { reason, exit_code: 127 });
        }
        Script::of(&container.spec).map_err(|command| RuntimeError::StartFailed {
            reason: format!("the command `{command}` is not in the image"),
            exit_code: 127,
        })?;
        container.console = attach::Console::of(&container.spec.process)?;
        if let Some((_, dir)) = logger.args.iter().find(|(name, _)| is_made_up && name == "dir") {
            words::write(dir.as_ref(), id, jiff::Timestamp::now()).map_err(|error| {
                let reason = format!("its log cannot be written: {error}");
                RuntimeError::Failed { doing: "starting a container", reason }
            })?;
        }
        container.task = TaskState::Created { pid };
        container.task_number += 1;
        Ok(pid)
    }

    async fn start_task(&self, id: InstanceId) -> Result<(), RuntimeError> {
        let mut state = self.begin(Call::StartTask)?;
        let container = state.containers.get_mut(&id).ok_or(RuntimeError::NotFound { id })?;
        let TaskState::Created { pid } = container.task else { return Err(RuntimeError::NotFound { id }) };
        container.task = TaskState::Running { pid };
        container.started = Some(tokio::time::Instant::now());
        if let Some(console) = container.console.clone() {
            let words: Vec<String> =
                container.spec.entrypoint.iter().flatten().chain(&container.spec.command).cloned().collect();
            self.run_console(id, container.task_number, console, exec::script(&words));
        } else if let Ok(Script { ends: Some((after, code)), .. }) = Script::of(&container.spec) {
            tokio::spawn(end_later(Arc::downgrade(&self.inner), id, container.task_number, after, code));
        }
        Ok(())
    }

    async fn signal_task(&self, id: InstanceId, signal: i32) -> Result<(), RuntimeError> {
        let reaction = {
            let state = self.begin(Call::SignalTask)?;
            let container = state.containers.get(&id).ok_or(RuntimeError::NotFound { id })?;
            match container.task {
                TaskState::None => return Err(RuntimeError::NotFound { id }),
                TaskState::Ended(_) => return Ok(()),
                TaskState::Created { .. } | TaskState::Running { .. } => {}
            }
            match Script::of(&container.spec) {
                _ if signal == SIGKILL => Some(128 + SIGKILL),
                Ok(script) => script.on_signal(signal),
                Err(_) => None,
            }
        };
        if let Some(code) = reaction {
            self.inner.end(id, None, Some(code));
        }
        Ok(())
    }

    async fn stop_signal(&self, id: InstanceId) -> Result<i32, RuntimeError> {
        let state = self.begin(Call::StopSignal)?;
        state.containers.get(&id).map(|container| container.stop_signal).ok_or(RuntimeError::NotFound { id })
    }

    async fn delete_task(&self, id: InstanceId) -> Result<Option<Exit>, RuntimeError> {
        let mut state = self.begin(Call::DeleteTask)?;
        let Some(container) = state.containers.get_mut(&id) else { return Ok(None) };
        let exit = match container.task {
            TaskState::None => return Ok(None),
            TaskState::Running { .. } => {
                let reason = format!("the process of `{id}` still runs");
                return Err(RuntimeError::Failed { doing: "removing the process", reason });
            }
            TaskState::Created { .. } => Exit::new(Some(128 + SIGKILL), jiff::Timestamp::now().as_millisecond()),
            TaskState::Ended(exit) => exit,
        };
        container.task = TaskState::None;
        container.console = None;
        Ok(Some(exit))
    }

    async fn delete_container(&self, id: InstanceId) -> Result<(), RuntimeError> {
        let mut state = self.begin(Call::DeleteContainer)?;
        if state.containers.get(&id).is_some_and(|container| container.task != TaskState::None) {
            let reason = format!("the process of `{id}` is still there");
            return Err(RuntimeError::Failed { doing: "removing a container", reason });
        }
        state.containers.remove(&id);
        Ok(())
    }

    async fn run_inside(&self, id: InstanceId, command: &[String], limit: Duration) -> Result<RanInside, RuntimeError> {
        let state = self.begin(Call::RunInside)?;
        let container = state.containers.get(&id).ok_or(RuntimeError::NotFound { id })?;
        if !matches!(container.task, TaskState::Running { .. }) {
            return Err(RuntimeError::NotFound { id });
        }
        let inside = ContainerSpec { entrypoint: None, command: command.to_vec(), ..container.spec.clone() };
        match Script::of(&inside).map(|script| script.ends) {
            Ok(Some((after, exit_code))) if after <= limit => Ok(RanInside { exit_code, output: String::new() }),
            Ok(_) => Err(RuntimeError::Failed { doing: "running a command", reason: "it took too long".to_owned() }),
            Err(command) => {
                let reason = format!("the command `{command}` is not in the image");
                Err(RuntimeError::StartFailed { reason, exit_code: 127 })
            }
        }
    }

    async fn import_image(
        &self,
        mut archive: ArchiveReader,
        name: Option<&ImageRef>,
    ) -> Result<Vec<Image>, RuntimeError> {
        let bad = |reason: &str| RuntimeError::BadArchive { reason: reason.to_owned() };
        let mut text = String::new();
        archive.read_to_string(&mut text).await.map_err(|error| bad(&error.to_string()))?;
        let mut state = self.begin(Call::ImportImage)?;
        let mut lines = text.strip_prefix(MAGIC).ok_or_else(|| bad("it is no tar archive"))?.lines();
        let name = match (lines.next().unwrap_or_default(), name) {
            ("", None) => return Err(bad("its image has no name; give it one")),
            ("", Some(name)) => name.clone(),
            (written, _) => written.parse().map_err(|_| bad("an image in it is named wrongly"))?,
        };
        let stop_signal = lines.next().and_then(|signal| signal.parse::<nix::sys::signal::Signal>().ok());
        let image = made_up_image(name.as_str());
        state.images.insert(image.name.clone(), (image.clone(), stop_signal.map_or(SIGTERM, |signal| signal as i32)));
        Ok(vec![image])
    }

    async fn pull_image(&self, repository: &Repository, reporter: &PullReporter) -> Result<Image, PullError> {
        let name = repository.image();
        let has_every_image =
            self.begin(Call::PullImage).map_err(|error| Trouble::from(error).of(name))?.has_every_image;
        let mut image = made_up_image(name.as_str());
        if !has_every_image {
            image.digest = repository.named(false).await.map_err(|trouble| trouble.of(name))?.digest;
        }
        reporter.layers([(image.digest.clone(), image.size_bytes)].into_iter());
        self.state().images.insert(image.name.clone(), (image.clone(), SIGTERM));
        Ok(image)
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        let state = self.begin(Call::Images)?;
        let shown = |(image, _): &(Image, i32)| if state.has_every_image { aged(image) } else { image.clone() };
        Ok(state.images.values().map(shown).collect())
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<bool, RuntimeError> {
        Ok(self.begin(Call::RemoveImage)?.images.remove(image.as_str()).is_some())
    }

    async fn room(&self) -> Result<Room, RuntimeError> {
        drop(self.begin(Call::Room)?);
        Ok(Room { used_bytes: 1 << 30, free_bytes: 9 << 30, used_files: 1_000, free_files: 9_000 })
    }
}
