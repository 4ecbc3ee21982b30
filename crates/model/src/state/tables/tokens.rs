//! `tokens`, `admissions` and `removed_nodes`: what lets machines join, who was let in, and who is one no longer.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{from_json, name, text, to_json};
use crate::{
    ids::NodeId,
    name::Name,
    token::{MemberRole, NewToken, TokenId},
};

/// Removed nodes that are remembered.
const REMEMBERED: u32 = 256;

/// One row of `tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// What it is.
    #[serde(flatten)]
    pub token: NewToken,
    /// How many more may join with it.
    pub uses_left: u32,
    /// When it was made.
    pub created_at_ms: i64,
    /// When it was revoked, if it was.
    pub revoked_at_ms: Option<i64>,
}

/// Whether a token lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// It does.
    Valid,
    /// Its time is over.
    Expired,
    /// As many have joined as may.
    Spent,
    /// Somebody took it back.
    Revoked,
}

impl TokenState {
    /// The word for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Spent => "spent",
            Self::Revoked => "revoked",
        }
    }
}

const TOKEN: &str =
    "SELECT id, secret, role, name, labels, uses, uses_left, created_at_ms, expires_at_ms, revoked_at_ms FROM tokens";

impl TokenRow {
    /// Whether it lets in at that time.
    pub fn state(&self, now_ms: i64) -> TokenState {
        if self.revoked_at_ms.is_some() {
            TokenState::Revoked
        } else if self.uses_left == 0 {
            TokenState::Spent
        } else if now_ms >= self.token.expires_at_ms {
            TokenState::Expired
        } else {
            TokenState::Valid
        }
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            token: NewToken {
                id: text(row, 0)?,
                secret: text(row, 1)?,
                role: text(row, 2)?,
                name: row.get_ref(3)?.as_str_or_null()?.map(|_| name(row, 3)).transpose()?,
                labels: from_json(row.get_ref(4)?.as_str()?)?,
                uses: row.get(5)?,
                expires_at_ms: row.get(8)?,
            },
            uses_left: row.get(6)?,
            created_at_ms: row.get(7)?,
            revoked_at_ms: row.get(9)?,
        })
    }

    /// Every token, the newest first.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let select = format!("{TOKEN} ORDER BY created_at_ms DESC, id");
        connection.prepare_cached(&select)?.query_map([], Self::read)?.collect()
    }

    /// The token of that id.
    pub fn by_id(connection: &Connection, id: &TokenId) -> rusqlite::Result<Option<Self>> {
        connection.prepare_cached(&format!("{TOKEN} WHERE id = ?1"))?.query_row([id.as_str()], Self::read).optional()
    }

    /// Writes the row, new or changed.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        let NewToken { id, secret, role, name, labels, uses, expires_at_ms } = &self.token;
        connection
            .prepare_cached(
                "INSERT INTO tokens (id, secret, role, name, labels, uses, uses_left, created_at_ms, expires_at_ms, revoked_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (id) DO UPDATE SET uses_left = ?7, revoked_at_ms = ?10",
            )?
            .execute(params![
                id.as_str(),
                secret.to_string(),
                role.as_str(),
                name.as_ref().map(Name::as_str),
                to_json(labels)?,
                uses,
                self.uses_left,
                self.created_at_ms,
                expires_at_ms,
                self.revoked_at_ms
            ])?;
        Ok(())
    }

    /// Deletes those that let nobody in and were made before a time.
    pub fn forget_useless(connection: &Connection, now_ms: i64, before_ms: i64) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "DELETE FROM tokens WHERE created_at_ms < ?2
                 AND (uses_left = 0 OR revoked_at_ms IS NOT NULL OR expires_at_ms <= ?1)",
            )?
            .execute([now_ms, before_ms])?;
        Ok(())
    }
}

/// One row of `admissions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionRow {
    /// The node.
    pub node_id: NodeId,
    /// The token that let it in.
    pub token_id: TokenId,
    /// SHA-256 of its public key.
    pub key: crate::token::Digest,
    /// Its number as a member.
    pub member_id: u64,
    /// Its name when it joined.
    pub name: Name,
    /// What it does.
    pub role: MemberRole,
    /// Labels it was given.
    pub labels: BTreeMap<String, String>,
    /// When.
    pub at_ms: i64,
}

