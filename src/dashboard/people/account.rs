//! One's own account: password, sessions and API tokens. Admins see everybody's sessions and tokens here.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use toft_model::{
    identity::{Rights, Role},
    state::ApiTokenRow,
    token::TokenId,
    units::parse_span_ms,
};
use zeroize::Zeroizing;

use super::{
    super::{Dashboard, Frame, error::PageError, forms::Mistake, present::Moment, show},
    grants, in_words, mistake,
    setup::not_the_same,
};
use crate::control::{
    ControlError, ErrorKind,
    actor::{self, Actor, Way},
    ops::{ApiTokenWish, SessionView, now_ms},
};

#[derive(Template)]
#[template(path = "people/account.html")]
struct AccountPage {
    frame: Frame,
    name: String,
    role: String,
    grants: String,
    /// Whether the password can be changed here.
    has_password: bool,
    has_factor: bool,
    passkeys: usize,
    is_admin: bool,
    is_user: bool,
    wrong_password: Option<Mistake>,
    wrong_token: Option<Mistake>,
    /// A token that was made just now; it is shown once.
    made: Option<Zeroizing<String>>,
    form: TokenForm,
    sessions: Vec<SessionLine>,
    tokens: Vec<TokenLine>,
}

struct SessionLine {
    id: String,
    user: String,
    this: bool,
    from: String,
    agent: String,
    opened: Moment,
    seen: Moment,
}

struct TokenLine {
    id: String,
    user: String,
    label: String,
    role: String,
    grants: String,
    expired: bool,
    expires: Moment,
    used: Option<Moment>,
}

impl SessionLine {
    fn of(view: SessionView, now_ms: i64) -> Self {
        let session = view.row.session;
        Self {
            id: session.id.to_string(),
            user: session.user.to_string(),
            this: view.is_this,
            from: session.came_from.unwrap_or_default(),
            agent: session.agent,
            opened: Moment::ago(view.row.opened_at_ms, now_ms),
            seen: Moment::ago(view.row.seen_at_ms, now_ms),
        }
    }
}

impl TokenLine {
    fn of(row: ApiTokenRow, now_ms: i64) -> Self {
        let (role, grants) = in_words(&row.token.rights);
        Self {
            expired: row.has_expired(now_ms),
            id: row.token.id.to_string(),
            user: row.token.user.to_string(),
            label: row.token.label,
            role,
            grants,
            expires: Moment::dated(row.token.expires_at_ms),
            used: row.used_at_ms.map(|at_ms| Moment::ago(at_ms, now_ms)),
        }
    }
}

/// Another password as typed.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct PasswordForm {
    present: Zeroizing<String>,
    new: Zeroizing<String>,
    again: Zeroizing<String>,
}

/// A token as wished for.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(in crate::dashboard) struct TokenForm {
    label: String,
    role: String,
    grants: String,
    ttl: String,
}

impl Default for TokenForm {
    fn default() -> Self {
        Self { label: String::new(), role: "viewer".into(), grants: String::new(), ttl: "90d".into() }
    }
}

/// What is new on the page.
#[derive(Default)]
struct News {
    wrong_password: Option<Mistake>,
    wrong_token: Option<Mistake>,
    made: Option<Zeroizing<String>>,
    form: TokenForm,
}

fn asks() -> Result<std::sync::Arc<Actor>, PageError> {
    let nobody = || ControlError::new(ErrorKind::Unauthenticated, "who asks is not known").into();
    actor::current().ok_or_else(nobody)
}

async fn show_with(dashboard: &Dashboard, news: News) -> Result<Response, PageError> {
    let (asks, now_ms) = (asks()?, now_ms());
    let (role, grants) = in_words(&asks.rights);
    let sessions = dashboard.ops.sessions(None).await?;
    let tokens = dashboard.ops.api_tokens().await?;
    let has_factor = dashboard.ops.second_factor().await?.on;
    let passkeys = dashboard.ops.own_passkeys().await?.len();
    let bad = news.wrong_password.is_some() || news.wrong_token.is_some();
    let mut page = show(&AccountPage {
        frame: Frame::at("account"),
        name: asks.name().to_owned(),
        role,
        grants,
        has_password: asks.user.is_some() && !matches!(asks.way, Way::Token(_) | Way::Signed { .. }),
        has_factor,
        passkeys,
        is_admin: asks.is_admin(),
        is_user: asks.user.is_some(),
        wrong_password: news.wrong_password,
        wrong_token: news.wrong_token,
        made: news.made,
        form: news.form,
        sessions: sessions.into_iter().map(|view| SessionLine::of(view, now_ms)).collect(),
        tokens: tokens.into_iter().map(|row| TokenLine::of(row, now_ms)).collect(),
    })?;
    if bad {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(in crate::dashboard) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    show_with(&dashboard, News::default()).await
}

pub(in crate::dashboard) async fn change_password(
    State(dashboard): State<Dashboard>,
    Form(form): Form<PasswordForm>,
) -> Result<Response, PageError> {
    let changed = if *form.new == *form.again {
        dashboard.ops.change_own_password(form.present, form.new).await.map_err(mistake)
    } else {
        Err(not_the_same())
    };
    match changed {
        Ok(()) => Ok(Redirect::to("/account").into_response()),
        Err(wrong) => show_with(&dashboard, News { wrong_password: Some(wrong), ..News::default() }).await,
    }
}

impl TokenForm {
    fn read(&self) -> Result<ApiTokenWish, ControlError> {
        let role: Role =
            self.role.trim().parse().map_err(|invalid: toft_model::invalid::Invalid| invalid.at("role"))?;
        let grants = grants(&self.grants)?;
        let ttl_ms = parse_span_ms(self.ttl.trim()).map_err(|invalid| invalid.at("ttl"))?;
        Ok(ApiTokenWish { user: None, label: self.label.trim().to_owned(), rights: Rights { role, grants }, ttl_ms })
    }
}

/// The page itself shows the token: an address must not hold it, and nothing keeps it.
pub(in crate::dashboard) async fn create_token(
    State(dashboard): State<Dashboard>,
    Form(form): Form<TokenForm>,
) -> Result<Response, PageError> {
    let made = match form.read() {
        Ok(wish) => dashboard.ops.create_api_token(wish).await,
        Err(error) => Err(error),
    };
    let news = match made {
        Ok(made) => News { made: Some(made.text), ..News::default() },
        Err(error) => News { wrong_token: Some(mistake(error)), form, ..News::default() },
    };
    show_with(&dashboard, news).await
}

fn id(text: &str, what: &str) -> Result<TokenId, PageError> {
    text.parse().map_err(|_| {
        ControlError::new(ErrorKind::NotFound, format!("there is no such {what}"))
            .hint("it may be gone; your account lists those there are")
            .into()
    })
}

pub(in crate::dashboard) async fn revoke_token(
    State(dashboard): State<Dashboard>,
    Path(token): Path<String>,
) -> Result<Redirect, PageError> {
    dashboard.ops.revoke_api_token(id(&token, "token")?).await?;
    Ok(Redirect::to("/account"))
}

pub(in crate::dashboard) async fn end_session(
    State(dashboard): State<Dashboard>,
    Path(session): Path<String>,
) -> Result<Redirect, PageError> {
    dashboard.ops.end_session(id(&session, "session")?).await?;
    Ok(Redirect::to("/account"))
}
