//! The style guide: every part that pages are made of, in every state. Only made-up clusters show it.

use askama::Template;
use axum::{Router, middleware, response::Response, routing::get};

use super::{Frame, error::PageError, guard, show};

/// Names of the colours.
const COLOURS: [&str; 18] = [
    "ground",
    "sheet",
    "sunk",
    "line",
    "line-strong",
    "ink",
    "ink-2",
    "ink-3",
    "accent",
    "accent-strong",
    "accent-ground",
    "ok",
    "busy",
    "warn",
    "bad",
    "idle",
    "heat-3",
    "heat-5",
];

#[derive(Template)]
#[template(path = "guide/index.html")]
struct Page {
    frame: Frame,
    colours: Vec<&'static str>,
    sizes: Vec<(&'static str, &'static str)>,
    pills: Vec<(&'static str, &'static str)>,
    heats: Vec<(&'static str, u32)>,
}

/// The page at `/styleguide`.
pub fn router() -> Router {
    Router::new().route("/styleguide", get(page)).layer(middleware::from_fn(guard::pages))
}

async fn page() -> Result<Response, PageError> {
    show(&Page {
        frame: Frame::at("guide"),
        colours: COLOURS.to_vec(),
        sizes: vec![("--t-1", "12"), ("--t-2", "13"), ("--t-3", "14 (the text)"), ("--t-4", "16"), ("--t-6", "24")],
        pills: vec![
            ("ok", "running"),
            ("busy", "starting"),
            ("warn", "waiting"),
            ("bad", "failed"),
            ("idle", "stopped"),
        ],
        heats: vec![("", 0), ("h1", 9), ("h2", 30), ("h3", 50), ("h4", 72), ("h5", 97)],
    })
}
