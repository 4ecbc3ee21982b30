//! A whole cluster in one process, on machines that are made up: for looking at toft, for demonstrations and tests. State,
//! consensus, scheduler, agents and doors are the real ones; containers, networks and cards are the fakes that stand
//! beside the real ones in the tests.

mod cards;
mod ways;

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use futures_util::future::try_join_all;
use serde_json::json;
use toft_model::{
    gpu::GpuId,
    node::{NodeFacts, Temperature},
    token::MemberRole,
};
use tokio::{net::TcpSocket, sync::Notify};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{
    Ending, Member, StopSignals, Wish, addresses,
    directories::Directories,
    identity::Identity,
    joining,
    machine::Machine,
    membership::{self, Membership},
    mesh::MeshEye,
    node,
    serving::Serving,
};
use crate::{
    agent::{
        gpu::{Card, Driver, Watcher, cdi::Injector, fake::card},
        host::Host,
        made_up::MadeUpPulse,
        network::fake::FakeNetwork,
        runtime::fake::FakeRuntime,
    },
    api::http::ApiState,
    config::{Config, Flags, ProxyVariables},
    consensus::Handle,
    control::{loops, ops::members::TokenWish},
    enroll::Token,
};
use cards::MadeUpDriver;

/// Nodes that join at a time.
const AT_A_TIME: usize = 8;
/// Nodes of a process that were measured before: each of their machines, cards and instances gets a month of points, written
/// to the disk, which hundreds of nodes would be busy with for minutes.
const WITH_A_PAST: u16 = 12;
/// How long the token of the others is valid, in milliseconds.
const TOKEN_MS: u64 = 3_600_000;

/// A kind of machine.
struct Kind {
    cpus: u32,
    memory_gib: u64,
    /// Model and GiB of memory of each card.
    cards: &'static [(&'static str, u32)],
}

const fn kind(cpus: u32, memory_gib: u64, cards: &'static [(&'static str, u32)]) -> Kind {
    Kind { cpus, memory_gib, cards }
}

/// What homes have.
const MACHINES: [Kind; 6] = [
    kind(16, 64, &[("NVIDIA GeForce RTX 4090", 24), ("NVIDIA GeForce RTX 4090", 24)]),
    kind(8, 32, &[("NVIDIA GeForce RTX 3090", 24)]),
    kind(32, 128, &[("NVIDIA RTX A6000", 48); 4]),
    kind(4, 16, &[]),
    kind(64, 256, &[("NVIDIA H100 PCIe", 80); 8]),
    kind(12, 48, &[("NVIDIA GeForce RTX 3060", 12), ("NVIDIA GeForce RTX 3060", 12)]),
];
const CDI_KIND: &str = "nvidia.com/gpu";

/// What somebody wants of a made-up cluster.
#[derive(Debug, Clone)]
pub struct DevWish {
    /// Number of nodes, from one.
    pub nodes: u16,
    /// Where the first node's dashboard is.
    pub bind: String,
    /// Folder of everything, which must be empty or not there; it is removed at the end.
    pub folder: PathBuf,
    /// Begins the names of nodes.
    pub prefix: String,
    /// A member of the cluster that all nodes join, and the file with its token; without, the first founds one.
    pub join: Option<(String, PathBuf)>,
}

/// A folder that goes with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "`{}` could not be removed", self.0.display());
        }
    }
}

impl Scratch {
    fn make(folder: &Path) -> anyhow::Result<Self> {
        let used = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        anyhow::ensure!(!used, "`{}` is not empty; name another folder with --data-dir", folder.display());
        fs::create_dir_all(folder).with_context(|| format!("making the folder `{}`", folder.display()))?;
        Ok(Self(folder.to_owned()))
    }
}

/// A node that runs.
struct Running {
    config: Config,
    serving: Serving,
    api: ApiState,
    again: Arc<Notify>,
}

/// Runs a made-up cluster until a signal.
pub async fn dev(wish: DevWish) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen().context("listening for signals")?;
    let scratch = Scratch::make(&wish.folder)?;
    let end = CancellationToken::new();
    let ended = tokio::select! {
        ended = all(&wish, &scratch, &end) => ended,
        signal = signals.first() => { tracing::info!("stopping on {signal}"); Ok(()) }
    };
    end.cancel();
    ended
}

