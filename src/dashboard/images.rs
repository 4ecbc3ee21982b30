//! The images on the node, and those on their way to it.

use askama::Template;
use axum::{
    Form,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use toft_model::{
    image::{ImageRef, NodeImage},
    units::format_bytes,
};

use super::{
    Dashboard, Frame,
    error::PageError,
    forms::Mistakes,
    live,
    present::Moment,
    pulls::{PullLine, familiar},
    render, show,
};
use crate::control::{
    ControlError,
    ops::{Ops, now_ms},
};

#[derive(Template)]
#[template(path = "images/index.html")]
struct Page {
    frame: Frame,
    /// What was typed into the field of the image to pull, and what is wrong with it.
    asked: String,
    wrong: Mistakes,
    list: List,
}

#[derive(Template)]
#[template(path = "images/_list.html")]
struct Fragment {
    list: List,
}

/// What changes by itself.
struct List {
    pulls: Vec<PullLine>,
    images: Vec<Line>,
    /// Why there is no list, if there is none.
    trouble: Option<String>,
}

#[derive(Template)]
#[template(path = "images/remove.html")]
struct RemovalPage {
    frame: Frame,
    image: String,
    shown: String,
}

struct Line {
    image: String,
    shown: String,
    digest: String,
    size: String,
    platform: String,
    age: Moment,
    users: Vec<String>,
    removal: String,
}

impl Line {
    fn of(image: NodeImage, users: Vec<String>, now_ms: i64) -> Self {
        let digest = image.digest.strip_prefix("sha256:").unwrap_or(&image.digest);
        Self {
            shown: familiar(&image.name),
            digest: digest.chars().take(12).collect(),
            size: format_bytes(image.size_bytes),
            platform: image.platform,
            age: Moment::age(image.created_at_ms, now_ms),
            removal: format!("/images/remove?name={}", encode(&image.name)),
            users,
            image: image.name,
        }
    }
}

/// A text as part of an address.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

async fn read(ops: &Ops) -> Result<List, PageError> {
    let now_ms = now_ms();
    let workloads = ops.workloads().await?;
    let users = |name: &str| {
        let using = workloads.iter().filter(|workload| workload.row.spec.image.as_str() == name);
        using.map(|workload| workload.row.spec.name.to_string()).collect()
    };
    let (images, trouble) = match ops.images(None).await {
        Ok(images) => (images, None),
        Err(error) => (Vec::new(), Some(error.message)),
    };
    let line = |image: NodeImage| {
        let users = users(&image.name);
        Line::of(image, users, now_ms)
    };
    let pulls = ops.image_pulls().into_iter().map(|pull| PullLine::of(pull, now_ms)).collect();
    Ok(List { pulls, images: images.into_iter().map(line).collect(), trouble })
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    let list = read(&dashboard.ops).await?;
    show(&Page { frame: Frame::at("images"), asked: String::new(), wrong: Mistakes::default(), list })
}

pub(super) async fn live(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    let ops = dashboard.ops.clone();
    Ok(live::fragments(&dashboard, move || {
        let ops = ops.clone();
        async move { render(&Fragment { list: read(&ops).await? }) }
    }))
}

/// What shall be pulled, as typed.
#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    image: String,
}

/// Begins to pull; the page tells how far it is.
pub(super) async fn pull(State(dashboard): State<Dashboard>, Form(asked): Form<Asked>) -> Result<Response, PageError> {
    let begun = match asked.image.trim().parse::<ImageRef>() {
        // Nobody listens: the pull goes on without.
        Ok(image) => dashboard.ops.pull_image(None, image).await.map(drop),
        Err(invalid) => Err(invalid.at("image").into()),
    };
    let Err(error) = begun else { return Ok(Redirect::to("/images").into_response()) };
    let list = read(&dashboard.ops).await?;
    let mut page =
        show(&Page { frame: Frame::at("images"), asked: asked.image, wrong: Mistakes::refused(error), list })?;
    *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    Ok(page)
}

/// Which image.
#[derive(Deserialize)]
pub(super) struct Meant {
    #[serde(default)]
    name: String,
}

impl Meant {
    fn image(&self) -> Result<ImageRef, PageError> {
        self.name.parse::<ImageRef>().map_err(|invalid| ControlError::from(invalid).into())
    }
}

pub(super) async fn confirm_removal(Query(meant): Query<Meant>) -> Result<Response, PageError> {
    let image = meant.image()?;
    let shown = image.familiar().to_owned();
    show(&RemovalPage { frame: Frame::at("images"), image: meant.name, shown })
}

pub(super) async fn remove(
    State(dashboard): State<Dashboard>,
    Form(meant): Form<Meant>,
) -> Result<Redirect, PageError> {
    dashboard.ops.remove_image(None, meant.image()?).await?;
    Ok(Redirect::to("/images"))
}
