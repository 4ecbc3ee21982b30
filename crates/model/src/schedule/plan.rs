//! Walks the workloads and decides.

use std::{collections::HashSet, sync::Arc};

use minijinja::Expression;

use super::{
    board::{Ask, Board, Order, Resident},
    choose::{Nowhere, choose, choose_among, is_told},
    feasible::Claims,
    filter::{Place, obstacles},
    preempt::{Victims, victims},
    rollout::Succession,
    scheduler::{Needs, Scheduler},
    snapshot::Snapshot,
    standing::stops_first,
};
use crate::{
    ids::{InstanceId, WorkloadId},
    instance::{ContainerOrder, Desired},
    state::{InstanceChange, InstanceRow, Placement, Preemption, RolloutChange, Unmoved, WorkloadRow},
    workload::Attribute,
};

/// What the scheduler decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// New instances. Those of one workload follow each other.
    pub placements: Vec<Placement>,
    /// Changed orders.
    pub changes: Vec<InstanceChange>,
    /// Workloads whose reason to wait is news; `None` clears it.
    pub pending: Vec<(WorkloadId, Option<String>)>,
    /// Instances that make room for more important ones.
    pub preemptions: Vec<Preemption>,
    /// Rollouts that ended.
    pub rollouts: Vec<RolloutChange>,
    /// Orders to move that cannot be carried out.
    pub unmoved: Vec<Unmoved>,
    /// When to plan again although nothing happens, in milliseconds since 1970.
    pub wake_at_ms: Option<i64>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { placements, changes, pending, preemptions, rollouts, unmoved, wake_at_ms: _ } = self;
        placements.is_empty()
            && changes.is_empty()
            && pending.is_empty()
            && preemptions.is_empty()
            && rollouts.is_empty()
            && unmoved.is_empty()
    }
}

/// Decides what should change. `mint` gives fresh instance ids.
pub fn plan(snapshot: &Snapshot, mint: &mut dyn FnMut() -> InstanceId) -> Plan {
    Scheduler::of(snapshot).plan(snapshot.now_ms, mint)
}

/// What became of one copy that had no place.
enum Found {
    /// It has one.
    Placed,
    /// It will have one when others are gone: who, in words.
    Waits(String),
}

/// One walk over what misses something. Orders to move are carried out in `moving`.
pub(super) struct Round<'b, 'm, 'e> {
    pub(super) board: &'b mut Board,
    pub(super) plan: Plan,
    pub(super) expression: Option<&'e Expression<'e, 'e>>,
    pub(super) mint: &'m mut dyn FnMut() -> InstanceId,
}

