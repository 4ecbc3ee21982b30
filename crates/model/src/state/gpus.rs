//! Commands on cards.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{Refusal, RefusalKind, Reply},
    tables::{EventLevel, EventRow, GpuRow, NodeRow},
};
use crate::{
    gpu::{Gpu, GpuId, GpuPolicy, GpuSettings},
    ids::NodeId,
};

/// Most cards of one node that users say something of.
const MOST_SETTINGS: usize = 1_024;

/// A change of a card's settings.
pub(super) struct Configure<'a> {
    pub(super) node_id: NodeId,
    pub(super) gpu: &'a GpuId,
    pub(super) policy: Option<GpuPolicy>,
    pub(super) cordoned: Option<bool>,
    pub(super) at_ms: i64,
}

/// Changes the settings of a card, which need not be there just now.
pub(super) fn configure(connection: &Connection, change: &Configure<'_>) -> rusqlite::Result<Applied> {
    let Configure { node_id, gpu, policy, cordoned, at_ms } = *change;
    let Some(node) = NodeRow::by_id(connection, node_id)? else {
        return Ok(Err(Refusal {
            kind: RefusalKind::NotFound,
            message: format!("there is no node {node_id}"),
            hint: "`toft node ls` lists the nodes".into(),
        }));
    };
    let before = node.gpus.of(gpu);
    let after = GpuSettings { policy: policy.unwrap_or(before.policy), cordoned: cordoned.unwrap_or(before.cordoned) };
    if after == before {
        return Ok(Ok(Reply::Done));
    }
    if !node.gpus.0.contains_key(gpu) && node.gpus.0.len() >= MOST_SETTINGS {
        return Ok(Err(Refusal {
            kind: RefusalKind::Full,
            message: format!("{MOST_SETTINGS} cards of node `{}` have settings, and no more fit", node.name),
            hint: "give cards that are gone the policy `shared` again, and uncordon them".into(),
        }));
    }
    GpuRow { node_id, gpu: gpu.clone(), settings: after }.save(connection)?;
    let mut told = Vec::new();
    if after.policy != before.policy {
        told.push(format!("GPU {gpu} is {} now", after.policy.as_str()));
    }
    if after.cordoned != before.cordoned {
        let now = if after.cordoned { "takes no new work" } else { "takes work again" };
        told.push(format!("GPU {gpu} {now}"));
    }
    let subject = format!("node/{}", node.name);
    EventRow::add(connection, at_ms, EventLevel::Info, &subject, &told.join("; "))?;
    Ok(Ok(Reply::Done))
}

/// Tells what became of a node's cards between two registrations.
pub(super) fn tell_changes(
    connection: &Connection,
    node: &NodeRow,
    before: &[Gpu],
    at_ms: i64,
) -> rusqlite::Result<()> {
    let subject = format!("node/{}", node.name);
    let tell = |level, message: String| EventRow::add(connection, at_ms, level, &subject, &message);
    for gpu in &node.inventory.gpus {
        let known = before.iter().find(|known| known.id == gpu.id).map(|known| &known.sick);
        let name = format!("GPU {} ({})", gpu.id, gpu.model);
        match (known, &gpu.sick) {
            (None, None) => tell(EventLevel::Info, format!("{name} is there"))?,
            (None | Some(None), Some(reason)) => tell(EventLevel::Warning, format!("{name} takes no work: {reason}"))?,
            (Some(Some(_)), None) => tell(EventLevel::Info, format!("{name} takes work again"))?,
            (Some(_), _) => {}
        }
    }
    for gone in before.iter().filter(|gone| !node.inventory.gpus.iter().any(|gpu| gpu.id == gone.id)) {
        tell(EventLevel::Warning, format!("GPU {} ({}) is there no more", gone.id, gone.model))?;
    }
    Ok(())
}
