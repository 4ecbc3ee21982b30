//! `second_factors`: what somebody shows beside a password; and `access_settings`: one row, or none, with what the whole cluster
//! says about who comes in.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{from_json, text, to_json};
use crate::{
    identity::UserName,
    second_factor::{AccessSettings, FactorProof, NewSecondFactor, ShownCode},
};

/// One row of `second_factors`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondFactorRow(pub NewSecondFactor);

impl SecondFactorRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self(NewSecondFactor {
            user: text(row, 0)?,
            version: row.get(1)?,
            sealed: row.get(2)?,
            step: row.get(3)?,
            recovery: from_json(row.get_ref(4)?.as_str()?)?,
        }))
    }

    /// That of a user.
    pub fn of(connection: &Connection, user: &UserName) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached("SELECT user, version, sealed, step, recovery FROM second_factors WHERE user = ?1")?
            .query_row([user.as_str()], Self::read)
            .optional()
    }

    /// Whose there are, by name.
    pub fn owners(connection: &Connection) -> rusqlite::Result<Vec<UserName>> {
        connection
            .prepare_cached("SELECT user FROM second_factors ORDER BY user")?
            .query_map([], |row| text(row, 0))?
            .collect()
    }

    /// Whether a user has one.
    pub fn is_there(connection: &Connection, user: &UserName) -> rusqlite::Result<bool> {
        connection.prepare_cached("SELECT 1 FROM second_factors WHERE user = ?1")?.exists([user.as_str()])
    }

    /// Writes the row, new or changed.
    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        let NewSecondFactor { user, version, sealed, step, recovery } = &self.0;
        connection
            .prepare_cached(
                "INSERT INTO second_factors (user, version, sealed, step, recovery) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (user) DO UPDATE SET version = ?2, sealed = ?3, step = ?4, recovery = ?5",
            )?
            .execute(params![user.as_str(), version, sealed, step, to_json(recovery)?])?;
        Ok(())
    }

    /// The row after a proof was spent; `None` when it proves nothing: it was spent before, or belongs to another second factor.
    pub fn spent(mut self, proof: &FactorProof) -> Option<Self> {
        if proof.version != self.0.version {
            return None;
        }
        match proof.shown {
            ShownCode::Step { step } if step > self.0.step => self.0.step = step,
            ShownCode::Step { .. } => return None,
            ShownCode::Recovery { code } => {
                let left = self.0.recovery.len();
                self.0.recovery.retain(|known| !known.is(&code));
                if self.0.recovery.len() == left {
                    return None;
                }
            }
        }
        Some(self)
    }

    /// Deletes that of a user.
    pub fn delete(connection: &Connection, user: &UserName) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM second_factors WHERE user = ?1")?.execute([user.as_str()])?;
        Ok(())
    }
}

/// Reads what the cluster says about who comes in; the defaults when nothing was said.
pub fn access_settings(connection: &Connection) -> rusqlite::Result<AccessSettings> {
    let settings = connection
        .prepare_cached("SELECT settings FROM access_settings WHERE id = 1")?
        .query_row([], |row| from_json(row.get_ref(0)?.as_str()?))
        .optional()?;
    Ok(settings.unwrap_or_default())
}

/// Writes it.
pub fn save_access_settings(connection: &Connection, settings: &AccessSettings) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO access_settings (id, settings) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET settings = ?1",
        )?
        .execute(params![to_json(settings)?])?;
    Ok(())
}
