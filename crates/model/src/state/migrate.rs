//! Numbered migrations, forward only. Each runs in one transaction and raises `PRAGMA user_version`.

use rusqlite::Connection;

/// `toft` in ASCII: marks the file as ours.
const APPLICATION_ID: i32 = 0x746f_6674;

const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_start.sql"),
    include_str!("migrations/0002_consensus.sql"),
    include_str!("migrations/0003_requests.sql"),
    include_str!("migrations/0004_secrets.sql"),
    include_str!("migrations/0005_subnets.sql"),
    include_str!("migrations/0006_registries.sql"),
    include_str!("migrations/0007_volumes.sql"),
    include_str!("migrations/0008_gpus.sql"),
    include_str!("migrations/0009_node_settings.sql"),
    include_str!("migrations/0010_placement.sql"),
    include_str!("migrations/0011_versions.sql"),
    include_str!("migrations/0012_node_health.sql"),
    include_str!("migrations/0013_moves.sql"),
    include_str!("migrations/0014_mesh.sql"),
    include_str!("migrations/0015_tokens.sql"),
    include_str!("migrations/0017_volume_moves.sql"),
    include_str!("migrations/0018_users.sql"),
];

/// The version this program writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A newer toft wrote it.
    #[error("the database has version {found}, this toft knows versions up to {SCHEMA_VERSION}")]
    Newer {
        /// Version found.
        found: i64,
    },
    /// Another program wrote it.
    #[error("the database belongs to another program (application id {found:#x})")]
    Foreign {
        /// Application id found.
        found: i32,
    },
    /// SQLite refused.
    #[error("migrating the database to version {to} failed")]
    Sqlite {
        /// Version being reached.
        to: i64,
        /// Cause.
        source: rusqlite::Error,
    },
}

/// Brings an empty or older database to [`SCHEMA_VERSION`] and gives the version found before.
pub fn migrate(connection: &mut Connection) -> Result<i64, MigrateError> {
    let reading = |source| MigrateError::Sqlite { to: SCHEMA_VERSION, source };
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(reading)?;
    let owner: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(reading)?;
    let tables: i64 =
        connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(reading)?;
    if owner != APPLICATION_ID && (owner != 0 || tables > 0) {
        return Err(MigrateError::Foreign { found: owner });
    }
    if found > SCHEMA_VERSION {
        return Err(MigrateError::Newer { found });
    }
    for (sql, to) in MIGRATIONS.iter().zip(1i64..).skip(found.max(0) as usize) {
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", to)?;
            transaction.commit()
        };
        run(connection).map_err(|source| MigrateError::Sqlite { to, source })?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_database_reaches_the_newest_version_once() {
        let mut connection = Connection::open_in_memory().unwrap();
        assert_eq!(migrate(&mut connection).unwrap(), 0);
        assert_eq!(migrate(&mut connection).unwrap(), SCHEMA_VERSION);
    }

    #[test]
    fn newer_and_foreign_databases_are_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        assert!(matches!(migrate(&mut connection), Err(MigrateError::Newer { .. })));

        let mut foreign = Connection::open_in_memory().unwrap();
        foreign.execute_batch("CREATE TABLE photos (id INTEGER)").unwrap();
        assert!(matches!(migrate(&mut foreign), Err(MigrateError::Foreign { .. })));
    }
}
