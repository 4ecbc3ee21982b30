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
    include_str!("migrations/0019_second_factors.sql"),
    include_str!("migrations/0020_signers_and_providers.sql"),
    include_str!("migrations/0021_passkeys.sql"),
    include_str!("migrations/0022_placing.sql"),
];

/// The version this program writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The oldest version whose programs can go on with a database of [`SCHEMA_VERSION`]. It stays behind while migrations only add:
/// tables, and columns that have a default. Members of two versions send each other the whole database.
const USABLE_FROM: i64 = SCHEMA_VERSION;
/// Of `user_version`, the lower bits are the version; the upper ones are [`USABLE_FROM`], where it is behind.
const VERSION_BITS: u32 = 16;

/// What a database says of its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaVersion {
    /// The version.
    pub version: i64,
    /// The oldest version whose programs can go on with it.
    pub usable_from: i64,
}

impl SchemaVersion {
    fn of(user_version: i64) -> Self {
        let version = user_version & ((1 << VERSION_BITS) - 1);
        match user_version >> VERSION_BITS {
            from if from > 0 => Self { version, usable_from: from },
            _ => Self { version: user_version, usable_from: user_version },
        }
    }

    /// Whether this program can go on with it: it is not newer, or what is newer in it can be passed over.
    pub fn is_usable(self) -> bool {
        self.version <= SCHEMA_VERSION || self.usable_from <= SCHEMA_VERSION
    }

    /// What stands in the file of a database that has reached `version`.
    fn written(version: i64) -> i64 {
        if version > USABLE_FROM { (USABLE_FROM << VERSION_BITS) | version } else { version }
    }
}

/// Reads it.
pub fn schema_version(connection: &Connection) -> rusqlite::Result<SchemaVersion> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map(SchemaVersion::of)
}

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

/// Brings an empty or older database to [`SCHEMA_VERSION`] and gives the version found before. A newer one that can be used stays
/// as it is.
pub fn migrate(connection: &mut Connection) -> Result<i64, MigrateError> {
    let reading = |source| MigrateError::Sqlite { to: SCHEMA_VERSION, source };
    let version = schema_version(connection).map_err(reading)?;
    let found = version.version;
    let owner: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(reading)?;
    let tables: i64 =
        connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(reading)?;
    if owner != APPLICATION_ID && (owner != 0 || tables > 0) {
        return Err(MigrateError::Foreign { found: owner });
    }
    if !version.is_usable() {
        return Err(MigrateError::Newer { found });
    }
    for (sql, to) in MIGRATIONS.iter().zip(1i64..).skip(found.max(0) as usize) {
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", SchemaVersion::written(to))?;
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
    fn a_newer_database_whose_additions_can_be_passed_over_is_used_as_it_is() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let newer = (SCHEMA_VERSION << 16) | (SCHEMA_VERSION + 2);
        connection.pragma_update(None, "user_version", newer).unwrap();
        assert_eq!(migrate(&mut connection).unwrap(), SCHEMA_VERSION + 2);
        let version = schema_version(&connection).unwrap();
        assert_eq!(version, SchemaVersion { version: SCHEMA_VERSION + 2, usable_from: SCHEMA_VERSION });
        assert_eq!(
            (SchemaVersion::written(3), SchemaVersion::of(3)),
            (3, SchemaVersion { version: 3, usable_from: 3 })
        );
    }

    #[test]
    fn newer_and_foreign_databases_are_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        assert!(matches!(migrate(&mut connection), Err(MigrateError::Newer { .. })));
        connection.pragma_update(None, "user_version", ((SCHEMA_VERSION + 1) << 16) | (SCHEMA_VERSION + 1)).unwrap();
        assert!(matches!(migrate(&mut connection), Err(MigrateError::Newer { .. })));

        let mut foreign = Connection::open_in_memory().unwrap();
        foreign.execute_batch("CREATE TABLE photos (id INTEGER)").unwrap();
        assert!(matches!(migrate(&mut foreign), Err(MigrateError::Foreign { .. })));
    }
}
