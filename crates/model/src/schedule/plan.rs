//! Walks the workloads and decides.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use minijinja::Expression;

use super::{
    board::{Ask, Board, Resident, Seat},
    choose::{Nowhere, choose, choose_among},
    expression,
    feasible::Claims,
    preempt::{Victims, victims},
    rollout::Succession,
    snapshot::Snapshot,
    standing::{Standing, stops_first},
};
use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{ContainerOrder, Desired},
    state::{InstanceChange, InstanceRow, NodeRow, Placement, Preemption, RolloutChange, WorkloadRow},
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
    /// When to plan again although nothing happens, in milliseconds since 1970.
    pub wake_at_ms: Option<i64>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { placements, changes, pending, preemptions, rollouts, wake_at_ms: _ } = self;
        placements.is_empty()
            && changes.is_empty()
            && pending.is_empty()
            && preemptions.is_empty()
            && rollouts.is_empty()
    }
}

/// Decides what should change. `mint` gives fresh instance ids.
pub fn plan(snapshot: &Snapshot, mint: &mut dyn FnMut() -> InstanceId) -> Plan {
    let environment = expression::environment();
    // It was read before it was written to the state.
    let expression = snapshot.placement.expression.as_deref();
    let expression = expression.and_then(|text| environment.compile_expression(text).ok());
    let nodes: HashMap<NodeId, &NodeRow> = snapshot.nodes.iter().map(|node| (node.id, node)).collect();
    let mut by_workload: HashMap<WorkloadId, Vec<&InstanceRow>> = HashMap::new();
    for instance in &snapshot.instances {
        by_workload.entry(instance.workload_id).or_default().push(instance);
    }
    let (board, plan) = (Board::of(snapshot), Plan::default());
    let mut round = Round { board, plan, expression: expression.as_ref(), mint, journal: None };
    let mut work = Vec::with_capacity(snapshot.workloads.len());
    for workload in &snapshot.workloads {
        let existing = by_workload.remove(&workload.id).unwrap_or_default();
        let standing = Standing::of(workload, &existing, &nodes, snapshot.now_ms);
        for change in &standing.changes {
            if let Some(going) =
                existing.iter().find(|one| one.id == change.instance_id && change.desired == Desired::Removed)
            {
                round.board.leave(going.node_id, going.id);
            }
        }
        round.plan.changes.extend(&standing.changes);
        round.plan.wake_at_ms = [round.plan.wake_at_ms, standing.wake_at_ms].into_iter().flatten().min();
        if let Some(rollout) = standing.ended.clone() {
            let (workload_id, generation) = (workload.id, workload.generation);
            round.plan.rollouts.push(RolloutChange { workload_id, generation, rollout });
        }
        work.push((workload, standing));
    }
    // The most important first; the rest by name, as the snapshot has them.
    work.sort_by_key(|(workload, _)| Reverse(workload.spec.placement.priority));
    for (workload, standing) in &work {
        let reason = round.place(workload, standing);
        if reason != workload.pending {
            round.plan.pending.push((workload.id, reason));
        }
    }
    round.plan
}

/// What became of one copy that had no place.
enum Found {
    /// It has one.
    Placed,
    /// It will have one when others are gone: who, in words.
    Waits(String),
}

struct Round<'a, 'm, 'e> {
    board: Board<'a>,
    plan: Plan,
    expression: Option<&'e Expression<'e, 'e>>,
    mint: &'m mut dyn FnMut() -> InstanceId,
    /// Nodes as they were, when what follows may be taken back.
    journal: Option<Vec<(usize, Seat<'a>)>>,
}

impl<'a> Round<'a, '_, '_> {
    /// Gives places to what misses one, and says why some get none.
    fn place(&mut self, workload: &'a WorkloadRow, standing: &Standing<'a>) -> Option<String> {
        let missing = standing.missing(workload);
        let mut reason = if workload.spec.placement.gang && !missing.is_empty() {
            self.place_gang(workload, &missing)
        } else {
            self.place_each(workload, missing)
        };
        for instance in &standing.moving {
            self.replace(workload, instance, stops_first(&workload.spec));
        }
        for (instance, succession) in &standing.outdated {
            let waits = self.succeed(workload, instance, *succession);
            reason = reason.or(waits);
        }
        reason
    }

