//! One simulated machine: its disk, its container runtime, and the daemon while it lives.

use std::collections::{BTreeMap, BTreeSet};

use toft_model::{
    ids::{InstanceId, NodeId},
    instance::{Assignment, AssignmentSet, Desired, Exit, InstanceReport, NetworkOrder},
    name::Name,
    node::Inventory,
    secret::SealedSecret,
    workload::RestartPolicy,
};

use super::losing::{LeaseClock, Loss};
use crate::agent::{
    keeper::Keeper,
    ledger::{Outcome, Remembered, SetChanges, next_run},
    report::Waiting,
    runtime::TaskState,
};

/// The ledger's content.
#[derive(Default)]
pub(super) struct Disk {
    run: u64,
    pub(super) generation: Option<u64>,
    pub(super) assignments: BTreeMap<InstanceId, Assignment>,
    pub(super) outcomes: BTreeMap<InstanceId, Outcome>,
    secrets: BTreeMap<Name, SealedSecret>,
}

impl Disk {
    pub(super) fn store_set(&mut self, old: Option<&AssignmentSet>, new: &AssignmentSet) {
        let changes = SetChanges::between(old, new);
        for order in changes.written {
            self.assignments.insert(order.instance_id, order.clone());
        }
        for id in changes.deleted {
            self.assignments.remove(&id);
            self.outcomes.remove(&id);
        }
        for name in changes.dropped {
            self.secrets.remove(&name);
        }
        for (name, secret) in changes.sealed {
            self.secrets.insert(name.clone(), secret.clone());
        }
        self.generation = Some(new.generation);
    }

    fn load(&mut self, node_id: NodeId, now_s: u64) -> Remembered {
        let assignments = self.assignments.values().cloned().collect();
        let secrets = self.secrets.clone();
        let set = self.generation.map(|generation| AssignmentSet { node_id, generation, assignments, secrets });
        self.run = next_run(self.run, now_s);
        Remembered { run: self.run, set, outcomes: self.outcomes.iter().map(|(id, outcome)| (*id, *outcome)).collect() }
    }
}

/// A container in the runtime.
pub(super) struct Container {
    pub(super) task: TaskState,
    /// Counts its processes.
    pub(super) number: u64,
    /// The order under which the newest process was made.
    pub(super) order: Assignment,
}

/// The part of a machine that a crash of the daemon ends.
pub(super) struct Daemon {
    pub(super) keeper: Keeper,
    pub(super) waiting: Waiting,
    pub(super) in_flight: Option<(u64, Vec<InstanceReport>)>,
    /// Not before this may the next message go.
    pub(super) may_send_at: i64,
    pub(super) wakes_at: Option<i64>,
    pub(super) registered: bool,
    /// Instances whose ports are published.
    pub(super) open: BTreeSet<InstanceId>,
    /// Generation that is in effect.
    pub(super) generation: Option<u64>,
}

impl Daemon {
    /// Whether orders are in effect that the ledger does not hold.
    pub(super) fn is_ahead_of_ledger(&self) -> bool {
        let [newest, saved] = [self.keeper.newest(), self.keeper.saved()].map(|set| set.map(|set| set.generation));
        newest != saved
    }
}

pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) name: Name,
    pub(super) inventory: Inventory,
    pub(super) powered: bool,
    pub(super) cut_off: bool,
    /// How it was lost, if it never comes back.
    pub(super) lost: Option<Loss>,
    /// When the leader heard of it last.
    pub(super) heard_ms: i64,
    pub(super) lease: LeaseClock,
    pub(super) runtime_up: bool,
    pub(super) lacks_images: bool,
    pub(super) disk_full: bool,
    /// Milliseconds by which its clock is wrong.
    pub(super) clock_off: i64,
    pub(super) disk: Disk,
    pub(super) containers: BTreeMap<InstanceId, Container>,
    pub(super) next_pid: u32,
    pub(super) daemon: Option<Daemon>,
    /// Counts the daemon's lives: what was begun in an earlier one is not continued.
    pub(super) life: u32,
    /// Every instance that an accepted set named.
    pub(super) ordered: BTreeSet<InstanceId>,
    /// Instances that a set in the ledger ordered to go.
    pub(super) removed: BTreeSet<InstanceId>,
    /// Epochs whose process ended for good, as far as somebody could take note of it.
    pub(super) finished: BTreeMap<InstanceId, u64>,
    /// Instances whose process this daemon is ending: that one ends by itself just then is no difference that it could see.
    pub(super) ending: BTreeSet<InstanceId>,
}

impl Machine {
    pub(super) fn new(number: u8, inventory: Inventory) -> Self {
        Self {
            id: NodeId(uuid::Uuid::from_u128(u128::from(number) << 100)),
            name: format!("node-{number}").parse().unwrap(),
            inventory,
            powered: true,
            cut_off: false,
            lost: None,
            heard_ms: 0,
            lease: LeaseClock::default(),
            runtime_up: true,
            lacks_images: false,
            disk_full: false,
            clock_off: 0,
            disk: Disk::default(),
            containers: BTreeMap::new(),
            next_pid: 100,
            daemon: None,
            life: 0,
            ordered: BTreeSet::new(),
            removed: BTreeSet::new(),
            finished: BTreeMap::new(),
            ending: BTreeSet::new(),
        }
    }

