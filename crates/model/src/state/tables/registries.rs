//! `registries`: logins at registries of images.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::{
    invalid::Invalid,
    registry::RegistryName,
    secret::{Sealed, SealedSecret},
};

/// One row of `registries`, without the password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryRow {
    /// The registry; it has one login.
    pub registry: RegistryName,
    /// Who logs in.
    pub username: String,
    /// Counts the logins written for this registry, from 1.
    pub version: u64,
    /// When the first was written.
    pub created_at_ms: i64,
    /// When the newest was written.
    pub updated_at_ms: i64,
}

const COLUMNS: &str = "registry, username, version, created_at_ms, updated_at_ms";

impl RegistryRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let registry = row.get_ref(0)?.as_str()?.parse().map_err(|error| {
            let cause = Box::<Invalid>::new(error);
            rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, cause)
        })?;
        Ok(Self {
            registry,
            username: row.get(1)?,
            version: row.get(2)?,
            created_at_ms: row.get(3)?,
            updated_at_ms: row.get(4)?,
        })
    }

    /// Every login, by registry.
    pub fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM registries ORDER BY registry"))?
            .query_map([], Self::read)?
            .collect()
    }

    /// The login at a registry.
    pub fn of(connection: &Connection, registry: &RegistryName) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM registries WHERE registry = ?1"))?
            .query_row([registry.as_str()], Self::read)
            .optional()
    }

    /// User name and sealed password at a registry.
    pub fn sealed(
        connection: &Connection,
        registry: &RegistryName,
    ) -> rusqlite::Result<Option<(String, SealedSecret)>> {
        connection
            .prepare_cached("SELECT username, version, sealed FROM registries WHERE registry = ?1")?
            .query_row([registry.as_str()], |row| {
                Ok((row.get(0)?, SealedSecret { version: row.get(1)?, sealed: row.get(2)? }))
            })
            .optional()
    }

    /// How many logins there are.
    pub fn count(connection: &Connection) -> rusqlite::Result<u64> {
        connection.prepare_cached("SELECT COUNT(*) FROM registries")?.query_row([], |row| row.get(0))
    }

    /// Writes the row, new or changed, with its password.
    pub fn save(&self, connection: &Connection, sealed: &Sealed) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO registries (registry, username, version, sealed, created_at_ms, updated_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (registry) DO UPDATE SET username = ?2, version = ?3, sealed = ?4, updated_at_ms = ?6",
            )?
            .execute(params![
                self.registry.as_str(),
                self.username,
                self.version,
                sealed,
                self.created_at_ms,
                self.updated_at_ms
            ])?;
        Ok(())
    }

    /// Deletes the row.
    pub fn delete(connection: &Connection, registry: &RegistryName) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM registries WHERE registry = ?1")?.execute([registry.as_str()])?;
        Ok(())
    }
}