    fn place_each(&mut self, workload: &'a WorkloadRow, missing: Vec<u32>) -> Option<String> {
        let mut waits = None;
        for ordinal in missing {
            match self.place_one(workload, ordinal) {
                Ok(Found::Placed) => {}
                Ok(Found::Waits(reason)) => waits = waits.or(Some(reason)),
                // What has no place for this copy has none for the next.
                Err(nowhere) => return Some(nowhere.told(self.board.nodes)),
            }
        }
        waits
    }

    /// All at once, or none.
    fn place_gang(&mut self, workload: &'a WorkloadRow, missing: &[u32]) -> Option<String> {
        let before = self.plan.clone();
        let homes = self.board.homes.clone();
        self.journal = Some(Vec::new());
        let (mut placed, mut waits) = (0, None);
        let mut failed = None;
        for ordinal in missing {
            match self.place_one(workload, *ordinal) {
                Ok(Found::Placed) => placed += 1,
                Ok(Found::Waits(reason)) => waits = waits.or(Some(reason)),
                Err(nowhere) => {
                    failed = Some(nowhere.told(self.board.nodes));
                    break;
                }
            }
        }
        let journal = self.journal.take().unwrap_or_default();
        if let Some(why) = failed {
            // What was undone last was done first.
            for (at, seat) in journal.into_iter().rev() {
                self.board.seats[at] = seat;
            }
            (self.plan, self.board.homes) = (before, homes);
            return Some(format!(
                "all {} copies are placed at once or none, and {placed} have a place; {why}",
                missing.len()
            ));
        }
        if waits.is_some() {
            // They keep their places on the board, so that nobody less important takes them.
            self.plan.placements = before.placements;
        }
        waits
    }

    fn place_one(&mut self, workload: &'a WorkloadRow, ordinal: u32) -> Result<Found, Nowhere> {
        let ask = Ask::of(workload);
        let nowhere = match choose(ask, ordinal, &self.board, self.expression) {
            Ok((at, order)) => {
                self.decide(workload, ordinal, at, order);
                return Ok(Found::Placed);
            }
            Err(nowhere) => nowhere,
        };
        self.make_room(workload, ordinal, nowhere)
    }

    /// Pushes less important ones aside for what has no place, if that helps.
    fn make_room(&mut self, workload: &'a WorkloadRow, ordinal: u32, nowhere: Nowhere) -> Result<Found, Nowhere> {
        let ask = Ask::of(workload);
        if let Some((at, order)) = self.soon(ask, ordinal) {
            let waits = self.waits_for(ask, at);
            self.promise(ask, ordinal, at, order);
            return Ok(Found::Waits(waits));
        }
        let Some(chosen) = victims(ask, &self.board) else { return Err(nowhere) };
        let at = chosen.at;
        self.push_aside(workload, chosen);
        let claims = self.board.claims_of(at, |resident| !resident.leaving);
        let Ok((at, order)) = choose_among(ask, ordinal, &self.board, std::iter::once((at, &claims)), None) else {
            return Err(nowhere);
        };
        let waits = self.waits_for(ask, at);
        self.promise(ask, ordinal, at, order);
        Ok(Found::Waits(waits))
    }

