//! Commands on volumes, who uses which, and what a node has of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{Refusal, RefusalKind, Reply},
    tables::{EventLevel, EventRow, InstanceRow, MovePhase, NodeRow, SecretRow, VolumeMove, VolumeRow, WorkloadRow},
};
use crate::{
    ids::NodeId,
    instance::{ContainerOrder, Desired},
    name::Name,
    schedule::Losses,
    volume::{MAX_VOLUMES, VolumeOptions, VolumeOrder},
    workload::{Mount, WorkloadSpec},
};

/// What becomes of the instances of `spec` whose node is lost.
pub(super) fn losses(connection: &Connection, spec: &WorkloadSpec) -> rusqlite::Result<Losses> {
    let mut remote = BTreeSet::new();
    for volume in spec.mounts.iter().filter_map(Mount::volume) {
        if VolumeRow::named(connection, &volume.name)?.is_some_and(|row| row.options.is_remote()) {
            remote.insert(&volume.name);
        }
    }
    Ok(Losses::of(spec, |volume| !remote.contains(volume)))
}

/// A volume on its way into the state.
pub(super) struct NewVolume<'a> {
    pub(super) name: &'a Name,
    pub(super) node_id: Option<NodeId>,
    pub(super) options: &'a VolumeOptions,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) at_ms: i64,
}

pub(super) fn create(connection: &Connection, index: u64, new: &NewVolume<'_>) -> rusqlite::Result<Applied> {
    let NewVolume { name, node_id, options, labels, at_ms } = *new;
    if VolumeRow::named(connection, name)?.is_some() {
        return Ok(Err(Refusal {
            kind: RefusalKind::Exists,
            message: format!("there is a volume `{name}` already"),
            hint: format!("choose another name; `toft volume inspect {name}` shows what is there"),
        }));
    }
    if let Some(refusal) = full(connection, 1)? {
        return Ok(Err(refusal));
    }
    if let Some(secret) = &options.secret
        && SecretRow::named(connection, secret)?.is_none()
    {
        return Ok(Err(Refusal {
            kind: RefusalKind::NoSecret,
            message: format!("there is no secret `{secret}`"),
            hint: format!("create it with `toft secret create {secret}`"),
        }));
    }
    let node = match node_id.map(|id| NodeRow::by_id(connection, id)).transpose()? {
        None => None,
        Some(Some(node)) if !options.is_remote() => Some(node),
        Some(Some(_)) => {
            return Ok(Err(Refusal {
                kind: RefusalKind::Invalid,
                message: format!("volume `{name}` lies on a server, not on a node"),
                hint: "leave the node out".into(),
            }));
        }
        Some(None) => {
            return Ok(Err(Refusal {
                kind: RefusalKind::NotFound,
                message: "the node is not there".into(),
                hint: "`toft node ls` shows the nodes there are".into(),
            }));
        }
    };
    let row = VolumeRow {
        name: name.clone(),
        born: newborn(connection, index, name)?,
        node_id: node.as_ref().map(|node| node.id),
        options: options.clone(),
        labels: labels.clone(),
        created_at_ms: at_ms,
        moving: None,
    };
    row.insert(connection)?;
    let place = node.map_or_else(String::new, |node| format!(" on node {}", node.name));
    tell(connection, at_ms, name, &format!("created{place}"))?;
    Ok(Ok(Reply::Volume(Box::new(row))))
}

pub(super) fn bind(connection: &Connection, name: &Name, node_id: NodeId, at_ms: i64) -> rusqlite::Result<Applied> {
    let Some(mut row) = VolumeRow::named(connection, name)? else { return Ok(Err(not_found(name))) };
    let Some(node) = NodeRow::by_id(connection, node_id)? else { return Ok(Err(not_found(name))) };
    if row.options.is_remote() || row.node_id.is_some_and(|known| known != node_id) {
        return Ok(Err(Refusal {
            kind: RefusalKind::Stale,
            message: format!("volume `{name}` lies elsewhere"),
            hint: format!("`toft volume inspect {name}` shows where"),
        }));
    }
    if row.node_id.is_none() {
        VolumeRow::bind(connection, name, node_id)?;
        row.node_id = Some(node_id);
        tell(connection, at_ms, name, &format!("lies on node {}", node.name))?;
    }
    Ok(Ok(Reply::Volume(Box::new(row))))
}

pub(super) fn remove(connection: &Connection, index: u64, name: &Name, at_ms: i64) -> rusqlite::Result<Applied> {
    let Some(row) = VolumeRow::named(connection, name)? else { return Ok(Err(not_found(name))) };
    let users = users_of(name, &WorkloadRow::all(connection)?, &InstanceRow::all(connection)?);
    if !users.is_empty() {
        let shown: Vec<String> = users.iter().take(5).map(|user| format!("`{user}`")).collect();
        let more = if users.len() > 5 { format!(" and {} more", users.len() - 5) } else { String::new() };
        return Ok(Err(Refusal {
            kind: RefusalKind::InUse,
            message: format!("volume `{name}` is used by {}{more}", shown.join(", ")),
            hint: "remove these workloads first, or change them so that they do without it".into(),
        }));
    }
    if row.moving.as_ref().is_some_and(VolumeMove::is_under_way) {
        return Ok(Err(Refusal {
            kind: RefusalKind::InUse,
            message: format!("volume `{name}` is being moved to another node"),
            hint: format!("wait until it is there, or take that back with `toft volume move {name} --cancel`"),
        }));
    }
    row.delete(connection)?;
    if let Some(node_id) = row.node_id {
        NodeRow::touch_assignments(connection, node_id, index)?;
    }
    tell(connection, at_ms, name, "removed")?;
    Ok(Ok(Reply::Done))
}

