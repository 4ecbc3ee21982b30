//! What instances wrote that are gone, for as long as it is kept: a list, and a page for each workload they were of.

use std::collections::BTreeMap;

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use toft_model::{log::LogQuery, name::Name, units::format_bytes};

use super::{
    Dashboard, Frame,
    error::PageError,
    logs::{Asked, Line, counts, in_time, newest_of},
    present::Moment,
    request::named,
    show,
};
use crate::control::{ErrorKind, node_access::GoneInstance, ops::now_ms};

#[derive(Template)]
#[template(path = "kept/index.html")]
struct Page {
    frame: Frame,
    kept: Vec<Kept>,
    trouble: Option<String>,
}

#[derive(Template)]
#[template(path = "kept/one.html")]
struct OnePage {
    frame: Frame,
    name: String,
    /// Whether a workload of that name is there.
    lives: bool,
    lines: Vec<Line>,
    trouble: Option<String>,
    counts: Vec<(usize, bool)>,
    instances: Vec<(String, bool)>,
}

/// What is kept of one workload.
struct Kept {
    name: String,
    lives: bool,
    instances: usize,
    gone: Moment,
    gone_at_ms: i64,
    size: String,
}

impl Kept {
    fn of(name: Name, lives: bool, gone: &[GoneInstance], now_ms: i64) -> Self {
        let gone_at_ms = gone.iter().map(|gone| gone.gone_at_ms).max().unwrap_or(now_ms);
        Self {
            name: name.into(),
            lives,
            instances: gone.len(),
            gone: Moment::age(gone_at_ms, now_ms),
            gone_at_ms,
            size: format_bytes(gone.iter().map(|gone| gone.bytes).sum()),
        }
    }
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    let now_ms = now_ms();
    let (gone, trouble) = match dashboard.ops.kept_logs().await {
        Ok(gone) => (gone, None),
        Err(error) => (Vec::new(), Some(error.message)),
    };
    let mut workloads: BTreeMap<Name, Vec<GoneInstance>> = BTreeMap::new();
    for gone in gone {
        workloads.entry(gone.workload.clone()).or_default().push(gone);
    }
    let mut kept = Vec::with_capacity(workloads.len());
    for (name, gone) in workloads {
        let lives = dashboard.lives(&name).await?;
        kept.push(Kept::of(name, lives, &gone, now_ms));
    }
    // What went last is looked for first.
    kept.sort_by_key(|kept| std::cmp::Reverse(kept.gone_at_ms));
    show(&Page { frame: Frame::at("workloads"), kept, trouble })
}

pub(super) async fn one(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let name = named(&name)?;
    let most = asked.most();
    let query = LogQuery { tail: Some(most), ..LogQuery::default() };
    let logs = dashboard.ops.gone_logs(&name, query).await?;
    let mut names: Vec<String> = logs.iter().map(|log| log.instance.clone()).collect();
    names.sort();
    names.dedup();
    let only = names.iter().find(|name| **name == asked.instance);
    let (lines, trouble) = in_time(newest_of(logs, only, most)).await;
    let instance = only.map(String::as_str).unwrap_or_default();
    show(&OnePage {
        frame: Frame::at("workloads"),
        lives: dashboard.lives(&name).await?,
        name: name.into(),
        lines: lines.into_iter().map(|(instance, line)| Line::dated(instance, line)).collect(),
        trouble,
        counts: counts(most),
        instances: names.iter().map(|name| (name.clone(), name == instance)).collect(),
    })
}

impl Dashboard {
    /// Whether there is a workload of that name.
    async fn lives(&self, name: &Name) -> Result<bool, PageError> {
        match self.ops.workload(name).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