    /// Where it fits when those are gone who were pushed aside.
    fn soon(&self, ask: Ask<'a>, ordinal: u32) -> Option<(usize, ContainerOrder)> {
        let less = |resident: &Resident<'_>| {
            resident.leaving && self.board.priority(resident.workload) < ask.spec.placement.priority
        };
        let nodes = (0..self.board.nodes.len()).filter(|at| self.board.seats[*at].residents.iter().any(less));
        let claims: Vec<(usize, Claims)> =
            nodes.map(|at| (at, self.board.claims_of(at, |resident| !resident.leaving))).collect();
        if claims.is_empty() {
            return None;
        }
        let claims = claims.iter().map(|(at, claims)| (*at, claims));
        choose_among(ask, ordinal, &self.board, claims, self.expression).ok()
    }

    /// Whom it waits for on a node.
    fn waits_for(&self, ask: Ask<'_>, at: usize) -> String {
        let board = &self.board;
        let leaving = board.seats[at]
            .residents
            .iter()
            .filter(|resident| resident.leaving && board.priority(resident.workload) < ask.spec.placement.priority);
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
                    for (at, seat) in self.board.seats.iter().enumerate() {
                        let own = seat.residents.iter().filter(|other| other.workload == workload && !other.leaving);
                        going.extend(own.filter_map(|other| Some((at, other.instance?))));
                    }
                }
                Some(instance) => drop(going.insert((chosen.at, instance))),
                None => {}
            }
        }
        let mut going: Vec<(usize, InstanceId)> = going.into_iter().collect();
        going.sort();
        for (at, instance_id) in going {
            self.note(at);
            let node = self.board.nodes[at].id;
            self.board.leave(node, instance_id);
            // An order that was to change it is of no use any more.
            self.plan.changes.retain(|change| change.instance_id != instance_id);
            self.plan.preemptions.push(Preemption { instance_id, by: by.id, generation: by.generation });
        }
    }

    /// It is placed there.
    fn decide(&mut self, workload: &'a WorkloadRow, ordinal: u32, at: usize, container: ContainerOrder) {
        let node_id = self.board.nodes[at].id;
        self.board.homes.settle(&workload.spec, node_id);
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

    /// Nobody else gets this place in this round.
    fn promise(&mut self, ask: Ask<'_>, ordinal: u32, at: usize, order: ContainerOrder) {
        self.note(at);
        let order = Cow::Owned(order);
        self.board.sit(at, Resident { instance: None, workload: ask.id, ordinal, order, leaving: false });
    }

    /// An instance of an older specification gets its successor, or makes room for it; what works never goes for a successor
    /// that has no place at all. Gives why it stays.
    fn succeed(&mut self, workload: &'a WorkloadRow, instance: &InstanceRow, succession: Succession) -> Option<String> {
        let (ask, ordinal) = (Ask::of(workload), instance.ordinal);
        let beside = match succession {
            Succession::Beside | Succession::Either => Some(choose(ask, ordinal, &self.board, self.expression)),
            Succession::Instead => None,
        };
        if let Some(Ok((at, order))) = beside {
            self.decide(workload, ordinal, at, order);
            return None;
        }
        let instead = (succession != Succession::Beside).then(|| {
            let claims: Vec<(usize, Claims)> = (0..self.board.nodes.len())
                .map(|at| (at, self.board.claims_of(at, |resident| resident.instance != Some(instance.id))))
                .collect();
            let without = claims.iter().map(|(at, claims)| (*at, claims));
            choose_among(ask, ordinal, &self.board, without, self.expression)
        });
        match (instead, beside) {
            (Some(Ok((at, order))), _) => {
                self.promise(ask, ordinal, at, order);
                self.let_go(workload, instance);
                None
            }
            (Some(Err(nowhere)), _) | (None, Some(Err(nowhere))) => match self.make_room(workload, ordinal, nowhere) {
                Ok(Found::Waits(reason)) => Some(reason),
                Ok(Found::Placed) => None,
                Err(nowhere) => Some(nowhere.told(self.board.nodes)),
            },
            (None, _) => None,
        }
    }

    /// An instance that is to leave its node gets a successor elsewhere, if there is room.
    fn replace(&mut self, workload: &'a WorkloadRow, instance: &InstanceRow, stops_first: bool) {
        let ask = Ask::of(workload);
        let Ok((at, order)) = choose(ask, instance.ordinal, &self.board, self.expression) else { return };
        if !stops_first {
            return self.decide(workload, instance.ordinal, at, order);
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

    fn note(&mut self, at: usize) {
        if let Some(journal) = &mut self.journal {
            journal.push((at, self.board.seats[at].clone()));
        }
    }
}
