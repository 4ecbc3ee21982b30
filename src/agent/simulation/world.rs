//! The simulated world: a clock, a queue of events, a network that loses, repeats, delays and reorders, and chance.

use std::collections::{BTreeMap, BTreeSet};

use toft_model::{
    ids::InstanceId,
    instance::{AssignmentSet, Exit},
    node::Inventory,
    state::{Applied, Command, query_assignments},
};

use super::{
    cluster::Cluster,
    dice::Dice,
    losing::Loss,
    machine::Machine,
    steps::Phase,
    users::{OPS_MS, User},
};
use crate::agent::execute::Done;

/// When trouble ends, in milliseconds.
pub(super) const HEAL_MS: i64 = 30_000;
/// Longest time a late copy of a message is on its way.
const LATE_MS: i64 = 15_000;
/// First look at the world at rest, counted from the end of trouble; late messages have arrived by then.
const FIRST_LOOK_MS: i64 = 25_000;
/// Last look: a back-off of one minute and several rounds of comparing fit before it.
const LAST_LOOK_MS: i64 = 400_000;
/// Time after which the world at rest must still be.
const SECOND_LOOK_MS: i64 = 40_000;
const RESYNC_MS: i64 = 30_000;
const PLAN_PERIOD_MS: i64 = 30_000;

/// A mistake planted into the simulated world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plant {
    /// Every arriving set is taken, however old.
    IgnoreGenerations,
    /// Sets never reach the disk.
    DropLedgerWrites,
    /// That a process finished never reaches the disk.
    DropOutcomes,
    /// Reports that were not taken are forgotten.
    ForgetReports,
    /// Removals are told without being done.
    KeepContainers,
    /// A replica takes one command for another.
    TamperReplica,
}

/// Who waits for the answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    User { number: usize, request: u64 },
    Scheduler { thought: u64 },
    Registration { machine: usize, life: u32 },
    Reports { machine: usize, life: u32, message: u64 },
    Health,
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    UserActs,
    UserGivesUpWaiting { number: usize, request: u64 },
    Trouble,
    TroubleEnds(Trouble),
    Heal,
    Beat,
    Lost { machine: usize, loss: Loss },
    LeaseAsks { machine: usize, life: u32 },
    Look { again: bool },
    Think,
    ThoughtLost(u64),
    PlanPeriod,
    SchedulerWakes,
    Ask { machine: usize, life: u32, id: InstanceId, pid: u32 },
    Arrives { asker: Asker, command: Box<Command> },
    Answered { asker: Asker, accepted: bool },
    Feed(usize),
    FeedBroken(usize),
    SetArrives { machine: usize, life: u32, set: Box<AssignmentSet> },
    Register { machine: usize, life: u32 },
    Phase { machine: usize, life: u32, id: InstanceId, phase: Box<Phase> },
    StepDone { machine: usize, life: u32, id: InstanceId, done: Done },
    ProcessEnds { machine: usize, id: InstanceId, number: u64, code: i32, by_itself: bool },
    EndTold { machine: usize, life: u32, id: InstanceId, exit: Exit },
    Wake { machine: usize, life: u32 },
    Resync { machine: usize, life: u32 },
    SendReports { machine: usize, life: u32 },
    ReportsLost { machine: usize, life: u32, message: u64 },
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Trouble {
    DaemonDown(usize),
    PowerCut(usize),
    RuntimeDown(usize),
    CutOff(usize),
    ImagesMissing(usize),
    DiskFull(usize),
}

pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) now: i64,
    pub(super) cluster: Cluster,
    pub(super) machines: Vec<Machine>,
    pub(super) users: Vec<User>,
    pub(super) plant: Option<Plant>,
    pub(super) healed: bool,
    pub(super) events: u64,
    queue: BTreeMap<(i64, u64), Event>,
    sequence: u64,
    thought: Option<u64>,
    /// Plans that the log took.
    taken: BTreeSet<u64>,
    think_again: bool,
    thinking: bool,
    fed: Vec<Option<u64>>,
    pub(super) requests: u64,
    /// Whether what the leader says of nodes is on its way into the log.
    pub(super) noting: bool,
    trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, plant: Option<Plant>, traced: bool) -> Self {
        let mut dice = Dice::of(seed);
        let count = dice.one_of(&[1, 1, 2, 2, 3, 3, 4, 5]);
        let machines: Vec<_> = (0..count).map(|number| Machine::new(number, inventory(number))).collect();
        let mut world = Self {
            dice,
            now: 0,
            cluster: Cluster::new(),
            fed: vec![None; machines.len()],
            machines,
            users: User::all(),
            plant,
            healed: false,
            events: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            thought: None,
            taken: BTreeSet::new(),
            think_again: false,
            thinking: false,
            requests: 0,
            noting: false,
            trace: traced.then(Vec::new),
        };
        for machine in 0..world.machines.len() {
            world.start_daemon(machine);
        }
        world.plan_loss();
        world.after(1, Event::UserActs);
        world.after(2_000, Event::Trouble);
        world.after(HEAL_MS, Event::Heal);
        world.after(PLAN_PERIOD_MS, Event::PlanPeriod);
        world
    }

    /// Runs to the end; `Err` tells the rule that broke.
    pub(super) fn run(&mut self) -> Result<(), String> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.events += 1;
            if self.trace.is_some() && !idle(&event) {
                self.note(|| told(&event));
            }
            if let Event::Look { again } = event {
                match super::rules::at_rest(self) {
                    Ok(()) if again => return self.cluster.check_replica(self.plant == Some(Plant::TamperReplica)),
                    Ok(()) => self.after(SECOND_LOOK_MS, Event::Look { again: true }),
                    Err(broken) if again => return Err(format!("the world moved after it had come to rest: {broken}")),
                    Err(broken) if self.now >= HEAL_MS + LAST_LOOK_MS => return Err(broken),
                    Err(_) => self.after(15_000, Event::Look { again: false }),
                }
                continue;
            }
            self.happen(event)?;
        }
        Err("nothing happens any more".into())
    }

    pub(super) fn trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>8} {}", self.now, line()));
        }
    }

    pub(super) fn after(&mut self, wait: i64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + wait.max(0), self.sequence), event);
    }

    /// A wait that is usually short.
    pub(super) fn moment(&mut self) -> i64 {
        if self.healed || self.dice.chance(90) { self.dice.number(1, 20) } else { self.dice.number(20, 3_000) }
    }

    /// Sends something over the network between `machine` (`None`: inside the cluster) and the state. `false` when it
    /// was lost.
    pub(super) fn send(&mut self, machine: Option<usize>, event: Event) -> bool {
        if machine.is_some_and(|machine| self.machines[machine].lost.is_some()) {
            return false;
        }
        if self.healed {
            let wait = self.dice.number(1, 20);
            self.after(wait, event);
            return true;
        }
        let cut_off = machine.is_some_and(|machine| self.machines[machine].cut_off);
        if cut_off || self.dice.chance(8) {
            self.note(|| format!("LOST {}", told(&event)));
            return false;
        }
        if self.dice.chance(6) {
            let wait = self.dice.number(1, LATE_MS);
            self.after(wait, event.clone());
        }
        let wait = self.moment();
        self.after(wait, event);
        true
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::UserActs => {
                if !self.healed {
                    self.user_acts();
                    let wait = self.dice.number(100, OPS_MS);
                    self.after(wait, Event::UserActs);
                }
            }
            Event::UserGivesUpWaiting { number, request } => self.user_asks_again(number, request),
            Event::Trouble => self.trouble(),
            Event::TroubleEnds(trouble) => self.trouble_ends(trouble),
            Event::Heal => self.heal(),
            Event::Beat => self.beat(),
            Event::Lost { machine, loss } => self.lose(machine, loss),
            Event::LeaseAsks { machine, life } => return self.lease_asks(machine, life),
            Event::Look { .. } => {}
            Event::Think => self.think(),
            Event::ThoughtLost(thought) => {
                if self.thought == Some(thought) {
                    self.thought = None;
                    self.wake_scheduler();
                }
            }
            Event::PlanPeriod => {
                self.after(PLAN_PERIOD_MS, Event::PlanPeriod);
                self.wake_scheduler();
            }
            Event::SchedulerWakes => self.wake_scheduler(),
            Event::Ask { machine, life, id, pid } => return self.ask_health(machine, life, id, pid),
            Event::Arrives { asker, command } => return self.arrives(asker, *command),
            Event::Answered { asker, accepted } => self.answered(asker, accepted),
            Event::Feed(machine) => self.feed(machine),
            Event::FeedBroken(machine) => {
                self.fed[machine] = None;
                self.feed(machine);
            }
            Event::SetArrives { machine, life, set } => return self.take_set(machine, life, *set),
            Event::Register { machine, life } => self.register(machine, life),
            Event::Phase { machine, life, id, phase } => return self.phase(machine, life, id, *phase),
            Event::StepDone { machine, life, id, done } => {
                return self.news(machine, life, |keeper, now| keeper.done(id, done, now));
            }
            Event::ProcessEnds { machine, id, number, code, by_itself } => {
                let exit = Exit::new(Some(code), self.now + self.machines[machine].clock_off);
                if self.machines[machine].end_process(id, number, exit, by_itself) {
                    self.tell_of_end(machine, id, exit);
                }
            }
            Event::EndTold { machine, life, id, exit } => {
                return self.news(machine, life, |keeper, now| keeper.task_ended(id, exit, now));
            }
            Event::Wake { machine, life } => {
                if let Some(daemon) = self.daemon(machine, life) {
                    daemon.wakes_at = None;
                }
                return self.news(machine, life, |keeper, now| keeper.time_passed(now));
            }
            Event::Resync { machine, life } => {
                if self.daemon(machine, life).is_some() {
                    self.after(RESYNC_MS, Event::Resync { machine, life });
                    return self.compare(machine);
                }
            }
            Event::SendReports { machine, life } => self.send_reports(machine, life),
            Event::ReportsLost { machine, life, message } => self.reports_lost(machine, life, message),
        }
        Ok(())
    }

    fn arrives(&mut self, asker: Asker, command: Command) -> Result<(), String> {
        // The log takes a plan once: its request id tells the copy.
        if let Asker::Scheduler { thought } = asker
            && !self.taken.insert(thought)
        {
            self.send(None, Event::Answered { asker, accepted: true });
            return Ok(());
        }
        let applied: Applied = self.cluster.apply(command)?;
        self.noting &= asker != Asker::Health;
        if applied.is_ok() {
            self.wake_scheduler();
            for machine in 0..self.machines.len() {
                let wait = self.dice.number(1, 10);
                if self.cluster.generation(self.machines[machine].id) != self.fed[machine] {
                    self.after(wait, Event::Feed(machine));
                }
            }
        } else {
            self.note(|| format!("refused: {:?}", applied.as_ref().err()));
        }
        let machine = match asker {
            Asker::Registration { machine, .. } | Asker::Reports { machine, .. } => Some(machine),
            Asker::User { .. } | Asker::Scheduler { .. } | Asker::Health => None,
        };
        self.send(machine, Event::Answered { asker, accepted: applied.is_ok() });
        Ok(())
    }

    fn answered(&mut self, asker: Asker, accepted: bool) {
        match asker {
            Asker::User { number, request } => self.user_answered(number, request),
            Asker::Scheduler { thought } => {
                if self.thought == Some(thought) {
                    self.thought = None;
                    if std::mem::take(&mut self.think_again) {
                        self.wake_scheduler();
                    }
                }
            }
            Asker::Registration { machine, life } => {
                if let Some(daemon) = self.daemon(machine, life) {
                    daemon.registered |= accepted;
                }
            }
            Asker::Reports { machine, life, message } => self.reports_taken(machine, life, message),
            Asker::Health => {}
        }
    }

    fn wake_scheduler(&mut self) {
        // Now and then an earlier leader still waits for its answer while another one thinks.
        let alone = self.healed || self.dice.chance(85);
        if self.thought.is_some() && alone {
            self.think_again = true;
        } else if !std::mem::replace(&mut self.thinking, true) {
            let wait = self.dice.number(1, 10);
            self.after(wait, Event::Think);
        }
    }

    fn think(&mut self) {
        self.thinking = false;
        let decided = self.cluster.think(self.now);
        if let Some(at_ms) = decided.wake_at_ms {
            self.after((at_ms - self.now).max(1), Event::SchedulerWakes);
        }
        if decided.is_empty() {
            return;
        }
        self.requests += 1;
        let thought = self.requests;
        self.thought = Some(thought);
        let command = Box::new(Command::CommitPlan {
            placements: decided.placements,
            changes: decided.changes,
            pending: decided.pending,
            rollouts: decided.rollouts,
            preemptions: decided.preemptions,
            unmoved: decided.unmoved,
            at_ms: self.now,
        });
        self.send(None, Event::Arrives { asker: Asker::Scheduler { thought }, command });
        self.after(2_000, Event::ThoughtLost(thought));
    }

    /// Sends a machine its whole set if the stream to it has not carried that yet.
    fn feed(&mut self, machine: usize) {
        let set = query_assignments(&self.cluster.connection, self.machines[machine].id).unwrap();
        let Some(set) = set.filter(|set| self.fed[machine] != Some(set.generation)) else { return };
        self.fed[machine] = Some(set.generation);
        let life = self.machines[machine].life;
        let away = self.machines[machine].daemon.is_none();
        if away || !self.send(Some(machine), Event::SetArrives { machine, life, set: Box::new(set) }) {
            self.after(1_000, Event::FeedBroken(machine));
        }
    }

    pub(super) fn start_daemon(&mut self, machine: usize) {
        let dead = self.machines[machine].lost == Some(Loss::Dead);
        if dead || !self.machines[machine].powered || self.machines[machine].daemon.is_some() {
            return;
        }
        let now = self.now + self.machines[machine].clock_off;
        self.machines[machine].start_daemon(now);
        self.note(|| format!("node-{machine}: the daemon starts"));
        let life = self.machines[machine].life;
        self.fed[machine] = None;
        self.after(0, Event::Wake { machine, life });
        self.after(5, Event::Feed(machine));
        self.begin_lease(machine);
        self.after(0, Event::Register { machine, life });
        self.after(10, Event::Resync { machine, life });
    }

    fn register(&mut self, machine: usize, life: u32) {
        if self.daemon(machine, life).is_none_or(|daemon| daemon.registered) {
            return;
        }
        let own = &self.machines[machine];
        let command = Box::new(Command::RegisterNode {
            node_id: own.id,
            name: own.name.clone(),
            labels: BTreeMap::new(),
            inventory: own.inventory.clone(),
            at_ms: self.now + own.clock_off,
        });
        self.send(Some(machine), Event::Arrives { asker: Asker::Registration { machine, life }, command });
        self.after(5_000, Event::Register { machine, life });
    }

    fn trouble(&mut self) {
        if self.healed {
            return;
        }
        let machine = self.dice.number(0, self.machines.len() as i64 - 1) as usize;
        let (trouble, longest) = match self.dice.number(1, 100) {
            1..=35 => (Trouble::DaemonDown(machine), 4_000),
            36..=55 => (Trouble::PowerCut(machine), 6_000),
            56..=70 => (Trouble::RuntimeDown(machine), 4_000),
            71..=85 => (Trouble::CutOff(machine), 8_000),
            86..=93 => (Trouble::ImagesMissing(machine), 5_000),
            _ => (Trouble::DiskFull(machine), 4_000),
        };
        let wait = self.dice.number(200, 5_000);
        self.after(wait, Event::Trouble);
        if self.machines[machine].lost.is_some() {
            return;
        }
        self.note(|| format!("TROUBLE {trouble:?}"));
        let containers_too = self.dice.chance(15);
        let step_back = self.dice.number(-20_000, 20_000);
        let own = &mut self.machines[machine];
        match trouble {
            Trouble::DaemonDown(_) => own.kill_daemon(),
            Trouble::PowerCut(_) => {
                own.lose_power(containers_too);
                own.clock_off = step_back;
            }
            Trouble::RuntimeDown(_) => {
                own.runtime_up = false;
                if let Some(daemon) = &mut own.daemon {
                    daemon.keeper.runtime_was_away();
                }
            }
            Trouble::CutOff(_) => own.cut_off = true,
            Trouble::ImagesMissing(_) => own.lacks_images = true,
            Trouble::DiskFull(_) => own.disk_full = true,
        }
        let lasts = self.dice.number(50, longest);
        self.after(lasts, Event::TroubleEnds(trouble));
    }

    fn trouble_ends(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::DaemonDown(machine) => self.start_daemon(machine),
            Trouble::PowerCut(machine) => {
                self.machines[machine].powered = true;
                self.start_daemon(machine);
            }
            Trouble::RuntimeDown(machine) => {
                self.machines[machine].runtime_up = true;
                let life = self.machines[machine].life;
                self.after(1, Event::Resync { machine, life });
            }
            Trouble::CutOff(machine) => self.machines[machine].cut_off = false,
            Trouble::ImagesMissing(machine) => {
                self.machines[machine].lacks_images = false;
                let life = self.machines[machine].life;
                // An image was imported.
                drop(self.news(machine, life, |keeper, now| keeper.retry_now(now)));
            }
            Trouble::DiskFull(machine) => self.machines[machine].disk_full = false,
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        for machine in 0..self.machines.len() {
            let own = &mut self.machines[machine];
            own.powered = true;
            own.cut_off = false;
            own.lacks_images = false;
            own.disk_full = false;
            if !std::mem::replace(&mut own.runtime_up, true) {
                let life = own.life;
                self.after(1, Event::Resync { machine, life });
            }
            self.start_daemon(machine);
        }
        self.after(FIRST_LOOK_MS, Event::Look { again: false });
    }
}

