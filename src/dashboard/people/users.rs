//! Users, for admins: a list with a form for a new one, and a page for each.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use toft_model::{identity::UserName, invalid::Invalid, second_factor::AccessChanges};
use zeroize::Zeroizing;

use super::{
    super::{Dashboard, Frame, error::PageError, forms::Mistake, present::Moment, request::encode, show},
    grants, in_words, mistake,
    passkeys::PasskeyLine,
};
use crate::control::{
    ControlError, ErrorKind,
    ops::{UserView, UserWish, now_ms},
};

#[derive(Template)]
#[template(path = "people/users.html")]
struct UsersPage {
    frame: Frame,
    users: Vec<Line>,
    form: UserForm,
    wrong: Option<Mistake>,
    /// Whether admins are asked for a second factor.
    asks_admins: bool,
    wrong_access: Option<Mistake>,
    /// The domain that passkeys belong to, as typed.
    passkey_domain: String,
    wrong_domain: Option<Mistake>,
}

#[derive(Template)]
#[template(path = "people/user.html")]
struct UserPage {
    frame: Frame,
    user: Line,
    form: UserForm,
    wrong: Option<Mistake>,
    wrong_password: Option<Mistake>,
    passkeys: Vec<PasskeyLine>,
}

#[derive(Template)]
#[template(path = "people/remove.html")]
struct RemovalPage {
    frame: Frame,
    name: String,
}

struct Line {
    name: String,
    role: String,
    grants: String,
    disabled: bool,
    has_password: bool,
    has_factor: bool,
    /// How many there are, in words; empty when there is none.
    passkeys: String,
    /// Whether it is the first user, who cannot be removed.
    is_first: bool,
    /// Whether it has a row: before the set-up the first user has none.
    is_kept: bool,
    created: Option<Moment>,
}

impl Line {
    fn of(user: &UserView, now_ms: i64) -> Self {
        let (role, grants) = in_words(&user.rights);
        Self {
            name: user.name.to_string(),
            role,
            grants,
            disabled: user.disabled,
            has_password: user.has_password,
            has_factor: user.has_factor,
            passkeys: match user.passkeys {
                0 => String::new(),
                1 => "1 passkey".to_owned(),
                some => format!("{some} passkeys"),
            },
            is_first: user.name.is_first(),
            is_kept: user.created_at_ms.is_some(),
            created: user.created_at_ms.map(|at_ms| Moment::age(at_ms, now_ms)),
        }
    }
}

/// A user as typed.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct UserForm {
    name: String,
    role: String,
    grants: String,
    password: Zeroizing<String>,
    disabled: Option<String>,
}

/// A password as typed.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct PasswordForm {
    password: Zeroizing<String>,
}

/// What is asked of who comes in, as ticked.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct AccessForm {
    second_factor_for_admins: Option<String>,
}

/// The domain of passkeys as typed.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct DomainForm {
    passkey_domain: String,
}

/// What was wrong with a form of the list.
#[derive(Default)]
struct Wrong {
    user: Option<Mistake>,
    access: Option<Mistake>,
    domain: Option<(Mistake, String)>,
}

fn frame() -> Frame {
    Frame::at("users")
}

pub(super) fn named(text: &str) -> Result<UserName, PageError> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        ControlError::new(ErrorKind::NotFound, format!("there is no user `{shown}`"))
            .hint("they may have been removed; Users lists those there are")
            .into()
    })
}

impl UserForm {
    fn of(user: &UserView) -> Self {
        let (role, grants) = in_words(&user.rights);
        Self { role, grants, disabled: user.disabled.then(|| "on".to_owned()), ..Self::default() }
    }

    fn read(&self) -> Result<UserWish, ControlError> {
        let role = match self.role.trim() {
            "" => None,
            role => Some(role.parse().map_err(|invalid: Invalid| invalid.at("role"))?),
        };
        let password = (!self.password.is_empty()).then(|| self.password.clone());
        Ok(UserWish { role, grants: Some(grants(&self.grants)?), disabled: None, password })
    }
}

pub(in crate::dashboard) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    list(&dashboard, UserForm::default(), Wrong::default()).await
}

