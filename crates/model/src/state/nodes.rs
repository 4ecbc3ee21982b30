//! What users say of nodes.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{Refusal, RefusalKind, Reply},
    tables::{EventLevel, EventRow, NodeRow, placement_settings, save_placement_settings},
};
use crate::{
    invalid::Invalid,
    name::Name,
    node::{Availability, NodeChanges, NodeSettings},
    schedule::PlacementChanges,
};

pub(super) fn configure(
    connection: &Connection,
    name: &Name,
    changes: &NodeChanges,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let node = NodeRow::id_of(connection, name)?.map(|id| NodeRow::by_id(connection, id)).transpose()?.flatten();
    let Some(node) = node else {
        return Ok(Err(Refusal {
            kind: RefusalKind::NotFound,
            message: format!("there is no node `{name}`"),
            hint: "`toft node ls` lists the nodes".into(),
        }));
    };
    let settings = match node.settings.clone().with(changes) {
        Ok(settings) => settings,
        Err(Invalid { message, hint, .. }) => {
            return Ok(Err(Refusal { kind: RefusalKind::Invalid, message, hint }));
        }
    };
    if settings != node.settings {
        NodeRow::save_settings(connection, node.id, &settings)?;
        for message in story(&node.settings, &settings) {
            EventRow::add(connection, at_ms, EventLevel::Info, &format!("node/{name}"), &message)?;
        }
    }
    Ok(Ok(Reply::Done))
}

pub(super) fn configure_placement(
    connection: &Connection,
    changes: &PlacementChanges,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let before = placement_settings(connection)?;
    let settings = match before.clone().with(changes) {
        Ok(settings) => settings,
        Err(Invalid { message, hint, .. }) => {
            return Ok(Err(Refusal { kind: RefusalKind::Invalid, message, hint }));
        }
    };
    if settings != before {
        save_placement_settings(connection, &settings)?;
        let message = format!("work is placed by other rules; the policy is `{}`", settings.policy);
        EventRow::add(connection, at_ms, EventLevel::Info, "cluster/placement", &message)?;
    }
    Ok(Ok(Reply::Done))
}

/// What the change adds to the story.
fn story(before: &NodeSettings, after: &NodeSettings) -> Vec<String> {
    let mut story = Vec::new();
    if before.availability != after.availability {
        story.push(match after.availability {
            Availability::Active => "takes work again".to_owned(),
            Availability::Cordoned => "cordoned: takes nothing new".to_owned(),
            Availability::Draining => "is being drained: its services move to other nodes".to_owned(),
        });
    }
    if before.taints != after.taints {
        let taints: Vec<String> = after.taints.iter().map(ToString::to_string).collect();
        let taints = if taints.is_empty() { "none".to_owned() } else { taints.join(", ") };
        story.push(format!("has other taints: {taints}"));
    }
    let changed = [
        ("labels", before.labels != after.labels),
        ("price", before.price_per_hour != after.price_per_hour),
        ("watts", (before.watts, before.base_watts) != (after.watts, after.base_watts)),
        ("CPU ratio", before.cpu_percent != after.cpu_percent),
        ("memory ratio", before.memory_percent != after.memory_percent),
    ];
    let changed: Vec<&str> = changed.into_iter().filter(|(_, changed)| *changed).map(|(what, _)| what).collect();
    if !changed.is_empty() {
        story.push(format!("settings changed: {}", changed.join(", ")));
    }
    story
}
