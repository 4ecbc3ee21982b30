//! `users`, `sessions` and `api_tokens`: who may come in, who is signed in, and what programs show.

use rusqlite::{Connection, OptionalExtension, Row, params, types::ValueRef};
use serde::{Deserialize, Serialize};

use super::{ExternalUserRow, SecondFactorRow, from_json, text, to_json};
use crate::{
    identity::{NewApiToken, NewSession, PasswordHash, Rights, UserName},
    token::TokenId,
};

/// One row of `users`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRow {
    /// What they are called.
    pub name: UserName,
    /// What they may.
    pub rights: Rights,
    /// Their password.
    pub password: Option<PasswordHash>,
    /// Whether they are kept out.
    pub disabled: bool,
    /// When they were made known.
    pub created_at_ms: i64,
    /// When something about them changed last.
    pub changed_at_ms: i64,
}

const USER: &str = "SELECT name, role, grants, password, disabled, created_at_ms, changed_at_ms FROM users";

fn rights(row: &Row<'_>, role: usize) -> rusqlite::Result<Rights> {
    Ok(Rights { role: text(row, role)?, grants: from_json(row.get_ref(role + 1)?.as_str()?)? })
}

impl UserRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: text(row, 0)?,
            rights: rights(row, 1)?,
            password: row.get_ref(3)?.as_str_or_null()?.map(|_| text(row, 3)).transpose()?,
            disabled: row.get(4)?,
            created_at_ms: row.get(5)?,
            changed_at_ms: row.get(6)?,
        })
    }

    /// Every user, by name.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection.prepare_cached(&format!("{USER} ORDER BY name"))?.query_map([], Self::read)?.collect()
    }

    /// The user of that name.
    pub fn named(connection: &Connection, name: &UserName) -> rusqlite::Result<Option<Self>> {
        let select = format!("{USER} WHERE name = ?1");
        connection.prepare_cached(&select)?.query_row([name.as_str()], Self::read).optional()
    }

    /// Writes the row, new or changed.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO users (name, role, grants, password, disabled, created_at_ms, changed_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (name) DO UPDATE SET role = ?2, grants = ?3, password = ?4, disabled = ?5, changed_at_ms = ?7",
            )?
            .execute(params![
                self.name.as_str(),
                self.rights.role.as_str(),
                to_json(&self.rights.grants)?,
                self.password.as_ref().map(PasswordHash::as_str),
                self.disabled,
                self.created_at_ms,
                self.changed_at_ms
            ])?;
        Ok(())
    }

    /// Deletes a user with all tokens and sessions.
    pub fn delete(connection: &Connection, name: &UserName) -> rusqlite::Result<()> {
        SessionRow::delete_of(connection, name, None)?;
        SecondFactorRow::delete(connection, name)?;
        ExternalUserRow::delete(connection, name)?;
        connection.prepare_cached("DELETE FROM passkeys WHERE user = ?1")?.execute([name.as_str()])?;
        connection.prepare_cached("DELETE FROM api_tokens WHERE user = ?1")?.execute([name.as_str()])?;
        connection.prepare_cached("DELETE FROM users WHERE name = ?1")?.execute([name.as_str()])?;
        Ok(())
    }
}

/// One row of `sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// What it is.
    #[serde(flatten)]
    pub session: NewSession,
    /// When it was opened.
    pub opened_at_ms: i64,
    /// When it was used last, as far as that was told.
    pub seen_at_ms: i64,
    /// The passkey that opened it; none where a password did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passkey: Option<TokenId>,
}

const SESSION: &str = "SELECT id, secret, user, opened_at_ms, seen_at_ms, expires_at_ms, idle_ms, came_from, agent, passkey FROM sessions";

