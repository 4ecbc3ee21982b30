//! Passkeys: one's own on the account page, somebody's for an admin, and the sign-in with one.
//!
//! A script asks the browser and puts what that gives into a form, which is sent like all others. What the script is told comes as JSON.

use askama::Template;
use axum::{
    Form, Json,
    extract::{Extension, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use toft_model::{identity::UserName, passkey::Backup, state::PasskeyRow, token::TokenId};
use zeroize::Zeroizing;

use super::{
    super::{
        Dashboard, Frame,
        error::PageError,
        forms::Mistake,
        present::{Moment, sentence},
        request::{ReachedAs, encode},
        show,
    },
    kept::Kept,
    login::{agent, come_in, refused_with},
    mistake, onwards,
    users::named,
};
use crate::{
    control::{ControlError, ErrorKind, ops::now_ms},
    identity::{Site, Visitor},
};

#[derive(Template)]
#[template(path = "people/passkeys.html")]
struct PasskeysPage {
    frame: Frame,
    passkeys: Vec<PasskeyLine>,
    /// Whether they can be added: whoever asks has signed in, and has a password.
    possible: bool,
    /// Whether no more fit.
    full: bool,
    /// To which names the new ones belong; none at an address.
    domain: Option<String>,
    wrong: Option<Mistake>,
}

#[derive(Template)]
#[template(path = "people/passkey_remove.html")]
struct RemovalPage {
    frame: Frame,
    label: String,
    /// Whose, when it is not one's own.
    user: Option<String>,
    /// Whether the session that asks ends with it.
    this: bool,
    action: String,
    back: String,
}

/// A passkey as pages show it.
pub(super) struct PasskeyLine {
    pub(super) id: String,
    pub(super) label: String,
    pub(super) domain: String,
    pub(super) added: Moment,
    pub(super) used: Option<Moment>,
    pub(super) backup: &'static str,
}

impl PasskeyLine {
    pub(super) fn of(row: PasskeyRow, now_ms: i64) -> Self {
        Self {
            id: row.passkey.id.to_string(),
            label: row.passkey.label,
            domain: row.passkey.domain.to_string(),
            added: Moment::ago(row.created_at_ms, now_ms),
            used: row.used_at_ms.map(|at_ms| Moment::ago(at_ms, now_ms)),
            backup: match row.passkey.backup {
                Backup::Never => "no: it is in one device alone",
                Backup::Possible => "not yet",
                Backup::Done => "yes",
            },
        }
    }
}

/// A passkey that is to be made, and what the browser gave.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct PasskeyForm {
    label: String,
    password: Zeroizing<String>,
    answer: String,
}

/// What the browser gave at the sign-in.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct SignInForm {
    answer: String,
    next: String,
    kept: String,
}

fn frame() -> Frame {
    Frame::at("account")
}

/// The page that asks, as the browser says it. A door has made sure that it is one of ours.
async fn site(dashboard: &Dashboard, headers: &HeaderMap) -> Result<Site, ControlError> {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    dashboard.ops.passkey_site(origin).await
}

/// The domain of passkeys at the name by which this page was opened; nothing at an address.
pub(super) async fn domain_at(dashboard: &Dashboard, reached: &ReachedAs) -> Option<String> {
    let host = reached.0.as_deref()?;
    let site = dashboard.ops.passkey_site(Some(&format!("https://{}", host.to_ascii_lowercase()))).await;
    site.ok().map(|site| site.domain.to_string())
}

fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Throttled => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::Stale => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// What a script is told: what it hands to the browser, or what it shows to people.
fn for_script(asked: Result<String, ControlError>) -> Response {
    let options = asked.and_then(|text| {
        RawValue::from_string(text).map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))
    });
    match options {
        Ok(options) => Json(options).into_response(),
        Err(error) => {
            let hint = error.hint.as_deref().map(sentence);
            let told = json!({ "error": { "message": sentence(&error.message), "hint": hint } });
            (status_of(error.kind), Json(told)).into_response()
        }
    }
}

async fn show_with(
    dashboard: &Dashboard,
    reached: &ReachedAs,
    wrong: Option<ControlError>,
) -> Result<Response, PageError> {
    let now_ms = now_ms();
    let rows = dashboard.ops.own_passkeys().await?;
    let status = wrong.as_ref().map_or(StatusCode::OK, |error| status_of(error.kind));
    let mut page = show(&PasskeysPage {
        frame: frame(),
        full: rows.len() >= toft_model::passkey::MAX_PASSKEYS,
        passkeys: rows.into_iter().map(|row| PasskeyLine::of(row, now_ms)).collect(),
        possible: dashboard.ops.may_add_passkey().await,
        domain: domain_at(dashboard, reached).await,
        wrong: wrong.map(mistake),
    })?;
    *page.status_mut() = status;
    Ok(page)
}

pub(in crate::dashboard) async fn page(
    State(dashboard): State<Dashboard>,
    reached: ReachedAs,
) -> Result<Response, PageError> {
    show_with(&dashboard, &reached, None).await
}