/// Why the volumes that `spec` names could not all be made, if they are not there yet.
pub(super) fn too_many(connection: &Connection, spec: &WorkloadSpec) -> rusqlite::Result<Option<Refusal>> {
    let mut new = 0;
    for volume in spec.mounts.iter().filter_map(Mount::volume) {
        new += u64::from(VolumeRow::named(connection, &volume.name)?.is_none());
    }
    if new == 0 { Ok(None) } else { full(connection, new) }
}

fn full(connection: &Connection, new: u64) -> rusqlite::Result<Option<Refusal>> {
    let count = VolumeRow::count(connection)?;
    Ok((count + new > MAX_VOLUMES).then(|| Refusal {
        kind: RefusalKind::Full,
        message: format!("there are {count} volumes, and no more fit"),
        hint: "`toft volume prune` removes those that no workload uses".into(),
    }))
}

/// A number that no volume of that name had whose data may be there still.
pub(super) fn newborn(connection: &Connection, index: u64, name: &Name) -> rusqlite::Result<u64> {
    Ok(VolumeRow::newest_removed(connection, name)?.map_or(index, |removed| index.max(removed + 1)))
}

/// Whether every volume of `order` lies on `node_id`, or can, and may be used now.
pub(super) fn can_be_on(connection: &Connection, order: &ContainerOrder, node_id: NodeId) -> rusqlite::Result<bool> {
    for volume in order.mounts.iter().filter_map(Mount::volume) {
        let row = VolumeRow::named(connection, &volume.name)?;
        let Some(row) = row else { continue };
        let held = row.moving.is_some_and(|moving| moving.phase == MovePhase::Held);
        if held || row.node_id.is_some_and(|home| home != node_id) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the volumes of `order` that are not there, and ties those to `node` that lie nowhere yet.
pub(super) fn settle(
    connection: &Connection,
    index: u64,
    order: &ContainerOrder,
    node: &NodeRow,
    at_ms: i64,
) -> rusqlite::Result<()> {
    for volume in order.mounts.iter().filter_map(Mount::volume) {
        match VolumeRow::named(connection, &volume.name)? {
            Some(row) if row.node_id.is_some() || row.options.is_remote() => {}
            Some(_) => {
                VolumeRow::bind(connection, &volume.name, node.id)?;
                tell(connection, at_ms, &volume.name, &format!("lies on node {}", node.name))?;
            }
            None => {
                let row = VolumeRow {
                    name: volume.name.clone(),
                    born: newborn(connection, index, &volume.name)?,
                    node_id: Some(node.id),
                    options: VolumeOptions::default(),
                    labels: BTreeMap::new(),
                    created_at_ms: at_ms,
                    moving: None,
                };
                row.insert(connection)?;
                tell(connection, at_ms, &volume.name, &format!("created on node {}", node.name))?;
            }
        }
    }
    Ok(())
}

/// The volumes that `order` mounts, as its node gets them.
pub(super) fn orders(connection: &Connection, order: &ContainerOrder) -> rusqlite::Result<BTreeMap<Name, VolumeOrder>> {
    let mut orders = BTreeMap::new();
    for volume in order.mounts.iter().filter_map(Mount::volume) {
        if let Some(VolumeRow { name, born, options, .. }) = VolumeRow::named(connection, &volume.name)? {
            orders.insert(name, VolumeOrder { born, options });
        }
    }
    Ok(orders)
}

/// Volumes whose mount needs a secret.
pub(super) fn users_of_secret(connection: &Connection, secret: &Name) -> rusqlite::Result<Vec<Name>> {
    let all = VolumeRow::all(connection)?;
    Ok(all.into_iter().filter(|row| row.options.secret.as_ref() == Some(secret)).map(|row| row.name).collect())
}

/// A volume and who uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeView {
    /// The row.
    pub row: VolumeRow,
    /// Name of the node its data lies on.
    pub node: Option<Name>,
    /// Workloads that use it, by name.
    pub users: Vec<Name>,
    /// Those of them that shall run, or may run still.
    pub running: Vec<Name>,
    /// Name of the node it is ordered to, or was until that was given up.
    pub moves_to: Option<Name>,
}

/// The volumes of these rows, with all nodes, workloads and instances there are.
pub fn volume_views(
    rows: Vec<VolumeRow>,
    nodes: &[&NodeRow],
    workloads: &[&WorkloadRow],
    instances: &[&InstanceRow],
) -> Vec<VolumeView> {
    let has_volumes = |mounts: &[Mount]| mounts.iter().any(|mount| mount.volume().is_some());
    let instances: Vec<_> = instances.iter().copied().filter(|one| has_volumes(&one.container.mounts)).collect();
    let held: HashSet<_> = instances.iter().map(|one| one.workload_id).collect();
    let uses = |workload: &&WorkloadRow| has_volumes(&workload.spec.mounts) || held.contains(&workload.id);
    let workloads: Vec<_> = workloads.iter().copied().filter(uses).collect();
    rows.into_iter().map(|row| view(row, nodes, &workloads, &instances)).collect()
}

/// The volume of that name.
pub fn query_volume(connection: &Connection, name: &Name) -> rusqlite::Result<Option<VolumeView>> {
    let Some(row) = VolumeRow::named(connection, name)? else { return Ok(None) };
    let (nodes, workloads) = (NodeRow::all(connection)?, WorkloadRow::all(connection)?);
    let instances = InstanceRow::all(connection)?;
    let (nodes, workloads) = (nodes.iter().collect::<Vec<_>>(), workloads.iter().collect::<Vec<_>>());
    Ok(volume_views(vec![row], &nodes, &workloads, &instances.iter().collect::<Vec<_>>()).pop())
}

/// The volumes of a node: those that are there, and those that it is to delete, each with its `born`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeVolumes {
    /// Whose data it keeps.
    pub kept: Vec<(Name, u64)>,
    /// Whose data it deletes.
    pub removed: Vec<(Name, u64)>,
}

