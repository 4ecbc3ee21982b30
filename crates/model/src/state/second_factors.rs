//! Applies what concerns second factors, and tells how somebody stands with theirs.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{Refusal, RefusalKind, Reply},
    tables::{SecondFactorRow, UserRow, access_settings, save_access_settings},
    users::{invalid, no_user, refuse},
};
use crate::{
    identity::{Role, UserName},
    second_factor::{AccessChanges, FactorProof, NewSecondFactor},
};

/// A user, and how they stand with their second factor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserStanding {
    /// The user.
    pub row: UserRow,
    /// Whether they have one.
    pub has_factor: bool,
    /// Whether they are asked to have one, and have none.
    pub lacks_factor: bool,
}

impl UserStanding {
    /// The same for who has shown a passkey, which stands for password and second factor.
    pub fn with_passkey(self) -> Self {
        Self { lacks_factor: false, ..self }
    }
}

/// How the user of that name stands; `None` when there is none.
pub fn query_standing(connection: &Connection, name: &UserName) -> rusqlite::Result<Option<UserStanding>> {
    let Some(row) = UserRow::named(connection, name)? else { return Ok(None) };
    let has_factor = SecondFactorRow::is_there(connection, name)?;
    // Only passwords are asked to have company: who comes with none, comes otherwise.
    let asked = row.rights.role == Role::Admin && row.password.is_some();
    let lacks_factor = asked && !has_factor && access_settings(connection)?.second_factor_for_admins;
    Ok(Some(UserStanding { row, has_factor, lacks_factor }))
}

fn spent_already() -> Refusal {
    Refusal {
        kind: RefusalKind::Stale,
        message: "the code was used before, or belongs to another second factor".into(),
        hint: "wait for the next code".into(),
    }
}

/// Spends a proof; without a second factor there is nothing to prove.
pub(super) fn spend(
    connection: &Connection,
    user: &UserName,
    proof: Option<&FactorProof>,
) -> rusqlite::Result<Result<(), Refusal>> {
    let Some(factor) = SecondFactorRow::of(connection, user)? else { return Ok(Ok(())) };
    let Some(spent) = proof.and_then(|proof| factor.spent(proof)) else { return Ok(Err(spent_already())) };
    spent.save(connection)?;
    Ok(Ok(()))
}

pub(super) fn put(connection: &Connection, factor: &NewSecondFactor) -> rusqlite::Result<Applied> {
    if let Err(breach) = factor.check() {
        return invalid(breach);
    }
    match UserRow::named(connection, &factor.user)? {
        None => return no_user(&factor.user),
        Some(user) if user.disabled => {
            let message = format!("the user `{}` is disabled", factor.user);
            return refuse(RefusalKind::Stale, message, "ask an admin");
        }
        Some(_) => {}
    }
    if SecondFactorRow::is_there(connection, &factor.user)? {
        let message = format!("`{}` has a second factor already", factor.user);
        return refuse(RefusalKind::Exists, message, "turn it off first");
    }
    SecondFactorRow(factor.clone()).save(connection)?;
    Ok(Ok(Reply::Done))
}

/// Takes a second factor away. With a proof it is spent first; without, an admin has decided it.
pub(super) fn remove(
    connection: &Connection,
    user: &UserName,
    proof: Option<&FactorProof>,
) -> rusqlite::Result<Applied> {
    if !SecondFactorRow::is_there(connection, user)? {
        let hint = "`toft user ls` shows who has one";
        return refuse(RefusalKind::NotFound, format!("`{user}` has no second factor"), hint);
    }
    if proof.is_some()
        && let Err(refusal) = spend(connection, user, proof)?
    {
        return Ok(Err(refusal));
    }
    SecondFactorRow::delete(connection, user)?;
    Ok(Ok(Reply::Done))
}

pub(super) fn configure(connection: &Connection, changes: &AccessChanges) -> rusqlite::Result<Applied> {
    let before = access_settings(connection)?;
    let settings = match before.with(changes) {
        Ok(settings) => settings,
        Err(breach) => return invalid(breach),
    };
    if settings != before {
        save_access_settings(connection, &settings)?;
    }
    Ok(Ok(Reply::Done))
}
