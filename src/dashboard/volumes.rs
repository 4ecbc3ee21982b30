//! Volumes: where their data lies, who uses them, and a form that makes them.

use std::collections::BTreeMap;

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use toft_model::{invalid::Invalid, name::Name, units::format_bytes, volume::VolumeOptions};

use super::{Dashboard, Frame, error::PageError, forms::Mistakes, live, present::Moment, render, show};
use crate::control::{
    ControlError, ErrorKind,
    ops::{NewVolume, Ops, VolumeInfo, now_ms},
};

#[derive(Template)]
#[template(path = "volumes/index.html")]
struct Page {
    frame: Frame,
    volumes: Vec<Line>,
}

#[derive(Template)]
#[template(path = "volumes/_list.html")]
struct Fragment {
    volumes: Vec<Line>,
}

#[derive(Template)]
#[template(path = "volumes/move.html")]
struct MovePage {
    frame: Frame,
    name: String,
    node: String,
    size: Option<String>,
    users: Vec<String>,
    /// Where it could go, with what is typed or chosen.
    nodes: Vec<String>,
    wrong: Mistakes,
}

#[derive(Template)]
#[template(path = "volumes/form.html")]
struct FormPage {
    frame: Frame,
    form: VolumeForm,
    wrong: Mistakes,
}

#[derive(Template)]
#[template(path = "volumes/remove.html")]
struct RemovalPage {
    frame: Frame,
    name: String,
    node: Option<String>,
    size: Option<String>,
    remote: bool,
    users: Vec<String>,
}

struct Line {
    name: String,
    kind: &'static str,
    device: Option<String>,
    node: Option<String>,
    moving: Option<Moving>,
    /// Whether it can be moved: it lies on a node, and others are there.
    movable: bool,
    size: Option<String>,
    created: Moment,
    users: Vec<String>,
}

/// A move under way, or given up.
struct Moving {
    summary: String,
    percent: Option<u8>,
    failed: bool,
    held: bool,
}

impl Line {
    fn of(volume: VolumeInfo, now_ms: i64) -> Self {
        let row = volume.view.row;
        let moving = volume.moving.map(|moving| Moving {
            summary: moving.summary(),
            percent: moving.percent(),
            failed: moving.failed.is_some(),
            held: moving.held,
        });
        Self {
            name: row.name.to_string(),
            kind: row.options.kind.map_or("local", |kind| kind.as_str()),
            movable: volume.view.node.is_some() && !row.options.is_remote() && moving.is_none(),
            device: row.options.device,
            node: volume.view.node.map(String::from),
            moving,
            size: volume.size_bytes.map(format_bytes),
            created: Moment::age(row.created_at_ms, now_ms),
            users: volume.view.users.into_iter().map(String::from).collect(),
        }
    }
}

/// The form as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct VolumeForm {
    name: String,
    node: String,
    options: String,
}

impl VolumeForm {
    fn read(&self) -> Result<NewVolume, Invalid> {
        let name = self.name.trim().parse().map_err(|e: Invalid| e.at("name"))?;
        let node = match self.node.trim() {
            "" => None,
            node => Some(node.parse().map_err(|e: Invalid| e.at("node"))?),
        };
        let mut pairs = BTreeMap::new();
        for line in self.options.lines().map(str::trim).filter(|line| !line.is_empty()) {
            // What stands in the line may be a password at the wrong place, so it is not repeated.
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| Invalid::value("a line has no `=`", "write one `KEY=VALUE` a line").at("options"))?;
            pairs.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        let options = VolumeOptions::from_pairs(&pairs).map_err(|e| e.at("options"))?;
        Ok(NewVolume { name, node, options, labels: BTreeMap::new() })
    }
}

fn frame() -> Frame {
    Frame::at("volumes")
}

async fn read(ops: &Ops) -> Result<Vec<Line>, PageError> {
    let now_ms = now_ms();
    let alone = ops.nodes().await?.len() < 2;
    let line = |volume| {
        let line = Line::of(volume, now_ms);
        Line { movable: line.movable && !alone, ..line }
    };
    Ok(ops.volumes().await?.into_iter().map(line).collect())
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    show(&Page { frame: frame(), volumes: read(&dashboard.ops).await? })
}

