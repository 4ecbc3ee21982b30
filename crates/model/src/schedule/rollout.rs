//! How a changed specification reaches the instances of a service: few at a time, and only as long as those before them work.

use std::collections::{BTreeMap, HashSet};

use super::{
    feasible::outlives,
    standing::{is_up, stops_first},
    time::Time,
};
use crate::{
    instance::{Desired, InstanceState},
    state::{InstanceRow, NodeRow, WorkloadRow},
    workload::{Health, Rollout, UpdateFailure, UpdateOrder, WorkloadKind, WorkloadSpec},
};

/// The instances of a workload by their ordinals: those made from its present specification, and those made from others.
pub(super) struct Copies<'b, 'a> {
    pub(super) fresh: &'b BTreeMap<u32, Vec<&'a InstanceRow>>,
    pub(super) old: &'b BTreeMap<u32, Vec<&'a InstanceRow>>,
    /// Ordinals of which something is on its way out.
    pub(super) going: &'b HashSet<u32>,
    /// Those of them of which nothing is heard: they have the order when their nodes return.
    pub(super) unheard: &'b HashSet<u32>,
}

/// How an instance gets its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Succession {
    /// It goes when that works.
    Beside,
    /// The same, or it goes first where there is no room for both.
    Either,
    /// It goes first.
    Instead,
}

/// What the rollout does next.
#[derive(Debug, Default)]
pub(super) struct Step<'a> {
    /// Those that stay for now.
    pub(super) stay: Vec<&'a InstanceRow>,
    /// Those that go.
    pub(super) go: Vec<&'a InstanceRow>,
    /// Those of them that get a successor.
    pub(super) replace: Vec<(&'a InstanceRow, Succession)>,
    /// How it ended, when it did.
    pub(super) ended: Option<Rollout>,
    /// When time alone changes the answer, in milliseconds since 1970.
    pub(super) wake_at_ms: Option<i64>,
}

/// Whether instances of the workload are replaced with care: what serves, and is to go on serving.
pub(super) fn is_careful(workload: &WorkloadRow) -> bool {
    workload.spec.kind == WorkloadKind::Service && workload.desired == Desired::Running
}

/// Whether an instance that is not what `workload` asks for can stay on `node` until its turn comes.
pub(crate) fn waits_its_turn(workload: &WorkloadRow, instance: &InstanceRow, node: &NodeRow) -> bool {
    is_careful(workload) && instance.desired == Desired::Running && outlives(&instance.container, node)
}

/// Whether a successor may start beside its predecessor: by the specification, whatever room there is.
pub(crate) fn starts_first(spec: &WorkloadSpec) -> bool {
    match spec.update.order {
        Some(order) => order == UpdateOrder::StartFirst && !stops_first(spec),
        None => !stops_first(spec) && spec.ports.iter().all(|port| port.host.is_none()),
    }
}

/// From when on an instance counts as one that works, by its node's clock: when it has been up for long enough, or when it
/// did what it was there for and is not to start again.
fn works_from_ms(spec: &WorkloadSpec, instance: &InstanceRow) -> Option<i64> {
    match instance.report.as_ref()?.state.as_ref()? {
        InstanceState::Running { since_ms, .. } if is_up(spec, instance) => {
            Some(since_ms.saturating_add(spec.update.healthy_ms.into()))
        }
        InstanceState::Finished { exit, .. } if exit.code == Some(0) => Some(exit.at_ms),
        _ => None,
    }
}

/// Until when it may fail to start, such as for an image that cannot be pulled, before it counts as one that never will.
fn to_start_by_ms(instance: &InstanceRow) -> i64 {
    instance.created_at_ms.saturating_add(30_000)
}

/// Why an instance will not come to work, as far as it looks.
pub(super) fn failure(workload: &WorkloadRow, instance: &InstanceRow, now_ms: i64) -> Option<String> {
    let report = instance.report.as_ref().filter(|report| report.epoch >= instance.epoch);
    let named = |why: &str| Some(format!("{}-{}: {why}", workload.spec.name, instance.ordinal));
    match report.and_then(|report| report.state.as_ref()) {
        Some(InstanceState::BackOff { reason, .. }) => {
            // What ended once may need something that starts beside it; what was never started may need its registry.
            let ended = report.is_some_and(|report| report.last_exit.is_some());
            let again = report.is_some_and(|report| report.restarts >= 1);
            if if ended { again } else { to_start_by_ms(instance) <= now_ms } {
                return named(reason);
            }
        }
        Some(InstanceState::Finished { exit, .. }) if exit.code != Some(0) => return named(&exit.reason()),
        Some(InstanceState::Running { .. })
            if report.is_some_and(|report| report.health == Some(Health::Unhealthy)) =>
        {
            return named("it runs and is not healthy");
        }
        _ => {}
    }
    let late = instance.created_at_ms.saturating_add(workload.spec.update.deadline_ms.into()) <= now_ms;
    if late && works_from_ms(&workload.spec, instance).is_none() {
        return named("it did not come to work in time");
    }
    None
}

