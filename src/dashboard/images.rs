//! The images on a node, and those on their way to it.

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
    name::Name,
    state::NodeRow,
    units::format_bytes,
};

use super::{
    Dashboard, Frame,
    error::PageError,
    forms::Mistakes,
    live,
    present::Moment,
    pulls::{PullLine, familiar},
    render,
    request::{encode, named},
    show,
};
use crate::control::{
    ControlError, ErrorKind,
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
    /// Of each node: its name, and whether it is the one that is shown.
    nodes: Vec<(String, bool)>,
    /// The node that is shown, as part of an address.
    on: String,
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
    /// The node whose images they are; empty: the one that is asked.
    node: String,
}

#[derive(Template)]
#[template(path = "images/remove.html")]
struct RemovalPage {
    frame: Frame,
    image: String,
    shown: String,
    node: String,
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
    fn of(image: NodeImage, users: Vec<String>, on: &On, now_ms: i64) -> Self {
        let digest = image.digest.strip_prefix("sha256:").unwrap_or(&image.digest);
        Self {
            shown: familiar(&image.name),
            digest: digest.chars().take(12).collect(),
            size: format_bytes(image.size_bytes),
            platform: image.platform,
            age: Moment::age(image.created_at_ms, now_ms),
            removal: format!("/images/remove?name={}{}", encode(&image.name), on.and()),
            users,
            image: image.name,
        }
    }
}

/// Which node's images.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct On {
    node: String,
}

impl On {
    /// The node's name; `None`: the one that is asked.
    fn name(&self) -> Result<Option<Name>, PageError> {
        Ok(match self.node.as_str() {
            "" => None,
            text => Some(named(text)?),
        })
    }

    /// Behind the rest of an address.
    fn and(&self) -> String {
        if self.node.is_empty() { String::new() } else { format!("&node={}", encode(&self.node)) }
    }

    /// The page of its images.
    fn page(&self) -> String {
        if self.node.is_empty() { "/images".to_owned() } else { format!("/images?node={}", encode(&self.node)) }
    }
}

async fn read(ops: &Ops, on: &On) -> Result<List, PageError> {
    let (now_ms, node) = (now_ms(), on.name()?);
    let seen = ops.seen().await?;
    let users = |name: &str| {
        let using = seen.workloads.iter().filter(|workload| workload.row.spec.image.as_str() == name);
        using.map(|workload| workload.row.spec.name.to_string()).collect()
    };
    let (images, pulls) = tokio::join!(ops.images(node.as_ref()), ops.image_pulls_on(node.as_ref()));
    let (images, trouble) = match images {
        Ok(images) => (images, None),
        Err(error) if error.kind == ErrorKind::NotFound => return Err(error.into()),
        Err(error) => (Vec::new(), Some(error.message)),
    };
    let line = |image: NodeImage| {
        let users = users(&image.name);
        Line::of(image, users, on, now_ms)
    };
    let pull = |pull| PullLine { node: on.node.clone(), ..PullLine::of(pull, now_ms) };
    let pulls = pulls.unwrap_or_default().into_iter().map(pull).collect();
    Ok(List { pulls, images: images.into_iter().map(line).collect(), trouble, node: on.node.clone() })
}

async fn page_with(dashboard: &Dashboard, on: On, asked: String, wrong: Mistakes) -> Result<Response, PageError> {
    let list = read(&dashboard.ops, &on).await?;
    let own = dashboard.ops.node_id();
    let nodes = dashboard.ops.nodes().await?;
    let shown = |node: &NodeRow| match on.node.as_str() {
        "" => own == Some(node.id),
        name => node.name.as_str() == name,
    };
    let nodes = nodes.iter().map(|node| (node.name.to_string(), shown(node))).collect();
    let refused = !wrong.is_empty();
    let mut page = show(&Page { frame: Frame::at("images"), asked, wrong, list, nodes, on: on.and() })?;
    if refused {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(super) async fn page(State(dashboard): State<Dashboard>, Query(on): Query<On>) -> Result<Response, PageError> {
    page_with(&dashboard, on, String::new(), Mistakes::default()).await
}

pub(super) async fn live(State(dashboard): State<Dashboard>, Query(on): Query<On>) -> Result<Response, PageError> {
    on.name()?;
    let ops = dashboard.ops.clone();
    Ok(live::fragments(&dashboard, format!("images/{}", on.node), move || {
        let (ops, on) = (ops.clone(), on.clone());
        async move { render(&Fragment { list: read(&ops, &on).await? }) }
    }))
}

/// What shall be pulled, as typed, and where to.
#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    image: String,
    #[serde(default)]
    node: String,
}

/// Begins to pull; the page tells how far it is.
pub(super) async fn pull(State(dashboard): State<Dashboard>, Form(asked): Form<Asked>) -> Result<Response, PageError> {
    let on = On { node: asked.node };
    let node = on.name()?;
    let begun = match asked.image.trim().parse::<ImageRef>() {
        // Nobody listens: the pull goes on without.
        Ok(image) => dashboard.ops.pull_image(node.as_ref(), image).await.map(drop),
        Err(invalid) => Err(invalid.at("image").into()),
    };
    match begun {
        Ok(()) => Ok(Redirect::to(&on.page()).into_response()),
        Err(error) => page_with(&dashboard, on, asked.image, Mistakes::refused(error)).await,
    }
}

/// Which image of which node.
#[derive(Deserialize)]
pub(super) struct Meant {
    #[serde(default)]
    name: String,
    #[serde(default)]
    node: String,
}

impl Meant {
    fn image(&self) -> Result<ImageRef, PageError> {
        self.name.parse::<ImageRef>().map_err(|invalid| ControlError::from(invalid).into())
    }
}

pub(super) async fn confirm_removal(Query(meant): Query<Meant>) -> Result<Response, PageError> {
    let image = meant.image()?;
    let shown = image.familiar().to_owned();
    show(&RemovalPage { frame: Frame::at("images"), image: meant.name, shown, node: meant.node })
}

pub(super) async fn remove(
    State(dashboard): State<Dashboard>,
    Form(meant): Form<Meant>,
) -> Result<Redirect, PageError> {
    let image = meant.image()?;
    let on = On { node: meant.node };
    dashboard.ops.remove_image(on.name()?.as_ref(), image).await?;
    Ok(Redirect::to(&on.page()))
}
