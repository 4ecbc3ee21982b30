//! `external_users`: who came from a provider, and who they are here.

use rusqlite::{Connection, OptionalExtension, params};

use super::text;
use crate::identity::UserName;

/// One row of `external_users`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalUserRow {
    /// The provider.
    pub issuer: String,
    /// What it calls them for ever.
    pub subject: String,
    /// Who they are here.
    pub user: UserName,
}

impl ExternalUserRow {
    /// Who somebody of a provider is here.
    pub fn user_of(connection: &Connection, issuer: &str, subject: &str) -> rusqlite::Result<Option<UserName>> {
        connection
            .prepare_cached("SELECT user FROM external_users WHERE issuer = ?1 AND subject = ?2")?
            .query_row([issuer, subject], |row| text(row, 0))
            .optional()
    }

    /// Adds the row; the user must be nobody else's.
    pub fn add(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT INTO external_users (issuer, subject, user) VALUES (?1, ?2, ?3)")?
            .execute(params![self.issuer, self.subject, self.user.as_str()])?;
        Ok(())
    }

    /// Deletes that of a user.
    pub fn delete(connection: &Connection, user: &UserName) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM external_users WHERE user = ?1")?.execute([user.as_str()])?;
        Ok(())
    }
}