    /// Whether nothing comes through to it or from it.
    pub(super) fn is_cut_off(&self) -> bool {
        self.cut_off || self.lost.is_some()
    }

    pub(super) fn start_daemon(&mut self, now_ms: i64) {
        self.life += 1;
        let remembered = self.disk.load(self.id, (now_ms / 1_000).max(0) as u64);
        self.daemon = Some(Daemon {
            keeper: Keeper::new(remembered),
            waiting: Waiting::default(),
            in_flight: None,
            may_send_at: 0,
            wakes_at: None,
            registered: false,
            open: BTreeSet::new(),
            generation: self.disk.generation,
        });
    }

    pub(super) fn kill_daemon(&mut self) {
        self.ending.clear();
        self.life += 1;
        self.daemon = None;
    }

    /// Every process ends and nobody is told.
    pub(super) fn lose_power(&mut self, containers_too: bool) {
        self.kill_daemon();
        self.powered = false;
        for container in self.containers.values_mut() {
            container.task = TaskState::None;
            container.number += 1;
        }
        if containers_too {
            self.containers.clear();
        }
        // What only the memory of the machine knew is lost; the ledger's word counts.
        self.finished.retain(|id, epoch| {
            self.disk.outcomes.get(id).is_some_and(|known| known.finished.is_some() && known.epoch == *epoch)
        });
    }

    /// Ends a process; `number` says which.
    pub(super) fn end_process(&mut self, id: InstanceId, number: u64, exit: Exit, by_itself: bool) -> bool {
        let Some(container) = self.containers.get_mut(&id).filter(|container| container.number == number) else {
            return false;
        };
        if !matches!(container.task, TaskState::Running { .. } | TaskState::Created { .. }) {
            return false;
        }
        let ran = matches!(container.task, TaskState::Running { .. });
        container.task = TaskState::Ended(exit);
        let for_good = match container.order.container.restart {
            RestartPolicy::No => true,
            RestartPolicy::OnFailure { .. } => exit.code == Some(0),
            RestartPolicy::Always => false,
        };
        if ran && by_itself && for_good && !self.ending.contains(&id) {
            self.finished.insert(id, container.order.epoch);
        }
        true
    }

    /// Deletes the task. `Err` while its process runs.
    pub(super) fn delete_task(&mut self, id: InstanceId, now_ms: i64) -> Result<Option<Exit>, ()> {
        let Some(container) = self.containers.get_mut(&id) else { return Ok(None) };
        let exit = match container.task {
            TaskState::None => return Ok(None),
            TaskState::Running { .. } => return Err(()),
            TaskState::Created { .. } => Exit::new(Some(137), now_ms),
            TaskState::Ended(exit) => exit,
        };
        container.task = TaskState::None;
        Ok(Some(exit))
    }

    pub(super) fn note_orders(&mut self, set: &AssignmentSet, stored: bool) {
        if stored {
            let stay = |id: &InstanceId| {
                set.assignments.iter().any(|order| order.instance_id == *id && order.desired != Desired::Removed)
            };
            self.removed.extend(self.ordered.iter().filter(|id| !stay(id)));
        }
        self.ordered.extend(set.assignments.iter().map(|order| order.instance_id));
    }

    /// What must hold when a process is about to be started.
    pub(super) fn check_start(&self, order: &Assignment) -> Result<(), String> {
        let id = order.instance_id;
        if !self.ordered.contains(&id) {
            return Err(format!("{} starts {id}, which nobody ordered", self.name));
        }
        if self.removed.contains(&id) {
            return Err(format!("{} starts {id}, which was ordered to go", self.name));
        }
        if self.finished.get(&id).is_some_and(|epoch| *epoch >= order.epoch) {
            return Err(format!("{} starts {id} again, which finished in epoch {}", self.name, order.epoch));
        }
        Ok(())
    }

    /// Whether a process of another container is on one of the host ports of `order`.
    pub(super) fn check_ports(&self, order: &Assignment) -> Result<(), String> {
        let NetworkOrder::Bridge { ports, .. } = &order.container.network else { return Ok(()) };
        for (id, other) in self.containers.iter().filter(|(id, _)| **id != order.instance_id) {
            let NetworkOrder::Bridge { ports: taken, .. } = &other.order.container.network else { continue };
            let runs = matches!(other.task, TaskState::Running { .. });
            let both = taken.iter().find(|a| ports.iter().any(|b| (a.host, a.protocol) == (b.host, b.protocol)));
            if let Some(port) = both.filter(|_| runs) {
                return Err(format!("{}: port {} is held by {id} and {}", self.name, port.host, order.instance_id));
            }
        }
        Ok(())
    }
}
