//! Applies what concerns the keys that sign short-lived tokens.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{RefusalKind, Reply},
    tables::SigningKeyRow,
    users::{invalid, refuse},
};
use crate::signing::{NewSigningKey, SIGNS_MS, is_over};

/// Adds a key, and forgets those that are of no use any more: with `alone` all the others, so that nothing they signed counts.
pub(super) fn put(connection: &Connection, key: &NewSigningKey, alone: bool, at_ms: i64) -> rusqlite::Result<Applied> {
    if let Err(breach) = key.check() {
        return invalid(breach);
    }
    let known = SigningKeyRow::all(connection)?;
    if known.iter().any(|row| row.key.id == key.id) {
        return refuse(RefusalKind::Exists, "there is a signing key of that id already", "repeat the request");
    }
    // Two leaders in a row may both find that it is time.
    let fresh = known.iter().any(|row| at_ms.saturating_sub(row.created_at_ms) < SIGNS_MS / 2);
    if fresh && !alone {
        return refuse(RefusalKind::Stale, "the newest signing key is young", "wait until it is a day old");
    }
    for row in known.iter().filter(|row| alone || is_over(row.created_at_ms, at_ms)) {
        SigningKeyRow::delete(connection, &row.key.id)?;
    }
    SigningKeyRow { key: key.clone(), created_at_ms: at_ms }.add(connection)?;
    Ok(Ok(Reply::Done))
}
