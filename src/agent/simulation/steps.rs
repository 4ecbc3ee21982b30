//! What the simulated daemon does with news, and how its steps go, phase by phase: anything can happen between two.
//! The phases are those of [`crate::agent::execute`].

use toft_model::{
    ids::InstanceId,
    instance::{Assignment, AssignmentSet, Desired, Exit, NetworkOrder},
    state::{Command, InstanceRow},
    workload::RestartPolicy,
};

use super::{
    cluster::made_of,
    machine::{Container, Daemon},
    world::{Asker, Event, Plant, World},
};
use crate::agent::{
    execute::Done,
    keeper::{Effect, Incoming, Keeper, Work},
    ledger::Outcome,
    runtime::TaskState,
};

/// Time between two messages with reports, and after one that was not taken.
const GAP_MS: i64 = 20;
const HEALTH_INTERVAL_MS: i64 = 700;
const AFTER_FAILURE_MS: i64 = 1_000;
/// Wait for the answer to a message.
const PATIENCE_MS: i64 = 3_000;

/// The next thing a step does.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Prepare { order: Box<Assignment>, existing: Option<TaskState>, outcome: Outcome },
    CreateTask(Box<Assignment>),
    StartTask(Box<Assignment>),
    Signal { grace_ms: u32, then: AfterEnd },
    DeleteTask(AfterEnd),
    DeleteContainer,
}

/// What follows when the process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterEnd {
    Tell,
    DeleteContainer,
}

impl World {
    pub(super) fn daemon(&mut self, machine: usize, life: u32) -> Option<&mut Daemon> {
        let own = &mut self.machines[machine];
        if own.life == life { own.daemon.as_mut() } else { None }
    }

    /// Tells the keeper of a living daemon something, and does what follows.
    pub(super) fn news(
        &mut self,
        machine: usize,
        life: u32,
        tell: impl FnOnce(&mut Keeper, i64),
    ) -> Result<(), String> {
        let own = &mut self.machines[machine];
        let now = self.now + own.clock_off;
        let Some(daemon) = own.daemon.as_mut().filter(|_| own.life == life) else { return Ok(()) };
        daemon.keeper.runtime_is(own.runtime_up);
        tell(&mut daemon.keeper, now);
        self.perform(machine)
    }

    pub(super) fn compare(&mut self, machine: usize) -> Result<(), String> {
        let own = &self.machines[machine];
        if !own.runtime_up {
            return Ok(());
        }
        let containers: Vec<_> = own.containers.iter().map(|(id, container)| (*id, container.task)).collect();
        self.news(machine, own.life, |keeper, now| keeper.compare(containers, now))
    }

    pub(super) fn take_set(&mut self, machine: usize, life: u32, set: AssignmentSet) -> Result<(), String> {
        let plant = self.plant;
        let own = &mut self.machines[machine];
        let Some(daemon) = own.daemon.as_mut().filter(|_| own.life == life) else { return Ok(()) };
        let incoming = daemon.keeper.incoming(&set);
        match incoming {
            Incoming::Newer => {}
            _ if plant == Some(Plant::IgnoreGenerations) => {}
            Incoming::Again => return self.news(machine, life, |keeper, now| keeper.orders_stand(now)),
            Incoming::Older => return Ok(()),
        }
        if daemon.generation.is_some_and(|known| known > set.generation) {
            return Err(format!("{}: generation {} came into effect after a newer one", own.name, set.generation));
        }
        daemon.generation = Some(set.generation);
        let stored = !own.disk_full;
        if stored && plant != Some(Plant::DropLedgerWrites) {
            own.disk.store_set(daemon.keeper.saved(), &set);
        }
        own.note_orders(&set, stored);
        self.news(machine, life, |keeper, now| keeper.take_orders(set, stored, now))
    }

    fn write_set_again(&mut self, machine: usize) -> Result<(), String> {
        let own = &mut self.machines[machine];
        let (life, stored) = (own.life, !own.disk_full);
        if let Some(keeper) = own.daemon.as_ref().map(|daemon| &daemon.keeper)
            && let Some(newest) = keeper.newest().cloned()
            && stored
        {
            own.disk.store_set(keeper.saved(), &newest);
            own.note_orders(&newest, true);
        }
        self.news(machine, life, |keeper, now| keeper.set_written(stored, now))
    }

