//! Which instances would be better off elsewhere, were they placed now: a plan of moves that a user can have carried out.
//!
//! The moves are found one after the other, on a board on which those before are done: each time the one that gains most by the
//! cluster's policy. A move counts only when it gains [`WORTH`] and leaves the cards no more fragmented than they were. So
//! each can be carried out, with both instances beside each other for a while, as soon as those before it are done.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
};

use minijinja::Expression;
use serde::{Deserialize, Serialize};

use super::{
    board::{Ask, Board, Order, Resident},
    choose::{Better, better, choose},
    expression,
    feasible::{moves_off, serves},
    moving::may_overlap,
    snapshot::Snapshot,
    standing::is_up,
};
use crate::{
    ids::WorkloadId,
    instance::Desired,
    node::Availability,
    state::{InstanceMove, InstanceRow, WorkloadRow},
    workload::{Mount, Rollout, WorkloadKind},
};

/// What a move must gain, in millionths of a point.
const WORTH: i64 = 5_000_000;
/// Most looks at an instance; each takes some ten microseconds.
const LOOKS: usize = 10_000;
/// Most times that all instances are looked at again because others moved.
const PASSES: usize = 4;

/// An instance that would be moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlannedMove {
    /// The instance.
    pub instance: String,
    /// Where it is.
    pub from: String,
    /// Where it would be.
    pub to: String,
    /// How many points more its new place has by the cluster's policy.
    pub points: f64,
    /// How many more of the idle cards a typical request can then use.
    pub cards: f64,
    /// What users notice of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The cards of all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CardTotals {
    /// How many there are.
    pub cards: u64,
    /// How many are idle, parts of cards included.
    pub idle: f64,
    /// How many of those a request of the usual mix can use, on average.
    pub usable: f64,
}

/// Instances that stay for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Staying {
    /// How many.
    pub instances: usize,
    /// Why.
    pub why: String,
}

/// A plan of moves. Nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rebalance {
    /// In the order in which they would be done.
    pub moves: Vec<PlannedMove>,
    /// The cards now.
    pub before: CardTotals,
    /// The cards after all moves.
    pub after: CardTotals,
    /// What more of all cards can be allocated to requests of the usual mix then, in points of a hundred.
    pub points_gained: f64,
    /// Workloads that wait and would then have a place.
    pub fits: Vec<String>,
    /// Services that are moved in no case.
    pub stay: Vec<Staying>,
    /// Instances that were not looked at, because there are so many.
    #[serde(default, skip_serializing_if = "crate::workload::is_default")]
    pub unseen: usize,
}

/// An instance that may be moved.
struct Movable<'s> {
    row: InstanceRow,
    workload: &'s WorkloadRow,
    name: String,
}

/// Plans at most so many moves; gives them also as they are ordered. The same for the same state.
pub fn rebalance(snapshot: &Snapshot, most: usize) -> (Rebalance, Vec<InstanceMove>) {
    let environment = expression::environment();
    let expression = snapshot.placement.expression.as_deref();
    let expression = expression.and_then(|text| environment.compile_expression(text).ok());
    let mut board = Board::of(snapshot);
    let mut plan = Rebalance { before: totals(&board), ..Rebalance::default() };
    let (mut movable, stay) = sorted_out(snapshot, &board);
    plan.stay = stay;
    // Who holds cards decides most.
    movable.sort_by_key(|one| (one.row.container.gpus.is_empty(), one.workload.spec.name.clone(), one.row.ordinal));
    plan.unseen = movable.len().saturating_sub(LOOKS / 2);
    movable.truncate(LOOKS / 2);
    let waiting = fitting(snapshot, &mut board, expression.as_ref());
    let mut search = Search { board, expression: expression.as_ref(), looks: 0, orders: Vec::new() };
    let mut left: BTreeSet<usize> = (0..movable.len()).collect();
    for _ in 0..PASSES {
        let before = plan.moves.len();
        search.pass(&movable, &mut left, most, &mut plan.moves);
        if plan.moves.len() == before || plan.moves.len() >= most {
            break;
        }
    }
    let Search { mut board, orders, .. } = search;
    plan.after = totals(&board);
    if plan.before.cards > 0 {
        plan.points_gained = (plan.after.usable - plan.before.usable) / plan.before.cards as f64 * 100.0;
    }
    let fits = fitting(snapshot, &mut board, expression.as_ref());
    plan.fits = fits.difference(&waiting).cloned().collect();
    (plan, orders)
}

