//! One workload: its state, its instances, what was asked for, what happened, and its removal.

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    response::{IntoResponse, Redirect, Response},
};
use toft_model::{
    instance::{Desired, InstanceState, NetworkOrder},
    name::Name,
    secret::SecretMount,
    state::{InstanceView, WorkloadView},
    units::format_bytes,
    workload::{NetworkMode, NetworkName, PlacementSpec, Rollout, WorkloadKind, WorkloadSpec},
};

use super::{
    Dashboard, Frame,
    charts::{self, Asked, Charts, Whose},
    error::PageError,
    live,
    present::{self, EventLine, Moment, Pill, PortLine},
    pulls::PullLine,
    render,
    request::{ReachedAs, named},
    show,
    usage::{self, UsageLine},
    workloads::{Actions, why},
};
use crate::control::{
    ErrorKind,
    ops::{Ops, now_ms},
};

const EVENTS: u32 = 30;

#[derive(Template)]
#[template(path = "workloads/one.html")]
struct Page {
    frame: Frame,
    one: One,
    charts: Charts,
}

#[derive(Template)]
#[template(path = "workloads/_one.html")]
struct Fragment {
    one: One,
}

#[derive(Template)]
#[template(path = "workloads/_gone.html")]
struct Gone {
    name: String,
}

#[derive(Template)]
#[template(path = "workloads/remove.html")]
struct RemovalPage {
    frame: Frame,
    name: String,
    running: usize,
}