/// Whether an event alone says nothing; what follows from it is traced.
fn idle(event: &Event) -> bool {
    let timer = matches!(
        event,
        Event::Look { .. }
            | Event::PlanPeriod
            | Event::SchedulerWakes
            | Event::Think
            | Event::UserActs
            | Event::Feed(_)
    );
    let idle = matches!(event, Event::Beat | Event::LeaseAsks { .. });
    idle || timer
        || matches!(event, Event::Wake { .. } | Event::Resync { .. } | Event::SendReports { .. } | Event::Trouble)
}

/// One line for the trace.
fn told(event: &Event) -> String {
    let text = match event {
        Event::Arrives { asker, command } => {
            let command = serde_json::to_string(command).unwrap_or_default();
            format!("Arrives from {asker:?}: {command}")
        }
        Event::SetArrives { machine, set, .. } => {
            let orders: Vec<_> = set
                .assignments
                .iter()
                .map(|order| {
                    let (name, desired) = (order.instance_name(), order.desired.as_str());
                    format!("{name} {} {desired} {}", short(order.instance_id), order.epoch)
                })
                .collect();
            format!("SetArrives at node-{machine}: generation {} {orders:?}", set.generation)
        }
        other => format!("{other:?}"),
    };
    text.replace("00000000-0000-0000-0000-", "")
}

fn short(id: InstanceId) -> String {
    id.to_string().split_off(24)
}

fn inventory(number: u8) -> Inventory {
    let subnet = if number % 3 == 2 { format!("10.0.{number}.0/29") } else { format!("10.0.{number}.0/24") };
    Inventory {
        cpus: 4,
        memory_bytes: 8 << 30,
        kernel: "6.1".into(),
        os: "Debian 13".into(),
        arch: "x86_64".into(),
        version: "0.1.0".into(),
        runtime: "2.0".into(),
        subnet: Some(subnet.parse().unwrap()),
        subnet6: None,
        isolation: Vec::new(),
        gpus: Vec::new(),
    }
}
