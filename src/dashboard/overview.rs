//! The first page: what needs attention, the counts, the machines with their cards, and the latest story.

use std::{collections::HashMap, sync::Arc};

use askama::Template;
use axum::{extract::State, response::Response};
use toft_model::{
    ids::NodeId,
    instance::Desired,
    node::NodeHealth,
    state::{InstanceView, NodeRow, WorkloadView},
    units::format_bytes,
};

use super::{
    Dashboard, Frame,
    error::PageError,
    gpus::CardLine,
    live,
    present::{EventLine, Moment, Pill},
    render, show,
    workloads::why,
};
use crate::control::ops::{Ops, gpus::GpuView, now_ms};

const EVENTS: u32 = 12;
/// Most that is listed of what needs attention; the rest is counted.
const MOST_TROUBLES: usize = 8;

#[derive(Template)]
#[template(path = "overview/index.html")]
struct Page {
    frame: Frame,
    overview: Overview,
}

#[derive(Template)]
#[template(path = "overview/_overview.html")]
struct Fragment {
    overview: Overview,
}

struct Overview {
    trouble: Option<String>,
    counts: Counts,
    troubles: Vec<Trouble>,
    more_troubles: usize,
    nodes: Vec<NodeLine>,
    joining: Vec<Joining>,
    events: Vec<EventLine>,
}

#[derive(Default)]
struct Counts {
    workloads: usize,
    running: usize,
    attention: usize,
    changing: usize,
    down: usize,
    instances_running: usize,
    instances: usize,
    nodes: usize,
    nodes_ready: usize,
    cards: usize,
    cards_held: usize,
}

impl Counts {
    fn of(workloads: &[Arc<WorkloadView>]) -> Self {
        let mut counts = Self { workloads: workloads.len(), ..Self::default() };
        for workload in workloads {
            let group = match Pill::of_workload(workload).tone {
                "ok" => &mut counts.running,
                "warn" | "bad" => &mut counts.attention,
                "busy" => &mut counts.changing,
                _ => &mut counts.down,
            };
            *group += 1;
            counts.instances_running += workload.running();
            // What was given up with its node is nobody's any more.
            let given_up = |instance: &&InstanceView| instance.row.lost && instance.row.desired == Desired::Removed;
            counts.instances += workload.instances.iter().filter(|instance| !given_up(instance)).count();
        }
        counts
    }
}

/// One that was let in and has not told yet what it is.
struct Joining {
    name: String,
    state: Pill,
    since: Moment,
}

/// Something that somebody should look at.
struct Trouble {
    state: Pill,
    link: String,
    name: String,
    why: String,
}

impl Trouble {
    fn of_workload(workload: &WorkloadView) -> Option<Self> {
        let state = Pill::of_workload(workload);
        let name = workload.row.spec.name.to_string();
        let why = why(workload).unwrap_or_default();
        matches!(state.tone, "warn" | "bad").then(|| Self { state, link: format!("/workloads/{name}"), name, why })
    }

    fn of_node(node: &NodeRow) -> Option<Self> {
        let state = Pill::of_lost(node)?;
        let why = match node.health {
            NodeHealth::Ready | NodeHealth::Away => "it says that it will be back in a moment",
            NodeHealth::Unreachable => "the others do not hear of it; what runs there is waited for",
            NodeHealth::Down | NodeHealth::Fenced => "it is down; what can run elsewhere is started there",
        };
        Some(Self { state, link: format!("/nodes/{}", node.name), name: node.name.to_string(), why: why.to_owned() })
    }

    fn of_card(view: &GpuView) -> Option<Self> {
        let why = view.gpu.sick.clone()?;
        let state = Pill { tone: "bad", word: "sick" };
        let (node, place) = (&view.node, view.place);
        Some(Self { state, link: format!("/gpus/{node}/{place}"), name: format!("GPU {place} of {node}"), why })
    }
}

/// A machine with its cards.
struct NodeLine {
    name: String,
    state: Pill,
    has: String,
    running: usize,
    cards: Vec<CardLine>,
}

async fn read(ops: &Ops) -> Result<Overview, PageError> {
    let now_ms = now_ms();
    let trouble = ops.runtime_trouble();
    let joining = ops.joining().await?;
    let seen = ops.seen().await?;
    let (nodes, workloads) = (&seen.nodes, &seen.workloads);
    let events = ops.events(None, None, EVENTS).await?;
    let joining = joining.into_iter().filter(|row| !nodes.iter().any(|node| node.id == row.node_id));
    let joining: Vec<Joining> = joining
        .map(|row| Joining {
            name: row.name.to_string(),
            state: Pill { tone: "busy", word: "joining" },
            since: Moment::ago(row.at_ms, now_ms),
        })
        .collect();
    let cards = if nodes.iter().any(|node| !node.inventory.gpus.is_empty()) { ops.gpus().await? } else { Vec::new() };

    let mut counts = Counts::of(workloads);
    counts.nodes = nodes.len();
    counts.nodes_ready = nodes.iter().filter(|node| node.health == NodeHealth::Ready).count();
    counts.cards = cards.len();
    counts.cards_held = cards.iter().filter(|card| !card.holders.is_empty()).count();

    let mut troubles: Vec<Trouble> = nodes.iter().filter_map(|node| Trouble::of_node(node)).collect();
    troubles.extend(cards.iter().filter_map(Trouble::of_card));
    troubles.extend(workloads.iter().filter_map(|workload| Trouble::of_workload(workload)));
    let more_troubles = troubles.len().saturating_sub(MOST_TROUBLES);
    troubles.truncate(MOST_TROUBLES);

    let mut running: HashMap<NodeId, usize> = HashMap::new();
    for instance in seen.instances().filter(|instance| instance.row.desired == Desired::Running) {
        *running.entry(instance.row.node_id).or_default() += 1;
    }
    let line = |node: &Arc<NodeRow>| {
        // Only of its own runtime a node knows.
        let trouble = trouble.is_some() && ops.node_id() == Some(node.id);
        NodeLine {
            state: Pill::of_node(node, trouble),
            has: format!("{} CPUs, {}", node.inventory.cpus, format_bytes(node.inventory.memory_bytes)),
            running: running.get(&node.id).copied().unwrap_or(0),
            cards: cards.iter().filter(|card| card.node == node.name).map(CardLine::of).collect(),
            name: node.name.to_string(),
        }
    };
    let nodes = nodes.iter().map(line).collect();
    let events = events.into_iter().map(|event| EventLine::of(event, now_ms)).collect();
    Ok(Overview { counts, troubles, more_troubles, nodes, joining, events, trouble })
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    show(&Page { frame: Frame::at("overview"), overview: read(&dashboard.ops).await? })
}

pub(super) async fn live(State(dashboard): State<Dashboard>) -> Response {
    let ops = dashboard.ops.clone();
    live::measured(&dashboard, "overview", move || {
        let ops = ops.clone();
        async move { render(&Fragment { overview: read(&ops).await? }) }
    })
}
