//! What follows when an instance holds more of a GPU than its share and was warned.

use toft_model::{
    ids::InstanceId,
    instance::{Desired, Exit, InstanceState},
};

use super::{Keeper, TaskState, Work};

impl Keeper {
    /// Tells the cluster that an instance holds more than its share, if it runs.
    pub fn warn_of_share(&mut self, id: InstanceId, warning: String, now_ms: i64) {
        let state = self.memory.get(&id).map(|memory| memory.state.clone());
        if let Some(state @ InstanceState::Running { .. }) = state {
            self.report_with(id, Some(state), Some(warning), now_ms);
        }
    }

    /// Has the process of an instance ended, which its restart policy then judges as a failure. `false` when it does not
    /// run, or a step is under way already: it is told again if it goes on.
    pub fn over_share(&mut self, id: InstanceId) -> bool {
        let Some(order) = self.orders.get(&id).filter(|order| order.desired == Desired::Running) else { return false };
        let runs = self.observed.get(&id).is_some_and(|observed| matches!(observed.task, TaskState::Running { .. }));
        if !runs || !self.up || !self.known || self.busy.contains(&id) {
            return false;
        }
        let grace_ms = order.container.stop_grace_ms;
        self.over_share.insert(id);
        self.step(id, Work::Stop { grace_ms });
        true
    }

    /// The end of a process with what it was ended for.
    pub(super) fn marked(&mut self, id: InstanceId, exit: Option<Exit>, now_ms: i64) -> Option<Exit> {
        if !self.over_share.remove(&id) {
            return exit;
        }
        Some(Exit { gpu_out_of_memory: true, ..exit.unwrap_or(Exit::new(None, now_ms)) })
    }
}
