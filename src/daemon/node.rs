//! What runs on every node that runs instances, from its ledger to what its doors answer with.

use std::{collections::HashMap, sync::Arc};

use anyhow::Context;
use toft_model::{
    ids::{InstanceId, NodeId},
    instance::{AssignmentSet, InstanceReport, InstanceState},
    state::{InstanceRow, assignments_generation, query_assignments},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Hinted, addresses,
    belonging::Belonging,
    directories::Directories,
    identity::Identity,
    image_exchange::{ClusterWays, Giver, Taker},
    lease,
    local_node::LocalNode,
    logins::AllLogins,
    machine::Machine,
    membership::MeshDoor,
    mesh::{Me, Mesh, MeshEye},
    names::{self, Neighbours},
    registration::{self, Registration},
    sampling::{self, Sampling},
    tasks::Tasks,
    volume_moves, volumes,
};
use crate::{
    agent::{
        Agent, AgentConfig, AgentParts,
        execute::Executor,
        image::{LoginFiles, Proxy, ProxySettings, Pulls, Registries, RegistrySettings, Settings},
        ledger::{Ledger, Outcome},
        network::Others,
        report::Outbox,
        retention,
        runtime::Availability,
        secrets::SecretFiles,
        turns::Turns,
        volumes::{Volumes, VolumesConfig},
    },
    api::http::{ApiState, KeptPage, Readiness},
    backup::{self, Backups, keys::KeySource, schedule},
    config::{BackupKey, Config, ImagesConfig, ProxyAddress, ProxyConfig, RegistryConfig},
    consensus::{Handle, network::Offered},
    control::{
        loops,
        node_access::NodeAccess,
        ops::{Ops, images::RoomLimits, now_ms},
    },
    embedded,
    observe::{chain, metrics::Metrics},
    remote::{FarNodes, NodeDoor},
    seal::ClusterKey,
    series::Store,
};

/// The node's part in its cluster.
pub(super) struct Member {
    pub(super) state: Handle,
    pub(super) cluster_key: ClusterKey,
    pub(super) belonging: Arc<Belonging>,
    pub(super) mesh_door: Option<MeshDoor>,
    /// Where others look at the mesh.
    pub(super) eye: MeshEye,
}

