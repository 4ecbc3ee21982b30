//! Performs one step for one instance through the runtime. Failures become results, never panics; nothing here
//! decides what comes next.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::libc::{SIGKILL, SIGTERM};
use toft_model::{
    ids::InstanceId,
    image::ImageRef,
    instance::{Assignment, ContainerOrder, Exit, NetworkOrder},
    name::Name,
    pull::PullPolicy,
    secret::{SealedSecret, SecretMount},
    workload::HostAddress,
};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use super::{
    attach::Audience,
    dns::resolv_conf::{self, ResolvConf},
    gpu::cdi::{Edits, InjectError, Injector},
    image::{PullError, Pulls, TagWord},
    ledger::{Ledger, Outcome},
    network::Network,
    retention,
    runtime::{
        ContainerSpec, LoggerCommand, NetworkNamespace, Runtime, RuntimeError, RuntimeEvent, TaskState, root::Root,
    },
    secrets::{SecretError, SecretFiles},
    turns::{Turn, Turns},
    volumes::{Prepared, VolumeError, Volumes},
};
use crate::observe::chain;

/// Wait for a killed process to be seen as ended.
const AFTER_KILL: Duration = Duration::from_secs(10);
/// Longest wait for somebody to attach to what runs in front of them.
const FOR_THE_FIRST: Duration = Duration::from_secs(10);
/// Where a container finds its first process, if it is to have one of ours.
const INIT: &str = "/run/toft-init";

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The process runs.
    Started {
        /// Its pid.
        pid: u32,
    },
    /// It does not; when the fault lies in the image's program, with the exit code a shell would give.
    StartFailed {
        /// Why.
        reason: String,
        /// 126 or 127 when the program could not be executed.
        exit_code: Option<i32>,
    },
    /// Process and task are gone.
    Ended {
        /// How it ended, if it ran.
        exit: Option<Exit>,
    },
    /// Nothing remains.
    Removed,
    /// It could not be stopped or removed now.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Everything a step needs.
pub struct Executor {
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// The node's network.
    pub network: Arc<dyn Network>,
    /// The node's ledger.
    pub ledger: Ledger,
    /// This node's name.
    pub node: Name,
    /// Program that writes the logs.
    pub logger: PathBuf,
    /// The file that says until when what is exclusive may run, for the logger beside it.
    pub lease_file: PathBuf,
    /// Address of the node in the network of its containers, if it has one.
    pub gateway: Option<Ipv4Addr>,
    /// The file with the machine's own settings for names, when the node answers containers' questions at that address.
    pub resolv_conf: Option<PathBuf>,
    /// Directory with a folder of logs an instance.
    pub logs_dir: PathBuf,
    /// Directory with a folder of generated files an instance.
    pub instances_dir: PathBuf,
    /// Bytes after which a log file is rotated.
    pub log_max_bytes: u64,
    /// Log files kept an instance.
    pub log_max_files: u32,
    /// Rung when an instance has gone, whose logs stay for a while.
    pub left: Arc<Notify>,
    /// Who is attached to the containers.
    pub audience: Audience,
    /// Secrets of containers, in memory.
    pub secrets: SecretFiles,
    /// Volumes, and folders of the node that containers may see.
    pub volumes: Volumes,
    /// Fetches images from registries.
    pub pulls: Pulls,
    /// Makes what containers need for their GPUs.
    pub gpus: Injector,
    /// Who may keep the machine busy with a start.
    pub turns: Turns,
    /// Images the appliance brings along, by complete reference.
    pub builtin_image: fn(&str) -> Option<&'static [u8]>,
}

/// A process to be started.
pub struct Start {
    /// The order.
    pub assignment: Assignment,
    /// The container's task, if there is a container.
    pub existing: Option<TaskState>,
    /// What the ledger has to know before.
    pub outcome: Outcome,
    /// The values of the secrets that the order names, sealed.
    pub secrets: BTreeMap<Name, SealedSecret>,
    /// Cancelled when the order no longer stands: the pull of its image is not waited for.
    pub unwanted: CancellationToken,
}

