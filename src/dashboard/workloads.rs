//! The list of workloads, and what can be done to one.

use std::sync::Arc;

use askama::Template;
use axum::{
    Form,
    extract::{Path, Query, State},
    response::{Redirect, Response},
};
use serde::Deserialize;
use toft_model::{
    identity::deployment_of,
    instance::{Desired, InstanceState},
    state::{PowerAction, WorkloadView},
};

use super::{
    Dashboard, Frame,
    error::PageError,
    live,
    present::{self, Moment, Pill, PortLine},
    render,
    request::{ReachedAs, encode, named},
    show, sight,
};
use crate::control::ops::{Ops, now_ms};

#[derive(Template)]
#[template(path = "workloads/index.html")]
struct Page {
    frame: Frame,
    table: Table,
    asked: Wanted,
    states: Vec<(&'static str, &'static str, bool)>,
    follow: String,
}

#[derive(Template)]
#[template(path = "workloads/_table.html")]
struct Fragment {
    table: Table,
}

struct Table {
    trouble: Option<String>,
    lines: Vec<Line>,
    /// All that fit, on this page or another.
    fitting: usize,
    /// Workloads there are.
    all: usize,
    /// Addresses of the pages before and after.
    before: Option<String>,
    after: Option<String>,
}

/// Lines on a page.
const LINES: usize = 100;
/// States one can ask for: the word in addresses, the one on the page, and the tones that they mean.
const STATES: [(&str, &str, &[&str]); 5] = [
    ("", "in any state", &["ok", "busy", "warn", "bad", "idle"]),
    ("running", "that run", &["ok"]),
    ("attention", "that need attention", &["warn", "bad"]),
    ("changing", "that change", &["busy"]),
    ("down", "that are down", &["idle"]),
];

/// Which workloads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    /// A part of the name or the image.
    q: String,
    state: String,
    page: usize,
}

impl Wanted {
    fn mended(mut self) -> Self {
        self.q = self.q.trim().chars().take(100).collect();
        if !STATES.iter().any(|(state, ..)| *state == self.state) {
            self.state.clear();
        }
        self
    }

    fn fits(&self, workload: &WorkloadView) -> bool {
        let tones = STATES.iter().find(|(state, ..)| *state == self.state).map_or(&STATES[0].2, |(.., tones)| tones);
        let text = self.q.to_lowercase();
        let spec = &workload.row.spec;
        (self.state.is_empty() || tones.contains(&Pill::of_workload(workload).tone))
            && (text.is_empty() || spec.name.as_str().contains(&text) || spec.image.familiar().contains(&text))
    }

    fn address(&self, page: usize) -> String {
        format!("?q={}&state={}&page={page}", encode(&self.q), self.state)
    }
}

struct Line {
    name: String,
    state: Pill,
    why: Option<String>,
    running: usize,
    wanted: u32,
    image: String,
    ports: Vec<PortLine>,
    more_ports: usize,
    nodes: String,
    age: Moment,
    restarts: u32,
    actions: Actions,
}