impl SessionRow {
    /// Whether it has ended at that time.
    pub fn has_ended(&self, now_ms: i64) -> bool {
        now_ms >= self.session.expires_at_ms || now_ms >= self.seen_at_ms.saturating_add(self.session.idle_ms)
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            session: NewSession {
                id: text(row, 0)?,
                secret: text(row, 1)?,
                user: text(row, 2)?,
                expires_at_ms: row.get(5)?,
                idle_ms: row.get(6)?,
                came_from: row.get(7)?,
                agent: row.get(8)?,
            },
            opened_at_ms: row.get(3)?,
            seen_at_ms: row.get(4)?,
            passkey: match row.get_ref(9)? {
                ValueRef::Null => None,
                _ => Some(text(row, 9)?),
            },
        })
    }

    /// Every session, the one used last first.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let select = format!("{SESSION} ORDER BY seen_at_ms DESC, id");
        connection.prepare_cached(&select)?.query_map([], Self::read)?.collect()
    }

    /// The sessions of a user, the one used last first.
    pub fn of(connection: &Connection, user: &UserName) -> rusqlite::Result<Vec<Self>> {
        let select = format!("{SESSION} WHERE user = ?1 ORDER BY seen_at_ms DESC, id");
        connection.prepare_cached(&select)?.query_map([user.as_str()], Self::read)?.collect()
    }

    /// The session of that id.
    pub fn by_id(connection: &Connection, id: &TokenId) -> rusqlite::Result<Option<Self>> {
        connection.prepare_cached(&format!("{SESSION} WHERE id = ?1"))?.query_row([id.as_str()], Self::read).optional()
    }

    /// Adds the row; its id must be free.
    pub fn add(&self, connection: &Connection) -> rusqlite::Result<()> {
        let NewSession { id, secret, user, expires_at_ms, idle_ms, came_from, agent } = &self.session;
        connection
            .prepare_cached(
                "INSERT INTO sessions (id, secret, user, opened_at_ms, seen_at_ms, expires_at_ms, idle_ms, came_from, agent, passkey)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                id.as_str(),
                secret.to_string(),
                user.as_str(),
                self.opened_at_ms,
                self.seen_at_ms,
                expires_at_ms,
                idle_ms,
                came_from,
                agent,
                self.passkey.as_ref().map(TokenId::as_str)
            ])?;
        Ok(())
    }

    /// Notes that it was used, if that is news.
    pub fn note_use(connection: &Connection, id: &TokenId, at_ms: i64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE sessions SET seen_at_ms = ?2 WHERE id = ?1 AND seen_at_ms < ?2")?
            .execute(params![id.as_str(), at_ms])?;
        Ok(())
    }

    /// Deletes the session of that id.
    pub fn delete(connection: &Connection, id: &TokenId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM sessions WHERE id = ?1")?.execute([id.as_str()])?;
        Ok(())
    }

    /// Deletes the sessions of a user but one.
    pub fn delete_of(connection: &Connection, user: &UserName, but: Option<&TokenId>) -> rusqlite::Result<()> {
        connection
            .prepare_cached("DELETE FROM sessions WHERE user = ?1 AND (?2 IS NULL OR id <> ?2)")?
            .execute(params![user.as_str(), but.map(TokenId::as_str)])?;
        Ok(())
    }

    /// Deletes those that a passkey opened.
    pub fn delete_by_passkey(connection: &Connection, passkey: &TokenId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM sessions WHERE passkey = ?1")?.execute([passkey.as_str()])?;
        Ok(())
    }

    /// Deletes those that have ended.
    pub fn forget_ended(connection: &Connection, now_ms: i64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("DELETE FROM sessions WHERE expires_at_ms <= ?1 OR seen_at_ms + idle_ms <= ?1")?
            .execute([now_ms])?;
        Ok(())
    }
}

/// One row of `api_tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiTokenRow {
    /// What it is.
    #[serde(flatten)]
    pub token: NewApiToken,
    /// When it was made.
    pub created_at_ms: i64,
    /// When it was used last, as far as that was told.
    pub used_at_ms: Option<i64>,
}

const API_TOKEN: &str =
    "SELECT id, secret, user, label, role, grants, created_at_ms, expires_at_ms, used_at_ms FROM api_tokens";

impl ApiTokenRow {
    /// Whether it is of no use any more at that time.
    pub fn has_expired(&self, now_ms: i64) -> bool {
        now_ms >= self.token.expires_at_ms
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            token: NewApiToken {
                id: text(row, 0)?,
                secret: text(row, 1)?,
                user: text(row, 2)?,
                label: row.get(3)?,
                rights: rights(row, 4)?,
                expires_at_ms: row.get(7)?,
            },
            created_at_ms: row.get(6)?,
            used_at_ms: row.get(8)?,
        })
    }

    /// Every token, the newest first.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let select = format!("{API_TOKEN} ORDER BY created_at_ms DESC, id");
        connection.prepare_cached(&select)?.query_map([], Self::read)?.collect()
    }

    /// The tokens of a user, the newest first.
    pub fn of(connection: &Connection, user: &UserName) -> rusqlite::Result<Vec<Self>> {
        let select = format!("{API_TOKEN} WHERE user = ?1 ORDER BY created_at_ms DESC, id");
        connection.prepare_cached(&select)?.query_map([user.as_str()], Self::read)?.collect()
    }

    /// The token of that id.
    pub fn by_id(connection: &Connection, id: &TokenId) -> rusqlite::Result<Option<Self>> {
        let select = format!("{API_TOKEN} WHERE id = ?1");
        connection.prepare_cached(&select)?.query_row([id.as_str()], Self::read).optional()
    }

    /// Adds the row; its id must be free.
    pub fn add(&self, connection: &Connection) -> rusqlite::Result<()> {
        let NewApiToken { id, secret, user, label, rights, expires_at_ms } = &self.token;
        connection
            .prepare_cached(
                "INSERT INTO api_tokens (id, secret, user, label, role, grants, created_at_ms, expires_at_ms, used_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                id.as_str(),
                secret.to_string(),
                user.as_str(),
                label,
                rights.role.as_str(),
                to_json(&rights.grants)?,
                self.created_at_ms,
                expires_at_ms,
                self.used_at_ms
            ])?;
        Ok(())
    }

    /// Notes that it was used, if that is news.
    pub fn note_use(connection: &Connection, id: &TokenId, at_ms: i64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE api_tokens SET used_at_ms = ?2 WHERE id = ?1 AND coalesce(used_at_ms, 0) < ?2")?
            .execute(params![id.as_str(), at_ms])?;
        Ok(())
    }

    /// Deletes the token of that id.
    pub fn delete(connection: &Connection, id: &TokenId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM api_tokens WHERE id = ?1")?.execute([id.as_str()])?;
        Ok(())
    }

    /// Deletes those that expired before a time.
    pub fn forget_expired(connection: &Connection, before_ms: i64) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM api_tokens WHERE expires_at_ms <= ?1")?.execute([before_ms])?;
        Ok(())
    }
}
