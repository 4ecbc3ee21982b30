//! GPUs: all cards of the cluster, and one: what it does, who holds it, how it was, whether it takes work.

use std::collections::BTreeMap;

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    response::{Redirect, Response},
};
use toft_model::{name::Name, units::format_bytes};

use super::{
    Dashboard, Frame,
    charts::{self, Asked, Charts, Whose},
    error::PageError,
    live,
    present::Pill,
    render,
    request::named,
    show,
};
use crate::control::{
    ControlError, ErrorKind,
    ops::{Ops, gpus::GpuView},
};

#[derive(Template)]
#[template(path = "gpus/index.html")]
struct Page {
    frame: Frame,
    list: List,
}

#[derive(Template)]
#[template(path = "gpus/_list.html")]
struct Fragment {
    list: List,
}

struct List {
    nodes: Vec<NodeCards>,
    cards: usize,
    free: usize,
    memory: String,
    watts: Option<String>,
}

struct NodeCards {
    name: String,
    cards: Vec<CardLine>,
}

#[derive(Template)]
#[template(path = "gpus/one.html")]
struct OnePage {
    frame: Frame,
    one: CardLine,
    charts: Charts,
}

#[derive(Template)]
#[template(path = "gpus/_card.html")]
struct OneFragment {
    card: CardLine,
    /// Whether the card stands alone on its page.
    alone: bool,
}