/// The volumes of a node.
pub fn query_node_volumes(connection: &Connection, node_id: NodeId) -> rusqlite::Result<NodeVolumes> {
    let all = VolumeRow::all(connection)?;
    let here = all.iter().filter(|row| row.node_id.is_none_or(|home| home == node_id));
    let here = here.map(|row| (row.name.clone(), row.born));
    let comes = VolumeRow::moving_to(connection, node_id)?.into_iter();
    let comes = comes.filter_map(|row| Some((row.name, row.moving?.born)));
    Ok(NodeVolumes { kept: here.chain(comes).collect(), removed: VolumeRow::removed_on(connection, node_id)? })
}

fn view(row: VolumeRow, nodes: &[&NodeRow], workloads: &[&WorkloadRow], instances: &[&InstanceRow]) -> VolumeView {
    let node = row.node_id.and_then(|id| nodes.iter().find(|node| node.id == id)).map(|node| node.name.clone());
    let users = users_of(&row.name, workloads.iter().copied(), instances.iter().copied());
    let may_run = |workload: &&&WorkloadRow| {
        let of = |one: &&&InstanceRow| one.workload_id == workload.id && mounts(&one.container, &row.name);
        workload.desired == Desired::Running || instances.iter().filter(of).any(|instance| !is_down(instance))
    };
    let named = |name: &&Name| workloads.iter().find(|workload| workload.spec.name == **name);
    let running = users.iter().filter(|name| named(name).as_ref().is_some_and(may_run)).cloned().collect();
    let to = row.moving.as_ref().map(|moving| moving.to);
    let moves_to = to.and_then(|id| nodes.iter().find(|node| node.id == id)).map(|node| node.name.clone());
    VolumeView { row, node, users, running, moves_to }
}

/// Whether the node told that no process of it runs, and none is to.
fn is_down(instance: &InstanceRow) -> bool {
    use crate::instance::InstanceState::{Finished, Stopped};
    let state = instance.report.as_ref().and_then(|report| report.state.as_ref());
    instance.desired == Desired::Stopped && matches!(state, Some(Stopped { .. } | Finished { .. }))
}

/// The workloads that name a volume, or have instances that mount it still.
pub(super) fn users_of<'a>(
    name: &Name,
    workloads: impl IntoIterator<Item = &'a WorkloadRow>,
    instances: impl IntoIterator<Item = &'a InstanceRow> + Clone,
) -> Vec<Name> {
    let names = |spec: &WorkloadSpec| spec.mounts.iter().filter_map(Mount::volume).any(|volume| volume.name == *name);
    let holds = |workload: &WorkloadRow| {
        let mut instances = instances.clone().into_iter();
        instances.any(|one| one.workload_id == workload.id && mounts(&one.container, name))
    };
    let uses =
        |workload: &&WorkloadRow| (workload.desired != Desired::Removed && names(&workload.spec)) || holds(workload);
    workloads.into_iter().filter(uses).map(|workload| workload.spec.name.clone()).collect()
}

pub(super) fn mounts(order: &ContainerOrder, name: &Name) -> bool {
    order.mounts.iter().filter_map(Mount::volume).any(|volume| volume.name == *name)
}

fn tell(connection: &Connection, at_ms: i64, name: &Name, message: &str) -> rusqlite::Result<()> {
    EventRow::add(connection, at_ms, EventLevel::Info, &format!("volume/{name}"), message)
}

pub(super) fn not_found(name: &Name) -> Refusal {
    Refusal {
        kind: RefusalKind::NotFound,
        message: format!("there is no volume `{name}`"),
        hint: "`toft volume ls` shows the volumes there are".into(),
    }
}
