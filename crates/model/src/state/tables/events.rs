//! `events`: the story of the cluster, bounded.

use rusqlite::{Connection, Row, params};

/// Most events kept.
const KEEP: i64 = 5_000;

/// How much attention an event asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventLevel {
    /// The usual course of things.
    Info,
    /// Something failed and was coped with.
    Warning,
}

impl EventLevel {
    /// The word stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
        }
    }
}

/// One row of `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Position in the story.
    pub seq: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Attention asked for.
    pub level: EventLevel,
    /// What it speaks of: `workload/web`, `instance/web-0`, `node/box`.
    pub subject: String,
    /// What happened.
    pub message: String,
}

impl EventRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let level = match row.get_ref(2)?.as_str()? {
            "warning" => EventLevel::Warning,
            _ => EventLevel::Info,
        };
        Ok(Self { seq: row.get(0)?, at_ms: row.get(1)?, level, subject: row.get(3)?, message: row.get(4)? })
    }

    /// Adds an event and forgets the oldest beyond the bound.
    pub fn add(
        connection: &Connection,
        at_ms: i64,
        level: EventLevel,
        subject: &str,
        message: &str,
    ) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT INTO events (at_ms, level, subject, message) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![at_ms, level.as_str(), subject, message])?;
        let seq = connection.last_insert_rowid();
        if seq % 256 == 0 {
            connection.prepare_cached("DELETE FROM events WHERE seq <= ?1")?.execute([seq - KEEP])?;
        }
        Ok(())
    }

    /// The newest `limit` events before `before` (exclusive), newest first, of one subject or of all.
    pub fn newest(
        connection: &Connection,
        subject: Option<&str>,
        before: Option<i64>,
        limit: u32,
    ) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(
                "SELECT seq, at_ms, level, subject, message FROM events
                 WHERE seq < ?1 AND (?2 IS NULL OR subject = ?2) ORDER BY seq DESC LIMIT ?3",
            )?
            .query_map(params![before.unwrap_or(i64::MAX), subject, limit], Self::read)?
            .collect()
    }

    /// The newest `limit` events of any of `subjects`, newest first.
    pub fn newest_of(connection: &Connection, subjects: &[String], limit: u32) -> rusqlite::Result<Vec<Self>> {
        connection
            .prepare_cached(
                "SELECT seq, at_ms, level, subject, message FROM events
                 WHERE subject IN (SELECT value FROM json_each(?1)) ORDER BY seq DESC LIMIT ?2",
            )?
            .query_map(params![super::to_json(&subjects)?, limit], Self::read)?
            .collect()
    }
}
