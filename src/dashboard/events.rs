//! The story of the whole cluster, newest first: filtered, page by page, and as it goes on.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::Response,
};
use serde::Deserialize;
use toft_model::state::{EventLevel, EventRow};

use super::{Dashboard, Frame, error::PageError, live, present::EventLine, render, request::encode, show};
use crate::control::ops::{Ops, now_ms};

/// Events on a page.
const LINES: usize = 60;
/// Most events that are looked through for those that fit a filter.
const LOOKED_THROUGH: u32 = 2_000;
/// What events speak of: the word in addresses, and the one on the page.
const KINDS: [(&str, &str); 6] = [
    ("", "everything"),
    ("workload", "workloads"),
    ("instance", "instances"),
    ("node", "nodes"),
    ("volume", "volumes"),
    ("secret", "secrets"),
];
/// Longest text that is looked for, in characters.
const LONGEST: usize = 100;

/// Which events.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    kind: String,
    /// Only warnings, when not empty.
    warnings: String,
    /// Only those with this text.
    text: String,
    /// Only those before this position.
    before: Option<i64>,
}

impl Asked {
    fn mended(mut self) -> Self {
        if !KINDS.iter().any(|(kind, _)| *kind == self.kind) {
            self.kind.clear();
        }
        self.text = self.text.trim().chars().take(LONGEST).collect();
        self.warnings = if self.warnings.is_empty() { String::new() } else { "1".to_owned() };
        self
    }

    fn fits(&self, event: &EventRow) -> bool {
        let kind = event.subject.split('/').next().unwrap_or_default();
        let text = self.text.to_lowercase();
        let has = |whole: &str| whole.to_lowercase().contains(&text);
        (self.kind.is_empty() || self.kind == kind)
            && (self.warnings.is_empty() || event.level == EventLevel::Warning)
            && (text.is_empty() || has(&event.subject) || has(&event.message))
    }

    fn is_filter(&self) -> bool {
        !(self.kind.is_empty() && self.warnings.is_empty() && self.text.is_empty())
    }

    /// As part of an address, without the position.
    fn address(&self) -> String {
        format!("kind={}&warnings={}&text={}", self.kind, self.warnings, encode(&self.text))
    }
}

#[derive(Template)]
#[template(path = "events/index.html")]
struct Page {
    frame: Frame,
    asked: Asked,
    kinds: Vec<(&'static str, &'static str, bool)>,
    list: List,
    /// Where the page goes on by itself; only the newest events do.
    follow: Option<String>,
}

#[derive(Template)]
#[template(path = "events/_list.html")]
struct Fragment {
    list: List,
}

struct List {
    events: Vec<EventLine>,
    filtered: bool,
    /// Address of older events.
    older: Option<String>,
}

async fn read(ops: &Ops, asked: &Asked) -> Result<List, PageError> {
    let limit = if asked.is_filter() { LOOKED_THROUGH } else { LINES as u32 + 1 };
    let rows = ops.events(None, asked.before, limit).await?;
    let more_to_look_at = rows.len() == limit as usize;
    let last_seen = rows.last().map(|row| row.seq);
    let mut fitting: Vec<EventRow> = rows.into_iter().filter(|row| asked.fits(row)).collect();
    let more = fitting.len() > LINES;
    fitting.truncate(LINES);
    let before = if more { fitting.last().map(|row| row.seq) } else { last_seen.filter(|_| more_to_look_at) };
    let now_ms = now_ms();
    Ok(List {
        events: fitting.into_iter().map(|row| EventLine::of(row, now_ms)).collect(),
        filtered: asked.is_filter(),
        older: before.map(|before| format!("/events?{}&before={before}", asked.address())),
    })
}

pub(super) async fn page(
    State(dashboard): State<Dashboard>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let asked = asked.mended();
    let list = read(&dashboard.ops, &asked).await?;
    let follow = asked.before.is_none().then(|| format!("/live/events?{}", asked.address()));
    let kinds = KINDS.map(|(kind, word)| (kind, word, asked.kind == kind)).to_vec();
    show(&Page { frame: Frame::at("events"), asked, kinds, list, follow })
}

pub(super) async fn live(State(dashboard): State<Dashboard>, Query(asked): Query<Asked>) -> Response {
    let (ops, asked) = (dashboard.ops.clone(), asked.mended());
    live::fragments(&dashboard, format!("events?{}", asked.address()), move || {
        let (ops, asked) = (ops.clone(), asked.clone());
        async move { render(&Fragment { list: read(&ops, &asked).await? }) }
    })
}
