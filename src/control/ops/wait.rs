//! Waits until a workload has reached what somebody waits for.

use std::time::Duration;

use toft_model::{
    instance::{Desired, InstanceState},
    name::Name,
    schedule::serves,
    state::{InstanceView, NodeRow, WorkloadView, query_workload},
    workload::Rollout,
};

use super::{Ops, far::LONG_PATIENCE};
use crate::control::ControlError;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// Every instance runs or has finished, or it is clear that one cannot for now.
    Settled,
    /// Every instance has its node, or it is clear that one has none for now.
    Placed,
    /// No instance runs any more, and none will by itself; or it is clear that one cannot start.
    Ended,
    /// Every process is down as the user wanted.
    Stopped,
    /// The rollout of its specification has ended, or it is clear that it cannot for now.
    Updated,
    /// Nothing of it is left.
    Gone,
}

impl Milestone {
    fn reached(self, workload: Option<&WorkloadView>, nodes: &[NodeRow]) -> bool {
        let Some(workload) = workload else { return true };
        let states: Vec<_> = workload.instances.iter().map(|instance| (instance, instance.state())).collect();
        // One made of an older specification says nothing of this one; the scheduler has yet to replace it.
        let serves = |instance: &InstanceView| {
            let node = nodes.iter().find(|node| node.id == instance.row.node_id);
            node.is_some_and(|node| serves(&instance.row.container, &workload.row.spec, node))
        };
        let current = |instance: &InstanceView| {
            let report = instance.row.report.as_ref();
            let epoch = instance.row.epoch.max(workload.row.epoch);
            report.is_some_and(|report| report.epoch >= epoch) && serves(instance)
        };
        let placed = states.iter().filter(|(i, _)| i.row.desired != Desired::Removed && serves(i)).count();
        let all_there = placed == workload.row.spec.replicas as usize && placed == states.len();
        let stuck = workload.row.pending.is_some()
            || states.iter().any(|(i, state)| current(i) && matches!(state, InstanceState::BackOff { .. }));
        match self {
            Self::Settled => {
                let settled = |state: &InstanceState| {
                    matches!(state, InstanceState::Running { .. } | InstanceState::Finished { .. })
                };
                stuck || (all_there && states.iter().all(|(i, state)| current(i) && settled(state)))
            }
            Self::Placed => workload.row.pending.is_some() || all_there,
            Self::Ended => {
                let never_ran = |i: &InstanceView| {
                    serves(i) && i.row.report.as_ref().is_some_and(|report| report.last_exit.is_none())
                };
                let blocked = workload.row.pending.is_some()
                    || states.iter().any(|(i, state)| never_ran(i) && matches!(state, InstanceState::BackOff { .. }));
                let over = |state: &InstanceState| {
                    matches!(state, InstanceState::Finished { .. } | InstanceState::Stopped { .. })
                };
                blocked || (all_there && states.iter().all(|(_, state)| over(state)))
            }
            Self::Stopped => workload.row.desired != Desired::Stopped || workload.status() == "stopped",
            Self::Updated => {
                let row = &workload.row;
                row.rollout != Rollout::Rolling || row.pending.is_some() || row.desired != Desired::Running
            }
            Self::Gone => false,
        }
    }
}

impl Ops {
    /// Waits until `milestone` or for `timeout`; gives whether it was reached and the workload as it then is.
    pub async fn wait_for_workload(
        &self,
        name: &Name,
        milestone: Milestone,
        timeout: Duration,
    ) -> Result<(bool, Option<WorkloadView>), ControlError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut applied = self.state.watch();
        loop {
            applied.mark_unchanged();
            let asked = name.clone();
            let question = move |connection: &_| Ok((query_workload(connection, &asked)?, NodeRow::all(connection)?));
            let (workload, nodes) = self.state.read(question).await?;
            if milestone.reached(workload.as_ref(), &nodes) {
                return Ok((true, workload));
            }
            let moved = tokio::time::timeout_at(deadline, applied.changed()).await;
            if !matches!(moved, Ok(Ok(()))) {
                let mut workload = workload;
                if let Some(workload) = &mut workload {
                    self.noted_all_within(workload.instances.iter_mut().collect(), LONG_PATIENCE).await;
                }
                return Ok((false, workload));
            }
        }
    }
}