/// Starts everything but the doors, and gives what they answer with.
pub(super) async fn start(
    config: &Config,
    (directories, tasks, cancel, offered): (&Directories, &mut Tasks, &CancellationToken, &mut Vec<Offered>),
    member: Member,
    machine: Machine,
) -> anyhow::Result<(ApiState, NodeId)> {
    let Member { state, cluster_key, belonging, mesh_door, eye } = member;
    let Machine { identity, host, runtime, network, answers_names, logger, watcher, gpus, offences, injector, .. } =
        machine;
    let (pulse, dress) = (machine.pulse, machine.dress);
    let subnet6 = addresses::of_ipv6(config, &identity, &state).await?;
    let ledger = Ledger::open(&directories.ledger_file()).context("opening the node's ledger")?;
    let mut remembered = ledger.load(identity.node_id).context("reading the node's ledger")?;
    remembered.run = begin_run(&ledger);
    refuse_older_state(&state, remembered.set.as_ref(), directories)?;
    if remembered.set.is_none() {
        remembered.outcomes.extend(recall_outcomes(&state, &ledger, identity.node_id).await?);
    }

    let me = addresses::in_mesh(&identity, &state).await?;
    let (mesh, outlook) =
        Mesh::new(config, directories, (&state, mesh_door, eye.clone()), me.map(|me| Me { subnet6, ..me }));
    if let Some(mesh) = mesh {
        tasks.spawn("mesh", mesh.run(cancel.clone()));
    }
    let retry = Arc::new(Notify::new());
    let settings = registry_settings(config);
    let logins = AllLogins { files: LoginFiles(settings.clone()), state: state.clone(), key: cluster_key.clone() };
    let mut registries = Registries::new(settings, Arc::new(logins));
    if config.images_from_nodes {
        let ways = ClusterWays { state: state.clone(), node_id: identity.node_id };
        registries = registries.with_neighbours(Arc::new(Taker(ways)));
    }
    let giver = Giver::new(Arc::clone(&runtime)).service();
    offered.push(state.offer(move |routes| routes.add_service(giver.clone())));
    let (pulls, puller) = Pulls::new(Arc::clone(&runtime), registries);
    tasks.spawn("image pulls", puller.run(cancel.clone()));
    let volumes = Volumes::open(VolumesConfig {
        dir: directories.volumes(),
        pins: directories.mounts(),
        bind_roots: config.volumes.bind_roots.clone(),
        node: config.node.name.clone(),
        key: cluster_key.clone(),
    })
    .context("opening the volumes")?;
    let (feed, assignments) = watch::channel(None);
    tasks.spawn("GPUs", watcher.run(assignments.clone(), cancel.clone()));
    let here = (identity.node_id, pulls.clone(), volumes.clone(), gpus.clone());
    let node = LocalNode::new(Arc::clone(&runtime), directories.logs(), Arc::clone(&retry), here, eye, cancel.clone());
    let store = Store::open(&directories.series_file());
    let node = node.with_series(store.clone(), dress);
    let (runtime_too, gpus_too) = (Arc::clone(&runtime), gpus.clone());
    let (node_id, state_too) = (identity.node_id, state.clone());
    let sampling = Sampling { store, state: state_too, node_id, runtime: runtime_too, gpus: gpus_too, pulse };
    tasks.spawn("samples", sampling::run(sampling, cancel.clone()));
    let taking = volume_moves::Taking {
        state: state.clone(),
        node_id: identity.node_id,
        volumes: volumes.clone(),
        progresses: volume_moves::Progresses::default(),
    };
    let node = Arc::new(node.with_moves(taking.progresses.clone(), state.clone()));
    offered.push(offer(&state, node.clone(), cancel));
    tasks.spawn("volumes that move", volume_moves::run(taking, cancel.clone()));
    tasks.spawn("processes in containers", node.execs().until_the_end(cancel.clone()));
    let backups = Backups::new(backup_settings(config, directories, &identity), state.clone());
    tasks.spawn("backups", schedule::run(backups.clone(), cancel.clone()));
    let ops = Ops::new(state.clone(), node.clone())
        .with_others(Arc::new(FarNodes::new(state.clone(), cancel.clone())))
        .with_backups(backups)
        .with_belonging(belonging)
        .with_cluster_key(cluster_key.clone());
    if let Some(ImagesConfig { high_percent, low_percent, min_age }) = config.images {
        let min_age_ms = i64::try_from(min_age.as_millis()).unwrap_or(i64::MAX);
        let limits = RoomLimits { high_percent, low_percent, min_age_ms };
        tasks.spawn("room for images", loops::images::run(ops.clone(), limits, cancel.clone()));
    }
    let outbox = Outbox::default();
    let secrets = SecretFiles::new(directories.secrets(), cluster_key);
    if let Some(set) = &remembered.set {
        let ordered = set.assignments.iter().map(|assignment| assignment.instance_id).collect();
        if let Err(error) = secrets.keep_only(&ordered) {
            tracing::warn!(%error, "secrets of containers that nobody ordered could not be removed from memory");
        }
    }
    let names = answers_names.then(|| names::open(config, (&identity, subnet6), tasks, cancel)).flatten();
    let (names, zone) = names.unzip();
    let (tell_others, others) = watch::channel(Others::default());
    let neighbours = Neighbours { nodes: outlook.others, others: tell_others, zone };
    tasks.spawn("names and neighbours", names::feed(state.clone(), identity.node_id, neighbours, cancel.clone()));
    let left = Arc::new(Notify::new());
    let executor = Executor {
        runtime: Arc::clone(&runtime),
        network,
        ledger,
        node: config.node.name.clone(),
        gateway: identity.subnet.map(|subnet| subnet.gateway()),
        resolv_conf: names.map(|_| config.network.resolv_conf.clone()),
        logger,
        lease_file: directories.lease_file(),
        logs_dir: directories.logs(),
        instances_dir: directories.instances(),
        log_max_bytes: config.logs.max_bytes,
        log_max_files: config.logs.max_files,
        left: Arc::clone(&left),
        audience: node.audience(),
        secrets,
        volumes: volumes.clone(),
        pulls,
        gpus: injector,
        turns: Turns::default(),
        builtin_image: |name| (name == embedded::DEMO_IMAGE_NAME).then_some(embedded::DEMO_IMAGE),
    };
    tasks.spawn("volumes", volumes::keep(ops.clone(), identity.node_id, volumes, assignments.clone(), cancel.clone()));
    let lease_was_over_ms = lease::was_over_ms(&directories.lease_file(), now_ms());
    let lease = lease::keep((state.clone(), &directories.lease_file()), assignments.clone(), (&mut *tasks, cancel));
    let parts = AgentParts {
        executor: Arc::new(executor),
        outbox: outbox.clone(),
        assignments,
        lease,
        lease_was_over_ms,
        retry,
        offences,
    };
    let agent_config = AgentConfig { subnet: identity.subnet, subnet6, names_port: names, others, remembered };
    let (agent, keep_network) = Agent::new(agent_config, parts, cancel.clone());

    let kept = retention::Limits { max_age: config.logs.gone_max_age, max_bytes: config.logs.gone_max_bytes };
    tasks.spawn("log retention", retention::keep(directories.logs(), kept, left, cancel.clone()));
    tasks.spawn("container network", keep_network);
    tasks.spawn("agent", agent.run(cancel.clone()));
    tasks.spawn("reports", outbox.run(node.sink(ops.clone()), cancel.clone()));
    tasks.spawn(
        "registration",
        Registration {
            ops: ops.clone(),
            runtime: runtime.clone(),
            identity: identity.clone(),
            subnet6,
            config: config.clone(),
            gpus: gpus.clone(),
            host,
        }
        .run(cancel.clone()),
    );
    let node_id = identity.node_id;
    tasks.spawn("presence", registration::come_back(ops.clone(), node_id, cancel.clone()));
    tasks.spawn("assignments", feed_assignments(state.clone(), identity, feed, cancel.clone()));
    let readiness: Arc<dyn Readiness> = Arc::new(RuntimeReadiness(runtime.availability()));
    let api = ApiState { ops, metrics: Metrics::install(), readiness, kept: KeptPage::default() };
    Ok((api, node_id))
}

