//! All that the agent knows of its instances, and what follows from what it learns. Pure: news and the time go in, and
//! [`Effect`]s wait to be taken and performed in their order. [`super::run`] performs them for real, the simulation in
//! its own world.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use toft_model::{
    ids::InstanceId,
    instance::{Assignment, AssignmentSet, Desired, Event, Exit, InstanceReport, InstanceState},
};

use super::{
    execute::Done,
    ledger::{Outcome, Remembered},
    reconcile::{Memory, Observed, Step, Verdict, back_off, judge, next_step},
    runtime::TaskState,
};

mod effect;
mod gpu;
mod health;
mod lease;

pub use effect::{Effect, Incoming, Work};
pub use lease::Lease;

/// Wait after a stop or removal that failed.
const AFTER_FAILURE_MS: i64 = 1_000;
/// Wait after a write to the ledger that failed.
const WRITE_AGAIN_MS: i64 = 5_000;
/// Bits of a report's sequence that count within one run of the daemon.
const SEQUENCE_BITS: u32 = 24;
/// Ends in a row, none after a proven run, that are called a crash loop.
const CRASH_LOOP: u32 = 5;
/// Grace of a container that nobody ordered.
const GRACE_MS: u32 = 10_000;

/// The agent's mind.
#[derive(Default)]
pub struct Keeper {
    /// The set that the ledger holds.
    saved: Option<AssignmentSet>,
    /// The newest set while the ledger does not hold it.
    unsaved: Option<AssignmentSet>,
    /// Whether the cluster's word was heard since the daemon started. Until then the ledger alone speaks, which may be
    /// older than what runs: nothing is removed only because it is not in there.
    heard: bool,
    /// Notes that did not get into the ledger.
    unwritten: BTreeMap<InstanceId, Outcome>,
    /// Ends that were written into the ledger before their tasks are deleted.
    noted: BTreeMap<InstanceId, Outcome>,
    /// When the ledger is tried again.
    write_again_ms: Option<i64>,
    /// Of the newest report.
    sequence: u64,
    orders: BTreeMap<InstanceId, Assignment>,
    observed: BTreeMap<InstanceId, Observed>,
    memory: BTreeMap<InstanceId, Memory>,
    /// Whether the runtime answers.
    up: bool,
    /// Whether `observed` is what the runtime has: it was compared since the runtime came up.
    known: bool,
    busy: BTreeSet<InstanceId>,
    early: BTreeMap<InstanceId, Exit>,
    /// How the last process of each ended, as its deletion told; news of that very end may come later still.
    reaped: BTreeMap<InstanceId, Exit>,
    gone: BTreeSet<InstanceId>,
    /// Remembered as finished: the daemon may have died before it could tell, and nothing else will happen to them.
    untold: BTreeSet<InstanceId>,
    due: BTreeSet<(i64, InstanceId)>,
    /// Processes that are asked whether they work.
    watched: BTreeMap<InstanceId, health::Watched>,
    /// Instances whose process was ended for holding too much of a GPU.
    over_share: BTreeSet<InstanceId>,
    /// Whether what is exclusive may run.
    lease: Lease,
    /// Since when it was over when the daemon started, if it was.
    lease_was_over_ms: Option<i64>,
    effects: Vec<Effect>,
}

impl Keeper {
    /// After a start of the daemon: what the ledger knew is all that is known.
    pub fn new(remembered: Remembered) -> Self {
        let mut keeper = Self { sequence: remembered.run << SEQUENCE_BITS, ..Self::default() };
        for (id, outcome) in remembered.outcomes {
            let finished = |exit| InstanceState::Finished { exit, reason: None };
            let state = outcome.finished.map_or(InstanceState::Assigned, finished);
            let memory = Memory {
                state,
                epoch: outcome.epoch,
                restarts: outcome.restarts,
                streak: 0,
                last_exit: outcome.finished.or(outcome.last_exit),
                started_ms: outcome.started_ms,
            };
            if matches!(memory.state, InstanceState::Finished { .. }) {
                keeper.untold.insert(id);
            }
            keeper.memory.insert(id, memory);
        }
        if let Some(set) = remembered.set {
            keeper.orders = set.assignments.iter().map(|order| (order.instance_id, order.clone())).collect();
            keeper.saved = Some(set);
        }
        keeper
    }

    /// What is to be done, in this order; empty afterwards.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// When [`Keeper::time_passed`] should be called next, in milliseconds since 1970.
    pub fn next_due_ms(&self) -> Option<i64> {
        self.due.first().map(|(at, _)| *at).into_iter().chain(self.write_again_ms).min()
    }