const ADMISSION: &str = "SELECT node_id, token_id, key, member_id, name, role, labels, at_ms FROM admissions";

impl AdmissionRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            node_id: row.get(0)?,
            token_id: text(row, 1)?,
            key: text(row, 2)?,
            member_id: row.get(3)?,
            name: name(row, 4)?,
            role: text(row, 5)?,
            labels: from_json(row.get_ref(6)?.as_str()?)?,
            at_ms: row.get(7)?,
        })
    }

    /// Every admission, by time.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("{ADMISSION} ORDER BY at_ms, member_id"))?
            .query_map([], Self::read)?
            .collect()
    }

    /// Servers that were let in and have not told yet what they are, by name.
    pub fn joining(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let unheard = "role = 'server' AND node_id NOT IN (SELECT id FROM nodes)";
        connection
            .prepare_cached(&format!("{ADMISSION} WHERE {unheard} ORDER BY name"))?
            .query_map([], Self::read)?
            .collect()
    }

    /// The admission of a node.
    pub fn of(connection: &Connection, node_id: NodeId) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached(&format!("{ADMISSION} WHERE node_id = ?1"))?
            .query_row([node_id], Self::read)
            .optional()
    }

    /// The admission of whoever has a key.
    pub fn by_key(connection: &Connection, key: &crate::token::Digest) -> rusqlite::Result<Option<Self>> {
        let select = format!("{ADMISSION} WHERE key = ?1");
        connection.prepare_cached(&select)?.query_row([key.to_string()], Self::read).optional()
    }

    /// Whether a member of that number was let in and has not been removed.
    pub fn knows_member(connection: &Connection, member_id: u64) -> rusqlite::Result<bool> {
        connection.prepare_cached("SELECT 1 FROM admissions WHERE member_id = ?1")?.exists([member_id])
    }

    /// A number that no member had, for one that is let in by the command at `index` of the log. Members were once numbered
    /// by the log alone, with numbers up to its end.
    pub fn next_number(connection: &Connection, index: u64) -> rusqlite::Result<u64> {
        connection
            .prepare_cached("UPDATE member_numbers SET last = MAX(?1, last + 1) WHERE id = 1 RETURNING last")?
            .query_row([index + 2], |row| row.get(0))
    }

    /// Writes the row; it replaces the node's earlier one.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO admissions (node_id, token_id, key, member_id, name, role, labels, at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                self.node_id,
                self.token_id.as_str(),
                self.key.to_string(),
                self.member_id,
                self.name.as_str(),
                self.role.as_str(),
                to_json(&self.labels)?,
                self.at_ms
            ])?;
        Ok(())
    }

    /// Deletes the admission of a node.
    pub fn delete(connection: &Connection, node_id: NodeId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM admissions WHERE node_id = ?1")?.execute([node_id])?;
        Ok(())
    }
}

/// One row of `removed_nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedNodeRow {
    /// The node.
    pub node_id: NodeId,
    /// What it was called.
    pub name: Name,
    /// When it was removed.
    pub at_ms: i64,
}

impl RemovedNodeRow {
    /// Whether a node was removed.
    pub fn has(connection: &Connection, node_id: NodeId) -> rusqlite::Result<bool> {
        connection.prepare_cached("SELECT 1 FROM removed_nodes WHERE node_id = ?1")?.exists([node_id])
    }

    /// Writes the row and forgets the oldest.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT OR REPLACE INTO removed_nodes (node_id, name, at_ms) VALUES (?1, ?2, ?3)")?
            .execute(params![self.node_id, self.name.as_str(), self.at_ms])?;
        connection
            .prepare_cached(
                "DELETE FROM removed_nodes WHERE node_id NOT IN
                 (SELECT node_id FROM removed_nodes ORDER BY at_ms DESC, node_id DESC LIMIT ?1)",
            )?
            .execute([REMEMBERED])?;
        Ok(())
    }

    /// Deletes the row: the node is let in again.
    pub fn delete(connection: &Connection, node_id: NodeId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM removed_nodes WHERE node_id = ?1")?.execute([node_id])?;
        Ok(())
    }
}