/// Lets the other members ask `node`, until what is given is dropped.
pub(super) fn offer(state: &Handle, node: Arc<dyn NodeAccess>, cancel: &CancellationToken) -> Offered {
    let door = NodeDoor::new(node, cancel.clone());
    state.offer(move |routes| routes.add_service(door.clone().service()))
}

/// The number of this run. A full disk does not keep the node from starting: then the clock alone has to grow.
fn begin_run(ledger: &Ledger) -> u64 {
    let now_s = jiff::Timestamp::now().as_second().max(0) as u64;
    ledger.begin_run(now_s).unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "the start could not be noted in the node's ledger");
        now_s
    })
}

fn registry_settings(config: &Config) -> Settings {
    let settings = |registry: &RegistryConfig| RegistrySettings {
        plain_http: registry.plain_http,
        ca_file: registry.ca_file.clone(),
        login: registry.username.clone().zip(registry.password_file.clone()),
        mirrors: registry.mirrors.clone(),
    };
    let registries = config.registries.iter().map(|(name, registry)| (name.clone(), settings(registry))).collect();
    let proxy = |address: &ProxyAddress| Proxy { url: address.url.clone(), credentials: address.credentials.clone() };
    let ProxyConfig { http, https, exceptions, login } = &config.proxy;
    let (http, https) = (http.as_ref().map(proxy), https.as_ref().map(proxy));
    let proxies = ProxySettings { http, https, exceptions: exceptions.clone(), login: login.clone() };
    Settings { registries, proxies, ..Settings::default() }
}

