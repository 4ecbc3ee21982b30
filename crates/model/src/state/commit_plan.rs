//! Applies a plan, which may be stale by now: each decision is checked again, and dropped when it no longer holds.

use std::collections::{BTreeSet, HashMap};

use rusqlite::Connection;

use super::{
    command::{InstanceChange, Placement, Preemption},
    move_orders,
    tables::{EventLevel, EventRow, InstanceRow, NodeRow, PortsAndGpus, WorkloadRow, placement_settings},
    volumes,
};
use crate::{
    ids::{NodeId, WorkloadId},
    instance::{ContainerOrder, Desired},
    schedule::{
        Claims, PlacementSettings, holds, keeps_off, moves, moves_off, serves, starts_first, stops_first,
        waits_its_turn, welcome,
    },
    workload::Attribute,
};

/// One plan on its way into the tables. What many placements ask for is read once.
pub(super) struct PlanCommit<'a> {
    connection: &'a Connection,
    index: u64,
    at_ms: i64,
    workloads: HashMap<WorkloadId, Option<WorkloadRow>>,
    nodes: HashMap<NodeId, Option<(NodeRow, Claims)>>,
    touched: BTreeSet<NodeId>,
    settings: PlacementSettings,
    /// Workloads that want some others not beside them; read when first asked for.
    shy: Option<Vec<WorkloadRow>>,
}

