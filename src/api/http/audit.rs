//! `/audit`: who did what.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use toft_model::state::AuditQuery;
use utoipa::IntoParams;

use super::{ApiError, ApiState, error::Asked, query::moment_ns};
use crate::{
    api::types::{AuditEntry, Page},
    control::{
        ControlError, ErrorKind,
        ops::{Ops, now_ms},
    },
};

/// Entries that are read at a time for an export.
const PART: u32 = 500;

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct TrailQuery {
    /// Entries on a page, 1 to 1000; default 100.
    limit: Option<u32>,
    /// Only entries before this position: `next` of the page before.
    after: Option<i64>,
    /// Only what this user did, or `root`.
    user: Option<String>,
    /// Only what is not older: `30s`, `10m`, `3h`, `2d`, or a time such as `2026-01-31T12:00:00Z`.
    since: Option<String>,
    /// Only entries with this text in what was done to what, before or afterwards; upper and lower case are the same.
    grep: Option<String>,
}

/// Which entries are exported.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Only what this user did, or `root`.
    user: Option<String>,
    /// Only what is not older: `30s`, `10m`, `3h`, `2d`, or a time such as `2026-01-31T12:00:00Z`.
    since: Option<String>,
    /// Only entries with this text in what was done to what, before or afterwards; upper and lower case are the same.
    grep: Option<String>,
}

impl Filter {
    fn query(self) -> Result<AuditQuery, ControlError> {
        let since = self.since.map(|since| moment_ns("since", &since, now_ms())).transpose()?;
        Ok(AuditQuery {
            user: self.user,
            since_ms: since.map(|ns| ns / 1_000_000),
            grep: self.grep,
            ..AuditQuery::default()
        })
    }
}

/// The audit trail, newest first.
#[utoipa::path(get, path = "/audit", tag = "people", params(TrailQuery), responses((status = 200, body = Page<AuditEntry>), (status = 403, body = crate::api::types::ErrorEnvelope)))]
pub async fn list(
    State(api): State<ApiState>,
    Asked(query): Asked<TrailQuery>,
) -> Result<Json<Page<AuditEntry>>, ApiError> {
    let limit = query.limit.unwrap_or(100);
    if !(1..=1_000).contains(&limit) {
        let error = ControlError::new(ErrorKind::Invalid, format!("{limit} is out of range"));
        return Err(error.field("limit").hint("use 1 to 1000").into());
    }
    let TrailQuery { after, user, since, grep, .. } = query;
    let asked = AuditQuery { before: after, limit, ..Filter { user, since, grep }.query()? };
    let items: Vec<AuditEntry> = api.ops.audit(asked).await?.into_iter().map(AuditEntry::from).collect();
    let next = items.last().filter(|_| items.len() == limit as usize).map(|entry| entry.seq.to_string());
    Ok(Json(Page { items, next }))
}

/// The audit trail as JSON lines, newest first, to its end.
#[utoipa::path(get, path = "/audit/export", tag = "people", params(Filter), responses((status = 200, body = Vec<u8>, content_type = "application/x-ndjson"), (status = 403, body = crate::api::types::ErrorEnvelope)))]
pub async fn export(State(api): State<ApiState>, Asked(filter): Asked<Filter>) -> Result<Response, ApiError> {
    let query = AuditQuery { limit: PART, ..filter.query()? };
    // What is wrong with the question is told before the first line.
    let first = part(&api.ops, &query).await?;
    let next = |(ops, query, ready): (Ops, AuditQuery, Option<Part>)| async move {
        let Part { lines, last } = match ready {
            Some(ready) => ready,
            None => part(&ops, &query).await.ok()?,
        };
        let query = AuditQuery { before: Some(last?), ..query };
        Some((Ok::<_, std::convert::Infallible>(lines), (ops, query, None)))
    };
    let lines = stream::unfold((api.ops, query, Some(first)), next).boxed();
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"toft-audit.jsonl\""),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Some lines, and the position of the last.
struct Part {
    lines: Bytes,
    last: Option<i64>,
}

async fn part(ops: &Ops, query: &AuditQuery) -> Result<Part, ControlError> {
    let rows = ops.audit(query.clone()).await?;
    let last = rows.last().map(|row| row.seq);
    let mut lines = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut lines, &AuditEntry::from(row))
            .map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        lines.push(b'\n');
    }
    Ok(Part { lines: lines.into(), last })
}
