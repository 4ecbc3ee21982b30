//! One node: what its machine is and has.

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    response::{Redirect, Response},
};
use toft_model::{
    instance::InstanceState,
    node::{Availability, Inventory, NodeChanges, NodeFacts},
    schedule::{Remaining, RemainingState},
    state::{InstanceView, NodeRow},
    units::{format_bytes, format_span_ms},
};

use super::{
    Dashboard, Frame,
    charts::{self, Asked, Charts, Whose},
    error::PageError,
    gpus::CardLine,
    live,
    present::{Moment, Pill},
    render,
    request::named,
    show, sight,
};
use crate::control::{
    ErrorKind,
    ops::{Ops, mesh::CLOCK_APART_MS, now_ms},
};

type Facts = Vec<(String, String)>;

#[derive(Template)]
#[template(path = "nodes/one.html")]
struct Page {
    frame: Frame,
    one: One,
    charts: Charts,
}

#[derive(Template)]
#[template(path = "nodes/confirm.html")]
struct ConfirmPage {
    frame: Frame,
    name: String,
    drains: bool,
    /// Its instances that run.
    running: usize,
}

#[derive(Template)]
#[template(path = "nodes/_one.html")]
struct Fragment {
    one: One,
}

struct One {
    name: String,
    registered: Moment,
    /// Why there is no more to see, on the page of another node.
    elsewhere: Option<String>,
    groups: Vec<(&'static str, Facts)>,
    work: Pill,
    /// What can be done to it: the last part of the address, the word on the button, and whether it asks first.
    actions: Vec<(&'static str, &'static str, bool)>,
    cards: Vec<CardLine>,
    instances: Vec<(String, String, Pill)>,
    /// What is still there while it is drained.
    left: Vec<(String, String)>,
    draining: bool,
}

fn pair(key: &str, value: impl Into<String>) -> (String, String) {
    (key.to_owned(), value.into())
}

fn machine(facts: &NodeFacts, now_ms: i64) -> Facts {
    let part = |bytes: u64, all: u64, word: &str| format!("{} of {} {word}", format_bytes(bytes), format_bytes(all));
    let swap = match facts.swap_bytes {
        0 => "none".to_owned(),
        swap => part(facts.swap_used_bytes, swap, "used"),
    };
    let disk = &facts.disk;
    let mut machine = vec![
        pair("CPUs", facts.cpus.to_string()),
        pair("CPU", if facts.cpu_model.is_empty() { "unknown" } else { facts.cpu_model.as_str() }),
        pair("Load", facts.load.map(|load| format!("{load:.2}")).join(" ")),
        pair("Memory", part(facts.memory_available_bytes, facts.memory_bytes, "available")),
        pair("Swap", swap),
        pair("Disk", part(disk.free_bytes, disk.size_bytes, "free")),
        pair("Disk of", format!("{} on {} ({})", disk.path, disk.device, disk.file_system)),
        pair("Booted", format!("{} ago", format_span_ms(now_ms - facts.booted_at_ms))),
    ];
    machine.extend(facts.temperatures.iter().map(|at| pair(&at.sensor, format!("{:.1} °C", at.celsius))));
    machine
}

fn software(inventory: &Inventory, isolation: &[String]) -> Facts {
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    vec![
        pair("System", inventory.os.clone()),
        pair("Kernel", format!("{} ({})", inventory.kernel, inventory.arch)),
        pair("Container runtime", or_none(inventory.runtime.clone())),
        pair("Isolation", or_none(isolation.join(", "))),
        pair("Container network", or_none(inventory.subnet.map(|subnet| subnet.to_string()).unwrap_or_default())),
        pair("toft", inventory.version.clone()),
    ]
}

fn registered(inventory: &Inventory) -> Facts {
    vec![pair("CPUs", inventory.cpus.to_string()), pair("Memory", format_bytes(inventory.memory_bytes))]
}

fn said(node: &NodeRow) -> Facts {
    let settings = &node.settings;
    let taints: Vec<String> = settings.taints.iter().map(ToString::to_string).collect();
    let percent = |percent: u32| format!("{percent} %");
    let facts = [
        ("Taints", Some(taints.join(", ")).filter(|taints| !taints.is_empty())),
        ("Price per hour", settings.price_per_hour.map(|price| price.to_string())),
        ("Watts", node.watts().map(|watts| watts.to_string())),
        ("CPU to reserve", settings.cpu_percent.map(percent)),
        ("Memory to reserve", settings.memory_percent.map(percent)),
    ];
    facts.into_iter().filter_map(|(key, value)| Some(pair(key, value?))).collect()
}

fn work(node: &NodeRow) -> (Pill, Vec<(&'static str, &'static str, bool)>) {
    let uncordon = ("uncordon", "Let it take work", false);
    let (cordon, drain) = (("cordon", "Cordon", true), ("drain", "Drain", true));
    let (pill, actions) = match node.settings.availability {
        Availability::Active => (Pill { word: "takes work", tone: "ok" }, vec![cordon, drain]),
        Availability::Cordoned => (Pill { word: "cordoned", tone: "warn" }, vec![uncordon, drain]),
        Availability::Draining => (Pill { word: "draining", tone: "busy" }, vec![uncordon]),
    };
    let may = |(verb, ..): &(&str, &str, bool)| sight::may("POST", format!("/nodes/{{name}}/{verb}"));
    (Pill::of_lost(node).unwrap_or(pill), actions.into_iter().filter(may).collect())
}

async fn read(ops: &Ops, node: &NodeRow) -> Result<One, PageError> {
    let (now_ms, name) = (now_ms(), &node.name);
    let (elsewhere, facts) = match ops.node_facts(node).await {
        Ok(facts) => (None, Some(facts)),
        Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::Unavailable) => (Some(error.message), None),
        Err(error) => return Err(error.into()),
    };
    let skew = ops.clocks().await.unwrap_or_default().get(&node.id).copied().filter(|ms| ms.abs() > CLOCK_APART_MS);
    let isolation = facts.as_ref().map_or(&node.inventory.isolation, |facts| &facts.isolation);
    let software = software(&node.inventory, isolation);
    let mut machine = facts.as_ref().map_or_else(|| registered(&node.inventory), |facts| machine(facts, now_ms));
    machine.extend(
        skew.map(|ms| pair("Clock", format!("{:+.1} s off: let it be set by the network", ms as f64 / 1_000.0))),
    );
    let mut groups = vec![("Machine", machine), ("Software", software)];
    let cards = ops.gpus_of(node, facts.as_ref().map_or(&[], |facts| &facts.gpus)).await?;
    let cards = cards.iter().map(CardLine::of).collect();
    let here = |instance: &&InstanceView| instance.row.node_id == node.id;
    let seen = ops.seen().await?;
    let instances = seen.instances().filter(here);
    let instances = instances.map(|i| (i.name(), i.workload.to_string(), Pill::of_instance(i))).collect();
    let mut labels = node.given_labels();
    labels.extend(node.inventory.labels());
    groups.push(("Labels", labels.into_iter().collect()));
    let said = said(node);
    if !said.is_empty() {
        groups.push(("Settings", said));
    }
    let draining = node.settings.availability == Availability::Draining;
    let mut left = if draining { ops.remaining_on(name).await? } else { Vec::new() };
    left.retain(|one: &Remaining| one.state != RemainingState::Down);
    let (work, actions) = work(node);
    Ok(One {
        name: name.to_string(),
        registered: Moment::ago(node.registered_at_ms, now_ms),
        elsewhere,
        groups,
        work,
        actions,
        cards,
        instances,
        left: left.into_iter().map(|one| (one.instance, one.why)).collect(),
        draining,
    })
}

