//! Applies what concerns users, sessions and API tokens.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{Refusal, RefusalKind, Reply},
    passkeys, second_factors,
    tables::{ApiTokenRow, ExternalUserRow, SessionRow, UserRow},
};
use crate::{
    identity::{
        ExternalUser, FIRST_USER, MAX_API_TOKENS, MAX_SESSIONS, MAX_USERS, NewApiToken, NewSession, NewUser, Rights,
        Role, UserChanges, UserName,
    },
    invalid::Invalid,
    passkey::PasskeyUse,
    second_factor::FactorProof,
    token::TokenId,
};

/// How long an API token that expired is shown: a week.
const SHOWN_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

pub(super) fn refuse(
    kind: RefusalKind,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> rusqlite::Result<Applied> {
    Ok(Err(Refusal { kind, message: message.into(), hint: hint.into() }))
}

pub(super) fn invalid(Invalid { message, hint, .. }: Invalid) -> rusqlite::Result<Applied> {
    refuse(RefusalKind::Invalid, message, hint)
}

pub(super) fn no_user(name: &UserName) -> rusqlite::Result<Applied> {
    let hint = if name.is_first() {
        "choose its password first: sign in with the first password, or use `toft user passwd admin` on a node"
    } else {
        "`toft user ls` shows the users there are"
    };
    refuse(RefusalKind::NotFound, format!("there is no user `{name}`"), hint)
}

pub(super) fn create(connection: &Connection, user: &NewUser, at_ms: i64) -> rusqlite::Result<Applied> {
    if let Err(breach) = user.rights.check() {
        return invalid(breach);
    }
    if user.name.is_first() && (user.rights.role != Role::Admin || user.password.is_none()) {
        let message = format!("`{FIRST_USER}` is an admin with a password");
        return refuse(RefusalKind::Invalid, message, "choose another name for this user");
    }
    let users = UserRow::all(connection)?;
    if users.iter().any(|known| known.name == user.name) {
        let hint = "choose another name, or change the user that is there";
        return refuse(RefusalKind::Exists, format!("there is a user `{}` already", user.name), hint);
    }
    if users.len() >= MAX_USERS {
        return refuse(RefusalKind::Full, format!("there are {MAX_USERS} users, and no more fit"), "remove some");
    }
    let NewUser { name, rights, password } = user.clone();
    UserRow { name, rights, password, disabled: false, created_at_ms: at_ms, changed_at_ms: at_ms }.save(connection)?;
    Ok(Ok(Reply::Done))
}

/// Changes a user. A new password ends the sessions but `keep`.
pub(super) fn change(
    connection: &Connection,
    name: &UserName,
    changes: &UserChanges,
    keep: Option<&TokenId>,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let Some(known) = UserRow::named(connection, name)? else { return no_user(name) };
    let mut row = known.clone();
    row.rights.role = changes.role.unwrap_or(row.rights.role);
    row.rights.grants = changes.grants.clone().unwrap_or(row.rights.grants);
    row.disabled = changes.disabled.unwrap_or(row.disabled);
    row.password = changes.password.clone().or(row.password);
    if let Err(breach) = row.rights.check() {
        return invalid(breach);
    }
    let leads = |user: &UserRow| user.rights.role == Role::Admin && !user.disabled && user.password.is_some();
    if leads(&known) && !leads(&row) && is_last_admin(connection, name)? {
        let hint = "make another user an admin with a password first";
        return refuse(RefusalKind::InUse, format!("`{name}` is the last admin"), hint);
    }
    if row != known {
        row.changed_at_ms = at_ms;
        row.save(connection)?;
    }
    if changes.password.is_some() || row.disabled {
        SessionRow::delete_of(connection, name, keep.filter(|_| !row.disabled))?;
    }
    Ok(Ok(Reply::Done))
}

/// Whether nobody else is an admin who can sign in. Before the first user has a row, the first password lets one in.
fn is_last_admin(connection: &Connection, name: &UserName) -> rusqlite::Result<bool> {
    let users = UserRow::all(connection)?;
    let closed = users.iter().any(|user| user.name.is_first());
    let others = users.iter().filter(|user| user.name != *name);
    let mut leads = others.filter(|user| user.rights.role == Role::Admin && !user.disabled && user.password.is_some());
    Ok(closed && leads.next().is_none())
}

/// A provider has signed somebody in: they become a user, or have by now what their groups give. Whom they give nothing any more is
/// signed out and only looks.
pub(super) fn accept(connection: &Connection, user: &ExternalUser, at_ms: i64) -> rusqlite::Result<Applied> {
    if let Err(breach) = user.check() {
        return invalid(breach);
    }
    let known = ExternalUserRow::user_of(connection, &user.issuer, &user.subject)?;
    let Some(name) = known else { return accept_new(connection, user, at_ms) };
    let Some(mut row) = UserRow::named(connection, &name)? else { return no_user(&name) };
    if row.disabled {
        return refuse(RefusalKind::Stale, format!("the user `{name}` is disabled"), "ask an admin");
    }
    let role = user.role.unwrap_or_default();
    let leads = row.rights.role == Role::Admin && row.password.is_some();
    if leads && role != Role::Admin && is_last_admin(connection, &name)? {
        let hint = "make another user an admin with a password first";
        return refuse(RefusalKind::InUse, format!("`{name}` is the last admin"), hint);
    }
    if row.rights.role != role {
        row.rights.role = role;
        row.changed_at_ms = at_ms;
        row.save(connection)?;
    }
    if user.role.is_none() {
        SessionRow::delete_of(connection, &name, None)?;
    }
    Ok(Ok(Reply::Done))
}

fn accept_new(connection: &Connection, user: &ExternalUser, at_ms: i64) -> rusqlite::Result<Applied> {
    let ExternalUser { issuer, subject, name, role } = user.clone();
    let (Some(name), Some(role)) = (name, role) else {
        let hint = "the provider must give a name, and a group that has a role here";
        return refuse(RefusalKind::Invalid, "nobody is known of that name, and none can be made", hint);
    };
    // Whoever is here already is not taken over by somebody of the same name elsewhere.
    if name.is_first() || UserRow::named(connection, &name)?.is_some() {
        let hint = "ask an admin: that user is removed first, or the provider calls one of the two otherwise";
        return refuse(RefusalKind::Exists, format!("there is another user `{name}` already"), hint);
    }
    let rights = Rights { role, ..Rights::default() };
    let created = create(connection, &NewUser { name: name.clone(), rights, password: None }, at_ms)?;
    if created.is_ok() {
        ExternalUserRow { issuer, subject, user: name }.add(connection)?;
    }
    Ok(created)
}

pub(super) fn remove(connection: &Connection, name: &UserName) -> rusqlite::Result<Applied> {
    if name.is_first() {
        let hint = "disable it, when another user is an admin";
        return refuse(RefusalKind::InUse, format!("`{FIRST_USER}` cannot be removed"), hint);
    }
    let Some(row) = UserRow::named(connection, name)? else { return no_user(name) };
    if row.rights.role == Role::Admin && !row.disabled && is_last_admin(connection, name)? {
        let hint = "make another user an admin with a password first";
        return refuse(RefusalKind::InUse, format!("`{name}` is the last admin"), hint);
    }
    UserRow::delete(connection, name)?;
    Ok(Ok(Reply::Done))
}

/// What was shown for a session beside a password, or in its place.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) proof: Option<&'a FactorProof>,
    pub(super) passkey: Option<&'a PasskeyUse>,
}

