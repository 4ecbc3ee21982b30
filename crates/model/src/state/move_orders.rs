//! Orders of users to move instances: given, taken back, and given up. The scheduler carries them out.

use std::collections::HashSet;

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{InstanceMove, Refusal, RefusalKind, Reply, Unmoved},
    tables::{EventLevel, EventRow, InstanceRow, MoveOrder, NodeRow, WorkloadRow},
};
use crate::{ids::NodeId, instance::Desired};

/// Most instances that are ordered to move at a time.
pub const MOST_MOVES: usize = 1_000;

/// One of the instances, with the names that are told.
struct Mover {
    row: InstanceRow,
    subject: String,
    from: String,
    to: String,
}

/// Orders these moves instead of those that were ordered before.
pub(super) fn order(connection: &Connection, moves: &[InstanceMove], at_ms: i64) -> rusqlite::Result<Applied> {
    if moves.len() > MOST_MOVES {
        return Ok(Err(Refusal {
            kind: RefusalKind::Invalid,
            message: format!("{} instances are too many to be moved at a time", moves.len()),
            hint: format!("move at most {MOST_MOVES}"),
        }));
    }
    let mut movers = Vec::with_capacity(moves.len());
    let mut seen = HashSet::new();
    for one in moves {
        match mover(connection, one)? {
            Some(mover) if seen.insert(one.instance_id) => movers.push(mover),
            _ => return Ok(Err(stale())),
        }
    }
    for row in InstanceRow::ordered_to_move(connection)? {
        InstanceRow::set_move(connection, row.id, None)?;
        if !seen.contains(&row.id) && row.desired != Desired::Removed {
            let message =
                format!("stays on node {}: the order to move it was taken back", name(connection, row.node_id)?);
            EventRow::add(connection, at_ms, EventLevel::Info, &subject(connection, &row)?, &message)?;
        }
    }
    for ((one, mover), turn) in moves.iter().zip(movers).zip(0..) {
        InstanceRow::set_move(connection, mover.row.id, Some(MoveOrder { node_id: one.to, turn }))?;
        let message = format!("is to be moved from node {} to node {}", mover.from, mover.to);
        EventRow::add(connection, at_ms, EventLevel::Info, &mover.subject, &message)?;
    }
    Ok(Ok(Reply::Done))
}

/// The instance, when it is as who ordered the move saw it.
fn mover(connection: &Connection, one: &InstanceMove) -> rusqlite::Result<Option<Mover>> {
    let Some(row) = InstanceRow::by_id(connection, one.instance_id)? else { return Ok(None) };
    let Some(workload) = WorkloadRow::by_id(connection, row.workload_id)? else { return Ok(None) };
    let Some(to) = NodeRow::by_id(connection, one.to)? else { return Ok(None) };
    let same = row.node_id == one.from
        && one.from != one.to
        && row.desired == Desired::Running
        && (workload.desired, workload.generation) == (Desired::Running, one.generation);
    if !same {
        return Ok(None);
    }
    let (subject, from) = (format!("instance/{}-{}", workload.spec.name, row.ordinal), name(connection, one.from)?);
    Ok(Some(Mover { row, subject, from, to: to.name.to_string() }))
}

fn stale() -> Refusal {
    Refusal {
        kind: RefusalKind::Stale,
        message: "the instances are not where they were when the moves were planned".into(),
        hint: "plan again with `toft rebalance`".into(),
    }
}

/// An order that cannot be carried out is given up.
pub(super) fn give_up(connection: &Connection, one: &Unmoved, at_ms: i64) -> rusqlite::Result<()> {
    let Some(row) = InstanceRow::by_id(connection, one.instance_id)? else { return Ok(()) };
    // A late plan ends no order that was given since.
    if row.desired == Desired::Removed || row.moves_to.is_none_or(|order| order.node_id != one.to) {
        return Ok(());
    }
    InstanceRow::set_move(connection, row.id, None)?;
    let (from, to) = (name(connection, row.node_id)?, name(connection, one.to)?);
    let message = format!("stays on node {from} and is not moved to {to}: {}", one.reason);
    EventRow::add(connection, at_ms, EventLevel::Warning, &subject(connection, &row)?, &message)
}

/// Tells of an instance that goes because it was moved; nothing of one that goes for another reason.
pub(super) fn tell(connection: &Connection, row: &InstanceRow, at_ms: i64) -> rusqlite::Result<()> {
    let Some(order) = row.moves_to else { return Ok(()) };
    let succeeds = |other: &InstanceRow| {
        (other.ordinal, other.node_id, other.desired) == (row.ordinal, order.node_id, Desired::Running)
    };
    if !InstanceRow::of_workload(connection, row.workload_id)?.iter().any(succeeds) {
        return Ok(());
    }
    let (from, to) = (name(connection, row.node_id)?, name(connection, order.node_id)?);
    let message = format!("moved from node {from} to node {to}");
    EventRow::add(connection, at_ms, EventLevel::Info, &subject(connection, row)?, &message)
}

fn name(connection: &Connection, node: NodeId) -> rusqlite::Result<String> {
    Ok(NodeRow::by_id(connection, node)?.map_or_else(|| "?".to_owned(), |node| node.name.to_string()))
}

fn subject(connection: &Connection, row: &InstanceRow) -> rusqlite::Result<String> {
    let workload = WorkloadRow::name_of(connection, row.workload_id)?;
    Ok(format!("instance/{}-{}", workload.as_ref().map_or("?", |name| name.as_str()), row.ordinal))
}
