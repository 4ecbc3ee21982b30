//! The audit trail, for admins: a list that can be searched.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::Response,
};
use serde::Deserialize;
use toft_model::{
    state::{AuditQuery, AuditRow},
    units::parse_span_ms,
};

use super::super::{Dashboard, Frame, error::PageError, present::Moment, show};
use crate::control::ops::now_ms;

/// Entries on a page.
const PAGE: u32 = 100;

#[derive(Template)]
#[template(path = "people/audit.html")]
struct AuditPage {
    frame: Frame,
    search: Search,
    entries: Vec<Line>,
    /// Address of the page with older ones.
    older: Option<String>,
    /// Address of the same as JSON lines.
    export: String,
    /// What is wrong with the search.
    wrong: Option<&'static str>,
}

struct Line {
    at: Moment,
    user: String,
    way: String,
    from: String,
    action: String,
    subject: String,
    before: Option<String>,
    after: Option<String>,
}

impl From<AuditRow> for Line {
    fn from(row: AuditRow) -> Self {
        Self {
            at: Moment::dated(row.author.at_ms),
            user: row.author.name,
            way: row.author.way,
            from: row.author.came_from.unwrap_or_default(),
            action: row.action.replace('_', " "),
            subject: row.subject,
            before: row.before,
            after: row.after,
        }
    }
}

/// What is searched for, as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::dashboard) struct Search {
    user: String,
    since: String,
    grep: String,
    before: Option<i64>,
}

impl Search {
    fn pairs(&self) -> Vec<(&'static str, &str)> {
        let all = [("user", self.user.trim()), ("since", self.since.trim()), ("grep", self.grep.trim())];
        all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    fn address(&self, path: &str, before: Option<i64>) -> String {
        let before = before.map(|before| before.to_string());
        let mut pairs = self.pairs();
        pairs.extend(before.as_deref().map(|before| ("before", before)));
        match serde_urlencoded::to_string(&pairs) {
            Ok(query) if !query.is_empty() => format!("{path}?{query}"),
            Ok(_) | Err(_) => path.to_owned(),
        }
    }
}

pub(in crate::dashboard) async fn page(
    State(dashboard): State<Dashboard>,
    Query(search): Query<Search>,
) -> Result<Response, PageError> {
    let some = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let since = some(&search.since).map(|since| parse_span_ms(&since));
    let wrong = match &since {
        Some(Err(_)) => Some("the time is none; write it like `30m`, `3h` or `2d`"),
        Some(Ok(_)) | None => None,
    };
    let since_ms = since.and_then(Result::ok).map(|span| now_ms().saturating_sub_unsigned(span));
    let asked =
        AuditQuery { user: some(&search.user), since_ms, grep: some(&search.grep), before: search.before, limit: PAGE };
    let rows = dashboard.ops.audit(asked).await?;
    let older = rows.last().filter(|_| rows.len() == PAGE as usize).map(|row| search.address("/audit", Some(row.seq)));
    show(&AuditPage {
        frame: Frame::at("audit"),
        export: search.address("/api/v1/audit/export", None),
        search,
        entries: rows.into_iter().map(Line::from).collect(),
        older,
        wrong,
    })
}
