//! `signing_keys`: what signs short-lived tokens for services.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::text;
use crate::{signing::NewSigningKey, token::TokenId};

/// One row of `signing_keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKeyRow {
    /// The key.
    #[serde(flatten)]
    pub key: NewSigningKey,
    /// When it was made.
    pub created_at_ms: i64,
}

const COLUMNS: &str = "SELECT id, public, sealed, created_at_ms FROM signing_keys";

impl SigningKeyRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let key = NewSigningKey { id: text(row, 0)?, public: row.get(1)?, sealed: row.get(2)? };
        Ok(Self { key, created_at_ms: row.get(3)? })
    }

    /// Every key, the newest first.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let select = format!("{COLUMNS} ORDER BY created_at_ms DESC, id");
        connection.prepare_cached(&select)?.query_map([], Self::read)?.collect()
    }

    /// The key of that id.
    pub fn by_id(connection: &Connection, id: &TokenId) -> rusqlite::Result<Option<Self>> {
        connection.prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?.query_row([id.as_str()], Self::read).optional()
    }

    /// Adds the row; its id must be free.
    pub fn add(&self, connection: &Connection) -> rusqlite::Result<()> {
        let NewSigningKey { id, public, sealed } = &self.key;
        connection
            .prepare_cached("INSERT INTO signing_keys (id, public, sealed, created_at_ms) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![id.as_str(), public, sealed, self.created_at_ms])?;
        Ok(())
    }

    /// Deletes the key of that id.
    pub fn delete(connection: &Connection, id: &TokenId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM signing_keys WHERE id = ?1")?.execute([id.as_str()])?;
        Ok(())
    }
}