    /// Whether an arriving set is to be taken.
    pub fn incoming(&self, set: &AssignmentSet) -> Incoming {
        match self.newest().map(|newest| set.generation.cmp(&newest.generation)) {
            None | Some(Ordering::Greater) => Incoming::Newer,
            Some(Ordering::Equal) => Incoming::Again,
            Some(Ordering::Less) => Incoming::Older,
        }
    }

    /// The set that the ledger holds.
    pub fn saved(&self) -> Option<&AssignmentSet> {
        self.saved.as_ref()
    }

    /// The set that is in effect.
    pub fn newest(&self) -> Option<&AssignmentSet> {
        self.unsaved.as_ref().or(self.saved.as_ref())
    }

    /// What became of [`Effect::WriteSet`].
    pub fn set_written(&mut self, written: bool, now_ms: i64) {
        if !written {
            return self.write_again_at(now_ms);
        }
        if let Some(set) = self.unsaved.take() {
            self.saved = Some(set);
            // What is gone may be told now.
            self.look_at_all(now_ms);
        }
    }

    /// [`Effect::Note`] could not be done and is to be tried again.
    pub fn note_failed(&mut self, id: InstanceId, outcome: Outcome, now_ms: i64) {
        self.unwritten.insert(id, outcome);
        self.write_again_at(now_ms);
    }

    fn write_again_at(&mut self, now_ms: i64) {
        self.write_again_ms.get_or_insert(now_ms + WRITE_AGAIN_MS);
    }

    /// The set in effect was confirmed: everything is looked at.
    pub fn orders_stand(&mut self, now_ms: i64) {
        self.heard = true;
        self.look_at_all(now_ms);
    }

    /// Takes a newer set; `stored` when the ledger has it.
    pub fn take_orders(&mut self, set: AssignmentSet, stored: bool, now_ms: i64) {
        let before = std::mem::take(&mut self.orders);
        self.orders = set.assignments.iter().map(|order| (order.instance_id, order.clone())).collect();
        if stored {
            (self.saved, self.unsaved) = (Some(set), None);
        } else {
            // Carried out all the same: removing may be what makes room on the disk.
            self.unsaved = Some(set);
            self.write_again_at(now_ms);
        }
        let mut touched: Vec<InstanceId> =
            self.orders.iter().filter(|(id, order)| before.get(id) != Some(order)).map(|(id, _)| *id).collect();
        touched.extend(before.keys().filter(|id| !self.orders.contains_key(id)));
        // Removals first: they free what starts may need.
        touched.sort_by_key(|id| self.orders.get(id).is_some_and(|order| order.desired != Desired::Removed));
        if !std::mem::replace(&mut self.heard, true) {
            touched.extend(self.observed.keys());
        }
        for id in touched {
            if !self.orders.contains_key(&id) && !self.observed.contains_key(&id) {
                self.forget(id);
            }
            self.look_at(id, now_ms);
        }
    }

    fn forget(&mut self, id: InstanceId) {
        self.memory.remove(&id);
        self.gone.remove(&id);
        self.unwritten.remove(&id);
        self.noted.remove(&id);
        self.untold.remove(&id);
        self.over_share.remove(&id);
        if self.watched.remove(&id).is_some() {
            self.effects.push(Effect::Unwatch(id));
        }
        self.effects.push(Effect::ClosePorts(id));
    }

    /// Whether the runtime answers. While it does not, nothing is known and nothing can be done.
    pub fn runtime_is(&mut self, up: bool) {
        self.up = up;
    }

    /// The runtime went away and came back, or may have: it is to be compared before anything else is done.
    pub fn runtime_was_away(&mut self) {
        self.known = false;
    }

    /// Everything the runtime has.
    pub fn compare(&mut self, containers: impl IntoIterator<Item = (InstanceId, TaskState)>, now_ms: i64) {
        let mut seen: BTreeMap<_, _> = containers.into_iter().map(|(id, task)| (id, Observed { task })).collect();
        // What a step is changing right now is told by the step.
        for id in &self.busy {
            match self.observed.get(id) {
                Some(observed) => drop(seen.insert(*id, *observed)),
                None => drop(seen.remove(id)),
            }
        }
        self.observed = seen;
        if !std::mem::replace(&mut self.known, true) {
            self.clear_leftovers();
        }
        self.look_at_all(now_ms);
        self.effects.push(Effect::ReleasePorts(!self.orders.is_empty()));
    }

