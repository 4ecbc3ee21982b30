//! Commands on secrets, and who uses which.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{PutMode, Refusal, RefusalKind, Reply},
    tables::{EventLevel, EventRow, InstanceRow, NodeRow, SecretRow, WorkloadRow},
    volumes,
};
use crate::{
    instance::{Desired, InstanceState},
    name::Name,
    secret::{MAX_SECRETS, MAX_TOTAL_BYTES, MAX_VALUE_BYTES, Sealed, SealedSecret, SecretMount},
};

/// A value on its way into the state.
pub(super) struct NewSecret<'a> {
    pub(super) name: &'a Name,
    pub(super) value: &'a SealedSecret,
    pub(super) size_bytes: u64,
    pub(super) mode: PutMode,
    pub(super) at_ms: i64,
}

pub(super) fn put(connection: &Connection, index: u64, new: &NewSecret<'_>) -> rusqlite::Result<Applied> {
    let NewSecret { name, value, size_bytes, mode, at_ms } = *new;
    let known = SecretRow::named(connection, name)?;
    if let Some(refusal) = refused_mode(name, known.as_ref(), mode) {
        return Ok(Err(refusal));
    }
    // The value is sealed for one version: whoever sealed it must have seen the one before.
    if value.version != known.as_ref().map_or(0, |row| row.version) + 1 {
        return Ok(Err(stale(name)));
    }
    if let Some(refusal) = too_much(connection, new, known.as_ref())? {
        return Ok(Err(refusal));
    }
    let message = match &known {
        None => "created".to_owned(),
        Some(_) => format!("changed to version {}", value.version),
    };
    let row = SecretRow {
        name: name.clone(),
        version: value.version,
        size_bytes,
        created_at_ms: known.map_or(at_ms, |row| row.created_at_ms),
        updated_at_ms: at_ms,
    };
    row.save(connection, &value.sealed)?;
    tell(connection, at_ms, name, &message)?;
    touch_users(connection, index, name)?;
    Ok(Ok(Reply::Secret(Box::new(row))))
}

fn refused_mode(name: &Name, known: Option<&SecretRow>, mode: PutMode) -> Option<Refusal> {
    match (known, mode) {
        (Some(_), PutMode::Create) => Some(Refusal {
            kind: RefusalKind::Exists,
            message: format!("there is a secret `{name}` already"),
            hint: format!("choose another name, or change its value with `toft secret update {name}`"),
        }),
        (Some(row), PutMode::Replace { if_generation: Some(seen) }) if row.version != seen => Some(stale(name)),
        (None, PutMode::Replace { if_generation: Some(_) }) => Some(not_found(name)),
        (Some(_), PutMode::Replace { .. }) | (None, PutMode::Create | PutMode::Replace { if_generation: None }) => None,
    }
}

fn too_much(
    connection: &Connection,
    new: &NewSecret<'_>,
    known: Option<&SecretRow>,
) -> rusqlite::Result<Option<Refusal>> {
    let full = |message: String, hint: &str| Ok(Some(Refusal { kind: RefusalKind::Full, message, hint: hint.into() }));
    let most = MAX_VALUE_BYTES + Sealed::MOST_OVERHEAD_BYTES;
    if new.size_bytes > MAX_VALUE_BYTES as u64 || new.value.sealed.as_bytes().len() > most {
        return full(format!("a secret holds at most {MAX_VALUE_BYTES} bytes"), "put large data into an image");
    }
    let (count, bytes) = SecretRow::totals(connection)?;
    if known.is_none() && count >= MAX_SECRETS {
        return full(format!("there are {count} secrets, and no more fit"), "remove one that no workload uses");
    }
    if bytes - known.map_or(0, |row| row.size_bytes) + new.size_bytes > MAX_TOTAL_BYTES {
        return full(
            format!("all secrets together would hold more than {MAX_TOTAL_BYTES} bytes"),
            "remove one that no workload uses, or make this one smaller",
        );
    }
    Ok(None)
}

pub(super) fn remove(connection: &Connection, name: &Name, at_ms: i64) -> rusqlite::Result<Applied> {
    if SecretRow::named(connection, name)?.is_none() {
        return Ok(Err(not_found(name)));
    }
    let users: Vec<WorkloadRow> =
        WorkloadRow::all(connection)?.into_iter().filter(|workload| is_user(workload, name)).collect();
    if !users.is_empty() {
        let shown: Vec<String> = users.iter().take(5).map(|user| format!("`{}`", user.spec.name)).collect();
        let more = if users.len() > 5 { format!(" and {} more", users.len() - 5) } else { String::new() };
        return Ok(Err(Refusal {
            kind: RefusalKind::InUse,
            message: format!("secret `{name}` is used by {}{more}", shown.join(", ")),
            hint: "remove these workloads first, or change them so that they do without it".into(),
        }));
    }
    let mounts = volumes::users_of_secret(connection, name)?;
    if let Some(volume) = mounts.first() {
        return Ok(Err(Refusal {
            kind: RefusalKind::InUse,
            message: format!("secret `{name}` is the password of volume `{volume}`"),
            hint: "remove that volume first, or change the secret's value".into(),
        }));
    }
    SecretRow::delete(connection, name)?;
    tell(connection, at_ms, name, "removed")?;
    Ok(Ok(Reply::Done))
}

