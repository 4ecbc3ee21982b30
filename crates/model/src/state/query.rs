//! Questions a request can ask: each is one read of the tables.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension};

use super::{
    tables::{EventRow, InstanceRow, NodeRow, SecretRow, VersionRow, VolumeRow, WorkloadRow, placement_settings},
    volumes,
};
use crate::{
    ids::NodeId,
    instance::{Assignment, AssignmentSet, Desired, InstanceState},
    name::Name,
    schedule::Snapshot,
    secret::SecretMount,
};

/// An instance with the names people know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// The row.
    pub row: InstanceRow,
    /// The workload's name.
    pub workload: Name,
    /// The node's name.
    pub node: Name,
    /// What its node tells right now beside its state, such as how far the pull of its image is; never stored.
    pub note: Option<String>,
}

impl InstanceView {
    /// What people call the instance: `web-0`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.workload, self.row.ordinal)
    }

    /// Where it stands; what no node has reported on is merely assigned.
    pub fn state(&self) -> InstanceState {
        if self.row.lost {
            return InstanceState::Unknown;
        }
        self.row.report.as_ref().and_then(|report| report.state.clone()).unwrap_or(InstanceState::Assigned)
    }
}

/// A workload with its instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadView {
    /// The row.
    pub row: WorkloadRow,
    /// Its instances, by ordinal.
    pub instances: Vec<InstanceView>,
}

impl WorkloadView {
    /// How many instances run now.
    pub fn running(&self) -> usize {
        self.instances.iter().filter(|i| matches!(i.state(), InstanceState::Running { .. })).count()
    }

    /// One word for the whole: `running`, `stopped`, `finished`, `pending`, `starting`, `stopping`, `back_off`, `unknown`,
    /// `removing`.
    pub fn status(&self) -> &'static str {
        let any = |word: &str| self.instances.iter().any(|i| i.state().as_str() == word);
        let live = self.instances.iter().filter(|i| i.row.desired != Desired::Removed).count();
        match self.row.desired {
            Desired::Removed => "removing",
            Desired::Stopped if self.instances.iter().all(|i| matches!(i.state(), InstanceState::Stopped { .. })) => {
                "stopped"
            }
            Desired::Stopped => "stopping",
            Desired::Running if self.row.pending.is_some() => "pending",
            Desired::Running if any("back_off") => "back_off",
            Desired::Running if live < self.row.spec.replicas as usize || any("assigned") || any("starting") => {
                "starting"
            }
            Desired::Running if self.instances.iter().any(|i| i.row.lost && i.row.desired != Desired::Removed) => {
                "unknown"
            }
            Desired::Running if live == 0 => "stopped",
            Desired::Running if any("stopping") || any("stopped") => "stopping",
            Desired::Running if any("running") => "running",
            Desired::Running => "finished",
        }
    }
}

/// Every instance, by workload name and ordinal.
pub fn query_instances(connection: &Connection) -> rusqlite::Result<Vec<InstanceView>> {
    Ok(query_workloads(connection)?.into_iter().flat_map(|workload| workload.instances).collect())
}

/// Every workload, by name.
pub fn query_workloads(connection: &Connection) -> rusqlite::Result<Vec<WorkloadView>> {
    views(connection, WorkloadRow::all(connection)?)
}

/// At most `limit` workloads whose names come after `after`, by name.
pub fn query_workload_page(
    connection: &Connection,
    after: Option<&str>,
    limit: usize,
) -> rusqlite::Result<Vec<WorkloadView>> {
    views(connection, WorkloadRow::page(connection, after, limit)?)
}

fn views(connection: &Connection, rows: Vec<WorkloadRow>) -> rusqlite::Result<Vec<WorkloadView>> {
    let nodes = NodeRow::names(connection)?;
    let mut by_workload = HashMap::<_, Vec<InstanceRow>>::new();
    for instance in InstanceRow::all(connection)? {
        by_workload.entry(instance.workload_id).or_default().push(instance);
    }
    Ok(rows
        .into_iter()
        .map(|row| {
            let instances = by_workload.remove(&row.id).unwrap_or_default();
            view(row, instances, &nodes)
        })
        .collect())
}