async fn all(wish: &DevWish, scratch: &Scratch, end: &CancellationToken) -> anyhow::Result<()> {
    let founds = wish.join.is_none();
    let mut running = Vec::new();
    let entry = match &wish.join {
        Some((address, file)) => {
            let text = fs::read_to_string(file).map(Zeroizing::new);
            (address.clone(), text.with_context(|| format!("reading the token in `{}`", file.display()))?)
        }
        None => {
            let first = start(wish, scratch, 1, None).await?;
            let others = u32::from(wish.nodes).max(2) - 1;
            let token = TokenWish {
                ttl_ms: TOKEN_MS,
                uses: others,
                role: MemberRole::Server,
                name: None,
                labels: BTreeMap::new(),
                pin: false,
            };
            let made = first.api.ops.create_token(token).await?;
            running.push(first);
            (made.addresses.first().context("the first node has no address")?.clone(), made.text)
        }
    };
    let numbers: Vec<u16> = (if founds { 2 } else { 1 }..=wish.nodes).collect();
    for some in numbers.chunks(AT_A_TIME) {
        let joining = some.iter().map(|number| start(wish, scratch, *number, Some((&entry.0, &entry.1))));
        running.extend(try_join_all(joining).await?);
    }
    tracing::info!("{} nodes run in this process, all of them made up", wish.nodes);
    let mut running = running.into_iter();
    // The dashboard of the first is the one to look at; the others answer through it.
    let first = running.next().context("there is no node")?;
    let others = running.map(|node| node.serving.until(end.clone()));
    let Running { config, serving, api, again } = first;
    let mut never = StopSignals::listen().context("listening for signals")?;
    let first = serving.until_the_end((api, None), &config, (&mut never, &again), None);
    let ((), ended) = tokio::join!(
        async {
            futures_util::future::join_all(others).await;
        },
        async {
            let ended = first.await;
            end.cancel();
            ended
        }
    );
    match ended? {
        Ending::Stopped => Ok(()),
        Ending::Again => anyhow::bail!("a made-up node cannot join or leave a cluster"),
    }
}

/// A free port. It stays the node's while the socket is there, which listens for nobody: hundreds of nodes that connect would
/// take it before the node listens.
fn free_port() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    Ok(socket)
}

fn configured(wish: &DevWish, scratch: &Scratch, number: u16, door: &TcpSocket) -> anyhow::Result<Config> {
    let flags = Flags {
        data_dir: Some(scratch.0.join(format!("node-{number}"))),
        bind: Some(wish.bind.clone()),
        // Browsers and programs that look at it are on this machine.
        plain_http: Some(true),
        name: Some(format!("{}{number}", wish.prefix)),
        proxies: ProxyVariables::default(),
        ..Flags::default()
    };
    let mut config = Config::resolve(flags, "").map_err(|error| anyhow::anyhow!(error.0.join("; ")))?;
    config.mesh.enabled = false;
    config.images = None;
    config.api.styleguide = true;
    config.cluster.bind = Some(door.local_addr().context("finding a free port")?);
    config.gpu.cdi_dirs = vec![scratch.0.join(format!("node-{number}/cdi"))];
    Ok(config)
}

async fn start(
    wish: &DevWish,
    scratch: &Scratch,
    number: u16,
    entry: Option<(&str, &Zeroizing<String>)>,
) -> anyhow::Result<Running> {
    let door = free_port().context("finding a free port")?;
    let mut config = configured(wish, scratch, number, &door)?;
    if let Some((address, token)) = entry {
        let directories = Directories::prepare(&config.paths)?;
        let token: Token = token.trim().parse().context("reading the token")?;
        let node_id = Identity::load_or_make(&directories)?.node_id;
        let address = address.to_owned();
        let wish = Wish { address, token, name: None, role: None, labels: BTreeMap::new(), discard: false };
        joining::ask(&config, directories.data(), node_id, wish).await?;
    }
    let mut serving = Serving::new(Directories::prepare(&config.paths)?);
    let Serving { directories, tasks, cancel, offered } = &mut serving;
    let entered = membership::enter(&mut config, directories, tasks, cancel.clone()).await?;
    drop(door);
    let Membership { state, cluster_key, belonging, mesh_door } = entered;
    let again = belonging.again();
    tasks.spawn("schedule loop", loops::schedule::run(state.clone(), Box::new(BTreeMap::new), cancel.clone()));
    tasks.spawn("health of nodes", loops::node_health::run(state.clone(), cancel.clone()));
    let machine = Machine::made_up(&config, directories, number, &state).await?;
    let eye = MeshEye::that_sees(ways::made_up(state.clone()));
    let member = Member { state, cluster_key, belonging, mesh_door, eye };
    let (api, _) = node::start(&config, (directories, tasks, cancel, offered), member, machine).await?;
    Ok(Running { config, serving, api, again })
}