/// What the script hands to the browser to make a passkey.
pub(in crate::dashboard) async fn offer(
    State(dashboard): State<Dashboard>,
    headers: HeaderMap,
    Form(form): Form<PasskeyForm>,
) -> Response {
    for_script(match site(&dashboard, &headers).await {
        Ok(site) => dashboard.ops.offer_passkey(&form.label, form.password, site).await,
        Err(error) => Err(error),
    })
}

pub(in crate::dashboard) async fn add(
    State(dashboard): State<Dashboard>,
    reached: ReachedAs,
    headers: HeaderMap,
    Form(form): Form<PasskeyForm>,
) -> Result<Response, PageError> {
    let added = match site(&dashboard, &headers).await {
        Ok(site) => dashboard.ops.add_passkey(&form.answer, &site).await,
        Err(error) => Err(error),
    };
    match added {
        Ok(()) => Ok(Redirect::to("/account/passkeys").into_response()),
        Err(error) => show_with(&dashboard, &reached, Some(error)).await,
    }
}

fn gone() -> PageError {
    ControlError::new(ErrorKind::NotFound, "there is no such passkey").hint("it may have been removed already").into()
}

fn found(rows: Vec<PasskeyRow>, id: &str) -> Result<PasskeyRow, PageError> {
    rows.into_iter().find(|row| row.passkey.id.as_str() == id).ok_or_else(gone)
}

pub(in crate::dashboard) async fn confirm_removal(
    State(dashboard): State<Dashboard>,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let row = found(dashboard.ops.own_passkeys().await?, &id)?;
    show(&RemovalPage {
        frame: frame(),
        this: dashboard.ops.opened_by().await?.as_ref() == Some(&row.passkey.id),
        label: row.passkey.label,
        user: None,
        action: format!("/account/passkeys/{}/remove", row.passkey.id),
        back: "/account/passkeys".to_owned(),
    })
}

fn id(text: &str) -> Result<TokenId, PageError> {
    text.parse().map_err(|_| gone())
}

pub(in crate::dashboard) async fn remove(
    State(dashboard): State<Dashboard>,
    Path(passkey): Path<String>,
) -> Result<Redirect, PageError> {
    dashboard.ops.remove_own_passkey(id(&passkey)?).await?;
    Ok(Redirect::to("/account/passkeys"))
}

fn page_of(user: &UserName) -> String {
    format!("/users/{}", encode(user.as_str()))
}

/// The same of somebody's, for admins.
pub(in crate::dashboard) async fn confirm_removal_of(
    State(dashboard): State<Dashboard>,
    Path((name, id)): Path<(String, String)>,
) -> Result<Response, PageError> {
    let user = named(&name)?;
    let row = found(dashboard.ops.passkeys(user.clone()).await?, &id)?;
    let back = page_of(&user);
    show(&RemovalPage {
        frame: Frame::at("users"),
        this: dashboard.ops.opened_by().await?.as_ref() == Some(&row.passkey.id),
        label: row.passkey.label,
        action: format!("{back}/passkeys/{}/remove", row.passkey.id),
        user: Some(user.to_string()),
        back,
    })
}

pub(in crate::dashboard) async fn remove_of(
    State(dashboard): State<Dashboard>,
    Path((name, passkey)): Path<(String, String)>,
) -> Result<Redirect, PageError> {
    let user = named(&name)?;
    dashboard.ops.remove_passkey(user.clone(), id(&passkey)?).await?;
    Ok(Redirect::to(&page_of(&user)))
}

/// What the script of the sign-in page hands to the browser.
pub(in crate::dashboard) async fn ask(
    State(dashboard): State<Dashboard>,
    visitor: Option<Extension<Visitor>>,
    headers: HeaderMap,
) -> Response {
    let from = visitor.and_then(|Extension(visitor)| visitor.from);
    for_script(match site(&dashboard, &headers).await {
        Ok(site) => dashboard.ops.ask_passkey(site, from).await,
        Err(error) => Err(error),
    })
}

/// Signs in whoever's passkey answered.
pub(in crate::dashboard) async fn sign_in(
    State(dashboard): State<Dashboard>,
    visitor: Option<Extension<Visitor>>,
    reached: ReachedAs,
    headers: HeaderMap,
    Form(form): Form<SignInForm>,
) -> Result<Response, PageError> {
    let visitor = visitor.map(|Extension(visitor)| visitor);
    let from = visitor.as_ref().and_then(|visitor| visitor.from);
    let (kept, next) = (Kept::unpacked(&form.kept), onwards(&form.next).to_owned());
    let signed_in = match site(&dashboard, &headers).await {
        Ok(site) => dashboard.ops.sign_in_with_passkey(&form.answer, &site, from, agent(&headers)).await,
        Err(error) => Err(error),
    };
    match signed_in {
        Ok(signed_in) => come_in(signed_in, visitor, (&next, kept)),
        Err(error) => refused_with(&dashboard, &reached, error, (next, kept)).await,
    }
}