impl<'a> PlanCommit<'a> {
    /// Of the command at `index`.
    pub(super) fn new(connection: &'a Connection, index: u64, at_ms: i64) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            index,
            at_ms,
            workloads: HashMap::new(),
            nodes: HashMap::new(),
            touched: BTreeSet::new(),
            settings: placement_settings(connection)?,
            shy: None,
        })
    }

    /// Makes placements of one workload real; gives how many. Of a gang all of them, or none.
    pub(super) fn place_all(&mut self, placements: &[Placement]) -> rusqlite::Result<usize> {
        let connection = self.connection;
        let Some(first) = placements.first() else { return Ok(0) };
        let workload = entry(&mut self.workloads, first.workload_id, |id| WorkloadRow::by_id(connection, id))?;
        let gang = workload.filter(|workload| workload.spec.placement.gang).map(|workload| workload.spec.replicas);
        if gang.is_some() {
            connection.execute_batch("SAVEPOINT gang")?;
        }
        let mut placed = 0;
        for placement in placements {
            placed += usize::from(self.place(placement)?);
        }
        let Some(replicas) = gang else { return Ok(placed) };
        let whole = placed == placements.len()
            && InstanceRow::of_workload(connection, first.workload_id)?.len() >= replicas as usize;
        if !whole {
            connection.execute_batch("ROLLBACK TO gang")?;
            // What is known of the nodes holds what was just taken back.
            self.nodes.clear();
            placed = 0;
        }
        connection.execute_batch("RELEASE gang")?;
        Ok(placed)
    }

    /// Makes a placement real. `false` when the state moved on since it was planned.
    fn place(&mut self, placement: &Placement) -> rusqlite::Result<bool> {
        let connection = self.connection;
        if !self.apart(placement)? {
            return Ok(false);
        }
        let Some(workload) =
            entry(&mut self.workloads, placement.workload_id, |id| WorkloadRow::by_id(connection, id))?
        else {
            return Ok(false);
        };
        let Some((node, claims)) = entry(&mut self.nodes, placement.node_id, |id| claims(connection, id))? else {
            return Ok(false);
        };
        let placement_spec = &workload.spec.placement;
        let current = workload.desired == Desired::Running
            && workload.generation == placement.generation
            && placement.ordinal < workload.spec.replicas
            // The node may have another name, network or label by now, and take no new work.
            && serves(&placement.container, &workload.spec, node)
            && welcome(&workload.spec, node).is_ok()
            && placement_spec.max_per_node.is_none_or(|most| claims.copies(workload.id) < most);
        if !current
            || claims.conflict(&placement.container, node, self.settings.capacity(node))
            || !has_room(connection, workload, placement.ordinal, placement.node_id)?
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
            lost: false,
            moves_to: None,
        };
        if !row.insert(connection)? {
            return Ok(false);
        }
        volumes::settle(connection, self.index, &placement.container, node, self.at_ms)?;
        let ContainerOrder { network, resources, gpus, .. } = &placement.container;
        claims.add(workload.id, network, resources, gpus);
        self.touched.insert(placement.node_id);
        let subject = format!("instance/{}-{}", workload.spec.name, row.ordinal);
        EventRow::add(connection, self.at_ms, EventLevel::Info, &subject, &format!("placed on node {}", node.name))?;
        Ok(true)
    }

    /// Whether the placement's workload and those on the node want to be there together.
    fn apart(&mut self, placement: &Placement) -> rusqlite::Result<bool> {
        let connection = self.connection;
        if self.shy.is_none() {
            self.shy = Some(WorkloadRow::shy(connection)?);
        }
        let (Some(shy), Some((node, claims))) =
            (&self.shy, entry(&mut self.nodes, placement.node_id, |id| claims(connection, id))?)
        else {
            return Ok(true);
        };
        if shy.is_empty() {
            return Ok(true);
        }
        let Some(workload) =
            entry(&mut self.workloads, placement.workload_id, |id| WorkloadRow::by_id(connection, id))?
        else {
            return Ok(false);
        };
        let mut beside = Vec::new();
        for rule in workload.spec.placement.constraints.iter().filter(|rule| rule.attribute == Attribute::Workload) {
            for name in rule.names() {
                if let Ok(name) = name.to_ascii_lowercase().parse()
                    && let Some(other) = WorkloadRow::named(connection, &name)?
                    && claims.copies(other.id) > 0
                {
                    beside.push(name.to_string());
                }
            }
            if holds(rule, node, &|name| beside.iter().any(|there| there.eq_ignore_ascii_case(name))).is_err() {
                return Ok(false);
            }
        }
        let name = &workload.spec.name;
        let keeps_it_off = |other: &&WorkloadRow| {
            other.id != placement.workload_id
                && claims.copies(other.id) > 0
                && other.spec.placement.constraints.iter().any(|rule| keeps_off(rule, name))
        };
        Ok(!shy.iter().any(|other| keeps_it_off(&other)))
    }

    /// Lets an instance make room for a workload that is still more important and still waits.
    pub(super) fn preempt(&mut self, preemption: &Preemption) -> rusqlite::Result<()> {
        let connection = self.connection;
        let Some(row) = InstanceRow::by_id(connection, preemption.instance_id)? else { return Ok(()) };
        let Some(victim) = WorkloadRow::by_id(connection, row.workload_id)? else { return Ok(()) };
        let by = WorkloadRow::by_id(connection, preemption.by)?;
        let waits = |by: &WorkloadRow| by.desired == Desired::Running && by.generation == preemption.generation;
        let Some(by) = by.filter(waits) else { return Ok(()) };
        let (own, others) = (victim.spec.placement.priority, by.spec.placement.priority);
        if row.desired == Desired::Removed || own >= others {
            return Ok(());
        }
        InstanceRow::set_order(connection, row.id, Desired::Removed, row.epoch)?;
        self.touched.insert(row.node_id);
        let subject = format!("instance/{}-{}", victim.spec.name, row.ordinal);
        let message = format!("makes room for `{}`, whose priority is {others}; its own is {own}", by.spec.name);
        EventRow::add(connection, self.at_ms, EventLevel::Warning, &subject, &message)
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
        if change.desired == Desired::Removed {
            move_orders::tell(self.connection, &row, self.at_ms)?;
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
    let mut has_more = false;
    for holding in InstanceRow::holdings_of_node(connection, id)? {
        claims.hold(&holding);
        has_more |= holding.has_more;
    }
    if has_more {
        for PortsAndGpus { network, gpus } in InstanceRow::ports_and_gpus_of_node(connection, id)? {
            claims.hold_more(&network, &gpus);
        }
    }
    Ok(Some((node, claims)))
}

/// Whether the workload can have one more instance of that ordinal on node `to`: it has none, or one alone that waits for its
/// successor, because it is to leave its node, was ordered there or was made from an older specification.
fn has_room(connection: &Connection, workload: &WorkloadRow, ordinal: u32, to: NodeId) -> rusqlite::Result<bool> {
    let instances = InstanceRow::of_ordinal(connection, workload.id, ordinal)?;
    if instances.is_empty() {
        return Ok(true);
    }
    let spec = &workload.spec;
    let losses = volumes::losses(connection, spec)?;
    let (mut own, mut going) = (Vec::new(), 0);
    for instance in instances {
        let Some(node) = NodeRow::by_id(connection, instance.node_id)? else { return Ok(false) };
        match instance.desired {
            Desired::Removed => going += usize::from(!losses.give_up(&node)),
            _ => own.push((instance, node)),
        }
    }
    // Whom nobody hears of counts only where there is nobody else.
    let heard = own.iter().filter(|(_, node)| !losses.give_up(node)).count();
    if heard > 0 {
        own.retain(|(_, node)| !losses.give_up(node));
    }
    let (alone, node) = match &own[..] {
        [] => return Ok(going == 0),
        [(alone, node), ..] if heard == 0 || own.len() == 1 => (alone, node),
        _ => return Ok(false),
    };
    let is_ordered = alone.moves_to.is_some_and(|order| order.node_id == to);
    let leaves = moves(workload, alone)
        && (losses.give_up(node) || (!stops_first(spec) && (moves_off(spec, node) || is_ordered)));
    let outdated = !serves(&alone.container, spec, node) && waits_its_turn(workload, alone, node);
    Ok(leaves || (outdated && starts_first(spec)))
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
