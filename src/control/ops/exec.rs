//! Processes run inside instances.

use std::sync::Arc;

use toft_model::{
    exec::ExecOrder,
    ids::InstanceId,
    instance::{Desired, InstanceState},
    state::InstanceView,
};

use super::Ops;
use crate::control::{
    ControlError, ErrorKind,
    node_access::{
        NodeAccess,
        exec::{ExecRefused, ExecSession},
    },
};

/// An instance and the node that has it.
pub struct Target {
    pub(super) instance: InstanceId,
    pub(super) node: Arc<dyn NodeAccess>,
}

impl Ops {
    pub(super) fn target(&self, instance: &InstanceView) -> Result<Target, ControlError> {
        Ok(Target { instance: instance.row.id, node: self.access(instance.row.node_id, &instance.node)? })
    }

    /// The instance people call `name`.
    pub async fn instance_called(&self, name: &str) -> Result<InstanceView, ControlError> {
        let seen = self.seen().await?;
        let workload = name.rsplit_once('-').map_or("", |(workload, _)| workload);
        let of_workload = seen.workloads.iter().filter(|one| one.row.spec.name.as_str() == workload);
        let named = of_workload.flat_map(|one| &one.instances).filter(|instance| instance.name() == name);
        // One that moves bears the name of its successor: whoever asks means the one that works.
        let first = |instance: &&InstanceView| {
            let runs = matches!(instance.state(), InstanceState::Running { .. });
            (!runs, instance.row.desired == Desired::Removed, instance.row.created_at_ms)
        };
        named.min_by_key(first).cloned().ok_or_else(|| {
            let shown: String = name.chars().take(100).collect();
            ControlError::new(ErrorKind::NotFound, format!("there is no instance `{shown}`"))
                .hint("`toft ps` lists the instances")
        })
    }

    /// The instance to run a process in: it runs.
    pub async fn exec_target(&self, name: &str) -> Result<Target, ControlError> {
        let instance = self.instance_called(name).await?;
        match instance.state() {
            InstanceState::Running { .. } => Ok(self.target(&instance)?),
            state => {
                let message = format!("the instance `{name}` does not run; it is {}", state.as_str());
                Err(ControlError::new(ErrorKind::Conflict, message)
                    .hint("`toft ps` shows what runs, `toft logs` what it wrote"))
            }
        }
    }

    /// Starts a process in an instance that [`Ops::exec_target`] gave.
    pub async fn exec(&self, target: Target, order: ExecOrder) -> Result<ExecSession, ExecRefused> {
        order.validate().map_err(ControlError::from)?;
        target.node.exec(target.instance, order).await
    }
}