/// The workload of that name.
pub fn query_workload(connection: &Connection, name: &Name) -> rusqlite::Result<Option<WorkloadView>> {
    let Some(row) = WorkloadRow::named(connection, name)? else { return Ok(None) };
    let instances = InstanceRow::of_workload(connection, row.id)?;
    Ok(Some(view(row, instances, &NodeRow::names(connection)?)))
}

/// The specifications that a workload has had, the newest first; `None` when it is not there.
pub fn query_versions(connection: &Connection, name: &Name) -> rusqlite::Result<Option<Vec<VersionRow>>> {
    match WorkloadRow::named(connection, name)? {
        Some(row) => VersionRow::of_workload(connection, row.id).map(Some),
        None => Ok(None),
    }
}

pub(super) fn view(row: WorkloadRow, instances: Vec<InstanceRow>, nodes: &HashMap<NodeId, Name>) -> WorkloadView {
    let instances = instances
        .into_iter()
        .filter_map(|instance| {
            let node = nodes.get(&instance.node_id)?.clone();
            Some(InstanceView { row: instance, workload: row.spec.name.clone(), node, note: None })
        })
        .collect();
    WorkloadView { row, instances }
}

/// Generation of a node's assignments; `None` when it has not registered.
pub fn assignments_generation(connection: &Connection, node_id: NodeId) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT assignments_generation FROM nodes WHERE id = ?1")?
        .query_row([node_id], |row| row.get(0))
        .optional()
}

/// Everything one node shall do; `None` when it has not registered.
pub fn query_assignments(connection: &Connection, node_id: NodeId) -> rusqlite::Result<Option<AssignmentSet>> {
    let Some(node) = NodeRow::by_id(connection, node_id)? else { return Ok(None) };
    let mut assignments = Vec::new();
    let mut secrets = BTreeMap::new();
    for instance in InstanceRow::of_node(connection, node_id)? {
        let Some(workload) = WorkloadRow::name_of(connection, instance.workload_id)? else { continue };
        let volumes = volumes::orders(connection, &instance.container)?;
        let of_mounts = volumes.values().filter_map(|volume| volume.options.secret.as_ref());
        for name in instance.container.secrets.iter().map(|SecretMount { name, .. }| name).chain(of_mounts) {
            if instance.desired != Desired::Removed
                && !secrets.contains_key(name)
                && let Some(sealed) = SecretRow::sealed(connection, name)?
            {
                secrets.insert(name.clone(), sealed);
            }
        }
        assignments.push(Assignment {
            instance_id: instance.id,
            workload_id: instance.workload_id,
            workload,
            ordinal: instance.ordinal,
            desired: instance.desired,
            epoch: instance.epoch,
            container: instance.container,
            volumes,
        });
    }
    Ok(Some(AssignmentSet { node_id, generation: node.assignments_generation, assignments, secrets }))
}

/// All that the scheduler looks at; who plans adds the time.
pub fn query_snapshot(connection: &Connection) -> rusqlite::Result<Snapshot> {
    Ok(Snapshot {
        nodes: NodeRow::all(connection)?,
        workloads: WorkloadRow::all(connection)?,
        instances: InstanceRow::all(connection)?,
        volumes: VolumeRow::all(connection)?,
        placement: placement_settings(connection)?,
        now_ms: 0,
    })
}

/// The newest events, newest first.
pub fn query_events(
    connection: &Connection,
    subject: Option<&str>,
    before: Option<i64>,
    limit: u32,
) -> rusqlite::Result<Vec<EventRow>> {
    EventRow::newest(connection, subject, before, limit)
}

/// The newest events of any of `subjects`, newest first.
pub fn query_events_of(connection: &Connection, subjects: &[String], limit: u32) -> rusqlite::Result<Vec<EventRow>> {
    EventRow::newest_of(connection, subjects, limit)
}
