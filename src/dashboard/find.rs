//! Finds pages, workloads, nodes, volumes and secrets by a part of their name: as a page, and as the palette that `/`
//! opens.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::Response,
};
use serde::Deserialize;

use super::{Dashboard, Frame, error::PageError, show, sight};
use crate::control::ops::Ops;

/// Most that is found.
const MOST: usize = 30;
/// Longest text that is looked for, in characters.
const LONGEST: usize = 64;

/// Pages: address and name.
const PAGES: [(&str, &str); 13] = [
    ("/", "Overview"),
    ("/workloads", "Workloads"),
    ("/run", "Run a workload"),
    ("/events", "Events"),
    ("/nodes", "Nodes"),
    ("/gpus", "GPUs"),
    ("/mesh", "Mesh"),
    ("/images", "Images"),
    ("/volumes", "Volumes"),
    ("/volumes/new", "Create a volume"),
    ("/secrets", "Secrets"),
    ("/logs", "Kept logs"),
    ("/settings", "Settings"),
];

#[derive(Template)]
#[template(path = "find/index.html")]
struct Page {
    frame: Frame,
    text: String,
    found: Vec<Found>,
}

struct Found {
    link: String,
    name: String,
    kind: &'static str,
}

/// What is looked for.
#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    q: String,
}

async fn find(ops: &Ops, text: &str) -> Result<Vec<Found>, PageError> {
    let mut found: Vec<Found> = Vec::new();
    let may = |(link, _): &&(&str, &str)| match *link {
        "/run" => sight::may("POST", "/run"),
        link => sight::may("GET", link),
    };
    let pages = PAGES.iter().filter(may).map(|(link, name)| ((*link).to_owned(), (*name).to_owned(), "page"));
    let mut all: Vec<(String, String, &'static str)> = pages.collect();
    if !text.is_empty() {
        let seen = ops.seen().await?;
        let names = seen.workloads.iter().map(|workload| &workload.row.spec.name);
        all.extend(names.map(|name| (format!("/workloads/{name}"), name.to_string(), "workload")));
        all.extend(seen.nodes.iter().map(|node| (format!("/nodes/{}", node.name), node.name.to_string(), "node")));
        let volumes = ops.volume_names().await?;
        all.extend(volumes.iter().map(|name| ("/volumes".to_owned(), name.to_string(), "volume")));
    }
    let text = text.to_lowercase();
    // What begins with the text comes before what holds it.
    for begins in [true, false] {
        for (link, name, kind) in &all {
            let lower = name.to_lowercase();
            let fits = lower.starts_with(&text) == begins && lower.contains(&text);
            if fits && found.len() < MOST {
                found.push(Found { link: link.clone(), name: name.clone(), kind });
            }
        }
    }
    Ok(found)
}

pub(super) async fn page(
    State(dashboard): State<Dashboard>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let text: String = asked.q.trim().chars().take(LONGEST).collect();
    let found = find(&dashboard.ops, &text).await?;
    show(&Page { frame: Frame::at("find"), text, found })
}
