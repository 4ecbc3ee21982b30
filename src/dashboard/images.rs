//! The images on the node.

use askama::Template;
use axum::{
    Form,
    extract::{Query, State},
    response::{Redirect, Response},
};
use serde::Deserialize;
use toft_model::{
    image::{ImageRef, NodeImage},
    units::format_bytes,
};

use super::{Dashboard, Frame, error::PageError, present::Moment, show};
use crate::control::{ControlError, ops::now_ms};

#[derive(Template)]
#[template(path = "images/index.html")]
struct Page {
    frame: Frame,
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

fn familiar(name: &str) -> String {
    name.parse::<ImageRef>().map_or_else(|_| name.to_owned(), |image| image.familiar().to_owned())
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

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    let now_ms = now_ms();
    let workloads = dashboard.ops.workloads().await?;
    let users = |name: &str| {
        let using = workloads.iter().filter(|workload| workload.row.spec.image.as_str() == name);
        using.map(|workload| workload.row.spec.name.to_string()).collect()
    };
    let (images, trouble) = match dashboard.ops.images().await {
        Ok(images) => (images, None),
        Err(error) => (Vec::new(), Some(error.message)),
    };
    let line = |image: NodeImage| {
        let users = users(&image.name);
        Line::of(image, users, now_ms)
    };
    show(&Page { frame: Frame::at("images"), images: images.into_iter().map(line).collect(), trouble })
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
    dashboard.ops.remove_image(meant.image()?).await?;
    Ok(Redirect::to("/images"))
}
