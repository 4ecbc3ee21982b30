//! Applies one command to the tables: the only place that writes them.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::{
    command::{Command, PowerAction, PutMode, Refusal, RefusalKind, Reply},
    commit_plan::PlanCommit,
    gpus::{self, Configure},
    members::{self, Admit, Remove},
    mesh, move_orders, node_health, nodes, passkeys, registries, rollouts, second_factors,
    secrets::{self, NewSecret},
    signing_keys,
    subnets::{self, Claim},
    tables::{
        AdmissionRow, ApiTokenRow, EventLevel, EventRow, InstanceRow, NodeRow, RemovedNodeRow, SessionRow, VolumeRow,
        WorkloadRow,
    },
    users,
    volume_moves::{self, Turn},
    volumes::{self, NewVolume},
};
use crate::{
    ids::{NodeId, WorkloadId},
    instance::{Desired, InstanceReport, InstanceState},
    invalid::Invalid,
    name::Name,
    node::{NodeHealth, NodeSettings},
    token::merge_labels,
    workload::{VersionCause, WorkloadSpec},
};

/// Longest warning of a node that becomes an event, in characters.
const LONGEST_WARNING: usize = 300;

/// What became of a command. A refusal changed nothing.
pub type Applied = Result<Reply, Refusal>;

/// Applies `command`, which lies in the log at `index`. The caller holds a transaction (or savepoint) and rolls it back
/// on `Err` and on a refusal; it also notes the index, once for all commands that share it.
pub fn apply(connection: &Connection, index: u64, command: &Command) -> rusqlite::Result<Applied> {
    let applied = match command {
        Command::RegisterNode { node_id, name, labels, inventory, at_ms } => {
            let row = NodeRow {
                id: *node_id,
                name: name.clone(),
                labels: labels.clone(),
                inventory: inventory.clone(),
                registered_at_ms: *at_ms,
                assignments_generation: index,
                gpus: Default::default(),
                settings: NodeSettings::default(),
                health: NodeHealth::default(),
                health_since_ms: None,
            };
            register_node(connection, &row)?
        }
        Command::PutWorkload { workload_id, spec, mode, at_ms } => {
            put_workload(connection, *workload_id, spec, *mode, &VersionCause::User, *at_ms)?
        }
        Command::PowerWorkload { name, action, at_ms } => power_workload(connection, index, name, *action, *at_ms)?,
        Command::RemoveWorkload { name, at_ms } => remove_workload(connection, name, *at_ms)?,
        Command::LabelWorkload { name, labels, if_generation, at_ms } => {
            label_workload(connection, name, labels, *if_generation, *at_ms)?
        }
        Command::RollBackWorkload { name, to, if_generation, at_ms } => {
            rollouts::roll_back(connection, name, *to, *if_generation, *at_ms)?
        }
        Command::CommitPlan { placements, changes, pending, rollouts, preemptions, unmoved, at_ms } => {
            let mut commit = PlanCommit::new(connection, index, *at_ms)?;
            let mut placed = 0;
            for of_workload in placements.chunk_by(|one, next| one.workload_id == next.workload_id) {
                placed += commit.place_all(of_workload)?;
            }
            for preemption in preemptions {
                commit.preempt(preemption)?;
            }
            for change in changes {
                commit.change_order(*change)?;
            }
            for (workload_id, reason) in pending {
                commit.note_pending(*workload_id, reason.as_deref())?;
            }
            commit.finish()?;
            for one in unmoved {
                move_orders::give_up(connection, one, *at_ms)?;
            }
            for change in rollouts {
                rollouts::finish(connection, change, *at_ms)?;
            }
            Ok(Reply::Plan { placed, dropped: placements.len() - placed })
        }
        Command::ReportInstances { node_id, reports, at_ms } => {
            for report in reports {
                take_report(connection, index, *node_id, report, *at_ms)?;
            }
            Ok(Reply::Done)
        }
        Command::PutSecret { name, value, size_bytes, mode, at_ms } => {
            let new = NewSecret { name, value, size_bytes: *size_bytes, mode: *mode, at_ms: *at_ms };
            secrets::put(connection, index, &new)?
        }
        Command::RemoveSecret { name, at_ms } => secrets::remove(connection, name, *at_ms)?,
        Command::PutRegistry { registry, username, value, at_ms } => {
            registries::put(connection, registry, username, value, *at_ms)?
        }
        Command::RemoveRegistry { registry, at_ms } => registries::remove(connection, registry, *at_ms)?,
        Command::ClaimSubnet { node_id, range, used, taken, first } => {
            let claim = Claim { node_id: *node_id, range: *range, used: *used, taken, first: *first };
            subnets::claim(connection, &claim)?
        }
        Command::CreateVolume { name, node_id, options, labels, at_ms } => {
            let new = NewVolume { name, node_id: *node_id, options, labels, at_ms: *at_ms };
            volumes::create(connection, index, &new)?
        }
        Command::BindVolume { name, node_id, at_ms } => volumes::bind(connection, name, *node_id, *at_ms)?,
        Command::RemoveVolume { name, at_ms } => volumes::remove(connection, index, name, *at_ms)?,
        Command::MoveVolume { name, to, at_ms } => match to {
            Some(to) => volume_moves::order(connection, index, name, *to, *at_ms)?,
            None => volume_moves::take_back(connection, name, *at_ms)?,
        },
        Command::TurnVolume { name, born, turn, at_ms } => {
            volume_moves::turn(connection, index, &Turn { name, born: *born, turn, at_ms: *at_ms })?
        }
        Command::ForgetVolumes { node_id, gone } => {
            for (name, born) in gone {
                VolumeRow::forget(connection, *node_id, name, *born)?;
            }
            Ok(Reply::Done)
        }
        Command::ConfigureGpu { node_id, gpu, policy, cordoned, at_ms } => {
            let change = Configure { node_id: *node_id, gpu, policy: *policy, cordoned: *cordoned, at_ms: *at_ms };
            gpus::configure(connection, &change)?
        }
        Command::ConfigureNode { name, changes, at_ms } => nodes::configure(connection, name, changes, *at_ms)?,
        Command::ConfigurePlacement { changes, at_ms } => nodes::configure_placement(connection, changes, *at_ms)?,
        Command::NoteNodes { nodes, at_ms } => {
            for (node_id, health) in nodes {
                node_health::note(connection, *node_id, *health, *at_ms)?;
            }
            Ok(Reply::Done)
        }
        Command::MoveInstances { moves, at_ms } => move_orders::order(connection, moves, *at_ms)?,
        Command::AnnounceMesh { node_id, mesh, at_ms } => mesh::announce(connection, *node_id, mesh, *at_ms)?,
        Command::CreateToken { token, at_ms } => members::create_token(connection, token, *at_ms)?,
        Command::RevokeToken { token_id, at_ms } => members::revoke_token(connection, token_id, *at_ms)?,
        Command::AdmitNode { token_id, node_id, name, labels, key, in_place_of, at_ms } => {
            let (node_id, in_place_of, at_ms) = (*node_id, *in_place_of, *at_ms);
            members::admit(connection, index, &Admit { token_id, node_id, name, labels, key, in_place_of, at_ms })?
        }
        Command::RemoveNode { node_id, name, lost, force, at_ms } => {
            let remove = Remove { node_id: *node_id, name, lost: *lost, force: *force, at_ms: *at_ms };
            members::remove_node(connection, &remove)?
        }
        Command::CreateUser { user, at_ms } => users::create(connection, user, *at_ms)?,
        Command::ChangeUser { name, changes, keep, at_ms } => {
            users::change(connection, name, changes, keep.as_ref(), *at_ms)?
        }
        Command::RemoveUser { name, .. } => users::remove(connection, name)?,
        Command::OpenSession { session, proof, passkey, at_ms } => {
            let shown = users::Shown { proof: proof.as_ref(), passkey: passkey.as_ref() };
            users::open_session(connection, session, shown, *at_ms)?
        }
        Command::EndSession { session_id, .. } => {
            SessionRow::delete(connection, session_id)?;
            Ok(Reply::Done)
        }
        Command::CreateApiToken { token, at_ms } => users::create_api_token(connection, token, *at_ms)?,
        Command::RevokeApiToken { token_id, .. } => users::revoke_api_token(connection, token_id)?,
        Command::NoteUses { sessions, tokens } => {
            for (id, at_ms) in sessions {
                SessionRow::note_use(connection, id, *at_ms)?;
            }
            for (id, at_ms) in tokens {
                ApiTokenRow::note_use(connection, id, *at_ms)?;
            }
            Ok(Reply::Done)
        }
        Command::PutSecondFactor { factor, .. } => second_factors::put(connection, factor)?,
        Command::RemoveSecondFactor { name, proof, .. } => second_factors::remove(connection, name, proof.as_ref())?,
        Command::PutPasskey { passkey, at_ms } => passkeys::put(connection, passkey, *at_ms)?,
        Command::RemovePasskey { name, passkey_id, .. } => passkeys::remove(connection, name, passkey_id)?,
        Command::ConfigureAccess { changes, .. } => second_factors::configure(connection, changes)?,
        Command::PutSigningKey { key, alone, at_ms } => signing_keys::put(connection, key, *alone, *at_ms)?,
        Command::AcceptUser { user, at_ms } => users::accept(connection, user, *at_ms)?,
        // The trail tells of it.
        Command::NoteAction { .. } => Ok(Reply::Done),
    };
    Ok(applied)
}