/// Why `mounts` cannot be had, when one names a secret that is not there.
pub(super) fn missing(connection: &Connection, mounts: &[SecretMount]) -> rusqlite::Result<Option<Refusal>> {
    for SecretMount { name, .. } in mounts {
        if SecretRow::named(connection, name)?.is_none() {
            return Ok(Some(Refusal {
                kind: RefusalKind::NoSecret,
                message: format!("there is no secret `{name}`"),
                hint: format!(
                    "create it with `toft secret create {name} FILE`; `toft secret ls` shows those there are"
                ),
            }));
        }
    }
    Ok(None)
}

/// Whether a workload uses a secret; one on its way out does not.
fn is_user(workload: &WorkloadRow, name: &Name) -> bool {
    workload.desired != Desired::Removed && workload.spec.secrets.iter().any(|mount| mount.name == *name)
}

/// The nodes whose instances use the secret get it anew.
fn touch_users(connection: &Connection, index: u64, name: &Name) -> rusqlite::Result<()> {
    for instance in InstanceRow::all(connection)? {
        if uses(&instance, name) {
            NodeRow::touch_assignments(connection, instance.node_id, index)?;
        }
    }
    Ok(())
}

fn uses(instance: &InstanceRow, name: &Name) -> bool {
    instance.desired != Desired::Removed && instance.container.secrets.iter().any(|mount| mount.name == *name)
}

/// A secret and who uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretView {
    /// The row.
    pub row: SecretRow,
    /// Workloads that use it, by name.
    pub users: Vec<SecretUser>,
}

/// A workload that uses a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUser {
    /// Its name.
    pub workload: Name,
    /// Whether a process of it was started before the value was last changed, and so has an older one.
    pub outdated: bool,
}

/// The secrets of these rows, with all workloads and instances there are.
pub fn secret_views(rows: Vec<SecretRow>, workloads: &[&WorkloadRow], instances: &[&InstanceRow]) -> Vec<SecretView> {
    let workloads: Vec<_> = workloads.iter().copied().filter(|workload| !workload.spec.secrets.is_empty()).collect();
    let instances: Vec<_> = instances.iter().copied().filter(|one| !one.container.secrets.is_empty()).collect();
    rows.into_iter().map(|row| view(row, &workloads, &instances)).collect()
}

/// The secret of that name.
pub fn query_secret(connection: &Connection, name: &Name) -> rusqlite::Result<Option<SecretView>> {
    let Some(row) = SecretRow::named(connection, name)? else { return Ok(None) };
    let (workloads, instances) = (WorkloadRow::all(connection)?, InstanceRow::all(connection)?);
    Ok(secret_views(vec![row], &workloads.iter().collect::<Vec<_>>(), &instances.iter().collect::<Vec<_>>()).pop())
}

fn view(row: SecretRow, workloads: &[&WorkloadRow], instances: &[&InstanceRow]) -> SecretView {
    let older = |instance: &InstanceRow| {
        let state = instance.report.as_ref().and_then(|report| report.state.as_ref());
        matches!(state, Some(InstanceState::Running { since_ms, .. }) if *since_ms < row.updated_at_ms)
    };
    let users = workloads
        .iter()
        .filter(|workload| is_user(workload, &row.name))
        .map(|workload| SecretUser {
            workload: workload.spec.name.clone(),
            outdated: instances
                .iter()
                .any(|instance| instance.workload_id == workload.id && uses(instance, &row.name) && older(instance)),
        })
        .collect();
    SecretView { row, users }
}

fn tell(connection: &Connection, at_ms: i64, name: &Name, message: &str) -> rusqlite::Result<()> {
    EventRow::add(connection, at_ms, EventLevel::Info, &format!("secret/{name}"), message)
}

fn not_found(name: &Name) -> Refusal {
    Refusal {
        kind: RefusalKind::NotFound,
        message: format!("there is no secret `{name}`"),
        hint: "`toft secret ls` shows the secrets there are".into(),
    }
}

fn stale(name: &Name) -> Refusal {
    Refusal {
        kind: RefusalKind::Stale,
        message: format!("secret `{name}` was changed meanwhile"),
        hint: "read it again and repeat the change".into(),
    }
}