pub(super) async fn live(State(dashboard): State<Dashboard>) -> Response {
    let ops = dashboard.ops.clone();
    live::fragments(&dashboard, "volumes", move || {
        let ops = ops.clone();
        async move { render(&Fragment { volumes: read(&ops).await? }) }
    })
}

async fn move_page(ops: &Ops, name: &Name, wrong: Mistakes) -> Result<Response, PageError> {
    let volume = ops.volume(name).await?;
    let members = ops.cluster().members;
    let witness = |node: &Name| members.iter().any(|member| member.name == *node && member.role == "witness");
    let nodes = ops.nodes().await?.into_iter().map(|node| node.name);
    let nodes = nodes.filter(|node| volume.view.node.as_ref() != Some(node) && !witness(node)).map(String::from);
    let nodes = nodes.collect();
    let refused = !wrong.is_empty();
    let Line { name, node, size, users, .. } = Line::of(volume, now_ms());
    let node = node.unwrap_or_default();
    let mut page = show(&MovePage { frame: frame(), name, node, size, users, nodes, wrong })?;
    if refused {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(super) async fn ask_move(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    move_page(&dashboard.ops, &named(&name)?, Mistakes::default()).await
}

/// Where to.
#[derive(Deserialize)]
pub(super) struct MoveForm {
    #[serde(default)]
    to: String,
}

/// Orders it; the list tells how far it is, and whoever closes the page finds it there again.
pub(super) async fn order_move(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Form(form): Form<MoveForm>,
) -> Result<Response, PageError> {
    let name = named(&name)?;
    let ordered = match form.to.trim().parse::<Name>() {
        Ok(to) => dashboard.ops.move_volume(&name, to).await.map(drop),
        Err(invalid) => Err(invalid.at("node").into()),
    };
    match ordered {
        Ok(()) => Ok(Redirect::to("/volumes").into_response()),
        Err(error) if error.kind == ErrorKind::NotFound => Err(error.into()),
        Err(error) => {
            let field = if error.field.as_deref() == Some("to") { Some("node".to_owned()) } else { error.field };
            move_page(&dashboard.ops, &name, Mistakes::refused(ControlError { field, ..error })).await
        }
    }
}

pub(super) async fn cancel_move(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    dashboard.ops.cancel_volume_move(&named(&name)?).await?;
    Ok(Redirect::to("/volumes"))
}

fn form_page(form: VolumeForm, wrong: Mistakes) -> Result<Response, PageError> {
    let mended = wrong.is_empty();
    let mut page = show(&FormPage { frame: frame(), form, wrong })?;
    if !mended {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(super) async fn creation() -> Result<Response, PageError> {
    form_page(VolumeForm::default(), Mistakes::default())
}

pub(super) async fn create(
    State(dashboard): State<Dashboard>,
    Form(form): Form<VolumeForm>,
) -> Result<Response, PageError> {
    let created = match form.read() {
        Ok(volume) => dashboard.ops.create_volume(volume).await,
        Err(invalid) => Err(invalid.into()),
    };
    match created {
        Ok(_) => Ok(Redirect::to("/volumes").into_response()),
        Err(error) => form_page(form, Mistakes::refused(error)),
    }
}

fn named(text: &str) -> Result<Name, PageError> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        ControlError::new(ErrorKind::NotFound, format!("there is no volume `{shown}`"))
            .hint("it may have been removed; Volumes lists those there are")
            .into()
    })
}

pub(super) async fn confirm_removal(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let volume = dashboard.ops.volume(&named(&name)?).await?;
    let remote = volume.view.row.options.is_remote();
    let Line { name, node, size, users, .. } = Line::of(volume, now_ms());
    show(&RemovalPage { frame: frame(), name, node, size, remote, users })
}

pub(super) async fn remove(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    dashboard.ops.remove_volume(named(&name)?).await?;
    Ok(Redirect::to("/volumes"))
}
