//! Applies what concerns passkeys.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{Refusal, RefusalKind, Reply},
    tables::{PasskeyRow, SessionRow, UserRow},
    users::{invalid, no_user, refuse},
};
use crate::{
    identity::UserName,
    passkey::{MAX_PASSKEYS, NewPasskey, PasskeyUse, counts_on},
    token::TokenId,
};

pub(super) fn put(connection: &Connection, passkey: &NewPasskey, at_ms: i64) -> rusqlite::Result<Applied> {
    if let Err(breach) = passkey.check() {
        return invalid(breach);
    }
    let user = &passkey.user;
    match UserRow::named(connection, user)? {
        None => return no_user(user),
        Some(row) if row.disabled => {
            return refuse(RefusalKind::Stale, format!("the user `{user}` is disabled"), "ask an admin");
        }
        Some(_) => {}
    }
    let taken = PasskeyRow::called(connection, passkey.credential.as_bytes())?.is_some();
    if taken || PasskeyRow::by_id(connection, &passkey.id)?.is_some() {
        return refuse(RefusalKind::Exists, "this passkey is known already", "use another device, or remove it first");
    }
    let known = PasskeyRow::of(connection, user)?;
    if known.iter().any(|row| row.passkey.label == passkey.label) {
        let message = format!("`{user}` has a passkey `{}` already", passkey.label);
        return refuse(RefusalKind::Exists, message, "choose another name for the new one");
    }
    if known.len() >= MAX_PASSKEYS {
        let message = format!("`{user}` has {MAX_PASSKEYS} passkeys, and no more fit");
        return refuse(RefusalKind::Full, message, "remove one that is not used any more");
    }
    PasskeyRow { passkey: passkey.clone(), created_at_ms: at_ms, used_at_ms: None }.add(connection)?;
    Ok(Ok(Reply::Done))
}

/// Takes a passkey away, and ends the sessions that it opened.
pub(super) fn remove(connection: &Connection, user: &UserName, id: &TokenId) -> rusqlite::Result<Applied> {
    if PasskeyRow::by_id(connection, id)?.is_none_or(|row| row.passkey.user != *user) {
        let hint = format!("`toft user passkey ls {user}` shows those there are");
        return refuse(RefusalKind::NotFound, format!("`{user}` has no passkey `{id}`"), hint);
    }
    PasskeyRow::delete(connection, id)?;
    SessionRow::delete_by_passkey(connection, id)?;
    Ok(Ok(Reply::Done))
}

/// Notes that a passkey is used for a session of that user. It is refused when it was removed meanwhile, or when its counter does not
/// go on: another node has seen a later signature, or somebody has a copy.
pub(super) fn spend(
    connection: &Connection,
    user: &UserName,
    used: &PasskeyUse,
    at_ms: i64,
) -> rusqlite::Result<Result<(), Refusal>> {
    let known = PasskeyRow::by_id(connection, &used.passkey_id)?.filter(|row| row.passkey.user == *user);
    let stale = |message: &str, hint: &str| {
        Ok(Err(Refusal { kind: RefusalKind::Stale, message: message.into(), hint: hint.into() }))
    };
    let Some(row) = known else {
        return stale("the passkey was removed", "sign in with your password, and add it again on the account page");
    };
    if !counts_on(row.passkey.counter, used.counter) {
        return stale(
            "the passkey's counter went backwards: there may be a copy of it",
            "sign in with your password, remove the passkey, and add it again",
        );
    }
    PasskeyRow::note_use(connection, used, at_ms)?;
    Ok(Ok(()))
}
