//! What a database holds, told in a few numbers that two copies of the same state share.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, OpenFlags, types::ValueRef};
use sha2::{Digest, Sha256};
use toft_model::state::{applied_index, schema_version};

use super::BackupError;

/// What a database holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) schema_version: i64,
    pub(super) cluster_id: Option<String>,
    pub(super) applied_index: u64,
    pub(super) tables: BTreeMap<String, u64>,
    pub(super) content_sha256: String,
}

/// Looks at the database `path`, which nobody writes to. `Ok(Err(..))` says how it is damaged.
pub(super) fn examine(path: &Path) -> Result<Result<Facts, String>, BackupError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags);
    let looked = opened.and_then(|connection| {
        let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if verdict == "ok" { facts(&connection).map(Ok) } else { Ok(Err(verdict)) }
    });
    match looked {
        Ok(verdict) => Ok(verdict),
        // The cause lies in the file, not in the disk it is on.
        Err(source) if source.sqlite_error_code() != Some(rusqlite::ErrorCode::SystemIoFailure) => {
            Ok(Err(source.to_string()))
        }
        Err(source) => Err(BackupError::Database { path: path.to_owned(), source }),
    }
}

fn facts(connection: &Connection) -> rusqlite::Result<Facts> {
    let schema_version = schema_version(connection)?.version;
    let mut names = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name")?;
    let found = names.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut digest = Sha256::new();
    let mut tables = BTreeMap::new();
    for table in found {
        let (name, sql) = table?;
        digest_text(&mut digest, b'T', name.as_bytes());
        digest_text(&mut digest, b'S', sql.as_bytes());
        let rows = digest_rows(connection, &name, &mut digest)?;
        tables.insert(name, rows);
    }
    Ok(Facts {
        schema_version,
        cluster_id: cluster_id(connection)?,
        applied_index: applied_index(connection)?,
        tables,
        content_sha256: hex::encode(digest.finalize()),
    })
}

/// The cluster's id, in a state that has one.
pub(super) fn cluster_id(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let known: i64 = connection.query_row(
        "SELECT COUNT(*) FROM pragma_table_info('cluster') WHERE name = 'cluster_id'",
        [],
        |row| row.get(0),
    )?;
    if known == 0 {
        return Ok(None);
    }
    connection.query_row("SELECT CAST(cluster_id AS TEXT) FROM cluster WHERE id = 1", [], |row| row.get(0))
}

/// Every value of every row with its kind and length, rows in the order of their columns.
fn digest_rows(connection: &Connection, table: &str, digest: &mut Sha256) -> rusqlite::Result<u64> {
    let quoted = table.replace('"', "\"\"");
    let columns = connection.prepare(&format!("SELECT * FROM \"{quoted}\" LIMIT 0"))?.column_count();
    let order: Vec<String> = (1..=columns).map(|column| column.to_string()).collect();
    let mut statement = connection.prepare(&format!("SELECT * FROM \"{quoted}\" ORDER BY {}", order.join(", ")))?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        digest.update(b"R");
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => digest.update(b"N"),
                ValueRef::Integer(value) => {
                    digest.update(b"I");
                    digest.update(value.to_le_bytes());
                }
                ValueRef::Real(value) => {
                    digest.update(b"F");
                    digest.update(value.to_bits().to_le_bytes());
                }
                ValueRef::Text(value) => digest_text(digest, b'X', value),
                ValueRef::Blob(value) => digest_text(digest, b'B', value),
            }
        }
    }
    Ok(count)
}

fn digest_text(digest: &mut Sha256, kind: u8, bytes: &[u8]) {
    digest.update([kind]);
    digest.update((bytes.len() as u64).to_le_bytes());
    digest.update(bytes);
}