impl Executor {
    /// Starts a process. `ready` resolves when the shared network is in force.
    pub async fn start(&self, start: Start, ready: impl Future<Output = Result<(), String>> + Send) -> Done {
        match self.try_start(start, ready).await {
            Ok(pid) => Done::Started { pid },
            Err(StartError::Runtime(RuntimeError::StartFailed { reason, exit_code })) => {
                Done::StartFailed { reason, exit_code: Some(exit_code) }
            }
            Err(error) => Done::StartFailed { reason: chain(&error), exit_code: None },
        }
    }

    async fn try_start(
        &self,
        start: Start,
        ready: impl Future<Output = Result<(), String>> + Send,
    ) -> Result<u32, StartError> {
        let Start { assignment, existing, outcome, secrets, unwanted } = start;
        let first_start = existing.is_none();
        let id = assignment.instance_id;
        let mut turn = self.turns.someone();
        let prepare = async {
            // After a start of the machine the cards may have to be waited for.
            let edits = self.gpus.edits(&assignment.container.gpus, &assignment.container.process).await?;
            let mut prepared = self.volumes.prepare(&assignment, &secrets).await?;
            turn.take().await;
            match existing {
                None => self.create_container(&assignment, (&prepared, &edits), &unwanted, &mut turn).await?,
                Some(TaskState::Created { .. } | TaskState::Ended(_)) => drop(self.runtime.delete_task(id).await?),
                Some(TaskState::None | TaskState::Running { .. }) => {}
            }
            if !first_start && !edits.is_empty() {
                // The driver may be another than when the container was made.
                self.runtime.edit_container(id, &edits).await?;
            }
            if !prepared.empty.is_empty() {
                turn.pause();
                self.fill_volumes(id, &mut prepared).await?;
                turn.take().await;
            }
            // After the container, so that there is always one whose removal takes the files away.
            self.write_secrets(id, &assignment.container.secrets, secrets).await?;
            Ok(prepared)
        };
        // That the process is about to start must be on disk before it does.
        let ledger = self.ledger.clone();
        let (logs, workload, name) =
            (self.logs_dir.join(id.to_string()), assignment.workload.clone(), assignment.instance_name());
        let note = async {
            let stored = tokio::task::spawn_blocking(move || {
                if let Err(error) = retention::note(&logs, &workload, &name) {
                    tracing::warn!(instance.id = %id, %error, "whose logs these are could not be noted");
                }
                ledger.store_outcome(id, outcome)
            })
            .await;
            stored.map_err(|e| StartError::Other(e.to_string()))?.map_err(|e| StartError::Other(chain(&e)))
        };
        let ready = async { ready.await.map_err(StartError::Other) };
        let (prepared, (), ()) = tokio::try_join!(prepare, note, ready)?;
        let created = self.runtime.create_task(id, &self.logger_of(id, assignment.container.exclusive)).await;
        // Its process has its mounts now.
        drop(prepared);
        let pid = match created {
            Ok(pid) => pid,
            Err(error) => {
                self.remove_secrets(id);
                return Err(error.into());
            }
        };
        let started = async {
            match &assignment.container.network {
                NetworkOrder::Host => {}
                NetworkOrder::None => self.network.loopback(pid).await?,
                NetworkOrder::Bridge { address, .. } => self.network.attach(pid, *address).await?,
            }
            let process = &assignment.container.process;
            if process.is_interactive() {
                self.audience.prepared();
            }
            if process.foreground && first_start {
                turn.pause();
                let attached = unwanted.run_until_cancelled(self.audience.first(id, FOR_THE_FIRST)).await;
                attached.ok_or_else(|| StartError::Other("another order came before anybody attached".to_owned()))?;
            }
            // Another may start elsewhere before long.
            if assignment.container.exclusive && unwanted.is_cancelled() {
                return Err(StartError::Other("another order came before it started".to_owned()));
            }
            Ok(self.runtime.start_task(id).await?)
        };
        if let Err(error) = started.await {
            if let Err(left) = self.runtime.delete_task(id).await {
                tracing::warn!(instance.id = %id, error = chain(&left), "a task that failed to start was left behind");
            }
            self.remove_secrets(id);
            return Err(error);
        }
        Ok(pid)
    }