    /// Has what an earlier daemon (or containerd) did not get to delete deleted, where no process is to be seen.
    fn clear_leftovers(&mut self) {
        let idle = |(id, observed): (&InstanceId, &Observed)| (observed.task == TaskState::None).then_some(*id);
        let idle: Vec<_> = self.observed.iter().filter_map(idle).filter(|id| !self.busy.contains(id)).collect();
        for id in idle {
            self.step(id, Work::Reap);
        }
    }

    /// Looks at every instance.
    pub fn look_at_all(&mut self, now_ms: i64) {
        let mut ids: BTreeSet<InstanceId> = self.orders.keys().copied().collect();
        ids.extend(self.observed.keys());
        for id in ids {
            self.look_at(id, now_ms);
        }
    }

    /// A process ended.
    pub fn task_ended(&mut self, id: InstanceId, exit: Exit, now_ms: i64) {
        // The news of an end does not tell what it was for.
        if self.reaped.get(&id).is_some_and(|reaped| (reaped.code, reaped.at_ms) == (exit.code, exit.at_ms)) {
            return;
        }
        // A process can end before its start was taken note of.
        if self.busy.contains(&id) {
            self.early.insert(id, exit);
        }
        if let Some(observed) = self.observed.get_mut(&id) {
            observed.task = TaskState::Ended(exit);
            self.look_at(id, now_ms);
        }
    }

