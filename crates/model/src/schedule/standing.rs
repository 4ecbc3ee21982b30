//! What becomes of the instances that a workload has.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    feasible::{moves_off, serves},
    moving::cannot_move,
    rollout::{self, Copies, Succession, waits_its_turn},
    time::Time,
};
use crate::{
    ids::{InstanceId, NodeId},
    instance::{Desired, InstanceState},
    name::Name,
    node::NodeHealth,
    state::{InstanceChange, InstanceRow, NodeRow, Unmoved, WorkloadRow},
    workload::{Health, OnNodeLoss, Rollout, WorkloadKind, WorkloadSpec},
};

/// What becomes of the instances of one workload whose node is lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Losses {
    policy: OnNodeLoss,
    exclusive: bool,
}

impl Losses {
    /// As `spec` wants it. `is_local` says of a volume whether its data lies on one node.
    pub(crate) fn of(spec: &WorkloadSpec, is_local: impl Fn(&Name) -> bool) -> Self {
        Self { policy: spec.on_node_loss(is_local), exclusive: spec.exclusive }
    }

    /// Whether another may take the place of an instance on `node`, which nobody hears of.
    pub(crate) fn give_up(self, node: &NodeRow) -> bool {
        let over = if self.exclusive { node.health == NodeHealth::Fenced } else { node.health.is_down() };
        over && self.policy == OnNodeLoss::Reschedule
    }
}

/// The instances of one workload.
#[derive(Debug, Default)]
pub(super) struct Standing<'a> {
    /// New orders.
    pub(super) changes: Vec<InstanceChange>,
    /// Those that are on a node they are to leave, and have no successor yet.
    pub(super) moving: Vec<&'a InstanceRow>,
    /// Those that were ordered to another node, and have no successor yet.
    pub(super) ordered: Vec<&'a InstanceRow>,
    /// Those that were ordered to another node, and stay.
    pub(super) unmoved: Vec<Unmoved>,
    /// Whether some copy is on its way out or has a successor beside it.
    pub(super) under_way: bool,
    /// Those of an older specification that get a successor now.
    pub(super) outdated: Vec<(&'a InstanceRow, Succession)>,
    /// How the rollout ended, when it did.
    pub(super) ended: Option<Rollout>,
    /// When time alone changes what is to be done, in milliseconds since 1970.
    pub(super) wake_at_ms: Option<i64>,
    /// Ordinals that have an instance. One that is on its way out still holds its own.
    held: HashSet<u32>,
}

