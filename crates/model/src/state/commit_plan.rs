//! Applies a plan, which may be stale by now: each decision is checked again, and dropped when it no longer holds.

use std::collections::{BTreeSet, HashMap};

use rusqlite::Connection;

use super::{
    command::{InstanceChange, Placement},
    tables::{EventLevel, EventRow, InstanceRow, NodeRow, WorkloadRow},
    volumes,
};
use crate::{
    ids::{NodeId, WorkloadId},
    instance::{ContainerOrder, Desired},
    schedule::{Claims, serves},
};

/// One plan on its way into the tables. What many placements ask for is read once.
pub(super) struct PlanCommit<'a> {
    connection: &'a Connection,
    index: u64,
    at_ms: i64,
    workloads: HashMap<WorkloadId, Option<WorkloadRow>>,
    nodes: HashMap<NodeId, Option<(NodeRow, Claims)>>,
    touched: BTreeSet<NodeId>,
}

impl<'a> PlanCommit<'a> {
    /// Of the command at `index`.
    pub(super) fn new(connection: &'a Connection, index: u64, at_ms: i64) -> Self {
        Self { connection, index, at_ms, workloads: HashMap::new(), nodes: HashMap::new(), touched: BTreeSet::new() }
    }

    /// Makes a placement real. `false` when the state moved on since it was planned.
    pub(super) fn place(&mut self, placement: &Placement) -> rusqlite::Result<bool> {
        let connection = self.connection;
        let Some(workload) =
            entry(&mut self.workloads, placement.workload_id, |id| WorkloadRow::by_id(connection, id))?
        else {
            return Ok(false);
        };
        let Some((node, claims)) = entry(&mut self.nodes, placement.node_id, |id| claims(connection, id))? else {
            return Ok(false);
        };
        let current = workload.desired == Desired::Running
            && workload.generation == placement.generation
            && placement.ordinal < workload.spec.replicas
            // The node may have another name or network by now.
            && serves(&placement.container, &workload.spec, node);
        if !current
            || claims.conflict(&placement.container, node)
            || InstanceRow::holds_ordinal(connection, workload.id, placement.ordinal)?
            || !volumes::can_be_on(connection, &placement.container, node.id)?
        {
            return Ok(false);
        }
        let row = InstanceRow {
            id: placement.instance_id,
            workload_id: workload.id,
            ordinal: placement.ordinal,
            node_id: placement.node_id,
            desired: Desired::Running,
            epoch: workload.epoch,
            container: placement.container.clone(),
            report: None,
            created_at_ms: self.at_ms,
        };
        if !row.insert(connection)? {
            return Ok(false);
        }
        volumes::settle(connection, self.index, &placement.container, node, self.at_ms)?;
        let ContainerOrder { network, resources, gpus, .. } = &placement.container;
        claims.add(network, resources, gpus);
        self.touched.insert(placement.node_id);
        let subject = format!("instance/{}-{}", workload.spec.name, row.ordinal);
        EventRow::add(connection, self.at_ms, EventLevel::Info, &subject, &format!("placed on node {}", node.name))?;
        Ok(true)
    }

    /// Gives an instance a new order.
    pub(super) fn change_order(&mut self, change: InstanceChange) -> rusqlite::Result<()> {
        let Some(row) = InstanceRow::by_id(self.connection, change.instance_id)? else { return Ok(()) };
        let Some((desired, epoch)) = WorkloadRow::order_of(self.connection, row.workload_id)? else { return Ok(()) };
        // Removal is final: a plan made before it cannot call the instance back. Neither can a plan start or stop what
        // its user decided upon anew in the meantime.
        let late = change.desired != Desired::Removed && (change.desired, change.epoch) != (desired, epoch);
        let same = (row.desired, row.epoch) == (change.desired, change.epoch);
        if row.desired == Desired::Removed || late || same {
            return Ok(());
        }
        InstanceRow::set_order(self.connection, row.id, change.desired, change.epoch.max(row.epoch))?;
        self.touched.insert(row.node_id);
        Ok(())
    }

    /// Notes why a workload waits, or that it does not.
    pub(super) fn note_pending(&self, id: WorkloadId, reason: Option<&str>) -> rusqlite::Result<()> {
        if WorkloadRow::set_pending(self.connection, id, reason)?
            && let Some(reason) = reason
            && let Some(name) = WorkloadRow::name_of(self.connection, id)?
        {
            let (subject, message) = (format!("workload/{name}"), format!("waits for a place: {reason}"));
            EventRow::add(self.connection, self.at_ms, EventLevel::Warning, &subject, &message)?;
        }
        Ok(())
    }

    /// Notes on every node with other orders that this command gave them.
    pub(super) fn finish(self) -> rusqlite::Result<()> {
        for node_id in self.touched {
            NodeRow::touch_assignments(self.connection, node_id, self.index)?;
        }
        Ok(())
    }
}

fn claims(connection: &Connection, id: NodeId) -> rusqlite::Result<Option<(NodeRow, Claims)>> {
    let Some(node) = NodeRow::by_id(connection, id)? else { return Ok(None) };
    let mut claims = Claims::default();
    for (network, resources, gpus) in InstanceRow::holdings_of_node(connection, id)? {
        claims.add(&network, &resources, &gpus);
    }
    Ok(Some((node, claims)))
}

/// What is known under `id`, read on the first call.
fn entry<K, V>(
    known: &mut HashMap<K, Option<V>>,
    id: K,
    read: impl FnOnce(K) -> rusqlite::Result<Option<V>>,
) -> rusqlite::Result<Option<&mut V>>
where
    K: Copy + Eq + std::hash::Hash,
{
    let found = match known.entry(id) {
        std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
        std::collections::hash_map::Entry::Vacant(new) => new.insert(read(id)?),
    };
    Ok(found.as_mut())
}
