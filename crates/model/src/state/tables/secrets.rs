//! `secrets`: sealed values by name.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::name;
use crate::{
    name::Name,
    secret::{Sealed, SealedSecret},
};

/// One row of `secrets`, without the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRow {
    /// Unique in the cluster.
    pub name: Name,
    /// Counts the values written under this name, from 1.
    pub version: u64,
    /// Size of the value in bytes.
    pub size_bytes: u64,
    /// When the name was first written.
    pub created_at_ms: i64,
    /// When the value was last changed.
    pub updated_at_ms: i64,
}

const COLUMNS: &str = "name, version, size_bytes, created_at_ms, updated_at_ms";

impl SecretRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: name(row, 0)?,
            version: row.get(1)?,
            size_bytes: row.get(2)?,
            created_at_ms: row.get(3)?,
            updated_at_ms: row.get(4)?,
        })
    }

    /// Every secret, by name.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM secrets ORDER BY name"))?
            .query_map([], Self::read)?
            .collect()
    }

    /// The secret of that name.
    pub fn named(connection: &Connection, name: &Name) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM secrets WHERE name = ?1"))?
            .query_row([name.as_str()], Self::read)
            .optional()
    }

    /// The sealed value of that name.
    pub fn sealed(connection: &Connection, name: &Name) -> rusqlite::Result<Option<SealedSecret>> {
        connection
            .prepare_cached("SELECT version, sealed FROM secrets WHERE name = ?1")?
            .query_row([name.as_str()], |row| Ok(SealedSecret { version: row.get(0)?, sealed: row.get(1)? }))
            .optional()
    }

    /// How many secrets there are, and the bytes of all values.
    pub fn totals(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
        connection
            .prepare_cached("SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM secrets")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// Writes the row, new or changed, with its value.
    pub fn save(&self, connection: &Connection, sealed: &Sealed) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO secrets (name, version, size_bytes, sealed, created_at_ms, updated_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (name) DO UPDATE SET version = ?2, size_bytes = ?3, sealed = ?4, updated_at_ms = ?6",
            )?
            .execute(params![
                self.name.as_str(),
                self.version,
                self.size_bytes,
                sealed,
                self.created_at_ms,
                self.updated_at_ms
            ])?;
        Ok(())
    }

    /// Deletes the row.
    pub fn delete(connection: &Connection, name: &Name) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM secrets WHERE name = ?1")?.execute([name.as_str()])?;
        Ok(())
    }
}