/// When it counts as one that fails unless it works by then, if that time is still to come.
pub(super) fn fails_by_ms(workload: &WorkloadRow, instance: &InstanceRow, now_ms: i64) -> Option<i64> {
    let deadline = instance.created_at_ms.saturating_add(workload.spec.update.deadline_ms.into());
    [to_start_by_ms(instance), deadline].into_iter().filter(|at| *at > now_ms).min()
}

/// Decides the next step.
pub(super) fn step<'a>(workload: &WorkloadRow, copies: &Copies<'_, 'a>, time: Time<'_>) -> Step<'a> {
    let (spec, now_ms) = (&workload.spec, time.now_ms);
    let (fresh, old) = (copies.fresh, copies.old);
    let mut step = Step::default();
    let works_from = |instance: &InstanceRow| Some(time.here(instance.node_id, works_from_ms(spec, instance)?));
    let works = |instance: &&InstanceRow| works_from(instance).is_some_and(|at| at <= now_ms);
    let rolling = workload.rollout == Rollout::Rolling;
    if rolling && is_careful(workload) {
        let under_way = || fresh.values().flatten().filter(|instance| !instance.lost && !works(instance));
        let at = |instance: &&InstanceRow| works_from(instance).or_else(|| fails_by_ms(workload, instance, now_ms));
        step.wake_at_ms = under_way().filter_map(at).filter(|at| *at > now_ms).min();
        let first = workload.generation == 1;
        let failed = under_way().find_map(|instance| failure(workload, instance, now_ms));
        if let Some(reason) = failed.filter(|_| !first && spec.update.on_failure != UpdateFailure::Continue) {
            step.ended = Some(Rollout::Failed { reason });
        } else if old.is_empty()
            && (0..spec.replicas).all(|ordinal| fresh.get(&ordinal).is_some_and(|of| of.iter().any(works)))
        {
            step.ended = Some(Rollout::Done);
        }
    }
    // What failed goes no further until its user, or the version before it, says so.
    let goes_on = step.ended.is_none() && !matches!(workload.rollout, Rollout::Failed { .. });
    // Nobody waits for lost nodes: what is there takes nobody's turn, and is not what a rollout makes missing.
    let all_lost = |of: &[&InstanceRow]| of.iter().all(|instance| instance.lost);
    let is_in_progress = |of: &&Vec<&InstanceRow>| !of.iter().any(works) && !all_lost(of);
    let is_empty = |ordinal: &u32| !fresh.contains_key(ordinal) && !old.contains_key(ordinal);
    let is_vacant = |ordinal: &&u32| is_empty(ordinal) && !copies.unheard.contains(ordinal);
    let is_lost = |ordinal: &u32| match is_empty(ordinal) {
        true => copies.unheard.contains(ordinal),
        false => [fresh, old].into_iter().filter_map(|of| of.get(ordinal)).all(|of| all_lost(of)),
    };
    let in_progress = fresh.values().filter(is_in_progress).count() + copies.going.iter().filter(is_vacant).count();
    let mut budget = (spec.update.parallel as usize).saturating_sub(in_progress);
    let up = |of: &[&InstanceRow]| of.iter().any(|instance| is_up(spec, instance));
    let is_served = |ordinal: &u32| {
        let any = |of: &BTreeMap<u32, Vec<&InstanceRow>>| of.get(ordinal).is_some_and(|of| up(of));
        any(old) || any(fresh) || fresh.get(ordinal).is_some_and(|of| of.iter().any(works))
    };
    let missing = (0..spec.replicas).filter(|ordinal| !is_served(ordinal) && !is_lost(ordinal)).count();
    let most_missing = spec.update.max_unavailable.unwrap_or(spec.update.parallel) as usize;
    let mut may_miss = most_missing.saturating_sub(missing);
    // What does not work is replaced first.
    let mut order: Vec<(&u32, &Vec<&InstanceRow>)> = old.iter().collect();
    order.sort_by_key(|(ordinal, of)| (up(of), **ordinal));
    for (ordinal, of) in order {
        // Of several the one that serves, and then the one that has for longest, stays until its successor works.
        let best = of.iter().min_by_key(|one| (!is_up(spec, one), one.created_at_ms, one.id)).copied();
        step.go.extend(of.iter().filter(|one| Some(one.id) != best.map(|best| best.id)));
        let Some(best) = best else { continue };
        let serves = is_up(spec, best);
        if let Some(successors) = fresh.get(ordinal) {
            let over = successors.iter().any(works) || !serves;
            if over { &mut step.go } else { &mut step.stay }.push(best);
            continue;
        }
        // A successor that was sent away may still run: one of a kind at a time.
        if !goes_on || budget == 0 || (serves && copies.going.contains(ordinal)) {
            step.stay.push(best);
            continue;
        }
        if !serves {
            step.go.push(best);
        } else {
            step.stay.push(best);
            let succession = match (starts_first(spec), spec.update.order.is_none() && may_miss > 0) {
                (true, true) => Succession::Either,
                (true, false) => Succession::Beside,
                (false, _) if may_miss > 0 => Succession::Instead,
                (false, _) => continue,
            };
            may_miss -= usize::from(succession != Succession::Beside);
            step.replace.push((best, succession));
        }
        budget -= 1;
    }
    step
}