/// Opens a session. Who has a second factor proves it with this very command: whoever was asked may not know of it yet. A passkey is
/// more than a second factor, and stands in its place.
pub(super) fn open_session(
    connection: &Connection,
    session: &NewSession,
    shown: Shown<'_>,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    if let Err(breach) = session.check(at_ms) {
        return invalid(breach);
    }
    match UserRow::named(connection, &session.user)? {
        Some(user) if user.disabled => {
            let message = format!("the user `{}` is disabled", session.user);
            return refuse(RefusalKind::Stale, message, "ask an admin");
        }
        Some(_) => {}
        None if session.user.is_first() => {}
        None => return no_user(&session.user),
    }
    if SessionRow::by_id(connection, &session.id)?.is_some() {
        return refuse(RefusalKind::Exists, "there is a session of that id already", "sign in again");
    }
    let spent = match shown.passkey {
        Some(used) => passkeys::spend(connection, &session.user, used, at_ms)?,
        None => second_factors::spend(connection, &session.user, shown.proof)?,
    };
    if let Err(refusal) = spent {
        return Ok(Err(refusal));
    }
    SessionRow::forget_ended(connection, at_ms)?;
    let known = SessionRow::of(connection, &session.user)?;
    for unused in known.iter().skip(MAX_SESSIONS - 1) {
        SessionRow::delete(connection, &unused.session.id)?;
    }
    let passkey = shown.passkey.map(|used| used.passkey_id.clone());
    SessionRow { session: session.clone(), opened_at_ms: at_ms, seen_at_ms: at_ms, passkey }.add(connection)?;
    Ok(Ok(Reply::Done))
}

pub(super) fn create_api_token(connection: &Connection, token: &NewApiToken, at_ms: i64) -> rusqlite::Result<Applied> {
    if let Err(breach) = token.check(at_ms) {
        return invalid(breach);
    }
    let Some(owner) = UserRow::named(connection, &token.user)? else { return no_user(&token.user) };
    if !token.rights.within(&owner.rights) {
        let message = format!("the token may more than `{}`", token.user);
        return refuse(RefusalKind::Invalid, message, "give it at most the role and the grants of its owner");
    }
    if ApiTokenRow::by_id(connection, &token.id)?.is_some() {
        return refuse(RefusalKind::Exists, "there is a token of that id already", "repeat the request");
    }
    let known = ApiTokenRow::of(connection, &token.user)?;
    if known.iter().filter(|row| !row.has_expired(at_ms)).count() >= MAX_API_TOKENS {
        let message = format!("`{}` has {MAX_API_TOKENS} tokens, and no more fit", token.user);
        return refuse(RefusalKind::Full, message, "revoke some");
    }
    // Those that expired are shown for a while, unless there is no room.
    let before_ms = if known.len() >= MAX_API_TOKENS { at_ms } else { at_ms.saturating_sub(SHOWN_MS) };
    ApiTokenRow::forget_expired(connection, before_ms)?;
    ApiTokenRow { token: token.clone(), created_at_ms: at_ms, used_at_ms: None }.add(connection)?;
    Ok(Ok(Reply::Done))
}

pub(super) fn revoke_api_token(connection: &Connection, id: &TokenId) -> rusqlite::Result<Applied> {
    if ApiTokenRow::by_id(connection, id)?.is_none() {
        let hint = "`toft user token list` shows the tokens there are";
        return refuse(RefusalKind::NotFound, format!("there is no API token `{id}`"), hint);
    }
    ApiTokenRow::delete(connection, id)?;
    Ok(Ok(Reply::Done))
}