/// A card as pages show it.
pub(super) struct CardLine {
    pub(super) node: String,
    pub(super) place: usize,
    pub(super) model: String,
    pub(super) state: Pill,
    /// Why it takes no work, by its own telling.
    pub(super) sick: Option<String>,
    pub(super) cordoned: bool,
    /// 0 to 100; absent when it does not tell.
    pub(super) busy: Option<u32>,
    /// Class of a cell of the heat map.
    pub(super) heat: &'static str,
    /// Parts of its memory in percent: used by instances, reserved by them and not used, used outside toft.
    pub(super) used_percent: u32,
    pub(super) held_percent: u32,
    pub(super) outside_percent: u32,
    pub(super) memory: String,
    pub(super) used: String,
    pub(super) reserved: String,
    pub(super) outside: String,
    pub(super) celsius: Option<String>,
    pub(super) hot: bool,
    pub(super) watts: Option<String>,
    pub(super) holders: Vec<Holder>,
    pub(super) processes: Vec<(String, String, String)>,
    pub(super) facts: Vec<(&'static str, String)>,
}

/// Who holds a card.
pub(super) struct Holder {
    pub(super) instance: String,
    pub(super) workload: String,
    pub(super) share: Option<String>,
}

impl CardLine {
    pub(super) fn of(view: &GpuView) -> Self {
        let mib = |mib: u32| format_bytes(u64::from(mib) << 20);
        let gpu = &view.gpu;
        let all = gpu.memory_mib.max(1);
        let percent = |mib: u32| (u64::from(mib) * 100 / u64::from(all)).min(100) as u32;
        let now = view.facts.as_ref().map_or(gpu, |facts| &facts.gpu);
        let measured = view.facts.as_ref().map(|facts| &facts.measured);
        let outside = now.outside_mib.min(all);
        let used_all = measured.and_then(|measured| measured.memory_used_mib).unwrap_or(0);
        let reserved = view.reserved_mib();
        let inside = view.facts.iter().flat_map(|facts| &facts.processes).filter(|one| one.instance_id.is_some());
        let inside: Option<u32> = inside.map(|one| one.memory_mib).reduce(|a, b| Some(a?.saturating_add(b?))).flatten();
        let used = inside.unwrap_or_else(|| used_all.saturating_sub(outside)).min(all);
        let busy = measured.and_then(|measured| measured.busy_percent).map(|busy| busy.min(100));
        let celsius = measured.and_then(|measured| measured.temperature_celsius);
        let slowdown = measured.and_then(|measured| measured.slowdown_celsius);
        let sick = now.sick.clone();
        let state = match (&sick, view.settings.cordoned, view.holders.is_empty()) {
            (Some(_), ..) => Pill { tone: "bad", word: "sick" },
            (None, true, _) => Pill { tone: "warn", word: "cordoned" },
            (None, false, false) => Pill { tone: "busy", word: "in use" },
            (None, false, true) => Pill { tone: "ok", word: "free" },
        };
        let held = |holder: &crate::control::ops::gpus::GpuHolder| Holder {
            workload: holder.instance.rsplit_once('-').map_or("", |(workload, _)| workload).to_owned(),
            instance: holder.instance.clone(),
            share: holder.vram_mib.map(mib),
        };
        let processes = view.facts.iter().flat_map(|facts| &facts.processes).map(|process| {
            let owner = view.holders.iter().find(|holder| Some(holder.instance_id) == process.instance_id);
            let whose = owner.map_or("outside toft".to_owned(), |holder| holder.instance.clone());
            let name = if process.name.is_empty() { format!("process {}", process.pid) } else { process.name.clone() };
            (name, whose, process.memory_mib.map_or("-".to_owned(), mib))
        });
        Self {
            node: view.node.to_string(),
            place: view.place,
            model: gpu.model.clone(),
            state,
            cordoned: view.settings.cordoned,
            heat: heat(busy, sick.is_some(), !view.holders.is_empty()),
            sick,
            busy,
            used_percent: percent(used),
            held_percent: percent(reserved.saturating_sub(used)),
            outside_percent: percent(outside),
            memory: mib(gpu.memory_mib),
            used: mib(used),
            reserved: mib(reserved),
            outside: mib(outside),
            celsius: celsius.map(|celsius| format!("{celsius} °C")),
            hot: celsius.zip(slowdown).is_some_and(|(now, limit)| now + 5 >= limit),
            watts: measured.and_then(|measured| {
                let limit = measured.power_limit_watts.map(|limit| format!(" of {limit:.0}")).unwrap_or_default();
                Some(format!("{:.0}{limit} W", measured.power_watts?))
            }),
            holders: view.holders.iter().map(held).collect(),
            processes: processes.collect(),
            facts: facts(view),
        }
    }
}

fn facts(view: &GpuView) -> Vec<(&'static str, String)> {
    let facts = view.facts.as_ref();
    let measured = facts.map(|facts| &facts.measured);
    let told = [
        ("Name", Some(view.gpu.id.as_str().to_owned())),
        ("Vendor", Some(view.gpu.vendor.to_string())),
        ("Driver", facts.and_then(|facts| facts.driver.clone())),
        ("CUDA up to", facts.and_then(|facts| facts.cuda.clone())),
        ("PCI address", facts.and_then(|facts| facts.pci.clone())),
        ("Part of", view.gpu.parent.as_ref().map(|parent| parent.as_str().to_owned())),
        ("Given away", Some(view.settings.policy.as_str().to_owned())),
        ("Fan", measured.and_then(|now| now.fan_percent).map(|fan| format!("{fan} %"))),
        ("Clock", measured.and_then(|now| now.clock_mhz).map(|clock| format!("{clock} MHz"))),
        ("Slows down at", measured.and_then(|now| now.slowdown_celsius).map(|limit| format!("{limit} °C"))),
        ("Memory errors mended", measured.and_then(|now| now.ecc_corrected).map(|count| count.to_string())),
        ("Memory errors left", measured.and_then(|now| now.ecc_uncorrected).map(|count| count.to_string())),
        ("Last fault", measured.and_then(|now| now.xid).map(|xid| format!("Xid {}", xid.code))),
    ];
    told.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn heat(busy: Option<u32>, sick: bool, held: bool) -> &'static str {
    match busy {
        _ if sick => "sick",
        Some(81..) => "h5",
        Some(61..) => "h4",
        Some(41..) => "h3",
        Some(16..) => "h2",
        Some(1..) => "h1",
        _ if held => "h1",
        _ => "",
    }
}

impl List {
    fn of(views: &[GpuView]) -> Self {
        let mut nodes: BTreeMap<&Name, Vec<CardLine>> = BTreeMap::new();
        for view in views {
            nodes.entry(&view.node).or_default().push(CardLine::of(view));
        }
        let bytes: u64 = views.iter().map(|view| u64::from(view.gpu.memory_mib) << 20).sum();
        let watts = views.iter().filter_map(|view| view.facts.as_ref()?.measured.power_watts).reduce(|a, b| a + b);
        let free = |view: &&GpuView| view.holders.is_empty() && view.gpu.sick.is_none() && !view.settings.cordoned;
        Self {
            cards: views.len(),
            free: views.iter().filter(free).count(),
            memory: format_bytes(bytes),
            watts: watts.map(|watts| format!("{watts:.0} W")),
            nodes: nodes.into_iter().map(|(name, cards)| NodeCards { name: name.to_string(), cards }).collect(),
        }
    }
}

fn frame() -> Frame {
    Frame::at("gpus")
}

/// What is said of a card that is not there.
pub(super) fn no_card(node: &Name, place: usize) -> PageError {
    ControlError::new(ErrorKind::NotFound, format!("the node `{node}` has no GPU {place}"))
        .hint("GPUs lists those there are")
        .into()
}

async fn find(ops: &Ops, node: &Name, place: usize) -> Result<GpuView, PageError> {
    let views = ops.gpus().await?;
    views.into_iter().find(|view| view.node == *node && view.place == place).ok_or_else(|| no_card(node, place))
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    show(&Page { frame: frame(), list: List::of(&dashboard.ops.gpus().await?) })
}

pub(super) async fn live(State(dashboard): State<Dashboard>) -> Response {
    let ops = dashboard.ops.clone();
    live::measured(&dashboard, "gpus", move || {
        let ops = ops.clone();
        async move { render(&Fragment { list: List::of(&ops.gpus().await?) }) }
    })
}

pub(super) async fn one(
    State(dashboard): State<Dashboard>,
    Path((node, place)): Path<(String, usize)>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let (node, ops) = (dashboard.ops.node(&named(&node)?).await?, &dashboard.ops);
    let from = format!("/charts/gpus/{}/{place}", node.name);
    let charts = charts::charts(ops, Whose::Gpu(&node, place), &from, asked.span);
    let (view, charts) = tokio::join!(find(ops, &node.name, place), charts);
    show(&OnePage { frame: frame(), one: CardLine::of(&view?), charts })
}

pub(super) async fn live_one(
    State(dashboard): State<Dashboard>,
    Path((node, place)): Path<(String, usize)>,
) -> Result<Response, PageError> {
    let (node, ops) = (named(&node)?, dashboard.ops.clone());
    Ok(live::measured(&dashboard, format!("gpus/{node}/{place}"), move || {
        let (ops, node) = (ops.clone(), node.clone());
        async move {
            let view = find(&ops, &node, place).await?;
            render(&OneFragment { card: CardLine::of(&view), alone: true })
        }
    }))
}

async fn set(dashboard: &Dashboard, node: &str, place: usize, cordoned: bool) -> Result<Redirect, PageError> {
    let node = named(node)?;
    let view = find(&dashboard.ops, &node, place).await?;
    dashboard.ops.configure_gpu(&node, view.gpu.id, None, Some(cordoned)).await?;
    Ok(Redirect::to(&format!("/gpus/{node}/{place}")))
}

pub(super) async fn cordon(
    State(dashboard): State<Dashboard>,
    Path((node, place)): Path<(String, usize)>,
) -> Result<Redirect, PageError> {
    set(&dashboard, &node, place, true).await
}

pub(super) async fn uncordon(
    State(dashboard): State<Dashboard>,
    Path((node, place)): Path<(String, usize)>,
) -> Result<Redirect, PageError> {
    set(&dashboard, &node, place, false).await
}