struct One {
    name: String,
    state: Pill,
    why: Option<String>,
    /// How far its newest specification came, unless every instance has it.
    rollout: Option<RolloutLine>,
    trouble: Option<String>,
    running: usize,
    wanted: u32,
    created: Moment,
    instances: Vec<InstanceLine>,
    facts: Vec<(&'static str, String)>,
    command: Vec<String>,
    env: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    events: Vec<EventLine>,
    actions: Actions,
    /// Pulls that its instances wait for.
    pulls: Vec<PullLine>,
}

struct RolloutLine {
    tone: &'static str,
    text: String,
}

impl RolloutLine {
    fn of(workload: &WorkloadView) -> Option<Self> {
        let generation = workload.row.generation;
        match &workload.row.rollout {
            Rollout::Rolling if generation > 1 && workload.row.desired == Desired::Running => {
                Some(Self { tone: "busy", text: format!("generation {generation} is being rolled out") })
            }
            Rollout::Failed { reason } => {
                let text = format!("generation {generation} failed: {reason}; what it did not replace stays as it was");
                Some(Self { tone: "bad", text })
            }
            Rollout::Rolling | Rollout::Done => None,
        }
    }
}

struct InstanceLine {
    name: String,
    state: Pill,
    detail: Option<String>,
    next_try: Option<Moment>,
    since: Option<Moment>,
    node: String,
    address: String,
    ports: Vec<PortLine>,
    more_ports: usize,
    restarts: u32,
    usage: Option<UsageLine>,
}

impl InstanceLine {
    fn of(instance: &InstanceView, reached: &ReachedAs, now_ms: i64) -> Self {
        let (ports, more_ports) = present::ports([instance], reached);
        let report = instance.row.report.as_ref();
        let last_exit = report.and_then(|report| report.last_exit);
        let (detail, next_try, since) = match instance.state() {
            InstanceState::Running { pid, since_ms } => {
                (Some(format!("process {pid}")), None, Some(Moment::age(since_ms, now_ms)))
            }
            InstanceState::BackOff { until_ms, reason } => (Some(reason), Some(Moment::clock(until_ms)), None),
            InstanceState::Finished { exit, reason: Some(reason) } => {
                (Some(reason), None, Some(Moment::age(exit.at_ms, now_ms)))
            }
            InstanceState::Finished { exit, reason: None } | InstanceState::Stopped { exit: Some(exit) } => {
                (Some(present::exit(exit)), None, Some(Moment::age(exit.at_ms, now_ms)))
            }
            InstanceState::Assigned | InstanceState::Starting if instance.note.is_some() => {
                (instance.note.clone(), None, None)
            }
            InstanceState::Unknown => (Some("its node is down".into()), None, None),
            InstanceState::Assigned
            | InstanceState::Starting
            | InstanceState::Stopping
            | InstanceState::Stopped { exit: None } => {
                (last_exit.map(|exit| format!("before: {}", present::exit(exit))), None, None)
            }
        };
        Self {
            name: instance.name(),
            state: Pill::of_instance(instance),
            detail,
            next_try,
            since,
            node: instance.node.to_string(),
            address: match &instance.row.container.network {
                NetworkOrder::Bridge { address, address6: Some(six), .. } => format!("{address}, {six}"),
                NetworkOrder::Bridge { address, address6: None, .. } => address.to_string(),
                NetworkOrder::Host => "the host's".into(),
                NetworkOrder::None => "none".into(),
            },
            ports,
            more_ports,
            usage: None,
            restarts: report.map_or(0, |report| report.restarts),
        }
    }
}

fn facts(workload: &WorkloadView) -> Vec<(&'static str, String)> {
    let spec: &WorkloadSpec = &workload.row.spec;
    let kind = match spec.kind {
        WorkloadKind::Service => "service: kept running",
        WorkloadKind::Job => "job: runs to completion",
    };
    let network = match spec.network {
        NetworkMode::Bridge => "an address of its own",
        NetworkMode::Host => "the host's",
        NetworkMode::None => "none",
    };
    let networks: Vec<String> =
        NetworkName::of(spec.deployment.as_ref(), &spec.networks).iter().map(ToString::to_string).collect();
    let networks = if spec.network == NetworkMode::Bridge { networks.join(", ") } else { "none".into() };
    let ports: Vec<String> = spec.ports.iter().map(ToString::to_string).collect();
    let cpu = spec.resources.cpu_millis.map(|millis| format!("{} cores", f64::from(millis) / 1000.0));
    let unlimited = || "no limit".to_owned();
    vec![
        ("Image", spec.image.familiar().to_owned()),
        ("Kind", kind.into()),
        ("Copies", spec.replicas.to_string()),
        ("Restart", spec.restart_policy().to_string()),
        ("Deployment", spec.deployment.as_ref().map_or("none".into(), ToString::to_string)),
        ("Network", network.into()),
        ("Reaches", networks),
        ("Ports", if ports.is_empty() { "none".into() } else { ports.join(", ") }),
        ("Secrets", secrets(spec)),
        ("Memory", spec.resources.memory_bytes.map(format_bytes).unwrap_or_else(unlimited)),
        ("CPU", cpu.unwrap_or_else(unlimited)),
        ("GPUs", spec.gpus.as_ref().map_or("none".into(), ToString::to_string)),
        ("Node", spec.node.as_ref().map_or("any".into(), ToString::to_string)),
        ("Wishes", wishes(spec)),
        ("Time to stop", toft_model::units::format_span_ms(spec.stop_grace_ms.into())),
        ("Generation", workload.row.generation.to_string()),
    ]
}

/// Where it may be and should be.
fn wishes(spec: &WorkloadSpec) -> String {
    let PlacementSpec { constraints, affinities, spread, tolerations, max_per_node, priority, gang } = &spec.placement;
    let mut wishes: Vec<String> = constraints.iter().map(|rule| format!("only where {rule}")).collect();
    wishes.extend(affinities.iter().map(|affinity| format!("rather where {affinity}")));
    wishes.extend(spread.iter().map(|spread| format!("spread over {spread}")));
    wishes.extend(tolerations.iter().map(|toleration| format!("tolerates {toleration}")));
    wishes.extend(max_per_node.map(|most| format!("at most {most} on a node")));
    wishes.extend((*priority != PlacementSpec::USUAL_PRIORITY).then(|| format!("priority {priority}")));
    wishes.extend(gang.then(|| "all copies at once".to_owned()));
    if wishes.is_empty() { "none".into() } else { wishes.join("; ") }
}

/// Secrets as the containers see them.
fn secrets(spec: &WorkloadSpec) -> String {
    let told = |mount: &SecretMount| match &mount.target {
        Some(target) => format!("{} as {target}", mount.name),
        None => mount.name.to_string(),
    };
    let told: Vec<String> = spec.secrets.iter().map(told).collect();
    if told.is_empty() { "none".into() } else { told.join(", ") }
}

async fn read(ops: &Ops, name: &Name, reached: &ReachedAs) -> Result<One, PageError> {
    let now_ms = now_ms();
    let workload = ops.workload(name).await.map_err(|error| match error.kind {
        ErrorKind::NotFound => PageError::no_workload(name.as_str()),
        _ => error.into(),
    })?;
    let events = ops.workload_events(&workload, EVENTS).await?;
    let mut used = usage::lines(ops, &workload).await;
    let instances = workload.instances.iter().map(|instance| InstanceLine {
        usage: used.remove(&instance.name()),
        ..InstanceLine::of(instance, reached, now_ms)
    });
    let instances: Vec<InstanceLine> = instances.collect();
    let waits =
        |image: &str| workload.instances.iter().any(|i| i.note.is_some() && i.row.container.image.as_str() == image);
    let pulls = ops.image_pulls().into_iter();
    let pulls = pulls.filter(|pull| pull.failure.is_none() && waits(&pull.progress.image));
    let pulls = pulls.map(|pull| PullLine::of(pull, now_ms)).collect();
    let spec = &workload.row.spec;
    let pairs = |map: &std::collections::BTreeMap<String, String>| map.clone().into_iter().collect();
    Ok(One {
        name: name.to_string(),
        state: Pill::of_workload(&workload),
        why: why(&workload),
        rollout: RolloutLine::of(&workload),
        trouble: ops.runtime_trouble(),
        running: workload.running(),
        wanted: spec.replicas,
        created: Moment::ago(workload.row.created_at_ms, now_ms),
        instances,
        facts: facts(&workload),
        command: spec.entrypoint.iter().flatten().chain(&spec.command).cloned().collect(),
        env: pairs(&spec.env),
        labels: pairs(&spec.labels),
        events: events.into_iter().map(|event| EventLine::of(event, now_ms)).collect(),
        actions: Actions::of(&workload, "one"),
        pulls,
    })
}

pub(super) async fn page(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    reached: ReachedAs,
) -> Result<Response, PageError> {
    match read(&dashboard.ops, &named(&name)?, &reached).await {
        Ok(one) => {
            let names = one.instances.iter().map(|instance| instance.name.clone()).collect();
            let from = format!("/charts/workloads/{name}");
            let charts = charts::charts(&dashboard.ops, Whose::Instances(names), &from, asked.span).await;
            show(&Page { frame: Frame::at("workloads"), one, charts })
        }
        // The address people guess for the form; a workload may bear that name too.
        Err(_) if name == "new" => Ok(Redirect::to("/run").into_response()),
        Err(error) => Err(error),
    }
}

pub(super) async fn live(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    reached: ReachedAs,
) -> Result<Response, PageError> {
    let name = named(&name)?;
    let ops = dashboard.ops.clone();
    let key = format!("workloads/{name}?{}", reached.0.as_deref().unwrap_or_default());
    Ok(live::fragments(&dashboard, key, move || {
        let (ops, name, reached) = (ops.clone(), name.clone(), reached.clone());
        async move {
            match read(&ops, &name, &reached).await {
                Ok(one) => render(&Fragment { one }),
                Err(error) if error.is_not_found() => render(&Gone { name: name.to_string() }),
                Err(error) => Err(error),
            }
        }
    }))
}

pub(super) async fn confirm_removal(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let workload = dashboard.ops.workload(&named(&name)?).await?;
    show(&RemovalPage { frame: Frame::at("workloads"), name, running: workload.running() })
}

pub(super) async fn remove(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    dashboard.ops.remove_workload(named(&name)?).await?;
    Ok(Redirect::to("/workloads"))
}