async fn list(dashboard: &Dashboard, form: UserForm, wrong: Wrong) -> Result<Response, PageError> {
    let now_ms = now_ms();
    let bad = wrong.user.is_some() || wrong.access.is_some() || wrong.domain.is_some();
    let settings = dashboard.ops.access_settings().await?;
    let users = dashboard.ops.users().await?.iter().map(|user| Line::of(user, now_ms)).collect();
    let (wrong_domain, typed) = wrong.domain.unzip();
    let said = settings.passkey_domain.map(|domain| domain.to_string());
    let mut page = show(&UsersPage {
        frame: frame(),
        users,
        form,
        wrong: wrong.user,
        asks_admins: settings.second_factor_for_admins,
        wrong_access: wrong.access,
        passkey_domain: typed.or(said).unwrap_or_default(),
        wrong_domain,
    })?;
    if bad {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(in crate::dashboard) async fn create(
    State(dashboard): State<Dashboard>,
    Form(form): Form<UserForm>,
) -> Result<Response, PageError> {
    let name = form.name.trim().parse::<UserName>().map_err(|invalid| ControlError::from(invalid.at("name")));
    let created = match (name, form.read()) {
        (Ok(name), Ok(wish)) => dashboard.ops.create_user(name, wish).await,
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    match created {
        Ok(_) => Ok(Redirect::to("/users").into_response()),
        Err(error) => list(&dashboard, form, Wrong { user: Some(mistake(error)), ..Wrong::default() }).await,
    }
}

async fn one_page(
    dashboard: &Dashboard,
    name: &UserName,
    form: Option<UserForm>,
    (wrong, wrong_password): (Option<Mistake>, Option<Mistake>),
) -> Result<Response, PageError> {
    let user = dashboard.ops.user(name).await?;
    let bad = wrong.is_some() || wrong_password.is_some();
    let form = form.unwrap_or_else(|| UserForm::of(&user));
    let now_ms = now_ms();
    let passkeys = dashboard.ops.passkeys(name.clone()).await?;
    let passkeys = passkeys.into_iter().map(|row| PasskeyLine::of(row, now_ms)).collect();
    let user = Line::of(&user, now_ms);
    let mut page = show(&UserPage { frame: frame(), user, form, wrong, wrong_password, passkeys })?;
    if bad {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(in crate::dashboard) async fn one(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    one_page(&dashboard, &named(&name)?, None, (None, None)).await
}

pub(in crate::dashboard) async fn change(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Form(form): Form<UserForm>,
) -> Result<Response, PageError> {
    let name = named(&name)?;
    let changed = match form.read() {
        Ok(wish) => {
            let wish = UserWish { disabled: Some(form.disabled.is_some()), password: None, ..wish };
            dashboard.ops.change_user(&name, wish).await
        }
        Err(error) => Err(error),
    };
    match changed {
        Ok(_) => Ok(Redirect::to("/users").into_response()),
        Err(error) => one_page(&dashboard, &name, Some(form), (Some(mistake(error)), None)).await,
    }
}

pub(in crate::dashboard) async fn set_password(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Form(form): Form<PasswordForm>,
) -> Result<Response, PageError> {
    let name = named(&name)?;
    let wish = UserWish { password: Some(form.password), ..UserWish::default() };
    match dashboard.ops.change_user(&name, wish).await {
        Ok(_) => Ok(Redirect::to("/users").into_response()),
        Err(error) => one_page(&dashboard, &name, None, (None, Some(mistake(error)))).await,
    }
}

pub(in crate::dashboard) async fn reset_factor(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    let name = named(&name)?;
    dashboard.ops.reset_second_factor(name.clone()).await?;
    Ok(Redirect::to(&format!("/users/{}", encode(name.as_str()))))
}

pub(in crate::dashboard) async fn configure_access(
    State(dashboard): State<Dashboard>,
    Form(form): Form<AccessForm>,
) -> Result<Response, PageError> {
    let second_factor_for_admins = Some(form.second_factor_for_admins.is_some());
    let changes = AccessChanges { second_factor_for_admins, ..AccessChanges::default() };
    match dashboard.ops.configure_access(changes).await {
        Ok(_) => Ok(Redirect::to("/users").into_response()),
        Err(error) => {
            list(&dashboard, UserForm::default(), Wrong { access: Some(mistake(error)), ..Wrong::default() }).await
        }
    }
}

pub(in crate::dashboard) async fn set_passkey_domain(
    State(dashboard): State<Dashboard>,
    Form(form): Form<DomainForm>,
) -> Result<Response, PageError> {
    let typed = form.passkey_domain.trim().to_owned();
    let changes = AccessChanges { passkey_domain: Some(typed.clone()), ..AccessChanges::default() };
    match dashboard.ops.configure_access(changes).await {
        Ok(_) => Ok(Redirect::to("/users").into_response()),
        Err(error) => {
            let wrong = Wrong { domain: Some((mistake(error), typed)), ..Wrong::default() };
            list(&dashboard, UserForm::default(), wrong).await
        }
    }
}

pub(in crate::dashboard) async fn confirm_removal(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let user = dashboard.ops.user(&named(&name)?).await?;
    show(&RemovalPage { frame: frame(), name: user.name.to_string() })
}

pub(in crate::dashboard) async fn remove(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    dashboard.ops.remove_user(named(&name)?).await?;
    Ok(Redirect::to("/users"))
}
