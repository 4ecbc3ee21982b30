//! The specifications that a workload has had, and the way back to one.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    response::{Redirect, Response},
};
use serde::Deserialize;
use toft_model::{
    identity::deployment_of,
    state::VersionRow,
    workload::{Rollout, VersionCause, changed_fields},
};

use super::{
    Dashboard, Frame,
    error::PageError,
    present::{Moment, Pill},
    request::named,
    show, sight,
};
use crate::control::ops::now_ms;

#[derive(Template)]
#[template(path = "workloads/history.html")]
struct Page {
    frame: Frame,
    name: String,
    /// Generation of the newest, which a rollback replaces.
    newest: u64,
    versions: Vec<Line>,
    may_go_back: bool,
}

struct Line {
    generation: u64,
    rollout: Pill,
    /// Why it failed.
    reason: Option<String>,
    image: String,
    /// What is not as in the version before it; `None` of the oldest that is kept.
    changed: Option<String>,
    why: String,
    written: Moment,
    /// Whether one can go back to it.
    past: bool,
}

impl Line {
    fn of(row: &VersionRow, before: Option<&VersionRow>, newest: u64, now_ms: i64) -> Self {
        let changed = before.map(|before| changed_fields(&before.spec, &row.spec).join(", "));
        Self {
            generation: row.generation,
            rollout: Pill::of_rollout(&row.rollout),
            reason: match &row.rollout {
                Rollout::Failed { reason } => Some(reason.clone()),
                Rollout::Rolling | Rollout::Done => None,
            },
            image: row.spec.image.familiar().to_owned(),
            changed,
            why: match &row.cause {
                VersionCause::User => "by a user".to_owned(),
                VersionCause::Rollback { to, reason: None } => format!("back to {to}"),
                VersionCause::Rollback { to, reason: Some(_) } => format!("back to {to}, by itself"),
            },
            written: Moment::ago(row.at_ms, now_ms),
            past: row.generation != newest,
        }
    }
}

pub(super) async fn page(State(dashboard): State<Dashboard>, Path(name): Path<String>) -> Result<Response, PageError> {
    let name = named(&name)?;
    let rows = dashboard.ops.versions(&name).await?;
    let (newest, now_ms) = (rows.first().map_or(0, |row| row.generation), now_ms());
    let before = rows.iter().skip(1).map(Some).chain([None]);
    let versions = rows.iter().zip(before).map(|(row, before)| Line::of(row, before, newest, now_ms)).collect();
    let newest_spec = rows.first().map(|row| &row.spec);
    let may_go_back =
        newest_spec.is_some_and(|spec| sight::may_on("POST", "/workloads/{name}/rollback", deployment_of(spec)));
    show(&Page { frame: Frame::at("workloads"), name: name.into(), newest, versions, may_go_back })
}

/// What the form says.
#[derive(Deserialize)]
pub(super) struct Wanted {
    /// Version to write again.
    to: u64,
    /// The newest that the user saw.
    newest: u64,
}

pub(super) async fn roll_back(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Form(wanted): Form<Wanted>,
) -> Result<Redirect, PageError> {
    let name = named(&name)?;
    let back = format!("/workloads/{name}");
    dashboard.ops.roll_back(name, Some(wanted.to), Some(wanted.newest)).await?;
    Ok(Redirect::to(&back))
}
