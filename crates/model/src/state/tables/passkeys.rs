//! `passkeys`: what devices and password managers keep for people.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::text;
use crate::{
    identity::UserName,
    passkey::{NewPasskey, PasskeyUse},
    token::TokenId,
};

/// One row of `passkeys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasskeyRow {
    /// What it is, with the counter and the backup that it told last.
    #[serde(flatten)]
    pub passkey: NewPasskey,
    /// When it was added.
    pub created_at_ms: i64,
    /// When it opened a session last.
    pub used_at_ms: Option<i64>,
}

const COLUMNS: &str = "SELECT id, user, label, domain, credential, handle, key, transports, counter, backup, created_at_ms, used_at_ms FROM passkeys";

impl PasskeyRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            passkey: NewPasskey {
                id: text(row, 0)?,
                user: text(row, 1)?,
                label: row.get(2)?,
                domain: text(row, 3)?,
                credential: row.get(4)?,
                handle: row.get(5)?,
                key: row.get(6)?,
                transports: row.get(7)?,
                counter: row.get(8)?,
                backup: row.get(9)?,
            },
            created_at_ms: row.get(10)?,
            used_at_ms: row.get(11)?,
        })
    }

    /// Those of a user, the oldest first.
    pub fn of(connection: &Connection, user: &UserName) -> rusqlite::Result<Vec<Self>> {
        let select = format!("{COLUMNS} WHERE user = ?1 ORDER BY created_at_ms, id");
        connection.prepare_cached(&select)?.query_map([user.as_str()], Self::read)?.collect()
    }

    /// Whose there are, by name: a user as often as they have one.
    pub fn owners(connection: &Connection) -> rusqlite::Result<Vec<UserName>> {
        connection
            .prepare_cached("SELECT user FROM passkeys ORDER BY user")?
            .query_map([], |row| text(row, 0))?
            .collect()
    }

    /// Whether anybody has one.
    pub fn are_there(connection: &Connection) -> rusqlite::Result<bool> {
        connection.prepare_cached("SELECT 1 FROM passkeys LIMIT 1")?.exists([])
    }

    /// The passkey of that id.
    pub fn by_id(connection: &Connection, id: &TokenId) -> rusqlite::Result<Option<Self>> {
        connection.prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?.query_row([id.as_str()], Self::read).optional()
    }

    /// The one that authenticators call so.
    pub fn called(connection: &Connection, credential: &[u8]) -> rusqlite::Result<Option<Self>> {
        let select = format!("{COLUMNS} WHERE credential = ?1");
        connection.prepare_cached(&select)?.query_row([credential], Self::read).optional()
    }

    /// Adds the row; id, credential, and the label among those of its user must be free.
    pub fn add(&self, connection: &Connection) -> rusqlite::Result<()> {
        let NewPasskey { id, user, label, domain, credential, handle, key, transports, counter, backup } =
            &self.passkey;
        connection
            .prepare_cached(
                "INSERT INTO passkeys (id, user, label, domain, credential, handle, key, transports, counter, backup,
                                       created_at_ms, used_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                id.as_str(),
                user.as_str(),
                label,
                domain.as_str(),
                credential,
                handle,
                key,
                transports,
                counter,
                backup,
                self.created_at_ms,
                self.used_at_ms
            ])?;
        Ok(())
    }

    /// Notes what it told when it was used.
    pub fn note_use(connection: &Connection, used: &PasskeyUse, at_ms: i64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE passkeys SET counter = ?2, backup = ?3, used_at_ms = ?4 WHERE id = ?1")?
            .execute(params![used.passkey_id.as_str(), used.counter, used.backup, at_ms])?;
        Ok(())
    }

    /// Deletes the passkey of that id.
    pub fn delete(connection: &Connection, id: &TokenId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM passkeys WHERE id = ?1")?.execute([id.as_str()])?;
        Ok(())
    }
}