fn register_node(connection: &Connection, row: &NodeRow) -> rusqlite::Result<Applied> {
    if NodeRow::id_of(connection, &row.name)?.is_some_and(|id| id != row.id) {
        return Ok(Err(Refusal {
            kind: RefusalKind::Exists,
            message: format!("another node is called `{}`", row.name),
            hint: "give this node another name in its configuration".into(),
        }));
    }
    if RemovedNodeRow::has(connection, row.id)? {
        return Ok(Err(Refusal {
            kind: RefusalKind::NotFound,
            message: format!("`{}` was removed from the cluster", row.name),
            hint: "run `toft leave --force` there, and join again".into(),
        }));
    }
    let known = NodeRow::by_id(connection, row.id)?;
    row.save(connection)?;
    if known.is_none()
        && let Some(admission) = AdmissionRow::of(connection, row.id)?
        && let Ok(settings) = merge_labels(NodeSettings::default(), &admission.labels)
        && settings != NodeSettings::default()
    {
        NodeRow::save_settings(connection, row.id, &settings)?;
    }
    let before = known.as_ref().map_or(&[][..], |known| &known.inventory.gpus);
    gpus::tell_changes(connection, row, before, row.registered_at_ms)?;
    if known.is_none_or(|known| known.inventory.version != row.inventory.version) {
        let message = format!("runs toft {} on {}", row.inventory.version, row.inventory.os);
        EventRow::add(connection, row.registered_at_ms, EventLevel::Info, &format!("node/{}", row.name), &message)?;
    }
    Ok(Ok(Reply::Done))
}