    /// Takes up what waited for this time.
    pub fn time_passed(&mut self, now_ms: i64) {
        if self.write_again_ms.take_if(|at| *at <= now_ms).is_some() {
            if self.unsaved.is_some() {
                self.effects.push(Effect::WriteSet);
            }
            let notes = std::mem::take(&mut self.unwritten);
            self.effects.extend(notes.into_iter().map(|(id, outcome)| Effect::Note { id, outcome }));
        }
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now_ms) {
            self.due.remove(&(at, id));
            self.look_at(id, now_ms);
        }
    }

    /// What failed may work now.
    pub fn retry_now(&mut self, now_ms: i64) {
        for memory in self.memory.values_mut() {
            if let InstanceState::BackOff { until_ms, .. } = &mut memory.state {
                *until_ms = 0;
            }
        }
        self.look_at_all(now_ms);
    }

    /// Takes steps for one instance until one must be waited for.
    pub fn look_at(&mut self, id: InstanceId, now_ms: i64) {
        // Without the runtime nothing is known, and nothing can be done.
        if self.busy.contains(&id) || !self.known || !self.up {
            return;
        }
        loop {
            let order = self.orders.get(&id).map(|order| self.leased(order));
            let waits = self.waits_for_lease(order.as_ref());
            let observed = self.observed.get(&id).copied();
            let memory = self.memory.entry(id).or_default();
            let grace_ms = order.as_ref().map_or(GRACE_MS, |order| order.container.stop_grace_ms);
            // It was started again by an order that the ledger could not take: the one that stops it is the older.
            let outdated = |order: &Assignment| order.desired == Desired::Stopped && order.epoch < memory.epoch;
            if !self.heard && order.as_ref().is_some_and(outdated) {
                return;
            }
            match next_step(order.as_ref(), observed, memory, now_ms) {
                Step::Remove if order.is_none() && !self.heard => return,
                Step::Rest => return self.tell_what_finished(id, now_ms),
                Step::Wait(until) => {
                    self.due.insert((until, id));
                    return;
                }
                Step::Reset => {
                    let epoch = order.map_or(0, |order| order.epoch);
                    *memory = Memory { epoch, ..Memory::default() };
                }
                Step::Adopt { pid } => {
                    // The order may be the older of the two, when the ledger could not take the newer one.
                    let epoch = order.as_ref().map_or(0, |order| order.epoch).max(memory.epoch);
                    *memory = Memory { epoch, state: InstanceState::Assigned, ..memory.clone() };
                    let at_ms = memory.started_ms.unwrap_or(now_ms);
                    if let Some(order) = order {
                        self.effects.push(Effect::OpenPorts(Box::new(order)));
                    }
                    self.effects.push(Effect::ClaimPorts(id));
                    self.advance(id, Event::Started { pid, at_ms }, now_ms);
                }
                Step::SettleStopped => {
                    let exit = memory.last_exit;
                    if matches!(memory.state, InstanceState::Running { .. } | InstanceState::Starting) {
                        memory.state = InstanceState::Stopping;
                    }
                    if memory.state == InstanceState::Stopping {
                        self.effects.push(Effect::Note { id, outcome: memory.outcome(None) });
                    }
                    self.effects.push(Effect::ClosePorts(id));
                    self.advance(id, Event::Stopped { exit }, now_ms);
                }
                Step::Vanished => self.process_ended(id, Exit::new(None, now_ms), now_ms),
                Step::Gone => {
                    self.effects.push(Effect::ClosePorts(id));
                    // Who forgets the order to remove it may start it again: until then its place is not free.
                    if self.unsaved.is_none() && self.gone.insert(id) {
                        self.report(id, None, now_ms);
                    }
                    return;
                }
                Step::Start if waits => return,
                Step::Start => return self.start(id, order, observed, now_ms),
                Step::Stop => {
                    self.begin_to_stop(id, now_ms);
                    return self.step(id, Work::Stop { grace_ms });
                }
                Step::Reap => {
                    if let Some(Observed { task: TaskState::Ended(exit) }) = observed {
                        self.note_end(id, exit);
                    }
                    return self.step(id, Work::Reap);
                }
                Step::Remove => {
                    self.begin_to_stop(id, now_ms);
                    let task = observed.map_or(TaskState::None, |observed| observed.task);
                    return self.step(id, Work::Remove { task, grace_ms });
                }
            }
        }
    }

    fn tell_what_finished(&mut self, id: InstanceId, now_ms: i64) {
        let state = self.memory.get(&id).map(|memory| memory.state.clone());
        if self.untold.remove(&id) && matches!(state, Some(InstanceState::Finished { .. })) {
            self.report(id, state, now_ms);
        }
    }

    fn begin_to_stop(&mut self, id: InstanceId, now_ms: i64) {
        let state = self.memory.get(&id).map(|memory| &memory.state);
        if matches!(state, Some(InstanceState::Running { .. } | InstanceState::Starting)) {
            self.advance(id, Event::StopRequested, now_ms);
        }
    }

    fn step(&mut self, id: InstanceId, work: Work) {
        self.busy.insert(id);
        self.early.remove(&id);
        self.effects.push(Effect::Do { id, work });
    }

    fn start(&mut self, id: InstanceId, order: Option<Assignment>, observed: Option<Observed>, now_ms: i64) {
        let Some(order) = order else { return };
        let memory = self.memory.entry(id).or_default();
        memory.started_ms = Some(now_ms);
        let outcome = memory.outcome(None);
        self.unwritten.remove(&id);
        self.advance(id, Event::StartRequested, now_ms);
        let existing = observed.map(|observed| observed.task);
        self.step(id, Work::Start { order: Box::new(order), existing, outcome });
    }

    /// A step came to its end.
    pub fn done(&mut self, id: InstanceId, done: Done, now_ms: i64) {
        self.busy.remove(&id);
        match done {
            Done::Started { pid } => {
                let task = self.early.remove(&id).map_or(TaskState::Running { pid }, TaskState::Ended);
                self.observed.insert(id, Observed { task });
                self.effects.push(Effect::ClaimPorts(id));
                self.advance(id, Event::Started { pid, at_ms: now_ms }, now_ms);
            }
            Done::StartFailed { reason, exit_code } => {
                self.start_failed(id, reason, exit_code, now_ms);
                // The container may have been made before the failure.
                return self.effects.push(Effect::Compare(id));
            }
            Done::Ended { exit } => {
                let exit = self.marked(id, exit, now_ms);
                if let Some(exit) = exit {
                    self.reaped.insert(id, exit);
                }
                self.ended(id, exit, now_ms);
            }
            Done::Removed => {
                self.observed.remove(&id);
                self.reaped.remove(&id);
                if !self.orders.contains_key(&id) {
                    self.forget(id);
                }
            }
            Done::Failed { reason } => {
                tracing::warn!(instance.id = %id, error = reason, "a container could not be stopped or removed and will be tried again");
                self.due.insert((now_ms + AFTER_FAILURE_MS, id));
                return;
            }
        }
        self.look_at(id, now_ms);
    }

    /// Whether the end of the process is one that the restart policy judges. `exited`: the runtime tells how it ended.
    fn end_counts(&self, id: InstanceId, exited: bool) -> bool {
        let wanted = self.orders.get(&id).is_some_and(|order| {
            order.desired == Desired::Running && self.memory.get(&id).is_some_and(|memory| memory.epoch >= order.epoch)
        });
        let ran = self.memory.get(&id).is_some_and(|memory| match memory.state {
            InstanceState::Starting | InstanceState::Running { .. } => true,
            // After a start of the daemon: without an exit it was left by a start that was cut short.
            InstanceState::Assigned => exited,
            InstanceState::Stopping
            | InstanceState::Stopped { .. }
            | InstanceState::BackOff { .. }
            | InstanceState::Finished { .. }
            | InstanceState::Unknown => false,
        });
        wanted && ran
    }

    /// Writes down that a process ended for good before its task is deleted: until then the runtime alone knows.
    fn note_end(&mut self, id: InstanceId, exit: Exit) {
        let (Some(order), Some(memory)) = (self.orders.get(&id), self.memory.get(&id)) else { return };
        let mut memory = memory.clone();
        let counts = self.end_counts(id, true) && !self.ended_with_lease(id, exit);
        if counts && judge(order, &mut memory, self.judged(id, exit)) == Verdict::StayDown {
            memory.last_exit = Some(exit);
            let outcome = memory.outcome(Some(exit));
            self.noted.insert(id, outcome);
            self.effects.push(Effect::Note { id, outcome });
        }
    }

    fn ended(&mut self, id: InstanceId, exit: Option<Exit>, now_ms: i64) {
        self.observed.insert(id, Observed { task: TaskState::None });
        let by_itself = !exit.is_some_and(|exit| self.ended_with_lease(id, exit));
        if by_itself && self.end_counts(id, exit.is_some()) {
            self.process_ended(id, exit.unwrap_or(Exit::new(None, now_ms)), now_ms);
        } else if let Some(memory) = self.memory.get_mut(&id) {
            memory.last_exit = exit.or(memory.last_exit);
        }
    }

    fn start_failed(&mut self, id: InstanceId, reason: String, exit_code: Option<i32>, now_ms: i64) {
        self.effects.push(Effect::ClosePorts(id));
        let Some(order) = self.orders.get(&id) else { return };
        let memory = self.memory.entry(id).or_default();
        tracing::warn!(instance.id = %id, workload.id = %order.workload_id, reason, "an instance could not be started");
        if let Some(code) = exit_code {
            let exit = Exit::new(Some(code), now_ms);
            if judge(order, memory, exit) == Verdict::StayDown {
                return self.finish(id, exit, Some(reason), now_ms);
            }
        }
        let until_ms = now_ms + back_off(memory);
        self.advance(id, Event::RetryAt { until_ms, reason }, now_ms);
    }

    /// The process of an instance that should run has ended.
    fn process_ended(&mut self, id: InstanceId, exit: Exit, now_ms: i64) {
        let (judged, why) = (self.judged(id, exit), self.reason(id, exit));
        let Some(order) = self.orders.get(&id) else { return };
        let memory = self.memory.entry(id).or_default();
        let verdict = judge(order, memory, judged);
        memory.last_exit = Some(exit);
        match verdict {
            Verdict::RestartAt(until_ms) => {
                metrics::counter!("toft_instance_restarts_total").increment(1);
                let reason = if memory.streak >= CRASH_LOOP { format!("crash loop: {why}") } else { why };
                self.advance(id, Event::RetryAt { until_ms, reason }, now_ms);
            }
            Verdict::StayDown => self.finish(id, exit, None, now_ms),
        }
    }

    fn finish(&mut self, id: InstanceId, exit: Exit, reason: Option<String>, now_ms: i64) {
        self.effects.push(Effect::ClosePorts(id));
        let outcome = self.memory.entry(id).or_default().outcome(Some(exit));
        if self.noted.remove(&id) != Some(outcome) {
            self.effects.push(Effect::Note { id, outcome });
        }
        self.advance(id, Event::Finished { exit, reason }, now_ms);
    }

    fn advance(&mut self, id: InstanceId, event: Event, now_ms: i64) {
        let memory = self.memory.entry(id).or_default();
        match memory.state.clone().advance(event) {
            Ok(state) => {
                memory.state = state.clone();
                self.watch(id, &state);
                self.report(id, Some(state), now_ms);
            }
            Err(illegal) => self.effects.push(Effect::Impossible(id, illegal)),
        }
    }

    fn report(&mut self, id: InstanceId, state: Option<InstanceState>, now_ms: i64) {
        self.report_with(id, state, None, now_ms);
    }

    fn report_with(&mut self, id: InstanceId, state: Option<InstanceState>, warning: Option<String>, now_ms: i64) {
        let memory = self.memory.get(&id).cloned().unwrap_or_default();
        self.sequence += 1;
        self.effects.push(Effect::Report(InstanceReport {
            instance_id: id,
            state,
            epoch: memory.epoch,
            restarts: memory.restarts,
            last_exit: memory.last_exit,
            health: self.health(id),
            warning,
            at_ms: now_ms,
            sequence: self.sequence,
        }));
    }
}

#[cfg(test)]
mod tests;