impl Machine {
    /// One of the kinds in [`MACHINES`].
    async fn made_up(config: &Config, directories: &Directories, number: u16, state: &Handle) -> anyhow::Result<Self> {
        let Kind { cpus, memory_gib, cards } = MACHINES[usize::from(number - 1) % MACHINES.len()];
        let cards: Vec<Card> =
            (0..).zip(cards).map(|(index, (model, gib))| made_up(number, index, model, *gib)).collect();
        for folder in &config.gpu.cdi_dirs {
            specify(folder, &cards)?;
        }
        let identity = addresses::settle(config, directories, Vec::new(), state).await?;
        let proc = cards::proc_in(directories.data()).context("making a made-up /proc")?;
        let driver: Box<dyn Driver> = Box::new(MadeUpDriver {
            cards,
            state: state.clone(),
            node_id: identity.node_id,
            proc: proc.clone(),
            parent: directories.cgroup_parent(),
            desktop: number == 1,
            runtime: tokio::runtime::Handle::current(),
        });
        let watcher = Watcher::new(vec![driver], &proc, &directories.cgroup_parent());
        let (watcher, gpus, offences) = watcher.context("beginning to look at the GPUs")?;
        let injector = Injector::new(config.gpu.cdi_dirs.clone(), gpus.clone());
        Ok(Self {
            identity,
            host: Host {
                cpus,
                memory_bytes: memory_gib << 30,
                kernel: "6.1.0".to_owned(),
                os: "A made-up Linux".to_owned(),
                isolation: || vec!["runc".to_owned()],
            },
            runtime: Arc::new(FakeRuntime::with_every_image()),
            supervisor: None,
            network: Arc::new(FakeNetwork::default()),
            answers_names: false,
            logger: PathBuf::from("/bin/true"),
            watcher,
            gpus,
            offences,
            injector,
            pulse: Box::new(MadeUpPulse::new(config.node.name.as_str(), memory_gib << 30, number <= WITH_A_PAST)),
            dress: Some(Arc::new(move |facts: &mut NodeFacts| dress(facts, cpus, memory_gib << 30))),
        })
    }
}

fn made_up(number: u16, index: u32, model: &str, gib: u32) -> Card {
    let id = format!("GPU-{number:08x}-0000-4000-8000-{index:012x}").parse();
    let id: GpuId = id.expect("letters, digits and hyphens are a card's name");
    Card { model: model.to_owned(), ..card(&id, gib << 10) }
}

/// Makes of what this machine is what a made-up one is.
fn dress(facts: &mut NodeFacts, cpus: u32, memory_bytes: u64) {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let load = |part: f64| f64::from(cpus) * part;
    facts.cpus = cpus;
    facts.cpu_model = format!("A made-up CPU with {cpus} cores");
    facts.load = [load(0.21), load(0.24), load(0.2)];
    (facts.memory_bytes, facts.memory_available_bytes) = (memory_bytes, memory_bytes / 100 * 58);
    (facts.swap_bytes, facts.swap_used_bytes) = (0, 0);
    facts.os = "A made-up Linux".to_owned();
    facts.kernel = "6.1.0".to_owned();
    facts.booted_at_ms = now_ms - 19 * 86_400_000;
    facts.disk.device = "/dev/nvme0n1p2".to_owned();
    facts.disk.file_system = "ext4".to_owned();
    (facts.disk.size_bytes, facts.disk.free_bytes) = (1_000_000_000_000, 640_000_000_000);
    facts.temperatures = vec![Temperature { sensor: "k10temp Tctl".to_owned(), celsius: 52.5 }];
}

/// Says that the cards need nothing of the machine.
fn specify(folder: &Path, cards: &[Card]) -> anyhow::Result<()> {
    let devices: Vec<_> = cards
        .iter()
        .map(|card| json!({"name": card.id.to_string(), "containerEdits": {"env": [format!("TOFT_MADE_UP={}", card.id)]}}))
        .collect();
    let specification = json!({"cdiVersion": "0.6.0", "kind": CDI_KIND, "devices": devices});
    fs::create_dir_all(folder).with_context(|| format!("making the folder `{}`", folder.display()))?;
    let path = folder.join("made-up.json");
    fs::write(&path, specification.to_string()).with_context(|| format!("writing `{}`", path.display()))
}
