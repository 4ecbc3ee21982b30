//! What follows from the answers of health checks. Only a change is told; what does not work any more is ended, so that
//! the restart policy can start it again.

use toft_model::{
    ids::InstanceId,
    instance::{Exit, InstanceState},
    workload::{Health, HealthCheck},
};

use super::{Effect, Keeper, Work};

/// The answers of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watched {
    pid: u32,
    since_ms: i64,
    pub(super) health: Health,
    failures: u32,
    /// It was ended because it did not work.
    pub(super) given_up: bool,
}

impl Watched {
    /// Takes an answer; whether it changed what is thought of the process.
    fn answered(&mut self, check: &HealthCheck, good: bool, now_ms: i64) -> bool {
        let before = self.health;
        if good {
            (self.failures, self.health) = (0, Health::Healthy);
        } else if self.health != Health::Starting || now_ms - self.since_ms >= i64::from(check.start_period_ms) {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= check.retries {
                self.health = Health::Unhealthy;
            }
        }
        self.health != before
    }
}

impl Keeper {
    /// Begins or ends to watch an instance, as its state asks for.
    pub(super) fn watch(&mut self, id: InstanceId, state: &InstanceState) {
        if let InstanceState::Running { pid, since_ms } = *state {
            let Some(order) = self.orders.get(&id).filter(|order| order.container.health.is_some()) else { return };
            let watched = Watched { pid, since_ms, health: Health::Starting, failures: 0, given_up: false };
            self.watched.insert(id, watched);
            self.effects.push(Effect::Watch { order: Box::new(order.clone()), pid });
        } else if self.watched.remove(&id).is_some() {
            self.effects.push(Effect::Unwatch(id));
        }
    }

    /// What is thought of an instance's process, if it is watched.
    pub(super) fn health(&self, id: InstanceId) -> Option<Health> {
        self.watched.get(&id).map(|watched| watched.health)
    }

    /// A check of process `pid` was answered; `Err` says how it failed.
    pub fn answered(&mut self, id: InstanceId, pid: u32, answer: Result<(), String>, now_ms: i64) {
        let Some(order) = self.orders.get(&id) else { return };
        let Some(check) = &order.container.health else { return };
        let Some(watched) = self.watched.get_mut(&id).filter(|watched| watched.pid == pid && !watched.given_up) else {
            return;
        };
        let changed = watched.answered(check, answer.is_ok(), now_ms);
        let unhealthy = watched.health == Health::Unhealthy;
        let Some(memory) = self.memory.get(&id) else { return };
        if changed {
            if let Err(reason) = &answer {
                tracing::warn!(instance.id = %id, workload.id = %order.workload_id, reason, "an instance does not work");
            }
            let state = memory.state.clone();
            self.report(id, Some(state), now_ms);
        }
        let order = &self.orders[&id];
        let (grace_ms, restarts) = (order.container.stop_grace_ms, order.container.restart);
        let streak = self.memory.get(&id).map_or(0, |memory| memory.streak);
        // A step under way, or a runtime that is away: the next answer finds it so still.
        if unhealthy && self.up && self.known && !self.busy.contains(&id) && restarts.wants_restart(None, streak) {
            if let Some(watched) = self.watched.get_mut(&id) {
                watched.given_up = true;
            }
            self.step(id, Work::Stop { grace_ms });
        }
    }

    /// The end of a process as the restart policy shall see it: one that was ended because it did not work, or held
    /// too much of a GPU, has failed, whatever its code.
    pub(super) fn judged(&self, id: InstanceId, exit: Exit) -> Exit {
        let given_up = self.watched.get(&id).is_some_and(|watched| watched.given_up);
        let failed = given_up || exit.gpu_out_of_memory;
        Exit { code: exit.code.filter(|code| !failed || *code != 0), ..exit }
    }

    /// Why an instance waits to be started again.
    pub(super) fn reason(&self, id: InstanceId, exit: Exit) -> String {
        if self.watched.get(&id).is_some_and(|watched| watched.given_up) {
            return "unhealthy".to_owned();
        }
        exit.reason()
    }
}
