//! Versions of specifications: written, reached by every instance or not, and written again.

use std::collections::HashSet;

use rusqlite::Connection;

use super::{
    apply::{Applied, put_workload},
    command::{PutMode, Refusal, RefusalKind, RolloutChange},
    tables::{EventLevel, EventRow, InstanceRow, NodeRow, VersionRow, WorkloadRow},
};
use crate::{
    instance::Desired,
    name::Name,
    schedule::{is_up, serves},
    workload::{Rollout, UpdateFailure, VersionCause, WorkloadKind, WorkloadSpec},
};

/// How a specification stands that is just written over `before`.
pub(super) fn begun(spec: &WorkloadSpec, before: Option<&WorkloadRow>) -> Rollout {
    let as_before = |row: &WorkloadRow| {
        let WorkloadSpec { replicas, labels, update, .. } = row.spec.clone();
        WorkloadSpec { replicas, labels, update, ..spec.clone() } == row.spec
    };
    match (before, spec.kind) {
        // Nothing is replaced: there are more copies or fewer.
        (Some(row), _) if row.rollout == Rollout::Done && as_before(row) => Rollout::Done,
        (_, WorkloadKind::Service) => Rollout::Rolling,
        // A job is replaced at once.
        (_, WorkloadKind::Job) => Rollout::Done,
    }
}

/// A specification is about to be replaced. One that runs whole by then has worked, though not for as long as it was to.
pub(super) fn leave(connection: &Connection, row: &WorkloadRow) -> rusqlite::Result<()> {
    if row.rollout != Rollout::Rolling || row.spec.replicas == 0 {
        return Ok(());
    }
    let mut works = HashSet::new();
    for instance in InstanceRow::of_workload(connection, row.id)? {
        let Some(node) = NodeRow::by_id(connection, instance.node_id)? else { continue };
        let steady = instance.report.as_ref().is_some_and(|report| report.restarts == 0);
        if steady && is_up(&row.spec, &instance) && serves(&instance.container, &row.spec, &node) {
            works.insert(instance.ordinal);
        }
    }
    if (0..row.spec.replicas).all(|ordinal| works.contains(&ordinal)) {
        VersionRow::set_rollout(connection, row.id, &Rollout::Done)?;
    }
    Ok(())
}

/// Keeps what was just written.
pub(super) fn note(connection: &Connection, row: &WorkloadRow, cause: &VersionCause) -> rusqlite::Result<()> {
    let version = VersionRow {
        workload_id: row.id,
        generation: row.generation,
        spec: row.spec.clone(),
        cause: cause.clone(),
        rollout: row.rollout.clone(),
        at_ms: row.updated_at_ms,
    };
    version.add(connection)
}

/// A user wants version `to` again, or the one that worked before the present one.
pub(super) fn roll_back(
    connection: &Connection,
    name: &Name,
    to: Option<u64>,
    if_generation: Option<u64>,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let Some(row) = WorkloadRow::named(connection, name)? else { return Ok(Err(super::apply::not_found(name))) };
    let version = match to {
        Some(generation) => VersionRow::of_generation(connection, row.id, generation)?,
        None => VersionRow::newest_and_good(connection, row.id)?.1,
    };
    let Some(version) = version else { return Ok(Err(no_version(name, to))) };
    let cause = VersionCause::Rollback { to: version.generation, reason: None };
    write_again(connection, &row, version, if_generation, &cause, at_ms)
}

fn no_version(name: &Name, to: Option<u64>) -> Refusal {
    let message = match to {
        Some(generation) => format!("workload `{name}` has no version {generation}"),
        None => format!("workload `{name}` has no earlier version that worked"),
    };
    let hint = format!("see its versions with `toft history {name}` and name one with `--to`");
    Refusal { kind: RefusalKind::NotFound, message, hint }
}

/// Labels describe the workload and not a version, so they stay as they are.
fn write_again(
    connection: &Connection,
    row: &WorkloadRow,
    version: VersionRow,
    if_generation: Option<u64>,
    cause: &VersionCause,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let spec = WorkloadSpec { labels: row.spec.labels.clone(), ..version.spec };
    put_workload(connection, row.id, &spec, PutMode::Replace { if_generation }, cause, at_ms)
}

/// The scheduler saw a rollout end.
pub(super) fn finish(connection: &Connection, change: &RolloutChange, at_ms: i64) -> rusqlite::Result<()> {
    let Some(mut row) = WorkloadRow::by_id(connection, change.workload_id)? else { return Ok(()) };
    if row.generation != change.generation || row.rollout != Rollout::Rolling || row.desired == Desired::Removed {
        return Ok(());
    }
    row.rollout = change.rollout.clone();
    row.save(connection)?;
    let (newest, good) = VersionRow::newest_and_good(connection, row.id)?;
    VersionRow::set_rollout(connection, row.id, &row.rollout)?;
    let subject = format!("workload/{}", row.spec.name);
    let tell = |level, message: &str| EventRow::add(connection, at_ms, level, &subject, message);
    let reason = match &row.rollout {
        Rollout::Rolling => return Ok(()),
        Rollout::Done if row.generation > 1 => {
            return tell(EventLevel::Info, &format!("every instance has generation {}", row.generation));
        }
        Rollout::Done => return Ok(()),
        Rollout::Failed { reason } => reason.clone(),
    };
    let by_itself = |version: &VersionRow| matches!(version.cause, VersionCause::Rollback { reason: Some(_), .. });
    // What was written to mend a failure, and fails too, is not mended by what failed before.
    let again = newest.is_some_and(|newest| by_itself(&newest));
    let wanted = row.spec.update.on_failure == UpdateFailure::Rollback && !again;
    let Some(good) = good.filter(|_| wanted) else {
        return tell(EventLevel::Warning, &format!("generation {} failed: {reason}", row.generation));
    };
    let (from, to) = (row.generation, good.generation);
    tell(EventLevel::Warning, &format!("generation {from} failed and {to} is written again: {reason}"))?;
    let cause = VersionCause::Rollback { to, reason: Some(reason) };
    match write_again(connection, &row, good, None, &cause, at_ms)? {
        Ok(_) => Ok(()),
        Err(refusal) => tell(EventLevel::Warning, &format!("generation {to} cannot be written again: {refusal}")),
    }
}
