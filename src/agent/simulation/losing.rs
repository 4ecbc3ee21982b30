//! Nodes that nobody hears of, for a while or for good: what the leader says of them, and what is exclusive there. Played are
//! `control::loops::node_health` (one leader all along), `daemon::lease` and the loggers that end what is exclusive when the
//! daemon does not; what follows from them is the product's own.

use toft_model::{
    ids::NodeId,
    instance::Assignment,
    node::NodeHealth,
    state::{Command, NodeRow},
};

use super::world::{Asker, Event, World};
use crate::agent::{keeper::Lease, runtime::TaskState};

/// Time between two looks of the leader.
const BEAT_MS: i64 = 250;
/// Silence after which a node gets nothing new, is lost, and has stopped what is exclusive.
const UNREACHABLE_MS: i64 = 1_500;
const DOWN_MS: i64 = 2_500;
const FENCED_MS: i64 = 18_000;
/// How long an answer of the leader counts, and how long what ran goes on without one after a start of the daemon.
const LEASE_MS: i64 = 10_000;
/// How long after the lease's end the logger beside a container kills it, looking now and then.
const GUARD_MS: i64 = 6_500;
const AT_START_MS: i64 = 4_000;
/// Time between two questions while it is held, and while it is not.
const PERIOD_MS: i64 = 2_000;
const ASK_AGAIN_MS: i64 = 500;
/// When at the latest a machine goes that goes for good.
const LATEST_LOSS_MS: i64 = 25_000;

/// How a machine is lost for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It burnt.
    Dead,
    /// It runs on, and nobody will ever hear of it again.
    CutOff,
}

/// What a machine knows of its lease, by its steady clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LeaseClock {
    until: i64,
    answered: bool,
    /// The end of the lease as the loggers know it.
    noted: i64,
}

impl LeaseClock {
    pub(super) fn is_over(self, now: i64) -> bool {
        now >= self.until
    }
}

impl World {
    /// Decides which machine goes for good, if one does.
    pub(super) fn plan_loss(&mut self) {
        if self.machines.len() > 1 && self.dice.chance(30) {
            let machine = self.dice.number(0, self.machines.len() as i64 - 1) as usize;
            let loss = self.dice.one_of(&[Loss::Dead, Loss::CutOff]);
            let wait = self.dice.number(3_000, LATEST_LOSS_MS);
            self.after(wait, Event::Lost { machine, loss });
        }
        self.after(BEAT_MS, Event::Beat);
    }

    /// A machine goes for good.
    pub(super) fn lose(&mut self, machine: usize, loss: Loss) {
        self.note(|| format!("node-{machine} is lost for good: {loss:?}"));
        let own = &mut self.machines[machine];
        own.lost = Some(loss);
        if loss == Loss::Dead {
            own.lose_power(true);
        }
    }

    /// The leader looks whom it heard of, and says what is news.
    pub(super) fn beat(&mut self) {
        self.after(BEAT_MS, Event::Beat);
        let now = self.now;
        for own in &mut self.machines {
            if own.daemon.is_some() && !own.is_cut_off() {
                own.heard_ms = now;
            }
        }
        (0..self.machines.len()).for_each(|machine| self.guard(machine));
        // It waits for the answer before it looks again.
        if self.noting {
            return;
        }
        let known = NodeRow::healths(&self.cluster.connection).unwrap();
        let judged = |id: &NodeId, heard_ms: i64| {
            let known = *known.get(id)?;
            let is = judge(known, now - heard_ms);
            (is != known).then_some((*id, is))
        };
        let nodes: Vec<_> = self.machines.iter().filter_map(|own| judged(&own.id, own.heard_ms)).collect();
        if !nodes.is_empty() {
            self.noting = true;
            let command = Box::new(Command::NoteNodes { nodes, at_ms: now });
            let wait = self.dice.number(1, 60);
            self.after(wait, Event::Arrives { asker: Asker::Health, command });
        }
    }

    /// The loggers of a machine look at the lease.
    fn guard(&mut self, machine: usize) {
        let own = &self.machines[machine];
        if self.now < own.lease.noted + GUARD_MS {
            return;
        }
        let exclusive = own.containers.iter().filter(|(_, container)| {
            container.order.container.exclusive && matches!(container.task, TaskState::Running { .. })
        });
        let killed: Vec<_> = exclusive.map(|(id, container)| (*id, container.number)).collect();
        for (id, number) in killed {
            self.after(0, Event::ProcessEnds { machine, id, number, code: 137, by_itself: false });
        }
    }

    /// The daemon of a machine has just started.
    pub(super) fn begin_lease(&mut self, machine: usize) {
        let now = self.now;
        let own = &mut self.machines[machine];
        own.lease = LeaseClock { until: now + AT_START_MS, answered: false, ..own.lease };
        if let Some(daemon) = &mut own.daemon {
            daemon.keeper.lease_is(Lease::Awaited, now + own.clock_off);
        }
        let life = own.life;
        self.after(0, Event::LeaseAsks { machine, life });
    }

    /// A machine asks whether the leader hears of it.
    pub(super) fn lease_asks(&mut self, machine: usize, life: u32) -> Result<(), String> {
        if self.daemon(machine, life).is_none() {
            return Ok(());
        }
        let passes = self.healed || self.dice.chance(92);
        let now = self.now;
        let own = &mut self.machines[machine];
        if passes && !own.is_cut_off() {
            own.lease = LeaseClock { until: now + LEASE_MS, answered: true, noted: now + LEASE_MS };
            own.heard_ms = now;
        }
        let is = match (now < own.lease.until, own.lease.answered) {
            (true, true) => Lease::Held,
            (true, false) => Lease::Awaited,
            (false, _) => Lease::Over,
        };
        let left = (own.lease.until - now).max(1);
        let wait = if is == Lease::Held { PERIOD_MS.min(left) } else { ASK_AGAIN_MS };
        self.after(wait, Event::LeaseAsks { machine, life });
        self.news(machine, life, |keeper, now| keeper.lease_is(is, now))
    }
}

impl World {
    /// What is exclusive has no other process of its copy anywhere, whatever befell the machines.
    pub(super) fn check_exclusive(&self, machine: usize, order: &Assignment) -> Result<(), String> {
        let copy = |order: &Assignment| (order.workload_id, order.ordinal);
        for (number, other) in self.machines.iter().enumerate().filter(|(number, _)| *number != machine) {
            let twice = other.containers.iter().find(|(_, container)| {
                copy(&container.order) == copy(order)
                    && (container.order.container.exclusive && order.container.exclusive)
                    && matches!(container.task, TaskState::Running { .. })
            });
            if let Some((id, _)) = twice {
                let (name, own) = (order.instance_name(), order.instance_id);
                return Err(format!(
                    "{name} is exclusive, and runs as {id} on node-{number} and as {own} on node-{machine}"
                ));
            }
        }
        Ok(())
    }
}

/// What follows from a silence.
fn judge(known: NodeHealth, silence_ms: i64) -> NodeHealth {
    if silence_ms < UNREACHABLE_MS {
        NodeHealth::Ready
    } else if known == NodeHealth::Fenced || silence_ms >= FENCED_MS {
        NodeHealth::Fenced
    } else if known.is_down() || silence_ms >= DOWN_MS {
        NodeHealth::Down
    } else {
        NodeHealth::Unreachable
    }
}
