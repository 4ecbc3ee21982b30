//! Settings: how another machine joins, who is in the cluster, and the backups of this node.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use std::collections::BTreeMap;
use toft_model::{
    invalid::Invalid,
    state::TokenState,
    token::{MemberRole, TokenId},
    units::{format_bytes, format_span_ms, parse_span_ms},
};

use super::{
    Dashboard, Frame,
    error::PageError,
    forms::Mistakes,
    present::{Moment, Pill},
    show,
};
use crate::control::{
    ControlError, ErrorKind,
    ops::{
        Ops,
        members::{MadeToken, TokenView, TokenWish},
        now_ms,
    },
};

/// How long a token is valid when nobody says, and one that a PIN stands for: as long as the PIN.
const USUAL_TTL: &str = "24h";
const TTL_OF_PIN_MS: u64 = 5 * 60_000;
/// Backups listed.
const BACKUPS: usize = 10;

#[derive(Template)]
#[template(path = "settings/index.html")]
struct Page {
    frame: Frame,
    form: TokenForm,
    wrong: Mistakes,
    made: Option<Made>,
    tokens: Vec<TokenLine>,
    members: Vec<MemberLine>,
    cluster: Vec<(&'static str, String)>,
    backups: Backups,
    /// How much this node writes into its log.
    filter: Option<String>,
}

/// A token that was made just now, as a line to paste.
struct Made {
    line: String,
    others: Vec<String>,
    pin: bool,
    until: Moment,
}

struct TokenLine {
    id: String,
    name: String,
    role: &'static str,
    left: u32,
    until: Moment,
    used_by: usize,
}

struct MemberLine {
    name: String,
    part: &'static str,
    state: Pill,
    address: String,
    leads: bool,
}

struct Backups {
    /// Why there are none, if there are none.
    trouble: Option<String>,
    facts: Vec<(&'static str, String)>,
    failure: Option<(Moment, String)>,
    stored: Vec<(String, String, Moment, Pill)>,
    can_make: bool,
}

/// What somebody wants of a token, as typed.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct TokenForm {
    ttl: String,
    uses: String,
    /// A PIN for this network instead of a token, when not empty.
    pin: String,
    /// Whoever joins only votes, when not empty.
    witness: String,
}

impl Default for TokenForm {
    fn default() -> Self {
        Self { ttl: USUAL_TTL.to_owned(), uses: "1".to_owned(), pin: String::new(), witness: String::new() }
    }
}

impl TokenForm {
    fn read(&self) -> Result<TokenWish, ControlError> {
        let pin = !self.pin.is_empty();
        let uses = || {
            let hint = "use a whole number from 1";
            self.uses.trim().parse().map_err(|_| Invalid::value("that is no number of machines", hint).at("uses"))
        };
        let (ttl_ms, uses) = match pin {
            true => (TTL_OF_PIN_MS, 1),
            false => (parse_span_ms(self.ttl.trim()).map_err(|invalid| invalid.at("ttl"))?, uses()?),
        };
        let role = if self.witness.is_empty() { MemberRole::Server } else { MemberRole::Witness };
        Ok(TokenWish { ttl_ms, uses, role, name: None, labels: BTreeMap::new(), pin })
    }
}

impl Made {
    fn of(made: &MadeToken, now_ms: i64) -> Self {
        let until = Moment::dated(made.view.row.token.expires_at_ms.max(now_ms));
        let address = made.addresses.first().map_or("ADDRESS", String::as_str);
        let line = match &made.pin {
            Some(pin) => format!("sudo toft join --pin {}", pin.as_str()),
            None => format!("sudo toft join {address} --token {}", made.text.as_str()),
        };
        Self { line, others: made.addresses.iter().skip(1).cloned().collect(), pin: made.pin.is_some(), until }
    }
}

fn token_line(view: TokenView, now_ms: i64) -> Option<TokenLine> {
    (view.row.state(now_ms) == TokenState::Valid).then(|| TokenLine {
        id: view.row.token.id.to_string(),
        name: view.row.token.name.as_ref().map_or("any name".into(), ToString::to_string),
        role: if view.row.token.role == MemberRole::Witness { "witness" } else { "server" },
        left: view.row.uses_left,
        until: Moment::dated(view.row.token.expires_at_ms),
        used_by: view.used_by.len(),
    })
}

async fn backups(ops: &Ops, now_ms: i64) -> Backups {
    let none = |trouble: String| Backups {
        trouble: Some(trouble),
        facts: Vec::new(),
        failure: None,
        stored: Vec::new(),
        can_make: false,
    };
    let status = match ops.backup_status() {
        Ok(status) => status,
        Err(error) => return none(error.message),
    };
    let span = |every: std::time::Duration| format_span_ms(i64::try_from(every.as_millis()).unwrap_or(i64::MAX));
    let stored = ops.backups().await.unwrap_or_default();
    let condition = |word: &'static str| match word {
        "good" => Pill { tone: "ok", word },
        "changed" => Pill { tone: "bad", word },
        word => Pill { tone: "idle", word },
    };
    let mut lines: Vec<_> = stored
        .into_iter()
        .map(|one| {
            let at = Moment::ago(one.modified_at_ms, now_ms);
            (one.name, format_bytes(one.size_bytes), at, condition(one.condition.as_str()))
        })
        .collect();
    lines.reverse();
    lines.truncate(BACKUPS);
    Backups {
        trouble: None,
        facts: vec![
            ("Schedule", status.every.map_or("none".to_owned(), |every| format!("every {}", span(every)))),
            ("Kept", status.keep.to_string()),
            ("Folder", status.dir.display().to_string()),
            ("Locked with", if status.key.is_some() { "the configured key".into() } else { "nothing yet".into() }),
            ("Next", status.next_at_ms.map_or("not planned".to_owned(), |at| Moment::dated(at).text)),
        ],
        failure: status.failure.map(|(at_ms, why)| (Moment::ago(at_ms, now_ms), why)),
        stored: lines,
        can_make: status.key.is_some(),
    }
}

