//! `/events`.

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{ApiError, ApiState, error::Asked};
use crate::{
    api::types::{Event, Page},
    control::{ControlError, ErrorKind},
};

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Events on a page, 1 to 1000; default 100.
    limit: Option<u32>,
    /// Only events before this position: `next` of the page before.
    after: Option<i64>,
    /// Only events of this subject, such as `workload/web`.
    subject: Option<String>,
}

/// What happened, newest first.
#[utoipa::path(get, path = "/events", tag = "events", params(EventQuery), responses((status = 200, body = Page<Event>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<EventQuery>) -> Result<Json<Page<Event>>, ApiError> {
    let limit = query.limit.unwrap_or(100);
    if !(1..=1_000).contains(&limit) {
        return Err(ControlError::new(ErrorKind::Invalid, format!("{limit} is out of range"))
            .field("limit")
            .hint("use 1 to 1000")
            .into());
    }
    let mut items: Vec<Event> =
        api.ops.events(query.subject, query.after, limit + 1).await?.into_iter().map(Event::from).collect();
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = items.last().filter(|_| more).map(|event| event.seq.to_string());
    Ok(Json(Page { items, next }))
}
