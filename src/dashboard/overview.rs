//! The first page: the machines, the counts and the latest story.

use askama::Template;
use axum::{extract::State, response::Response};
use toft_model::{
    instance::Desired,
    state::{InstanceView, NodeRow, WorkloadView},
    units::format_bytes,
};

use super::{
    Dashboard, Frame,
    error::PageError,
    live,
    present::{EventLine, Moment, Pill},
    render, show,
};
use crate::control::ops::{Ops, now_ms};

const EVENTS: u32 = 12;

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
    nodes: Vec<NodeCard>,
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
}

impl Counts {
    fn of(workloads: &[WorkloadView]) -> Self {
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

struct NodeCard {
    name: String,
    state: Pill,
    facts: Vec<(&'static str, String)>,
    registered: Moment,
}

impl NodeCard {
    fn of(node: NodeRow, trouble: bool, now_ms: i64) -> Self {
        let state = Pill::of_node(&node, trouble);
        let inventory = node.inventory;
        let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
        Self {
            name: node.name.to_string(),
            state,
            facts: vec![
                ("System", inventory.os),
                ("Kernel", format!("{} ({})", inventory.kernel, inventory.arch)),
                ("CPUs", inventory.cpus.to_string()),
                ("Memory", format_bytes(inventory.memory_bytes)),
                ("Runtime", or(inventory.runtime, "none found")),
                ("Container network", inventory.subnet.map_or("none".into(), |subnet| subnet.to_string())),
                ("toft", inventory.version),
            ],
            registered: Moment::ago(node.registered_at_ms, now_ms),
        }
    }
}

async fn read(ops: &Ops) -> Result<Overview, PageError> {
    let now_ms = now_ms();
    let trouble = ops.runtime_trouble();
    let joining = ops.joining().await?;
    let nodes = ops.nodes().await?;
    let workloads = ops.workloads().await?;
    let events = ops.events(None, None, EVENTS).await?;
    Ok(Overview {
        counts: Counts::of(&workloads),
        joining: joining
            .into_iter()
            .filter(|row| !nodes.iter().any(|node| node.id == row.node_id))
            .map(|row| Joining {
                name: row.name.to_string(),
                state: Pill { tone: "busy", word: "joining" },
                since: Moment::ago(row.at_ms, now_ms),
            })
            .collect(),
        nodes: nodes
            .into_iter()
            .map(|node| {
                // Only of its own runtime a node knows.
                let trouble = trouble.is_some() && ops.node_id() == Some(node.id);
                NodeCard::of(node, trouble, now_ms)
            })
            .collect(),
        events: events.into_iter().map(|event| EventLine::of(event, now_ms)).collect(),
        trouble,
    })
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    show(&Page { frame: Frame::at("overview"), overview: read(&dashboard.ops).await? })
}

pub(super) async fn live(State(dashboard): State<Dashboard>) -> Response {
    let ops = dashboard.ops.clone();
    live::fragments(&dashboard, move || {
        let ops = ops.clone();
        async move { render(&Fragment { overview: read(&ops).await? }) }
    })
}