pub(super) fn not_found(name: &Name) -> Refusal {
    Refusal {
        kind: RefusalKind::NotFound,
        message: format!("there is no workload `{name}`"),
        hint: "`toft ls` shows the workloads there are".into(),
    }
}

fn removing(name: &Name) -> Refusal {
    Refusal {
        kind: RefusalKind::Removing,
        message: format!("workload `{name}` is being removed"),
        hint: "wait until it is gone, or use another name".into(),
    }
}

fn stale(row: &WorkloadRow, seen: u64) -> Refusal {
    Refusal {
        kind: RefusalKind::Stale,
        message: format!("workload `{}` has generation {}, not {seen}", row.spec.name, row.generation),
        hint: "read it again and repeat the change".into(),
    }
}

fn tell(connection: &Connection, at_ms: i64, name: &Name, message: &str) -> rusqlite::Result<()> {
    EventRow::add(connection, at_ms, EventLevel::Info, &format!("workload/{name}"), message)
}

pub(super) fn put_workload(
    connection: &Connection,
    id: WorkloadId,
    spec: &WorkloadSpec,
    mode: PutMode,
    cause: &VersionCause,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let name = &spec.name;
    if let Some(refusal) = secrets::missing(connection, &spec.secrets)? {
        return Ok(Err(refusal));
    }
    if let Some(refusal) = volumes::too_many(connection, spec)? {
        return Ok(Err(refusal));
    }
    let row = match (WorkloadRow::named(connection, name)?, mode) {
        (Some(row), _) if row.desired == Desired::Removed => return Ok(Err(removing(name))),
        (Some(_), PutMode::Create) => {
            return Ok(Err(Refusal {
                kind: RefusalKind::Exists,
                message: format!("there is a workload `{name}` already"),
                hint: format!("choose another name, or remove it first with `toft rm {name}`"),
            }));
        }
        (Some(row), PutMode::Replace { if_generation: Some(seen) }) if row.generation != seen => {
            return Ok(Err(stale(&row, seen)));
        }
        (None, PutMode::Replace { if_generation: Some(_) }) => return Ok(Err(not_found(name))),
        (Some(row), PutMode::Replace { .. }) if row.spec == *spec => return Ok(Ok(Reply::Workload(Box::new(row)))),
        (Some(row), PutMode::Replace { .. }) => {
            let generation = row.generation + 1;
            tell(connection, at_ms, name, &format!("changed to generation {generation}"))?;
            rollouts::leave(connection, &row)?;
            let rollout = rollouts::begun(spec, Some(&row));
            WorkloadRow { generation, spec: spec.clone(), updated_at_ms: at_ms, rollout, ..row }
        }
        (None, _) if WorkloadRow::order_of(connection, id)?.is_some() => {
            return Ok(Err(Refusal {
                kind: RefusalKind::Exists,
                message: format!("the id {id} belongs to another workload"),
                hint: "repeat the request".into(),
            }));
        }
        (None, _) => {
            tell(connection, at_ms, name, &format!("created from image {}", spec.image))?;
            WorkloadRow {
                id,
                generation: 1,
                spec: spec.clone(),
                desired: Desired::Running,
                epoch: 1,
                pending: None,
                created_at_ms: at_ms,
                updated_at_ms: at_ms,
                rollout: rollouts::begun(spec, None),
            }
        }
    };
    row.save(connection)?;
    rollouts::note(connection, &row, cause)?;
    Ok(Ok(Reply::Workload(Box::new(row))))
}