struct Search<'e> {
    board: Board,
    expression: Option<&'e Expression<'e, 'e>>,
    looks: usize,
    orders: Vec<InstanceMove>,
}

impl Search<'_> {
    /// Moves whoever gains most, until nobody gains any more or `moves` are as many as they may be. Nobody moves twice.
    fn pass(&mut self, movable: &[Movable<'_>], left: &mut BTreeSet<usize>, most: usize, moves: &mut Vec<PlannedMove>) {
        let mut best: BinaryHeap<(i64, Reverse<usize>)> = BinaryHeap::new();
        for who in left.iter() {
            best.extend(self.look(&movable[*who]).map(|found| (found.gain, Reverse(*who))));
        }
        while moves.len() < most
            && let Some((_, Reverse(who))) = best.pop()
        {
            // What was seen before others moved may hold no more.
            let Some(found) = self.look(&movable[who]) else { continue };
            if best.peek().is_some_and(|next| *next > (found.gain, Reverse(who))) {
                best.push((found.gain, Reverse(who)));
                continue;
            }
            let one = &movable[who];
            let (gain, to) = (found.gain, found.at);
            let Some(cards) = self.try_move(one, found) else { continue };
            left.remove(&who);
            let Some(from) = self.board.position(one.row.node_id) else { continue };
            let nodes = &self.board.nodes;
            moves.push(PlannedMove {
                instance: one.name.clone(),
                from: nodes[from].name.to_string(),
                to: nodes[to].name.to_string(),
                points: gain as f64 / 1e6,
                cards,
                note: note(one.workload, nodes[to].name.as_str()),
            });
            self.orders.push(InstanceMove {
                instance_id: one.row.id,
                generation: one.workload.generation,
                from: one.row.node_id,
                to: nodes[to].id,
            });
        }
    }

    /// Where the instance is better off by what a move is worth.
    fn look(&mut self, one: &Movable<'_>) -> Option<Better> {
        self.looks += 1;
        if self.looks > LOOKS {
            return None;
        }
        let (ask, expression) = (Ask::of(one.workload), self.expression);
        let home = self.board.position(one.row.node_id)?;
        self.board.without(&one.row, |board| better(ask, home, board, expression)).filter(|found| found.gain >= WORTH)
    }

    /// Moves it on the board; gives how many more cards are usable, and `None` when there would be fewer.
    fn try_move(&mut self, one: &Movable<'_>, found: Better) -> Option<f64> {
        let (before, fragmented) = (self.board.fleet.fragmentation(), self.board.fleet.fragmented());
        let there = InstanceRow { node_id: self.board.nodes[found.at].id, container: found.order, ..one.row.clone() };
        self.board.remove_instance(&one.row);
        self.board.put_instance(Arc::new(there.clone()));
        self.board.refresh();
        if self.board.fleet.fragmented() > fragmented {
            self.board.remove_instance(&there);
            self.board.put_instance(Arc::new(one.row.clone()));
            self.board.refresh();
            return None;
        }
        Some((before - self.board.fleet.fragmentation()) / 1_000.0)
    }
}

fn totals(board: &Board) -> CardTotals {
    let cards = board.seats.iter().flat_map(|seat| &seat.deck).filter(|card| card.capacity > 0).count() as u64;
    let idle = board.fleet.idle_thousandths() as f64 / 1_000.0;
    CardTotals { cards, idle, usable: idle - board.fleet.fragmentation() / 1_000.0 }
}

/// What users notice of a move beside the new place.
fn note(workload: &WorkloadRow, to: &str) -> Option<String> {
    let ports: Vec<String> = workload.spec.ports.iter().filter_map(|port| Some(port.host?.to_string())).collect();
    let word = if ports.len() == 1 { "port" } else { "ports" };
    (!ports.is_empty()).then(|| format!("{word} {} will be on {to}", ports.join(", ")))
}

