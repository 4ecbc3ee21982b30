//! `audit`: who did what, bounded.

use rusqlite::{Connection, Row, params};

use crate::identity::Author;

/// Most entries kept.
const KEEP: i64 = 10_000;

/// One row of `audit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Position in the trail.
    pub seq: i64,
    /// Who, by which way, from where, when.
    pub author: Author,
    /// What was done: `put_workload`.
    pub action: String,
    /// To what: `workload/web`.
    pub subject: String,
    /// What of it was otherwise before, as JSON.
    pub before: Option<String>,
    /// The same afterwards.
    pub after: Option<String>,
}

/// Which entries are asked for; what is absent does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// Of this user.
    pub user: Option<String>,
    /// Not older than that, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// With this text in what was done to what, before or afterwards; upper and lower case are the same.
    pub grep: Option<String>,
    /// Before this position.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

impl AuditRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get(0)?,
            author: Author { at_ms: row.get(1)?, name: row.get(2)?, way: row.get(3)?, came_from: row.get(4)? },
            action: row.get(5)?,
            subject: row.get(6)?,
            before: row.get(7)?,
            after: row.get(8)?,
        })
    }

    /// Adds an entry, whose position is not looked at, and forgets the oldest beyond the bound.
    pub fn add(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self { author: Author { name, way, came_from, at_ms }, action, subject, before, after, .. } = self;
        connection
            .prepare_cached(
                "INSERT INTO audit (at_ms, author, way, came_from, action, subject, before, after)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![at_ms, name, way, came_from, action, subject, before, after])?;
        let seq = connection.last_insert_rowid();
        if seq % 64 == 0 {
            connection.prepare_cached("DELETE FROM audit WHERE seq <= ?1")?.execute([seq - KEEP])?;
        }
        Ok(())
    }

    /// The entries asked for, the newest first.
    pub fn query(connection: &Connection, query: &AuditQuery) -> rusqlite::Result<Vec<Self>> {
        let AuditQuery { user, since_ms, grep, before, limit } = query;
        connection
            .prepare_cached(
                "SELECT seq, at_ms, author, way, came_from, action, subject, before, after FROM audit
                 WHERE seq < ?1 AND (?2 IS NULL OR author = ?2) AND at_ms >= ?3
                 AND (?4 IS NULL OR instr(lower(action || ' ' || subject || ' ' || coalesce(before, '') || ' '
                     || coalesce(after, '') || ' ' || coalesce(came_from, '')), lower(?4)) > 0)
                 ORDER BY seq DESC LIMIT ?5",
            )?
            .query_map(
                params![before.unwrap_or(i64::MAX), user, since_ms.unwrap_or(i64::MIN), grep, limit],
                Self::read,
            )?
            .collect()
    }
}