pub(super) async fn page(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let node = dashboard.ops.node(&named(&name)?).await?;
    let from = format!("/charts/nodes/{}", node.name);
    let charts = charts::charts(&dashboard.ops, Whose::Node(&node), &from, asked.span);
    let (one, charts) = tokio::join!(read(&dashboard.ops, &node), charts);
    show(&Page { frame: frame(), one: one?, charts })
}

fn frame() -> Frame {
    Frame::at("nodes")
}

async fn confirm(dashboard: &Dashboard, name: &str, drains: bool) -> Result<Response, PageError> {
    let node = dashboard.ops.node(&named(name)?).await?;
    let seen = dashboard.ops.seen().await?;
    let runs = |instance: &&InstanceView| {
        instance.row.node_id == node.id && matches!(instance.state(), InstanceState::Running { .. })
    };
    let running = seen.instances().filter(runs).count();
    show(&ConfirmPage { frame: frame(), name: node.name.to_string(), drains, running })
}

pub(super) async fn confirm_cordon(dashboard: State<Dashboard>, name: Path<String>) -> Result<Response, PageError> {
    confirm(&dashboard, &name, false).await
}

pub(super) async fn confirm_drain(dashboard: State<Dashboard>, name: Path<String>) -> Result<Response, PageError> {
    confirm(&dashboard, &name, true).await
}

async fn make(dashboard: &Dashboard, name: &str, availability: Availability) -> Result<Redirect, PageError> {
    let name = named(name)?;
    let changes = NodeChanges { availability: Some(availability), ..NodeChanges::default() };
    dashboard.ops.configure_node(name.clone(), changes).await?;
    Ok(Redirect::to(&format!("/nodes/{name}")))
}

pub(super) async fn cordon(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    make(&dashboard, &name, Availability::Cordoned).await
}

pub(super) async fn uncordon(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    make(&dashboard, &name, Availability::Active).await
}

pub(super) async fn drain(State(dashboard): State<Dashboard>, Path(name): Path<String>) -> Result<Redirect, PageError> {
    make(&dashboard, &name, Availability::Draining).await
}

pub(super) async fn live(State(dashboard): State<Dashboard>, Path(name): Path<String>) -> Result<Response, PageError> {
    let name = named(&name)?;
    let ops = dashboard.ops.clone();
    Ok(live::measured(&dashboard, format!("nodes/{name}"), move || {
        let (ops, name) = (ops.clone(), name.clone());
        async move { render(&Fragment { one: read(&ops, &ops.node(&name).await?).await? }) }
    }))
}