/// Labels describe and may be written often: no event tells of them.
fn label_workload(
    connection: &Connection,
    name: &Name,
    labels: &BTreeMap<String, Option<String>>,
    if_generation: Option<u64>,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let Some(mut row) = WorkloadRow::named(connection, name)? else { return Ok(Err(not_found(name))) };
    if row.desired == Desired::Removed {
        return Ok(Err(removing(name)));
    }
    if let Some(seen) = if_generation.filter(|seen| *seen != row.generation) {
        return Ok(Err(stale(&row, seen)));
    }
    let mut changed = false;
    for (key, value) in labels {
        let before = match value {
            Some(value) => row.spec.labels.insert(key.clone(), value.clone()),
            None => row.spec.labels.remove(key),
        };
        changed |= before != *value;
    }
    if changed {
        if let Err(Invalid { message, hint, .. }) = row.spec.validate_texts() {
            return Ok(Err(Refusal { kind: RefusalKind::Invalid, message, hint }));
        }
        row.generation += 1;
        row.updated_at_ms = at_ms;
        row.save(connection)?;
    }
    Ok(Ok(Reply::Generation { generation: row.generation }))
}

fn power_workload(
    connection: &Connection,
    index: u64,
    name: &Name,
    action: PowerAction,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let Some(mut row) = WorkloadRow::named(connection, name)? else { return Ok(Err(not_found(name))) };
    if row.desired == Desired::Removed {
        return Ok(Err(removing(name)));
    }
    let word = match action {
        PowerAction::Stop if row.desired == Desired::Stopped => return Ok(Ok(Reply::Workload(Box::new(row)))),
        PowerAction::Stop => {
            row.desired = Desired::Stopped;
            "stopped by request"
        }
        // What runs keeps running; what is down, for whatever reason, gets a new epoch and with it a new start.
        PowerAction::Start if row.desired == Desired::Running => {
            if !start_ended(connection, index, &row)? {
                return Ok(Ok(Reply::Workload(Box::new(row))));
            }
            "started by request"
        }
        PowerAction::Start => {
            row.desired = Desired::Running;
            row.epoch = next_epoch(connection, &row)?;
            "started by request"
        }
        PowerAction::Restart => {
            row.desired = Desired::Running;
            row.epoch = next_epoch(connection, &row)?;
            "restarted by request"
        }
    };
    row.updated_at_ms = at_ms;
    row.save(connection)?;
    tell(connection, at_ms, name, word)?;
    Ok(Ok(Reply::Workload(Box::new(row))))
}

/// An epoch that every instance takes for newer than its own.
fn next_epoch(connection: &Connection, workload: &WorkloadRow) -> rusqlite::Result<u64> {
    let instances = InstanceRow::of_workload(connection, workload.id)?;
    Ok(instances.iter().map(|instance| instance.epoch).fold(workload.epoch, u64::max) + 1)
}

/// Gives a new epoch to each instance that shall run and is down, unless a newer start is on its way to it already;
/// `false` when there was none.
fn start_ended(connection: &Connection, index: u64, workload: &WorkloadRow) -> rusqlite::Result<bool> {
    let mut any = false;
    for instance in InstanceRow::of_workload(connection, workload.id)? {
        let epoch = instance.epoch.max(workload.epoch);
        let report = instance.report.as_ref().filter(|report| report.epoch >= epoch);
        let state = report.and_then(|report| report.state.as_ref());
        let down = matches!(state, Some(InstanceState::Finished { .. } | InstanceState::BackOff { .. }));
        if down && instance.desired == Desired::Running {
            InstanceRow::set_order(connection, instance.id, instance.desired, epoch + 1)?;
            NodeRow::touch_assignments(connection, instance.node_id, index)?;
            any = true;
        }
    }
    Ok(any)
}

