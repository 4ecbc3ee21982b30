//! `placement`: one row, or none, with what the whole cluster says about where work goes.

use rusqlite::{Connection, OptionalExtension, params};

use super::{from_json, to_json};
use crate::schedule::PlacementSettings;

/// Reads it; the defaults when nothing was said.
pub fn placement_settings(connection: &Connection) -> rusqlite::Result<PlacementSettings> {
    let settings = connection
        .prepare_cached("SELECT settings FROM placement WHERE id = 1")?
        .query_row([], |row| from_json(row.get_ref(0)?.as_str()?))
        .optional()?;
    Ok(settings.unwrap_or_default())
}

/// Writes it.
pub fn save_placement_settings(connection: &Connection, settings: &PlacementSettings) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO placement (id, settings) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET settings = ?1",
        )?
        .execute(params![to_json(settings)?])?;
    Ok(())
}