    async fn create_container(
        &self,
        assignment: &Assignment,
        (prepared, edits): (&Prepared, &Edits),
        unwanted: &CancellationToken,
        turn: &mut Turn,
    ) -> Result<(), StartError> {
        let (mounts, edits) = (prepared.mounts.clone(), edits.clone());
        let spec = ContainerSpec { mounts, edits, ..self.spec_of(assignment).await? };
        let policy = assignment.container.pull_policy;
        let builtin = (self.builtin_image)(spec.image.as_str());
        if policy == PullPolicy::Always && builtin.is_none() {
            self.pull((&spec.image, TagWord::Registry), unwanted, turn).await?;
        }
        match self.runtime.create_container(&spec).await {
            Err(RuntimeError::ImageMissing { image }) => {
                match builtin {
                    Some(archive) => drop(self.runtime.import_image(Box::new(archive), None).await?),
                    None if policy == PullPolicy::Never => return Err(RuntimeError::ImageMissing { image }.into()),
                    None => {
                        // Who wants the newest gets it from who knows it.
                        let always = policy == PullPolicy::Always;
                        let word = if always { TagWord::Registry } else { TagWord::RegistryOrNode };
                        self.pull((&spec.image, word), unwanted, turn).await?;
                    }
                }
                Ok(self.runtime.create_container(&spec).await?)
            }
            Err(RuntimeError::Exists { .. }) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Gives volumes that are still empty what the image has.
    async fn fill_volumes(&self, id: InstanceId, prepared: &mut Prepared) -> Result<(), StartError> {
        let empty = std::mem::take(&mut prepared.empty);
        let Root { directory, held } = self.runtime.root(id).await?;
        let filled = self.volumes.fill(empty, directory).await;
        drop(held);
        Ok(filled?)
    }

    async fn pull(
        &self,
        (image, word): (&ImageRef, TagWord),
        unwanted: &CancellationToken,
        turn: &mut Turn,
    ) -> Result<(), StartError> {
        turn.pause();
        match unwanted.run_until_cancelled(self.pulls.pull(image, word)).await {
            Some(pulled) => pulled.map_err(|error| StartError::Other(advice(&error)))?,
            None => return Err(StartError::Other("another order came while its image was pulled".to_owned())),
        };
        turn.take().await;
        Ok(())
    }

    async fn spec_of(&self, assignment: &Assignment) -> Result<ContainerSpec, StartError> {
        let Assignment { instance_id: id, workload, container, .. } = assignment;
        let ContainerOrder { image, entrypoint, command, resources, process, .. } = container.clone();
        let name = assignment.instance_name();
        let mut env = BTreeMap::from([
            ("TOFT_NODE".to_owned(), self.node.to_string()),
            ("TOFT_WORKLOAD".to_owned(), workload.to_string()),
            ("TOFT_INSTANCE".to_owned(), name.clone()),
        ]);
        env.extend(container.env.clone());
        let host = container.network == NetworkOrder::Host;
        let files = self.files_of(assignment, &name).await.map_err(|e| StartError::Other(e.to_string()))?;
        Ok(ContainerSpec {
            id: *id,
            image,
            entrypoint,
            command,
            env,
            hostname: process.hostname.clone().unwrap_or_else(|| if host { self.node.to_string() } else { name }),
            init: process.init.then(|| INIT.into()),
            network: if host { NetworkNamespace::Host } else { NetworkNamespace::New },
            resources,
            process,
            labels: BTreeMap::from([
                ("toft.workload".to_owned(), workload.to_string()),
                ("toft.node".to_owned(), self.node.to_string()),
            ]),
            files,
            mounts: Vec::new(),
            edits: Edits::default(),
        })
    }

    /// `/etc/hosts` and `/etc/resolv.conf` of the container: the host's own in its network, else generated.
    async fn files_of(&self, assignment: &Assignment, name: &str) -> std::io::Result<BTreeMap<PathBuf, PathBuf>> {
        let mut files = BTreeMap::new();
        let process = &assignment.container.process;
        let name = process.hostname.as_deref().unwrap_or(name);
        let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        match &assignment.container.network {
            NetworkOrder::Host if process.extra_hosts.is_empty() => {
                files.insert("/etc/hosts".into(), "/etc/hosts".into());
            }
            NetworkOrder::Host => hosts = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or(hosts),
            NetworkOrder::None => {}
            NetworkOrder::Bridge { address, address6, .. } => {
                hosts.push_str(&format!("{address}\t{name}\n"));
                hosts.extend(address6.map(|address6| format!("{address6}\t{name}\n")));
            }
        }
        for entry in &process.extra_hosts {
            let address = match (entry.address, &assignment.container.network) {
                (HostAddress::Address(address), _) => address,
                (HostAddress::Gateway, NetworkOrder::Bridge { .. }) => {
                    self.gateway.unwrap_or(Ipv4Addr::LOCALHOST).into()
                }
                (HostAddress::Gateway, NetworkOrder::Host | NetworkOrder::None) => Ipv4Addr::LOCALHOST.into(),
            };
            if !hosts.ends_with('\n') {
                hosts.push('\n');
            }
            hosts.push_str(&format!("{address}\t{}\n", entry.name));
        }
        if process.init {
            files.insert(INIT.into(), self.logger.clone());
        }
        let dir = self.instances_dir.join(assignment.instance_id.to_string());
        tokio::fs::create_dir_all(&dir).await?;
        if !files.contains_key(Path::new("/etc/hosts")) {
            tokio::fs::write(dir.join("hosts"), hosts).await?;
            files.insert("/etc/hosts".into(), dir.join("hosts"));
        }
        let own = self.gateway.zip(self.resolv_conf.as_ref());
        if let (Some((gateway, machine)), NetworkOrder::Bridge { .. }) = (own, &assignment.container.network) {
            let machine = tokio::fs::read_to_string(machine).await.unwrap_or_default();
            let deployment = assignment.container.deployment.as_ref();
            let text = ResolvConf::parse(&machine).for_container(gateway, deployment);
            tokio::fs::write(dir.join("resolv.conf"), text).await?;
            files.insert("/etc/resolv.conf".into(), dir.join("resolv.conf"));
        }
        // A resolver on loopback cannot be reached from another namespace; systemd-resolved keeps the real list beside.
        let resolvers = [resolv_conf::BEHIND_RESOLVED, "/etc/resolv.conf"].map(PathBuf::from);
        if let Some(resolver) = resolvers.into_iter().find(|path| path.exists()) {
            files.entry("/etc/resolv.conf".into()).or_insert(resolver);
        }
        files.retain(|_, host| host.exists());
        if !assignment.container.secrets.is_empty() {
            files.insert(SecretMount::DIRECTORY.into(), self.secrets.folder(assignment.instance_id));
        }
        Ok(files)
    }

    async fn write_secrets(
        &self,
        id: InstanceId,
        mounts: &[SecretMount],
        values: BTreeMap<Name, SealedSecret>,
    ) -> Result<(), StartError> {
        if mounts.is_empty() {
            return Ok(());
        }
        let (files, mounts) = (self.secrets.clone(), mounts.to_vec());
        let written = tokio::task::spawn_blocking(move || files.write(id, &mounts, &values)).await;
        Ok(written.map_err(|e| StartError::Other(e.to_string()))??)
    }

    /// Takes the files of secrets away: no process needs them now.
    fn remove_secrets(&self, id: InstanceId) {
        if let Err(error) = self.secrets.remove(id) {
            tracing::warn!(instance.id = %id, %error, "the secrets of a container could not be removed from memory");
        }
    }

    fn logger_of(&self, id: InstanceId, exclusive: bool) -> LoggerCommand {
        let mut args = vec![
            ("dir".into(), self.logs_dir.join(id.to_string()).display().to_string()),
            ("max_bytes".into(), self.log_max_bytes.to_string()),
            ("max_files".into(), self.log_max_files.to_string()),
        ];
        if exclusive {
            args.push(("lease".into(), self.lease_file.display().to_string()));
        }
        LoggerCommand { program: self.logger.clone(), args }
    }

    /// Ends the process: the stop signal, `grace_ms`, then the kill. Its task is gone afterwards.
    pub async fn stop(&self, id: InstanceId, grace_ms: u32) -> Done {
        match self.try_stop(id, grace_ms).await {
            Ok(exit) => Done::Ended { exit },
            Err(error) => Done::Failed { reason: chain(&error) },
        }
    }

    async fn try_stop(&self, id: InstanceId, grace_ms: u32) -> Result<Option<Exit>, RuntimeError> {
        let mut events = self.runtime.events();
        let signal = self.runtime.stop_signal(id).await.unwrap_or(SIGTERM);
        for (signal, wait) in [(signal, Duration::from_millis(grace_ms.into())), (SIGKILL, AFTER_KILL)] {
            match self.runtime.signal_task(id, signal).await {
                Ok(()) => {}
                Err(RuntimeError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
            if tokio::time::timeout(wait, ended(&mut events, id)).await.is_ok() {
                break;
            }
        }
        let exit = self.runtime.delete_task(id).await?;
        self.remove_secrets(id);
        Ok(exit)
    }

    /// Deletes the task of a process that ended.
    pub async fn reap(&self, id: InstanceId) -> Done {
        match self.runtime.delete_task(id).await {
            Ok(exit) => {
                self.remove_secrets(id);
                Done::Ended { exit }
            }
            Err(error) => Done::Failed { reason: chain(&error) },
        }
    }

    /// Ends the process and deletes container and generated files; its logs are kept for a while.
    pub async fn remove(&self, id: InstanceId, task: TaskState, grace_ms: u32) -> Done {
        let removed = async {
            match task {
                TaskState::Running { .. } => drop(self.try_stop(id, grace_ms).await?),
                TaskState::Created { .. } | TaskState::Ended(_) => drop(self.runtime.delete_task(id).await?),
                TaskState::None => {}
            }
            self.remove_secrets(id);
            self.runtime.delete_container(id).await
        };
        if let Err(error) = removed.await {
            return Done::Failed { reason: chain(&error) };
        }
        let (logs, files) = (self.logs_dir.join(id.to_string()), self.instances_dir.join(id.to_string()));
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let kept = tokio::task::spawn_blocking(move || retention::let_go(&logs, now_ms)).await;
        let kept = kept.map_err(std::io::Error::other).flatten();
        for (what, done) in [("logs", kept), ("files", tokio::fs::remove_dir_all(&files).await)] {
            match done {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(instance.id = %id, %error, "its {what} could not be removed");
                }
                _ => {}
            }
        }
        self.left.notify_one();
        Done::Removed
    }
}

/// A failed pull in one line, with what can be done.
fn advice(error: &PullError) -> String {
    match &error.hint {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// Waits for the end of `id`'s process. Missed events are no harm: the caller's timeout ends the wait.
async fn ended(events: &mut broadcast::Receiver<RuntimeEvent>, id: InstanceId) {
    loop {
        match events.recv().await {
            Ok(RuntimeEvent::TaskEnded { id: other, .. }) if other == id => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Gpu(#[from] InjectError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Network(#[from] super::network::NetworkError),
    #[error("{0}")]
    Other(String),
}
