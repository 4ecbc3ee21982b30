//! The machines of the cluster: how each is, what it has and how much of that is taken.

use std::collections::HashMap;

use askama::Template;
use axum::{extract::State, response::Response};
use toft_model::{
    ids::NodeId,
    instance::Desired,
    state::{InstanceView, NodeRow},
    units::format_bytes,
};

use super::{
    Dashboard, Frame,
    error::PageError,
    live,
    present::{Moment, Pill},
    render, show,
};
use crate::control::ops::{Ops, mesh::CLOCK_APART_MS, now_ms};

#[derive(Template)]
#[template(path = "nodes/index.html")]
struct Page {
    frame: Frame,
    list: List,
}

#[derive(Template)]
#[template(path = "nodes/_list.html")]
struct Fragment {
    list: List,
}

struct List {
    lines: Vec<Line>,
    /// Versions that differ from the one of the node that is asked.
    mixed: bool,
}

struct Line {
    name: String,
    state: Pill,
    cpus: u32,
    memory: String,
    cards: String,
    running: usize,
    labels: Vec<String>,
    version: String,
    other_version: bool,
    clock: Option<String>,
    since: Option<Moment>,
    role: &'static str,
}

impl Line {
    fn of(node: &NodeRow, seen: &Seen, now_ms: i64) -> Self {
        let trouble = seen.trouble && seen.own == Some(node.id);
        let apart = seen.clocks.get(&node.id).copied().filter(|ms| ms.abs() > CLOCK_APART_MS);
        let mut labels = node.given_labels();
        labels.retain(|key, _| !key.starts_with("toft/"));
        Self {
            state: Pill::of_node(node, trouble),
            cpus: node.inventory.cpus,
            memory: format_bytes(node.inventory.memory_bytes),
            cards: cards(node),
            running: seen.running.get(&node.id).copied().unwrap_or(0),
            labels: labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
            other_version: node.inventory.version != env!("CARGO_PKG_VERSION"),
            version: node.inventory.version.clone(),
            clock: apart.map(|ms| format!("{:+.1} s off", ms as f64 / 1_000.0)),
            since: node.health_since_ms.map(|at_ms| Moment::age(at_ms, now_ms)),
            role: seen.roles.get(&node.id).copied().unwrap_or("not a member"),
            name: node.name.to_string(),
        }
    }
}

/// `2 x NVIDIA GeForce RTX 4090`, or of several models.
fn cards(node: &NodeRow) -> String {
    let mut models: Vec<(&str, usize)> = Vec::new();
    for gpu in &node.inventory.gpus {
        match models.iter_mut().find(|(model, _)| *model == gpu.model) {
            Some((_, count)) => *count += 1,
            None => models.push((&gpu.model, 1)),
        }
    }
    models.iter().map(|(model, count)| format!("{count} x {model}")).collect::<Vec<_>>().join(", ")
}

/// What is known besides the rows.
struct Seen {
    own: Option<NodeId>,
    trouble: bool,
    clocks: std::collections::BTreeMap<NodeId, i64>,
    running: HashMap<NodeId, usize>,
    roles: HashMap<NodeId, &'static str>,
}

async fn read(ops: &Ops) -> Result<List, PageError> {
    let now_ms = now_ms();
    let all = ops.seen().await?;
    let mut running = HashMap::new();
    let there = |instance: &&InstanceView| instance.row.desired == Desired::Running;
    for instance in all.instances().filter(there) {
        *running.entry(instance.row.node_id).or_default() += 1;
    }
    let roles = ops.cluster().members.into_iter().map(|member| (member.node_id, role(member.votes, member.role)));
    let seen = Seen {
        own: ops.node_id(),
        trouble: ops.runtime_trouble().is_some(),
        clocks: ops.clocks().await.unwrap_or_default(),
        running,
        roles: roles.collect(),
    };
    let lines: Vec<Line> = all.nodes.iter().map(|node| Line::of(node, &seen, now_ms)).collect();
    Ok(List { mixed: lines.iter().any(|line| line.other_version), lines })
}

fn role(votes: bool, role: &'static str) -> &'static str {
    if votes { "votes" } else { role }
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    show(&Page { frame: Frame::at("nodes"), list: read(&dashboard.ops).await? })
}

pub(super) async fn live(State(dashboard): State<Dashboard>) -> Response {
    let ops = dashboard.ops.clone();
    live::fragments(&dashboard, "nodes", move || {
        let ops = ops.clone();
        async move { render(&Fragment { list: read(&ops).await? }) }
    })
}
