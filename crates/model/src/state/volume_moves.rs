//! Orders of users to bring the data of volumes to other nodes: given, carried on, taken back and given up. The node that a volume
//! is ordered to carries them out.

use rusqlite::Connection;

use super::{
    apply::Applied,
    command::{MoveTurn, Refusal, RefusalKind, Reply},
    tables::{EventLevel, EventRow, InstanceRow, MovePhase, NodeRow, VolumeMove, VolumeRow, WorkloadRow},
    volumes::{mounts, newborn, not_found, users_of},
};
use crate::{ids::NodeId, instance::Desired, name::Name, node::NodeHealth, volume::VolumeKind};

/// A turn that a move takes.
pub(super) struct Turn<'a> {
    pub(super) name: &'a Name,
    pub(super) born: u64,
    pub(super) turn: &'a MoveTurn,
    pub(super) at_ms: i64,
}

/// Why a volume of that kind cannot be moved, if so: what it is, and what to do instead.
pub fn cannot_go(kind: Option<VolumeKind>) -> Option<(&'static str, &'static str)> {
    match kind {
        None => None,
        Some(VolumeKind::Folder) => {
            Some(("is a folder of its node", "copy the folder yourself, and make a volume of it on the other node"))
        }
        Some(VolumeKind::Tmpfs) => Some(("lies in memory", "there is nothing to be moved: remove it and use another")),
        Some(VolumeKind::Nfs | VolumeKind::Nfs4 | VolumeKind::Cifs | VolumeKind::Smb3) => {
            Some(("lies on a server", "every node can use it where it is"))
        }
    }
}

/// Whether there is an instance that mounts a volume, on its way out or not.
pub fn volume_is_mounted(connection: &Connection, name: &Name) -> rusqlite::Result<bool> {
    Ok(InstanceRow::all(connection)?.iter().any(|row| mounts(&row.container, name)))
}

fn refuse<T>(kind: RefusalKind, message: String, hint: impl Into<String>) -> rusqlite::Result<Result<T, Refusal>> {
    Ok(Err(Refusal { kind, message, hint: hint.into() }))
}