pub(super) fn backup_settings(config: &Config, directories: &Directories, identity: &Identity) -> backup::Settings {
    let key = config.backup.key.clone().map(|key| match key {
        BackupKey::Recipient(text) => KeySource::Recipient(text),
        BackupKey::KeyFile(path) => KeySource::KeyFile(path),
        BackupKey::PassphraseFile(path) => KeySource::PassphraseFile(path),
    });
    backup::Settings {
        data: directories.data().to_owned(),
        dir: config.backup.dir.clone(),
        dir_is_ours: config.backup.dir_is_ours,
        every: config.backup.every,
        keep: config.backup.keep as usize,
        key,
        node_name: config.node.name.to_string(),
        node_id: identity.node_id.to_string(),
    }
}

/// The agent ignores orders older than those in its ledger. A state that is older than the ledger was put in place of
/// the one that made those orders, and its first orders would remove containers it does not know.
fn refuse_older_state(state: &Handle, known: Option<&AssignmentSet>, directories: &Directories) -> anyhow::Result<()> {
    // Among others a state that is behind catches up, and until then the agent keeps to its newer orders.
    if !state.stands_alone() {
        return Ok(());
    }
    let applied = *state.watch().borrow();
    let Some(set) = known.filter(|set| set.generation > applied) else { return Ok(()) };
    let error = anyhow::anyhow!(
        "the state ends at {applied}, but this node has carried out orders up to {}: the state was replaced by an older one",
        set.generation
    );
    let hint = format!(
        "put the newer state back; or, to let go of the {} containers it does not know, move `{}` away too",
        set.assignments.len(),
        directories.ledger_file().display()
    );
    Err(Hinted { hint, source: error.into() }.into())
}

/// A node whose state was restored has an empty ledger, by which every finished job would run again. What the node said
/// of them before is in the state.
async fn recall_outcomes(
    state: &Handle,
    ledger: &Ledger,
    node_id: NodeId,
) -> anyhow::Result<HashMap<InstanceId, Outcome>> {
    let rows = state.read(move |connection| InstanceRow::of_node(connection, node_id)).await?;
    let mut outcomes = HashMap::new();
    for report in rows.into_iter().filter_map(|row| row.report) {
        let Some(InstanceState::Finished { exit, .. }) = report.state else { continue };
        let InstanceReport { instance_id, epoch, restarts, last_exit, .. } = report;
        let outcome = Outcome { epoch, restarts, started_ms: None, last_exit, finished: Some(exit) };
        ledger.store_outcome(instance_id, outcome).context("writing the node's ledger")?;
        outcomes.insert(instance_id, outcome);
    }
    Ok(outcomes)
}

/// Hands the agent its whole set whenever it changed.
async fn feed_assignments(
    state: Handle,
    identity: Identity,
    feed: watch::Sender<Option<AssignmentSet>>,
    cancel: CancellationToken,
) {
    // Only the scheduler's decisions, and what it decides on, change assignments.
    let mut moves = state.watch_schedule();
    let node_id = identity.node_id;
    loop {
        moves.mark_unchanged();
        let known = feed.borrow().as_ref().map(|set| set.generation);
        let question = move |connection: &rusqlite::Connection| {
            if assignments_generation(connection, node_id)? == known {
                Ok(None)
            } else {
                query_assignments(connection, node_id)
            }
        };
        match state.read(question).await {
            Ok(Some(set)) => drop(feed.send_replace(Some(set))),
            Ok(None) => {}
            Err(error) => tracing::error!(error = chain(&error), "the node's assignments could not be read"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = moves.changed() => if changed.is_err() { return cancel.cancelled().await },
        }
    }
}

struct RuntimeReadiness(watch::Receiver<Availability>);

impl Readiness for RuntimeReadiness {
    fn trouble(&self) -> Option<String> {
        match &*self.0.borrow() {
            Availability::Up(_) => None,
            Availability::Down(why) => Some(format!("the container runtime does not answer: {why}")),
        }
    }
}