/// The instances that may be moved, and for what reasons how many services stay in any case.
fn sorted_out<'s>(snapshot: &'s Snapshot, board: &Board) -> (Vec<Movable<'s>>, Vec<Staying>) {
    let workloads: HashMap<WorkloadId, &WorkloadRow> = snapshot.workloads.iter().map(|one| (one.id, one)).collect();
    let mut copies: HashMap<(WorkloadId, u32), usize> = HashMap::new();
    for instance in &snapshot.instances {
        *copies.entry((instance.workload_id, instance.ordinal)).or_default() += 1;
    }
    let (mut movable, mut stay) = (Vec::new(), BTreeMap::<&str, usize>::new());
    for instance in &snapshot.instances {
        let Some(workload) = workloads.get(&instance.workload_id).copied() else { continue };
        let alone = copies[&(instance.workload_id, instance.ordinal)] == 1;
        match stays(workload, instance, alone, board) {
            Some(why) => *stay.entry(why).or_default() += 1,
            None => {
                let name = format!("{}-{}", workload.spec.name, instance.ordinal);
                movable.push(Movable { row: instance.clone(), workload, name });
            }
        }
    }
    let stay = stay.into_iter().map(|(why, instances)| Staying { instances, why: why.to_owned() });
    (movable, stay.collect())
}

/// Why an instance is moved in no case.
fn stays(workload: &WorkloadRow, instance: &InstanceRow, alone: bool, board: &Board) -> Option<&'static str> {
    let spec = &workload.spec;
    let Some(node) = board.position(instance.node_id).map(|at| &board.nodes[at]) else {
        return Some("their node is not known");
    };
    let on_a_node = |mount: &Mount| match mount {
        Mount::Volume(volume) => board.homes.of_volume(&volume.name).is_some(),
        Mount::Bind(_) => true,
    };
    if spec.kind == WorkloadKind::Job {
        Some("jobs are left to end")
    } else if spec.node.is_some() {
        Some("they are bound to their node")
    } else if spec.mounts.iter().any(on_a_node) {
        Some("their data lies on their node")
    } else if spec.placement.gang {
        Some("copies of a gang stay together")
    } else if !may_overlap(spec) {
        Some("their copies may not run twice at once")
    } else if !alone || instance.desired == Desired::Removed || instance.moves_to.is_some() {
        Some("they are being replaced or moved")
    } else if workload.desired != Desired::Running || !is_up(spec, instance) {
        Some("they do not run, or do not work yet")
    } else if workload.rollout != Rollout::Done || !serves(&instance.container, spec, node) {
        Some("they are being updated")
    } else if moves_off(spec, node) || node.settings.availability != Availability::Active {
        Some("their node is cordoned or being left")
    } else {
        None
    }
}

/// The workloads that wait and have a place on the board: one of the missing copies, of a gang all.
fn fitting(snapshot: &Snapshot, board: &mut Board, expression: Option<&Expression<'_, '_>>) -> BTreeSet<String> {
    let mut held: HashMap<WorkloadId, BTreeSet<u32>> = HashMap::new();
    for instance in &snapshot.instances {
        held.entry(instance.workload_id).or_default().insert(instance.ordinal);
    }
    let waits = |workload: &&WorkloadRow| workload.pending.is_some() && workload.desired == Desired::Running;
    let mut fits = BTreeSet::new();
    for workload in snapshot.workloads.iter().filter(waits) {
        let held = held.get(&workload.id);
        let missing = (0..workload.spec.replicas).filter(|ordinal| held.is_none_or(|held| !held.contains(ordinal)));
        let wanted = if workload.spec.placement.gang { usize::MAX } else { 1 };
        let (mark, mut placed, mut tried) = (board.mark(), 0, 0);
        for ordinal in missing.take(wanted) {
            tried += 1;
            let Ok((at, order)) = choose(Ask::of(workload), ordinal, board, expression) else { break };
            placed += 1;
            board.sit(
                at,
                Resident {
                    instance: None,
                    workload: workload.id,
                    ordinal,
                    priority: workload.spec.placement.priority,
                    order: Order::New(Arc::new(order)),
                    leaving: false,
                },
            );
        }
        board.take_back(mark);
        if placed > 0 && placed == tried {
            fits.insert(workload.spec.name.to_string());
        }
    }
    fits
}