impl Round<'_, '_, '_> {
    /// What goes and what ended, without looking for places. Workloads come by name.
    pub(super) fn begin(&mut self, workload: &WorkloadRow, needs: &Needs) {
        for change in needs.changes.iter().filter(|change| change.desired == Desired::Removed) {
            if let Some(going) = needs.existing.iter().find(|one| one.id == change.instance_id) {
                self.board.leave(going.node_id, going.id);
            }
        }
        self.plan.changes.extend(&needs.changes);
        self.plan.unmoved.extend(needs.unmoved.iter().cloned());
        self.plan.wake_at_ms = [self.plan.wake_at_ms, needs.wake_at_ms].into_iter().flatten().min();
        if let Some(rollout) = needs.ended.clone() {
            let (workload_id, generation) = (workload.id, workload.generation);
            self.plan.rollouts.push(RolloutChange { workload_id, generation, rollout });
        }
    }

    /// Gives places to what misses one, and says why some get none. The most important workloads come first, then by name.
    pub(super) fn place(&mut self, workload: &WorkloadRow, needs: &mut Needs) {
        let mut reason = if workload.spec.placement.gang && !needs.missing.is_empty() {
            self.place_gang(workload, &needs.missing)
        } else if let Some(reason) = self.still_refused(workload, needs) {
            Some(reason)
        } else {
            let tried = self.board.mark();
            let reason = self.place_each(workload, &needs.missing);
            // What had no effect has none the next time either, as long as nothing changes.
            let in_vain = self.board.mark() == tried && !needs.missing.is_empty();
            needs.refused = reason.clone().filter(|_| in_vain).map(|reason| (self.board.now(), reason));
            reason
        };
        for instance in &needs.moving {
            self.replace(workload, instance, stops_first(&workload.spec));
        }
        for (instance, succession) in &needs.outdated {
            let waits = self.succeed(workload, instance, *succession);
            reason = reason.or(waits);
        }
        if reason != workload.pending {
            self.plan.pending.push((workload.id, reason));
        }
    }

    /// Why the workload has no place, when that is known from an earlier round and holds still: no node that changed since then
    /// is one that the reason tells of, would do now, or has somebody who might make room.
    fn still_refused(&self, workload: &WorkloadRow, needs: &mut Needs) -> Option<String> {
        let (then, reason) = needs.refused.as_mut()?;
        let placement = &workload.spec.placement;
        if placement.constraints.iter().any(|rule| rule.attribute == Attribute::Workload) {
            return None;
        }
        let (ask, board) = (Ask::of(workload), &*self.board);
        let mut changed = board.touched_since(*then, ask.spec)?;
        let same = |at: u32| {
            let at = at as usize;
            let less = |resident: &Resident| resident.priority < placement.priority;
            !is_told(board, at)
                && !board.seats[at].residents.iter().any(less)
                && !obstacles(ask, Place::now(board, at), false).is_empty()
        };
        if !changed.all(same) {
            return None;
        }
        *then = board.now();
        Some(reason.clone())
    }

    fn place_each(&mut self, workload: &WorkloadRow, missing: &[u32]) -> Option<String> {
        let mut waits = None;
        for ordinal in missing {
            match self.place_one(workload, *ordinal) {
                Ok(Found::Placed) => {}
                Ok(Found::Waits(reason)) => waits = waits.or(Some(reason)),
                // What has no place for this copy has none for the next.
                Err(nowhere) => return Some(nowhere.0),
            }
        }
        waits
    }

    /// All at once, or none.
    fn place_gang(&mut self, workload: &WorkloadRow, missing: &[u32]) -> Option<String> {
        let (mark, placements, preemptions) =
            (self.board.mark(), self.plan.placements.len(), self.plan.preemptions.len());
        let changes = self.plan.changes.clone();
        let (mut placed, mut waits) = (0, None);
        for ordinal in missing {
            match self.place_one(workload, *ordinal) {
                Ok(Found::Placed) => placed += 1,
                Ok(Found::Waits(reason)) => waits = waits.or(Some(reason)),
                Err(nowhere) => {
                    self.board.take_back(mark);
                    self.plan.placements.truncate(placements);
                    self.plan.preemptions.truncate(preemptions);
                    self.plan.changes = changes;
                    return Some(format!(
                        "all {} copies are placed at once or none, and {placed} have a place; {}",
                        missing.len(),
                        nowhere.0
                    ));
                }
            }
        }
        if waits.is_some() {
            // They keep their places on the board, so that nobody less important takes them.
            self.plan.placements.truncate(placements);
        }
        waits
    }

    fn place_one(&mut self, workload: &WorkloadRow, ordinal: u32) -> Result<Found, Nowhere> {
        let ask = Ask::of(workload);
        let nowhere = match choose(ask, ordinal, self.board, self.expression) {
            Ok((at, order)) => {
                self.decide(workload, ordinal, at, order);
                return Ok(Found::Placed);
            }
            Err(nowhere) => nowhere,
        };
        self.make_room(workload, ordinal, nowhere)
    }

    /// Pushes less important ones aside for what has no place, if that helps.
    fn make_room(&mut self, workload: &WorkloadRow, ordinal: u32, nowhere: Nowhere) -> Result<Found, Nowhere> {
        let ask = Ask::of(workload);
        if let Some((at, order)) = self.soon(ask, ordinal) {
            let waits = self.waits_for(ask, at);
            self.keep_free(workload, ordinal, at, order);
            return Ok(Found::Waits(waits));
        }
        let Some(chosen) = victims(ask, self.board) else { return Err(nowhere) };
        let at = chosen.at;
        self.push_aside(workload, chosen);
        let claims = self.board.claims_of(at, |resident| !resident.leaving);
        let there = std::iter::once((at, &claims));
        let Some((at, order)) = choose_among(ask, ordinal, self.board, there, None) else { return Err(nowhere) };
        let waits = self.waits_for(ask, at);
        self.keep_free(workload, ordinal, at, order);
        Ok(Found::Waits(waits))
    }

    /// Where it fits when those are gone who were pushed aside.
    fn soon(&self, ask: Ask<'_>, ordinal: u32) -> Option<(usize, ContainerOrder)> {
        let less = |resident: &Resident| resident.leaving && resident.priority < ask.spec.placement.priority;
        let nodes = self.board.being_left().filter(|at| self.board.seats[*at].residents.iter().any(less));
        let claims: Vec<(usize, Claims)> =
            nodes.map(|at| (at, self.board.claims_of(at, |resident| !resident.leaving))).collect();
        let claims = claims.iter().map(|(at, claims)| (*at, claims));
        choose_among(ask, ordinal, self.board, claims, self.expression)
    }

    /// Whom it waits for on a node.
    fn waits_for(&self, ask: Ask<'_>, at: usize) -> String {
        let board = &*self.board;
        let less = |resident: &&Resident| resident.leaving && resident.priority < ask.spec.placement.priority;
        let leaving = board.seats[at].residents.iter().filter(less);
        let mut names: Vec<String> = leaving.map(|resident| board.name_of(resident)).collect();
        names.sort();
        let more = names.len().saturating_sub(8);
        names.truncate(8);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}: it has room when {}{more} made way (a lower priority)", board.nodes[at].name, names.join(", "))
    }

    fn push_aside(&mut self, by: &WorkloadRow, chosen: Victims) {
        let mut going = HashSet::new();
        for who in chosen.residents {
            let Resident { instance, workload, .. } = self.board.seats[chosen.at].residents[who];
            let gang = self.board.workloads.get(&workload).is_some_and(|workload| workload.spec.placement.gang);
            match instance {
                // The rest of a gang is of no use without it.
                Some(_) if gang => {
                    let nodes = self.board.copies_of(workload).into_iter().flatten();
                    for (at, _) in nodes {
                        let residents = self.board.seats[*at].residents.iter();
                        let own = residents.filter(|other| other.workload == workload && !other.leaving);
                        going.extend(own.filter_map(|other| Some((*at, other.instance?))));
                    }
                }
                Some(instance) => drop(going.insert((chosen.at, instance))),
                None => {}
            }
        }
        let mut going: Vec<(usize, InstanceId)> = going.into_iter().collect();
        going.sort();
        for (at, instance_id) in going {
            let node = self.board.nodes[at].id;
            self.board.leave(node, instance_id);
            // An order that was to change it is of no use any more.
            self.plan.changes.retain(|change| change.instance_id != instance_id);
            self.plan.preemptions.push(Preemption { instance_id, by: by.id, generation: by.generation });
        }
    }

    /// It is placed there.
    pub(super) fn decide(&mut self, workload: &WorkloadRow, ordinal: u32, at: usize, container: ContainerOrder) {
        let node_id = self.board.nodes[at].id;
        self.board.settle(&workload.spec, node_id);
        self.promise(Ask::of(workload), ordinal, at, container.clone());
        self.plan.placements.push(Placement {
            instance_id: (self.mint)(),
            workload_id: workload.id,
            generation: workload.generation,
            ordinal,
            node_id,
            container,
        });
    }

    /// It is to be placed there when there is room. Where its volumes will lie then, the other copies have to follow now: or
    /// somebody makes room for a gang that can never be whole.
    fn keep_free(&mut self, workload: &WorkloadRow, ordinal: u32, at: usize, order: ContainerOrder) {
        let node_id = self.board.nodes[at].id;
        self.board.settle(&workload.spec, node_id);
        self.promise(Ask::of(workload), ordinal, at, order);
    }

    /// Nobody else gets this place in this round.
    fn promise(&mut self, ask: Ask<'_>, ordinal: u32, at: usize, order: ContainerOrder) {
        let (priority, order) = (ask.spec.placement.priority, Order::New(Arc::new(order)));
        let (instance, workload) = (None, ask.id);
        self.board.sit(at, Resident { instance, workload, ordinal, priority, order, leaving: false });
    }

    /// An instance of an older specification gets its successor, or makes room for it; what works never goes for a successor
    /// that has no place at all. Gives why it stays.
    fn succeed(&mut self, workload: &WorkloadRow, instance: &InstanceRow, succession: Succession) -> Option<String> {
        let (ask, ordinal, expression) = (Ask::of(workload), instance.ordinal, self.expression);
        let beside = match succession {
            Succession::Beside | Succession::Either => Some(choose(ask, ordinal, self.board, expression)),
            Succession::Instead => None,
        };
        if let Some(Ok((at, order))) = beside {
            self.decide(workload, ordinal, at, order);
            return None;
        }
        let instead = match succession {
            Succession::Beside => None,
            Succession::Either | Succession::Instead => {
                Some(self.board.without(instance, |board| choose(ask, ordinal, board, expression)))
            }
        };
        match (instead, beside) {
            (Some(Ok((at, order))), _) => {
                self.promise(ask, ordinal, at, order);
                self.let_go(workload, instance);
                None
            }
            (Some(Err(nowhere)), _) | (None, Some(Err(nowhere))) => match self.make_room(workload, ordinal, nowhere) {
                Ok(Found::Waits(reason)) => Some(reason),
                Ok(Found::Placed) => None,
                Err(nowhere) => Some(nowhere.0),
            },
            (None, _) => None,
        }
    }

    /// An instance that is to leave its node gets a successor elsewhere, if there is room.
    fn replace(&mut self, workload: &WorkloadRow, instance: &InstanceRow, stops_first: bool) {
        let ask = Ask::of(workload);
        let Ok((at, order)) = choose(ask, instance.ordinal, self.board, self.expression) else { return };
        // Nobody waits for a lost node to say that its own is gone.
        if instance.lost || !stops_first {
            self.decide(workload, instance.ordinal, at, order);
            if instance.lost && stops_first {
                self.let_go(workload, instance);
            }
            return;
        }
        self.promise(ask, instance.ordinal, at, order);
        self.let_go(workload, instance);
    }

    fn let_go(&mut self, workload: &WorkloadRow, instance: &InstanceRow) {
        self.board.leave(instance.node_id, instance.id);
        self.plan.changes.retain(|change| change.instance_id != instance.id);
        let change = InstanceChange { instance_id: instance.id, desired: Desired::Removed, epoch: workload.epoch };
        self.plan.changes.push(change);
    }
}