impl Line {
    fn of(workload: &WorkloadView, reached: &ReachedAs, now_ms: i64) -> Self {
        let (ports, more_ports) = present::ports(&workload.instances, reached);
        let mut nodes: Vec<&str> = workload.instances.iter().map(|instance| instance.node.as_str()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Self {
            name: workload.row.spec.name.to_string(),
            state: Pill::of_workload(workload),
            why: why(workload),
            running: workload.running(),
            wanted: workload.row.spec.replicas,
            image: workload.row.spec.image.familiar().to_owned(),
            ports,
            more_ports,
            nodes: nodes.join(", "),
            age: Moment::age(workload.row.created_at_ms, now_ms),
            restarts: restarts(workload),
            actions: Actions::of(workload, "list"),
        }
    }
}

/// Which buttons a workload has.
pub(super) struct Actions {
    pub(super) name: String,
    /// The page to come back to: `list` or `one`.
    pub(super) from: &'static str,
    pub(super) start: bool,
    pub(super) stop: bool,
    pub(super) restart: bool,
    pub(super) remove: bool,
    pub(super) change: bool,
    pub(super) shell: bool,
}

impl Actions {
    pub(super) fn of(workload: &WorkloadView, from: &'static str) -> Self {
        let desired = workload.row.desired;
        let finished = workload.status() == "finished";
        let ended = finished || workload.status() == "back_off";
        let deployment = deployment_of(&workload.row.spec);
        let may = |method: &str, verb: &str| sight::may_on(method, format!("/workloads/{{name}}/{verb}"), deployment);
        Self {
            name: workload.row.spec.name.to_string(),
            from,
            start: may("POST", "start") && (desired == Desired::Stopped || (desired == Desired::Running && ended)),
            stop: may("POST", "stop") && desired == Desired::Running && !finished,
            restart: may("POST", "restart") && desired == Desired::Running && !ended && !workload.instances.is_empty(),
            remove: may("POST", "remove") && desired != Desired::Removed,
            change: may("POST", "edit"),
            shell: may("GET", "shell") && desired == Desired::Running && !finished,
        }
    }
}

/// Why a workload is not what the user wants, as far as one sentence can tell.
pub(super) fn why(workload: &WorkloadView) -> Option<String> {
    if workload.row.desired != Desired::Running {
        return None;
    }
    let of_instance = |state: InstanceState| match state {
        InstanceState::BackOff { reason, .. } => Some(reason),
        InstanceState::Finished { exit, reason } if exit.code != Some(0) => {
            Some(reason.unwrap_or_else(|| present::exit(exit)))
        }
        _ => None,
    };
    let waits = workload.row.pending.as_ref().map(|reason| format!("waits for a place: {reason}"));
    waits.or_else(|| workload.instances.iter().find_map(|instance| of_instance(instance.state())))
}

/// Restarts of all instances since the last start a person asked for.
fn restarts(workload: &WorkloadView) -> u32 {
    workload.instances.iter().filter_map(|instance| instance.row.report.as_ref()).map(|report| report.restarts).sum()
}

async fn read(ops: &Ops, reached: &ReachedAs, wanted: &Wanted) -> Result<Table, PageError> {
    let now_ms = now_ms();
    let seen = ops.seen().await?;
    let workloads = &seen.workloads;
    let fitting: Vec<&Arc<WorkloadView>> = workloads.iter().filter(|workload| wanted.fits(workload)).collect();
    let pages = fitting.len().div_ceil(LINES).max(1);
    let page = wanted.page.min(pages - 1);
    let shown = fitting.iter().skip(page * LINES).take(LINES);
    let address = |page: usize| format!("/workloads{}", wanted.address(page));
    Ok(Table {
        trouble: ops.runtime_trouble(),
        lines: shown.map(|workload| Line::of(workload, reached, now_ms)).collect(),
        fitting: fitting.len(),
        all: workloads.len(),
        before: (page > 0).then(|| address(page - 1)),
        after: (page + 1 < pages).then(|| address(page + 1)),
    })
}

pub(super) async fn page(
    State(dashboard): State<Dashboard>,
    Query(wanted): Query<Wanted>,
    reached: ReachedAs,
) -> Result<Response, PageError> {
    let asked = wanted.mended();
    let table = read(&dashboard.ops, &reached, &asked).await?;
    let follow = format!("/live/workloads{}", asked.address(asked.page));
    let states = STATES.map(|(state, words, _)| (state, words, state == asked.state)).to_vec();
    show(&Page { frame: Frame::at("workloads"), table, asked, states, follow })
}

pub(super) async fn live(
    State(dashboard): State<Dashboard>,
    Query(wanted): Query<Wanted>,
    reached: ReachedAs,
) -> Response {
    let (ops, wanted) = (dashboard.ops.clone(), wanted.mended());
    let host = reached.0.as_deref().unwrap_or_default();
    let key = format!("workloads{} {host}", wanted.address(wanted.page));
    live::fragments(&dashboard, key, move || {
        let (ops, reached, wanted) = (ops.clone(), reached.clone(), wanted.clone());
        async move { render(&Fragment { table: read(&ops, &reached, &wanted).await? }) }
    })
}

/// What an action's form carries.
#[derive(Deserialize)]
pub(super) struct Asked {
    /// The page to come back to.
    #[serde(default)]
    from: String,
}

pub(super) async fn start(dashboard: State<Dashboard>, name: Path<String>, asked: Form<Asked>) -> Done {
    power(dashboard, name, asked, PowerAction::Start).await
}

pub(super) async fn stop(dashboard: State<Dashboard>, name: Path<String>, asked: Form<Asked>) -> Done {
    power(dashboard, name, asked, PowerAction::Stop).await
}

pub(super) async fn restart(dashboard: State<Dashboard>, name: Path<String>, asked: Form<Asked>) -> Done {
    power(dashboard, name, asked, PowerAction::Restart).await
}

type Done = Result<Redirect, PageError>;

async fn power(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Form(asked): Form<Asked>,
    action: PowerAction,
) -> Done {
    let name = named(&name)?;
    let back = if asked.from == "list" { "/workloads".to_owned() } else { format!("/workloads/{name}") };
    dashboard.ops.power_workload(name, action).await?;
    Ok(Redirect::to(&back))
}