    /// Does what the keeper asks for, until it asks for nothing.
    fn perform(&mut self, machine: usize) -> Result<(), String> {
        let life = self.machines[machine].life;
        loop {
            let Some(daemon) = self.daemon(machine, life) else { return Ok(()) };
            let effects = daemon.keeper.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                if !matches!(effect, Effect::ReleasePorts(_)) {
                    self.note(|| format!("node-{machine}: {effect:?}").replace("00000000-0000-0000-0000-", ""));
                }
                match effect {
                    Effect::Do { id, work } => self.begin(machine, id, work)?,
                    Effect::WriteSet => self.write_set_again(machine)?,
                    Effect::Note { id, outcome } if self.machines[machine].disk_full => {
                        // Nobody will know after the next start of the daemon.
                        self.machines[machine].finished.remove(&id);
                        self.news(machine, life, |keeper, now| keeper.note_failed(id, outcome, now))?;
                    }
                    Effect::Note { id, outcome } => self.write_outcome(machine, id, outcome),
                    Effect::Report(report) => {
                        if let Some(daemon) = self.daemon(machine, life) {
                            daemon.waiting.put(report);
                        }
                        self.after(0, Event::SendReports { machine, life });
                    }
                    Effect::OpenPorts(order) => self.open_ports(machine, &order),
                    Effect::ClosePorts(id) => {
                        if let Some(daemon) = self.daemon(machine, life) {
                            daemon.open.remove(&id);
                        }
                    }
                    Effect::Watch { order, pid } => {
                        self.after(HEALTH_INTERVAL_MS, Event::Ask { machine, life, id: order.instance_id, pid });
                    }
                    Effect::ClaimPorts(_) | Effect::ReleasePorts(_) | Effect::Unwatch(_) => {}
                    Effect::Compare(id) => {
                        self.compare(machine)?;
                        self.news(machine, life, |keeper, now| keeper.look_at(id, now))?;
                    }
                    Effect::Impossible(id, illegal) => return Err(format!("node-{machine}: {id}: {illegal}")),
                }
            }
        }
        let now = self.now;
        let own = &mut self.machines[machine];
        let Some(daemon) = &mut own.daemon else { return Ok(()) };
        if let Some(due) = daemon.keeper.next_due_ms().map(|due| (due - own.clock_off).max(now + 1))
            && daemon.wakes_at.is_none_or(|at| at > due)
        {
            daemon.wakes_at = Some(due);
            self.after(due - now, Event::Wake { machine, life });
        }
        Ok(())
    }

    fn open_ports(&mut self, machine: usize, order: &Assignment) {
        if let (Some(daemon), NetworkOrder::Bridge { .. }) =
            (&mut self.machines[machine].daemon, &order.container.network)
        {
            daemon.open.insert(order.instance_id);
        }
    }

    fn write_outcome(&mut self, machine: usize, id: InstanceId, outcome: Outcome) {
        if self.plant == Some(Plant::DropOutcomes) && outcome.finished.is_some() {
            self.machines[machine].finished.insert(id, outcome.epoch);
            return;
        }
        let own = &mut self.machines[machine];
        own.disk.outcomes.insert(id, outcome);
        if outcome.finished.is_some() {
            own.finished.insert(id, outcome.epoch);
        }
    }

    fn begin(&mut self, machine: usize, id: InstanceId, work: Work) -> Result<(), String> {
        if matches!(work, Work::Remove { .. }) {
            self.machines[machine].finished.remove(&id);
            let row = InstanceRow::by_id(&self.cluster.connection, id).unwrap();
            if row.is_some_and(|row| row.desired != Desired::Removed) {
                return Err(format!("node-{machine} removes {id}, which shall stay"));
            }
        }
        let phase = match work {
            Work::Start { mut order, existing, outcome } => {
                // A ledger that could not take the newer order may remember that its epoch had begun: that is what starts.
                order.epoch = order.epoch.max(outcome.epoch);
                self.machines[machine].ending.remove(&id);
                self.machines[machine].check_start(&order)?;
                self.open_ports(machine, &order);
                Phase::Prepare { order, existing, outcome }
            }
            Work::Stop { grace_ms } => {
                self.machines[machine].ending.insert(id);
                Phase::Signal { grace_ms, then: AfterEnd::Tell }
            }
            Work::Reap => Phase::DeleteTask(AfterEnd::Tell),
            Work::Remove { task: TaskState::Running { .. }, grace_ms } => {
                Phase::Signal { grace_ms, then: AfterEnd::DeleteContainer }
            }
            Work::Remove { task: TaskState::None, .. } => Phase::DeleteContainer,
            Work::Remove { .. } => Phase::DeleteTask(AfterEnd::DeleteContainer),
        };
        let wait = self.moment();
        self.go_on(machine, id, wait, phase);
        Ok(())
    }

    fn go_on(&mut self, machine: usize, id: InstanceId, wait: i64, phase: Phase) {
        let life = self.machines[machine].life;
        self.after(wait, Event::Phase { machine, life, id, phase: Box::new(phase) });
    }

    fn step_done(&mut self, machine: usize, id: InstanceId, done: Done) {
        let life = self.machines[machine].life;
        let wait = self.dice.number(0, 5);
        self.after(wait, Event::StepDone { machine, life, id, done });
    }

    fn start_fails(&mut self, machine: usize, id: InstanceId, reason: &str, exit_code: Option<i32>) {
        self.step_done(machine, id, Done::StartFailed { reason: reason.to_owned(), exit_code });
    }

    pub(super) fn phase(&mut self, machine: usize, life: u32, id: InstanceId, phase: Phase) -> Result<(), String> {
        if self.daemon(machine, life).is_none() {
            return Ok(());
        }
        if !self.machines[machine].runtime_up {
            match phase {
                Phase::Prepare { .. } | Phase::CreateTask(_) | Phase::StartTask(_) => {
                    self.start_fails(machine, id, "the runtime does not answer", None);
                }
                Phase::Signal { .. } | Phase::DeleteTask(_) | Phase::DeleteContainer => {
                    let reason = "the runtime does not answer".to_owned();
                    self.step_done(machine, id, Done::Failed { reason });
                }
            }
            return Ok(());
        }
        match phase {
            Phase::Prepare { order, existing, outcome } => self.prepare(machine, order, existing, outcome),
            Phase::CreateTask(order) => self.create_task(machine, order)?,
            Phase::StartTask(order) => self.start_task(machine, &order)?,
            Phase::Signal { grace_ms, then } => self.signal(machine, id, grace_ms, then),
            Phase::DeleteTask(then) => {
                // What became of the process is kept by nobody when the order to end it is not in the ledger.
                let own = &mut self.machines[machine];
                if own.daemon.as_ref().is_some_and(Daemon::is_ahead_of_ledger) {
                    own.finished.remove(&id);
                }
                let now = self.now + self.machines[machine].clock_off;
                match (self.machines[machine].delete_task(id, now), then) {
                    (Ok(exit), AfterEnd::Tell) => self.step_done(machine, id, Done::Ended { exit }),
                    (Ok(_), AfterEnd::DeleteContainer) => {
                        let wait = self.moment();
                        self.go_on(machine, id, wait, Phase::DeleteContainer);
                    }
                    (Err(()), _) => {
                        let reason = "the process still runs".to_owned();
                        self.step_done(machine, id, Done::Failed { reason });
                    }
                }
            }
            Phase::DeleteContainer => {
                let own = &mut self.machines[machine];
                let done = if own.containers.get(&id).is_some_and(|container| container.task != TaskState::None) {
                    Done::Failed { reason: "the process is still there".to_owned() }
                } else {
                    if self.plant != Some(Plant::KeepContainers) {
                        own.containers.remove(&id);
                    }
                    Done::Removed
                };
                self.step_done(machine, id, done);
            }
        }
        Ok(())
    }

    fn prepare(&mut self, machine: usize, order: Box<Assignment>, existing: Option<TaskState>, outcome: Outcome) {
        let id = order.instance_id;
        let now = self.now + self.machines[machine].clock_off;
        let own = &mut self.machines[machine];
        let prepared = match existing {
            None if own.lacks_images => Err("the image is not on this node"),
            None => {
                let new = Container { task: TaskState::None, number: 0, order: (*order).clone() };
                own.containers.entry(id).or_insert(new);
                Ok(())
            }
            Some(TaskState::Created { .. } | TaskState::Ended(_)) => {
                own.delete_task(id, now).map(drop).map_err(|()| "the process still runs")
            }
            Some(TaskState::None | TaskState::Running { .. }) => Ok(()),
        };
        // Both go on at the same time: either can be done although the other fails.
        let noted = if own.disk_full { Err("the ledger cannot be written") } else { Ok(()) };
        if noted.is_ok() {
            self.write_outcome(machine, id, outcome);
        }
        match prepared.and(noted) {
            Ok(()) => {
                let wait = self.moment();
                self.go_on(machine, id, wait, Phase::CreateTask(order));
            }
            Err(reason) => self.start_fails(machine, id, reason, None),
        }
    }

    fn create_task(&mut self, machine: usize, order: Box<Assignment>) -> Result<(), String> {
        let id = order.instance_id;
        let not_executable = !self.healed && self.dice.chance(3);
        let own = &mut self.machines[machine];
        let Some(container) = own.containers.get_mut(&id) else {
            self.start_fails(machine, id, "the container is not there", None);
            return Ok(());
        };
        if container.task != TaskState::None {
            self.start_fails(machine, id, "there is a process already", None);
            return Ok(());
        }
        if not_executable {
            self.start_fails(machine, id, "no such command", Some(127));
            return Ok(());
        }
        own.next_pid += 1;
        container.task = TaskState::Created { pid: own.next_pid };
        container.number += 1;
        container.order = (*order).clone();
        own.check_ports(&order)?;
        let moves = |number: usize| self.cluster.left.contains(&self.machines[number].id);
        for (number, other) in self.machines.iter().enumerate().filter(|(number, _)| !moves(*number) && !moves(machine))
        {
            let twice = other.containers.iter().find(|(other_id, container)| {
                **other_id != id
                    && (container.order.workload_id, container.order.ordinal) == (order.workload_id, order.ordinal)
                    && made_of(&container.order.container) == made_of(&order.container)
                    && matches!(container.task, TaskState::Created { .. } | TaskState::Running { .. })
            });
            if let Some((other, _)) = twice {
                return Err(format!("{} runs as {other} on node-{number} and as {id}", order.instance_name()));
            }
        }
        let wait = self.moment();
        self.go_on(machine, id, wait, Phase::StartTask(order));
        Ok(())
    }

    fn start_task(&mut self, machine: usize, order: &Assignment) -> Result<(), String> {
        let id = order.instance_id;
        let cut_off = self.machines[machine].lease.is_over(self.now);
        let fails = !self.healed && self.dice.chance(2);
        let now = self.now + self.machines[machine].clock_off;
        let own = &mut self.machines[machine];
        let Some(container) = own.containers.get_mut(&id) else {
            self.start_fails(machine, id, "the container is not there", None);
            return Ok(());
        };
        let TaskState::Created { pid } = container.task else {
            self.start_fails(machine, id, "there is no prepared process", None);
            return Ok(());
        };
        if fails {
            own.delete_task(id, now).ok();
            self.start_fails(machine, id, "the network could not be attached", None);
            return Ok(());
        }
        if order.container.exclusive && cut_off {
            own.delete_task(id, now).ok();
            self.start_fails(machine, id, "another order came before it started", None);
            return Ok(());
        }
        container.task = TaskState::Running { pid };
        let number = container.number;
        if let Some((wait, code)) = self.life_of_a_process(order) {
            self.after(wait, Event::ProcessEnds { machine, id, number, code, by_itself: true });
        }
        self.step_done(machine, id, Done::Started { pid });
        self.check_exclusive(machine, order)
    }

    /// When a process ends by itself, and how.
    fn life_of_a_process(&mut self, order: &Assignment) -> Option<(i64, i32)> {
        match order.container.restart {
            RestartPolicy::Always if self.healed || self.dice.chance(60) => None,
            RestartPolicy::Always => Some((self.dice.number(0, 8_000), self.dice.one_of(&[0, 1, 137]))),
            RestartPolicy::No | RestartPolicy::OnFailure { .. } if self.dice.chance(30) => None,
            RestartPolicy::No | RestartPolicy::OnFailure { .. } => {
                let code = if self.healed { 0 } else { self.dice.one_of(&[0, 0, 1, 137]) };
                Some((self.dice.number(0, 5_000), code))
            }
        }
    }

    /// A health check of process `pid`, and the next one while it is the same process.
    pub(super) fn ask_health(&mut self, machine: usize, life: u32, id: InstanceId, pid: u32) -> Result<(), String> {
        if self.daemon(machine, life).is_none() || container_task(self, machine, id) != (TaskState::Running { pid }) {
            return Ok(());
        }
        let good = self.healed || self.dice.chance(70);
        self.after(HEALTH_INTERVAL_MS, Event::Ask { machine, life, id, pid });
        let answer = if good { Ok(()) } else { Err("no answer".to_owned()) };
        self.news(machine, life, |keeper, now| keeper.answered(id, pid, answer, now))
    }

    pub(super) fn tell_of_end(&mut self, machine: usize, id: InstanceId, exit: Exit) {
        let own = &self.machines[machine];
        let (life, told) = (own.life, own.runtime_up);
        if told && (self.healed || self.dice.chance(95)) {
            let wait = self.dice.number(0, 10);
            self.after(wait, Event::EndTold { machine, life, id, exit });
        }
    }

    fn signal(&mut self, machine: usize, id: InstanceId, grace_ms: u32, then: AfterEnd) {
        let Some(container) = self.machines[machine].containers.get(&id) else {
            return match then {
                AfterEnd::Tell => self.step_done(machine, id, Done::Ended { exit: None }),
                AfterEnd::DeleteContainer => self.go_on(machine, id, 1, Phase::DeleteContainer),
            };
        };
        let number = container.number;
        let obeys = self.dice.chance(80);
        let wait = if obeys { self.dice.number(1, 50).min(grace_ms.into()) } else { grace_ms.into() };
        if matches!(container_task(self, machine, id), TaskState::Created { .. } | TaskState::Running { .. }) {
            let code = if obeys { 143 } else { 137 };
            self.after(wait, Event::ProcessEnds { machine, id, number, code, by_itself: false });
        }
        self.go_on(machine, id, wait + 1, Phase::DeleteTask(then));
    }

    pub(super) fn send_reports(&mut self, machine: usize, life: u32) {
        let now = self.now;
        let Some(daemon) = self.daemon(machine, life) else { return };
        if daemon.in_flight.is_some() {
            return;
        }
        if daemon.may_send_at > now {
            let wait = daemon.may_send_at - now;
            return self.after(wait, Event::SendReports { machine, life });
        }
        let reports = daemon.waiting.take();
        if reports.is_empty() {
            return;
        }
        self.requests += 1;
        let message = self.requests;
        let Some(daemon) = self.daemon(machine, life) else { return };
        daemon.in_flight = Some((message, reports.clone()));
        let own = &self.machines[machine];
        let command = Box::new(Command::ReportInstances { node_id: own.id, reports, at_ms: self.now + own.clock_off });
        self.send(Some(machine), Event::Arrives { asker: Asker::Reports { machine, life, message }, command });
        self.after(PATIENCE_MS, Event::ReportsLost { machine, life, message });
    }

    pub(super) fn reports_taken(&mut self, machine: usize, life: u32, message: u64) {
        let now = self.now;
        let Some(daemon) = self.daemon(machine, life) else { return };
        if daemon.in_flight.take_if(|(waiting, _)| *waiting == message).is_some() {
            daemon.may_send_at = now + GAP_MS;
            self.after(GAP_MS, Event::SendReports { machine, life });
        }
    }

    pub(super) fn reports_lost(&mut self, machine: usize, life: u32, message: u64) {
        let now = self.now;
        let forget = self.plant == Some(Plant::ForgetReports);
        let Some(daemon) = self.daemon(machine, life) else { return };
        let Some((_, reports)) = daemon.in_flight.take_if(|(waiting, _)| *waiting == message) else { return };
        if !forget {
            daemon.waiting.put_back(reports);
        }
        daemon.may_send_at = now + AFTER_FAILURE_MS;
        self.after(AFTER_FAILURE_MS, Event::SendReports { machine, life });
    }
}

fn container_task(world: &World, machine: usize, id: InstanceId) -> TaskState {
    world.machines[machine].containers.get(&id).map_or(TaskState::None, |container| container.task)
}