async fn page_with(
    dashboard: &Dashboard,
    form: TokenForm,
    wrong: Mistakes,
    made: Option<Made>,
) -> Result<Response, PageError> {
    let (ops, now_ms) = (&dashboard.ops, now_ms());
    let status = ops.cluster();
    let tokens = ops.tokens().await?.into_iter().filter_map(|view| token_line(view, now_ms)).collect();
    let alone = status.members.len() < 2;
    let member = |member: &crate::control::ops::cluster::MemberStatus| MemberLine {
        name: member.name.to_string(),
        part: if member.votes { "votes" } else { member.role },
        state: match member.answers || alone || member.id == status.member_id {
            true => Pill { tone: "ok", word: "answers" },
            false => Pill { tone: "idle", word: "not asked" },
        },
        address: member.address.clone(),
        leads: status.leader == Some(member.id),
    };
    let refused = !wrong.is_empty();
    let mut page = show(&Page {
        frame: Frame::at("settings"),
        form,
        wrong,
        made,
        tokens,
        members: status.members.iter().map(member).collect(),
        cluster: vec![
            ("Cluster", status.cluster_id.to_string()),
            ("Version of toft", env!("CARGO_PKG_VERSION").to_owned()),
            ("Term", status.term.to_string()),
            ("Log", format!("{} entries, {} applied here", status.log_end, status.applied)),
        ],
        backups: backups(ops, now_ms).await,
        filter: ops.log_filter(),
    })?;
    if refused {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    page_with(&dashboard, TokenForm::default(), Mistakes::default(), None).await
}

/// Makes a token. It is shown once, in the answer: it is in no address, and nobody can read it again.
pub(super) async fn make_token(
    State(dashboard): State<Dashboard>,
    Form(form): Form<TokenForm>,
) -> Result<Response, PageError> {
    let made = match form.read() {
        Ok(wish) => dashboard.ops.create_token(wish).await,
        Err(error) => Err(error),
    };
    match made {
        Ok(made) => {
            let made = Made::of(&made, now_ms());
            page_with(&dashboard, form, Mistakes::default(), Some(made)).await
        }
        Err(error) => page_with(&dashboard, form, Mistakes::refused(error), None).await,
    }
}

pub(super) async fn revoke_token(
    State(dashboard): State<Dashboard>,
    Path(id): Path<String>,
) -> Result<Redirect, PageError> {
    let id: TokenId = id.parse().map_err(|_| ControlError::new(ErrorKind::NotFound, "there is no such token"))?;
    dashboard.ops.revoke_token(id).await?;
    Ok(Redirect::to("/settings"))
}

pub(super) async fn make_backup(State(dashboard): State<Dashboard>) -> Result<Redirect, PageError> {
    dashboard.ops.create_backup().await?;
    Ok(Redirect::to("/settings#backups"))
}

/// How much shall be written into the log.
#[derive(Deserialize)]
pub(super) struct FilterForm {
    #[serde(default)]
    filter: String,
}

pub(super) async fn set_filter(
    State(dashboard): State<Dashboard>,
    Form(form): Form<FilterForm>,
) -> Result<Response, PageError> {
    match dashboard.ops.set_log_filter(form.filter.trim()) {
        Ok(()) => Ok(Redirect::to("/settings#log").into_response()),
        Err(error) => page_with(&dashboard, TokenForm::default(), Mistakes::refused(error), None).await,
    }
}