impl<'a> Standing<'a> {
    pub(super) fn of(
        workload: &WorkloadRow,
        existing: &[&'a InstanceRow],
        nodes: &HashMap<NodeId, &NodeRow>,
        (losses, time): (Losses, Time<'_>),
    ) -> Self {
        let mut standing = Self::default();
        let mut copies = BTreeMap::<u32, Vec<&'a InstanceRow>>::new();
        let mut old = BTreeMap::<u32, Vec<&'a InstanceRow>>::new();
        let (mut going, mut leaving) = (HashSet::new(), HashSet::new());
        for instance in existing {
            let node = nodes.get(&instance.node_id);
            if instance.desired == Desired::Removed {
                // Nobody waits for a lost node to say that it is gone.
                if !node.is_some_and(|node| losses.give_up(node)) {
                    standing.held.insert(instance.ordinal);
                    going.insert(instance.ordinal);
                    leaving.extend((!instance.lost).then_some(instance.ordinal));
                }
                continue;
            }
            standing.held.insert(instance.ordinal);
            let node = node.filter(|_| instance.ordinal < workload.spec.replicas);
            if node.is_some_and(|node| serves(&instance.container, &workload.spec, node)) {
                copies.entry(instance.ordinal).or_default().push(instance);
            } else if node.is_some_and(|node| waits_its_turn(workload, instance, node)) {
                old.entry(instance.ordinal).or_default().push(instance);
            } else {
                going.insert(instance.ordinal);
                leaving.extend((!instance.lost).then_some(instance.ordinal));
                standing.change(workload, instance, Desired::Removed);
            }
        }
        let unheard = &going - &leaving;
        standing.roll(workload, &Copies { fresh: &copies, old: &old, going: &going, unheard: &unheard }, time);
        for instance in old.values().flatten() {
            let why = || "it is of an earlier generation, and is replaced".to_owned();
            standing.unmoved.extend(unmoved(instance, why));
        }
        standing.under_way = !going.is_empty() || !old.is_empty();
        let settling = Settling { workload, losses, nodes, now_ms: time.now_ms };
        for (ordinal, of) in copies {
            standing.settle(&settling, of, going.contains(&ordinal));
        }
        standing
    }

    /// Brings the specification to the next of those that were made from another.
    fn roll(&mut self, workload: &WorkloadRow, copies: &Copies<'_, 'a>, time: Time<'_>) {
        let step = rollout::step(workload, copies, time);
        for instance in step.stay {
            self.change(workload, instance, workload.desired);
        }
        for instance in step.go {
            self.change(workload, instance, Desired::Removed);
        }
        (self.outdated, self.ended, self.wake_at_ms) = (step.replace, step.ended, step.wake_at_ms);
    }

    fn change(&mut self, workload: &WorkloadRow, instance: &InstanceRow, desired: Desired) {
        if instance.desired != desired || instance.epoch < workload.epoch {
            self.changes.push(InstanceChange { instance_id: instance.id, desired, epoch: workload.epoch });
        }
    }

    /// One instance of an ordinal stays; on a node that it is to leave, until its successor is up.
    /// While another of its ordinal is `going`, it gets no successor yet.
    fn settle(&mut self, settling: &Settling<'_>, mut copies: Vec<&'a InstanceRow>, going: bool) {
        let Settling { workload, losses, nodes, now_ms } = settling;
        let leaves = |instance: &InstanceRow| {
            moves(workload, instance)
                && nodes
                    .get(&instance.node_id)
                    .is_some_and(|node| moves_off(&workload.spec, node) || losses.give_up(node))
        };
        let ordered = self.heed(settling, &copies);
        self.under_way |= copies.len() > 1;
        let on_its_way = |instance: &InstanceRow| leaves(instance) || Some(instance.id) == ordered;
        if ordered.is_some() {
            let looks = copies.iter().filter(|copy| Some(copy.id) != ordered);
            let next = looks.filter_map(|copy| rollout::fails_by_ms(workload, copy, *now_ms)).min();
            self.wake_at_ms = [self.wake_at_ms, next].into_iter().flatten().min();
        }
        copies.sort_by_key(|instance| {
            (on_its_way(instance), !is_up(&workload.spec, instance), instance.created_at_ms, instance.id)
        });
        let Some((first, others)) = copies.split_first() else { return };
        let (alone, up) = (on_its_way(first), is_up(&workload.spec, first) || workload.desired != Desired::Running);
        self.change(workload, first, workload.desired);
        // One that has a second beside it gets a successor when that one is gone.
        if alone && others.is_empty() {
            if Some(first.id) == ordered {
                self.ordered.push(first);
            } else if !going {
                self.moving.push(first);
            }
        }
        for other in others {
            let waits = !alone && on_its_way(other) && !up;
            self.change(workload, other, if waits { workload.desired } else { Desired::Removed });
        }
    }

    /// Which of the copies of one ordinal is to move to a node that a user named. Orders that cannot be carried out are given
    /// up.
    fn heed(&mut self, settling: &Settling<'_>, copies: &[&'a InstanceRow]) -> Option<InstanceId> {
        let Settling { workload, nodes, now_ms, .. } = settling;
        let mut heeded = None;
        for instance in copies.iter().filter(|copy| copy.moves_to.is_some()) {
            let successor = copies.iter().find(|copy| copy.id != instance.id).copied();
            if instance.lost {
                self.unmoved.extend(unmoved(instance, || "its node is down".into()));
                continue;
            }
            match nodes.get(&instance.node_id).and_then(|node| cannot_move(workload, instance, node)) {
                None => match successor.and_then(|successor| rollout::failure(workload, successor, *now_ms)) {
                    None if heeded.is_none() => heeded = Some(instance.id),
                    None => self.unmoved.extend(unmoved(instance, || "its copy moves already".into())),
                    Some(why) => {
                        self.unmoved.extend(unmoved(instance, || format!("its successor does not work: {why}")))
                    }
                },
                Some(why) => self.unmoved.extend(unmoved(instance, || why.into())),
            }
        }
        heeded
    }

    /// The ordinals that have no instance.
    pub(super) fn missing(&self, workload: &WorkloadRow) -> Vec<u32> {
        if workload.desired != Desired::Running {
            return Vec::new();
        }
        (0..workload.spec.replicas).filter(|ordinal| !self.held.contains(ordinal)).collect()
    }
}

/// What the copies of all ordinals are settled by.
struct Settling<'n> {
    workload: &'n WorkloadRow,
    losses: Losses,
    nodes: &'n HashMap<NodeId, &'n NodeRow>,
    now_ms: i64,
}

fn unmoved(instance: &InstanceRow, reason: impl FnOnce() -> String) -> Option<Unmoved> {
    let order = instance.moves_to?;
    Some(Unmoved { instance_id: instance.id, to: order.node_id, reason: reason() })
}

/// Whether the instance would be moved from a node that is drained or lost: jobs are left to end as long as somebody hears of
/// them, and what is down stays.
pub(crate) fn moves(workload: &WorkloadRow, instance: &InstanceRow) -> bool {
    let state = instance.report.as_ref().and_then(|report| report.state.as_ref());
    (workload.spec.kind == WorkloadKind::Service || instance.lost)
        && workload.desired == Desired::Running
        && instance.desired == Desired::Running
        && !matches!(state, Some(InstanceState::Finished { .. }))
}

/// Whether it runs, and works as far as that is known.
pub(crate) fn is_up(spec: &WorkloadSpec, instance: &InstanceRow) -> bool {
    let Some(report) = instance.report.as_ref().filter(|report| report.epoch >= instance.epoch) else { return false };
    let works = spec.health.is_none() || report.health == Some(Health::Healthy);
    !instance.lost && matches!(report.state, Some(InstanceState::Running { .. })) && works
}

/// Whether its successor may start only when it is gone: it wants to be alone, or is the only copy that writes to a volume.
pub(crate) fn stops_first(spec: &WorkloadSpec) -> bool {
    spec.exclusive || spec.replicas == 1 && spec.mounts.iter().any(|mount| mount.volume().is_some())
}
