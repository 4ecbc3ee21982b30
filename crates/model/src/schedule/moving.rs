//! Instances that users ordered to other nodes: who gets a successor there now, who waits, and who stays after all.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    board::{Ask, Order, Resident},
    choose::there,
    drain::{Remaining, RemainingState, of_successor},
    feasible::moves_off,
    plan::Round,
    scheduler::Needs,
    snapshot::Snapshot,
    standing::{moves, stops_first},
};
use crate::{
    ids::InstanceId,
    instance::Desired,
    state::{InstanceRow, MoveOrder, NodeRow, Unmoved, WorkloadRow},
    workload::{Rollout, UpdateOrder, WorkloadSpec},
};

/// Whether two instances of the same copy may run at once for a while, as far as the specification says.
pub(super) fn may_overlap(spec: &WorkloadSpec) -> bool {
    !stops_first(spec) && spec.update.order != Some(UpdateOrder::StopFirst)
}

/// Why an order to move an instance of the present specification from `node` cannot be carried out, if so.
pub(super) fn cannot_move(workload: &WorkloadRow, instance: &InstanceRow, node: &NodeRow) -> Option<&'static str> {
    if !moves(workload, instance) {
        Some("it does not run")
    } else if workload.rollout != Rollout::Done {
        Some("its workload is being updated")
    } else if !may_overlap(&workload.spec) {
        Some("its copies may not run twice at once")
    } else {
        moves_off(&workload.spec, node).then_some("its node is being left, and it goes where there is room")
    }
}

/// An instance that waits for its successor.
struct Waiting<'n> {
    workload: &'n WorkloadRow,
    needs: &'n Needs,
    instance: &'n InstanceRow,
    order: MoveOrder,
}

impl Round<'_, '_, '_> {
    /// Gives successors to instances that were ordered to other nodes: in their turn, one of a workload at a time. Whoever
    /// waits for a node keeps those behind him off it, so that the first always has the room that was planned for him.
    pub(super) fn move_ordered(&mut self, busy: &[(Arc<WorkloadRow>, &mut Needs)]) {
        let mut waiting: Vec<Waiting<'_>> = Vec::new();
        for (workload, needs) in busy {
            let ordered = needs.ordered.iter().filter_map(|instance| Some((instance, instance.moves_to?)));
            waiting.extend(ordered.map(|(instance, order)| Waiting { workload, needs, instance, order }));
        }
        waiting.sort_by_key(|one| (one.order.turn, one.instance.id));
        let unbegun: HashSet<InstanceId> = waiting.iter().map(|one| one.instance.id).collect();
        let (mut kept, mut begun) = (BTreeSet::new(), HashSet::new());
        for Waiting { workload, needs, instance, order } in waiting {
            let unmoved = |reason: String| Unmoved { instance_id: instance.id, to: order.node_id, reason };
            let Some(at) = self.board.position(order.node_id) else {
                self.plan.unmoved.push(unmoved("that node is not known".into()));
                continue;
            };
            if needs.under_way || begun.contains(&workload.id) || kept.contains(&at) {
                kept.insert(at);
                continue;
            }
            let will_go = |resident: &Resident| {
                let Order::Row(row) = &resident.order else { return false };
                let goes_before = |other: MoveOrder| other.turn < order.turn || !unbegun.contains(&row.id);
                resident.leaving || row.moves_to.is_some_and(goes_before)
            };
            match there(Ask::of(workload), self.board, at) {
                Ok(container) => {
                    self.decide(workload, instance.ordinal, at, container);
                    begun.insert(workload.id);
                }
                Err(_) if self.board.seats[at].residents.iter().any(will_go) => drop(kept.insert(at)),
                Err(why) => self.plan.unmoved.push(unmoved(why.to_string())),
            }
        }
    }
}

/// What is still to be moved by order of a user, in its turn.
pub fn still_to_move(snapshot: &Snapshot) -> Vec<Remaining> {
    let ordered = snapshot.instances.iter().filter_map(|instance| Some((instance.moves_to?, instance)));
    let mut ordered: Vec<(MoveOrder, &InstanceRow)> = ordered.collect();
    ordered.sort_by_key(|(order, instance)| (order.turn, instance.id));
    let told = ordered.into_iter().filter_map(|(order, instance)| {
        let workload = snapshot.workloads.iter().find(|workload| workload.id == instance.workload_id)?;
        let to = snapshot.nodes.iter().find(|node| node.id == order.node_id);
        let why = match instance.desired {
            Desired::Removed if instance.lost => "its node is down, and its place is given to another".to_owned(),
            Desired::Removed => "it is stopping".to_owned(),
            Desired::Running | Desired::Stopped => of_successor(snapshot, workload, instance).unwrap_or_else(|| {
                format!("it waits for its turn to move to {}", to.map_or("another node", |to| to.name.as_str()))
            }),
        };
        let instance = format!("{}-{}", workload.spec.name, instance.ordinal);
        Some(Remaining { instance, state: RemainingState::Moving, why })
    });
    told.collect()
}
