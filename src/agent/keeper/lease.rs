//! What may run only while its node is heard of: on a node that is cut off it stops by itself, before another starts elsewhere.

use toft_model::{
    ids::InstanceId,
    instance::{Assignment, Desired, Exit, InstanceState},
};

use super::Keeper;

/// Longest grace of what is stopped because its node is cut off, in milliseconds.
const LONGEST_GRACE_MS: u32 = 5_000;

/// Whether the cluster's leader hears of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lease {
    /// It does, or nobody else is there.
    #[default]
    Held,
    /// It is being asked: nothing exclusive starts, and what runs goes on.
    Awaited,
    /// It has not for too long: nothing exclusive runs.
    Over,
}

impl Keeper {
    /// Whether the leader hears of this node.
    pub fn lease_is(&mut self, lease: Lease, now_ms: i64) {
        if std::mem::replace(&mut self.lease, lease) == lease {
            return;
        }
        let exclusive = self.orders.iter().filter(|(_, order)| order.container.exclusive);
        let exclusive: Vec<InstanceId> = exclusive.map(|(id, _)| *id).collect();
        for id in exclusive {
            self.look_at(id, now_ms);
        }
    }

    /// Since when the lease was over when the daemon started: what was exclusive was ended for that, and not by itself.
    pub fn lease_was_over(&mut self, since_ms: Option<i64>) {
        self.lease_was_over_ms = since_ms;
    }

    /// Whether a process that ended while no daemon was there was ended for its lease.
    pub(super) fn ended_with_lease(&self, id: InstanceId, exit: Exit) -> bool {
        self.lease_was_over_ms.is_some_and(|since_ms| exit.at_ms >= since_ms)
            && self.orders.get(&id).is_some_and(|order| order.container.exclusive)
            && self.memory.get(&id).is_some_and(|memory| memory.state == InstanceState::Assigned)
    }

    /// The order as it can be carried out now. What has finished is not stopped: it would start again afterwards.
    pub(super) fn leased(&self, order: &Assignment) -> Assignment {
        let mut order = order.clone();
        let memory = self.memory.get(&order.instance_id).filter(|memory| memory.epoch >= order.epoch);
        let finished = memory.is_some_and(|memory| matches!(memory.state, InstanceState::Finished { .. }));
        if self.lease == Lease::Over && !finished && order.container.exclusive && order.desired == Desired::Running {
            order.desired = Desired::Stopped;
            order.container.stop_grace_ms = order.container.stop_grace_ms.min(LONGEST_GRACE_MS);
        }
        order
    }

    /// Whether what would be started has to wait until the leader is known to hear of this node.
    pub(super) fn waits_for_lease(&self, order: Option<&Assignment>) -> bool {
        self.lease == Lease::Awaited && order.is_some_and(|order| order.container.exclusive)
    }
}