/// Orders a volume to a node.
pub(super) fn order(
    connection: &Connection,
    index: u64,
    name: &Name,
    to: NodeId,
    at_ms: i64,
) -> rusqlite::Result<Applied> {
    let Some(mut row) = VolumeRow::named(connection, name)? else { return Ok(Err(not_found(name))) };
    let (from, target) = match ends(connection, &row, to)? {
        Ok(ends) => ends,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let workloads = WorkloadRow::all(connection)?;
    let bound = users_of(name, &workloads, &[]);
    let bound = workloads.iter().filter(|workload| bound.contains(&workload.spec.name));
    if let Some(workload) =
        bound.into_iter().find(|workload| workload.spec.node.as_ref().is_some_and(|node| *node != target.name))
    {
        let (user, only) = (&workload.spec.name, workload.spec.node.as_ref().map_or("?", Name::as_str));
        return refuse(
            RefusalKind::Invalid,
            format!("`{user}` uses volume `{name}` and may run on {only} alone"),
            format!("let it run on {}, or anywhere, first: change its `node`", target.name),
        );
    }
    let born = newborn(connection, index, name)?.max(row.born + 1);
    let moving = VolumeMove { to, born, phase: MovePhase::Copying, at_ms };
    VolumeRow::set_move(connection, name, Some(&moving))?;
    row.moving = Some(moving);
    let message = format!("is to be moved from node {} to node {}", from.name, target.name);
    tell(connection, at_ms, name, EventLevel::Info, &message)?;
    Ok(Ok(Reply::Volume(Box::new(row))))
}

/// The nodes between which a volume is to move.
fn ends(connection: &Connection, row: &VolumeRow, to: NodeId) -> rusqlite::Result<Result<(NodeRow, NodeRow), Refusal>> {
    let name = &row.name;
    if let Some((what, hint)) = cannot_go(row.options.kind) {
        return refuse(RefusalKind::Invalid, format!("volume `{name}` {what}, and cannot be moved"), hint);
    }
    if row.moving.as_ref().is_some_and(VolumeMove::is_under_way) {
        let hint = format!("wait until it is there, or take that back with `toft volume move {name} --cancel`");
        return refuse(RefusalKind::InUse, format!("volume `{name}` is being moved already"), hint);
    }
    let Some(target) = NodeRow::by_id(connection, to)? else {
        return refuse(
            RefusalKind::NotFound,
            "the node is not there, or runs no containers".to_owned(),
            "`toft node ls` shows the nodes there are",
        );
    };
    let from = row.node_id.map(|id| NodeRow::by_id(connection, id)).transpose()?.flatten();
    let Some(from) = from else {
        return refuse(
            RefusalKind::Invalid,
            format!("volume `{name}` lies nowhere yet"),
            "it will lie on the node that uses it first; `toft volume create --node` says which",
        );
    };
    if from.id == target.id {
        return refuse(
            RefusalKind::Invalid,
            format!("volume `{name}` lies on node {} already", target.name),
            format!("`toft volume inspect {name}` shows it"),
        );
    }
    for node in [&from, &target] {
        if node.health != NodeHealth::Ready {
            let hint = if node.id == from.id {
                "start it again; if it is lost for good, restore a backup under another name: `toft volume restore`"
            } else {
                "start it again, or choose another node"
            };
            return refuse(RefusalKind::Invalid, format!("node {} is {}", node.name, node.health.as_str()), hint);
        }
    }
    Ok(Ok((from, target)))
}

/// Takes back the order to move a volume, or forgets that one was given up.
pub(super) fn take_back(connection: &Connection, name: &Name, at_ms: i64) -> rusqlite::Result<Applied> {
    let Some(mut row) = VolumeRow::named(connection, name)? else { return Ok(Err(not_found(name))) };
    if let Some(moving) = row.moving.take() {
        if moving.is_under_way() {
            let to =
                NodeRow::by_id(connection, moving.to)?.map_or_else(|| "?".to_owned(), |node| node.name.to_string());
            tell(
                connection,
                at_ms,
                name,
                EventLevel::Info,
                &format!("is not moved to node {to}: that was taken back"),
            )?;
            VolumeRow::to_be_deleted(connection, name, moving.born, moving.to)?;
        }
        VolumeRow::set_move(connection, name, None)?;
    }
    Ok(Ok(Reply::Volume(Box::new(row))))
}

/// Takes a turn of the move that it speaks of.
pub(super) fn turn(connection: &Connection, index: u64, turn: &Turn<'_>) -> rusqlite::Result<Applied> {
    let Turn { name, born, turn, at_ms } = *turn;
    let Some(mut row) = VolumeRow::named(connection, name)? else { return Ok(Ok(Reply::Done)) };
    let under_way = row.moving.clone().filter(|moving| moving.born == born && moving.is_under_way());
    let Some(mut moving) = under_way else { return Ok(Ok(Reply::Done)) };
    let to = NodeRow::by_id(connection, moving.to)?.map_or_else(|| "?".to_owned(), |node| node.name.to_string());
    match (turn, &moving.phase) {
        (MoveTurn::Hold, MovePhase::Copying) => {
            for instance in InstanceRow::all(connection)? {
                if instance.desired == Desired::Removed || !mounts(&instance.container, name) {
                    continue;
                }
                InstanceRow::set_order(connection, instance.id, Desired::Removed, instance.epoch)?;
                NodeRow::touch_assignments(connection, instance.node_id, index)?;
                let workload = WorkloadRow::name_of(connection, instance.workload_id)?;
                let workload = workload.as_ref().map_or("?", Name::as_str);
                let subject = format!("instance/{workload}-{}", instance.ordinal);
                let message = format!("stops while its volume `{name}` is moved to node {to}");
                EventRow::add(connection, at_ms, EventLevel::Info, &subject, &message)?;
            }
            moving.phase = MovePhase::Held;
            VolumeRow::set_move(connection, name, Some(&moving))?;
            row.moving = Some(moving);
        }
        (MoveTurn::Settle, MovePhase::Held) if !volume_is_mounted(connection, name)? => {
            row.arrive(connection, &moving)?;
            for node in [row.node_id, Some(moving.to)].into_iter().flatten() {
                NodeRow::touch_assignments(connection, node, index)?;
            }
            tell(connection, at_ms, name, EventLevel::Info, &format!("lies on node {to} now"))?;
            (row.node_id, row.born, row.moving) = (Some(moving.to), moving.born, None);
        }
        (MoveTurn::Hold | MoveTurn::Settle, _) => return Ok(Ok(Reply::Done)),
        (MoveTurn::Fail { reason }, _) => {
            let reason: String = reason.chars().take(500).collect();
            let message = format!("could not be moved to node {to}, and stays: {reason}");
            tell(connection, at_ms, name, EventLevel::Warning, &message)?;
            VolumeRow::to_be_deleted(connection, name, moving.born, moving.to)?;
            moving.phase = MovePhase::Failed { reason };
            VolumeRow::set_move(connection, name, Some(&moving))?;
            row.moving = Some(moving);
        }
    }
    Ok(Ok(Reply::Volume(Box::new(row))))
}

fn tell(connection: &Connection, at_ms: i64, name: &Name, level: EventLevel, message: &str) -> rusqlite::Result<()> {
    EventRow::add(connection, at_ms, level, &format!("volume/{name}"), message)
}
