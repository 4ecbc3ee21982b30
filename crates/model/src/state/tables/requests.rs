//! `requests`: which requests were applied, and what they were answered.

use rusqlite::{Connection, OptionalExtension, params};

use super::{from_json, to_json};
use crate::{ids::RequestId, state::request::Answered};

/// Requests that are remembered at least. One is repeated within seconds or not at all.
const KEPT: i64 = 65_536;
/// How many are forgotten at a time: each time touches other pages than remembering does.
const FORGOTTEN_TOGETHER: i64 = 256;

/// One row of `requests`.
pub struct RequestRow;

impl RequestRow {
    /// What the request was answered, if it was applied.
    pub(crate) fn answered(connection: &Connection, id: RequestId) -> rusqlite::Result<Option<Answered>> {
        let reply: Option<String> = connection
            .prepare_cached("SELECT reply FROM requests WHERE id = ?1")?
            .query_row([id.0.as_bytes()], |row| row.get(0))
            .optional()?;
        reply.map(|text| from_json(&text)).transpose()
    }

    /// Remembers one and forgets what is too old.
    pub(crate) fn add(connection: &Connection, id: RequestId, answered: &Answered) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT INTO requests (id, reply) VALUES (?1, ?2)")?
            .execute(params![id.0.as_bytes(), to_json(answered)?])?;
        let seq = connection.last_insert_rowid();
        if seq % FORGOTTEN_TOGETHER == 0 {
            connection.prepare_cached("DELETE FROM requests WHERE seq <= ?1")?.execute([seq - KEPT])?;
        }
        Ok(())
    }
}
