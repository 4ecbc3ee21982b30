//! What the leader says of nodes that it hears of, or does not.

use rusqlite::Connection;

use super::tables::{EventLevel, EventRow, InstanceRow, NodeRow};
use crate::{ids::NodeId, node::NodeHealth};

/// Writes down whether a node is heard of, and what that makes of its instances.
pub(super) fn note(connection: &Connection, id: NodeId, health: NodeHealth, at_ms: i64) -> rusqlite::Result<()> {
    let Some(node) = NodeRow::by_id(connection, id)?.filter(|node| node.health != health) else { return Ok(()) };
    // It has been down since it was down, fenced or not.
    let since_ms = node.health_since_ms.filter(|_| node.health.is_down() && health.is_down()).unwrap_or(at_ms);
    NodeRow::save_health(connection, id, health, since_ms)?;
    if node.health.is_down() != health.is_down() {
        InstanceRow::set_lost(connection, id, health.is_down())?;
    }
    let Some((level, message)) = story(node.health, health) else { return Ok(()) };
    EventRow::add(connection, at_ms, level, &format!("node/{}", node.name), message)
}

fn story(before: NodeHealth, now: NodeHealth) -> Option<(EventLevel, &'static str)> {
    match now {
        NodeHealth::Ready => Some((EventLevel::Info, "is there again")),
        NodeHealth::Away => Some((EventLevel::Info, "toft stops there for a moment; its containers go on")),
        NodeHealth::Unreachable => Some((EventLevel::Warning, "has not been heard of for a moment")),
        NodeHealth::Down | NodeHealth::Fenced if before.is_down() => None,
        NodeHealth::Down | NodeHealth::Fenced => {
            Some((EventLevel::Warning, "is down: nobody knows what runs there, and what may start elsewhere does"))
        }
    }
}
