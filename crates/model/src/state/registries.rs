//! Commands on logins at registries.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{Refusal, RefusalKind, Reply},
    tables::{EventLevel, EventRow, RegistryRow},
};
use crate::{
    registry::{MAX_LOGINS, MAX_PASSWORD_BYTES, RegistryName, check_username},
    secret::{Sealed, SealedSecret},
};

pub(super) fn put(
    connection: &Connection,
    registry: &RegistryName,
    username: &str,
    value: &SealedSecret,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    if let Err(invalid) = check_username(username) {
        let (message, hint) = (invalid.message, invalid.hint);
        return Ok(Err(Refusal { kind: RefusalKind::Invalid, message, hint }));
    }
    let known = RegistryRow::of(connection, registry)?;
    // The password is sealed for one version: whoever sealed it must have seen the one before.
    if value.version != known.as_ref().map_or(0, |row| row.version) + 1 {
        return Ok(Err(Refusal {
            kind: RefusalKind::Stale,
            message: format!("the login at `{registry}` was changed meanwhile"),
            hint: "repeat the change".into(),
        }));
    }
    let full = |message: String, hint: &str| Ok(Err(Refusal { kind: RefusalKind::Full, message, hint: hint.into() }));
    if value.sealed.as_bytes().len() > MAX_PASSWORD_BYTES + Sealed::MOST_OVERHEAD_BYTES {
        return full(
            format!("a password has at most {MAX_PASSWORD_BYTES} bytes"),
            "use a shorter one, or an access token",
        );
    }
    let count = RegistryRow::count(connection)?;
    if known.is_none() && count >= MAX_LOGINS {
        return full(format!("there are {count} logins, and no more fit"), "remove one with `toft registry logout`");
    }
    let row = RegistryRow {
        registry: registry.clone(),
        username: username.to_owned(),
        version: value.version,
        created_at_ms: known.map_or(at_ms, |row| row.created_at_ms),
        updated_at_ms: at_ms,
    };
    row.save(connection, &value.sealed)?;
    tell(connection, at_ms, registry, &format!("login as `{username}`"))?;
    Ok(Ok(Reply::Registry(Box::new(row))))
}

pub(super) fn remove(connection: &Connection, registry: &RegistryName, at_ms: i64) -> rusqlite::Result<Applied> {
    if RegistryRow::of(connection, registry)?.is_none() {
        return Ok(Err(Refusal {
            kind: RefusalKind::NotFound,
            message: format!("there is no login at `{registry}`"),
            hint: "`toft registry ls` shows the logins there are".into(),
        }));
    }
    RegistryRow::delete(connection, registry)?;
    tell(connection, at_ms, registry, "login removed")?;
    Ok(Ok(Reply::Done))
}

fn tell(connection: &Connection, at_ms: i64, registry: &RegistryName, message: &str) -> rusqlite::Result<()> {
    EventRow::add(connection, at_ms, EventLevel::Info, &format!("registry/{registry}"), message)
}