fn remove_workload(connection: &Connection, name: &Name, at_ms: i64) -> rusqlite::Result<Applied> {
    let Some(mut row) = WorkloadRow::named(connection, name)? else { return Ok(Err(not_found(name))) };
    if row.desired != Desired::Removed {
        row.desired = Desired::Removed;
        row.pending = None;
        row.updated_at_ms = at_ms;
        row.save(connection)?;
        tell(connection, at_ms, name, "is being removed")?;
    }
    delete_if_empty(connection, &row, at_ms)?;
    Ok(Ok(Reply::Workload(Box::new(row))))
}

pub(super) fn delete_if_empty(connection: &Connection, row: &WorkloadRow, at_ms: i64) -> rusqlite::Result<()> {
    if row.desired == Desired::Removed && !InstanceRow::any_of_workload(connection, row.id)? {
        WorkloadRow::delete(connection, row.id)?;
        tell(connection, at_ms, &row.spec.name, "removed")?;
    }
    Ok(())
}

fn take_report(
    connection: &Connection,
    index: u64,
    node_id: NodeId,
    report: &InstanceReport,
    at_ms: i64,
) -> rusqlite::Result<()> {
    let Some(row) = InstanceRow::by_id(connection, report.instance_id)?.filter(|row| row.node_id == node_id) else {
        return Ok(());
    };
    // A message that was long on its way, or came twice, does not undo what was told since.
    let known = row.report.as_ref().map_or(0, |known| known.sequence);
    if report.sequence != 0 && report.sequence < known {
        return Ok(());
    }
    let Some(state) = &report.state else {
        if row.desired == Desired::Removed {
            InstanceRow::delete(connection, row.id)?;
            NodeRow::touch_assignments(connection, node_id, index)?;
            if let Some(workload) = WorkloadRow::by_id(connection, row.workload_id)? {
                delete_if_empty(connection, &workload, at_ms)?;
            }
        }
        return Ok(());
    };
    if let Some(warning) = report.warning.as_ref().filter(|_| report.sequence == 0 || report.sequence != known)
        && let Some(workload) = WorkloadRow::name_of(connection, row.workload_id)?
    {
        let subject = format!("instance/{workload}-{}", row.ordinal);
        let warning: String = warning.chars().take(LONGEST_WARNING).collect();
        EventRow::add(connection, report.at_ms, EventLevel::Warning, &subject, &warning)?;
    }
    let before = row.report.as_ref().and_then(|report| report.state.as_ref());
    if before.map(InstanceState::as_str) != Some(state.as_str())
        && let Some((level, message)) = story(state)
        && let Some(workload) = WorkloadRow::name_of(connection, row.workload_id)?
    {
        let subject = format!("instance/{workload}-{}", row.ordinal);
        // What fails again and again for the same reason is told once.
        let told = level == EventLevel::Warning
            && EventRow::newest(connection, Some(&subject), None, 1)?
                .first()
                .is_some_and(|last| last.message == message);
        if !told {
            EventRow::add(connection, report.at_ms, level, &subject, &message)?;
        }
    }
    InstanceRow::set_report(connection, report)
}

/// The sentence an observation adds to the story, if it is worth one.
fn story(state: &InstanceState) -> Option<(EventLevel, String)> {
    match state {
        InstanceState::Assigned | InstanceState::Starting | InstanceState::Stopping | InstanceState::Unknown => None,
        InstanceState::Running { pid, .. } => Some((EventLevel::Info, format!("runs as process {pid}"))),
        InstanceState::Stopped { .. } => Some((EventLevel::Info, "stopped".into())),
        InstanceState::BackOff { reason, .. } => Some((EventLevel::Warning, format!("{reason}; will be tried again"))),
        InstanceState::Finished { reason: Some(reason), .. } => Some((EventLevel::Warning, reason.clone())),
        InstanceState::Finished { exit, reason: None } => match exit.code {
            _ if exit.out_of_memory || exit.gpu_out_of_memory => Some((EventLevel::Warning, exit.reason())),
            Some(0) => Some((EventLevel::Info, "finished with exit code 0".into())),
            Some(code) => Some((EventLevel::Warning, format!("ended with exit code {code}"))),
            None => Some((EventLevel::Warning, "its process vanished".into())),
        },
    }
}
