//! Processes run inside instances.

use toft_model::{
    exec::ExecOrder,
    ids::InstanceId,
    instance::{Desired, InstanceState},
    state::InstanceView,
};

use super::Ops;
use crate::control::{
    ControlError, ErrorKind,
    node_access::exec::{ExecRefused, ExecSession},
};

impl Ops {
    /// The instance people call `name`, if it can be asked here: it must have been placed on this node.
    pub async fn instance_here(&self, name: &str) -> Result<InstanceView, ControlError> {
        let here = self.node.node_id();
        let named = self.instances().await?.into_iter().filter(|instance| instance.name() == name);
        // One that moves bears the name of its successor: who asks a node means the one that is there.
        let first = |instance: &InstanceView| {
            (here != Some(instance.row.node_id), instance.row.desired == Desired::Removed, instance.row.created_at_ms)
        };
        let Some(instance) = named.min_by_key(first) else {
            let shown: String = name.chars().take(100).collect();
            return Err(ControlError::new(ErrorKind::NotFound, format!("there is no instance `{shown}`"))
                .hint("`toft ps` lists the instances"));
        };
        if here != Some(instance.row.node_id) {
            let message = format!("the instance `{name}` is on the node `{}`", instance.node);
            return Err(ControlError::new(ErrorKind::Conflict, message).hint(format!(
                "ask that node: run the command on `{}`, or name its address with --connect",
                instance.node
            )));
        }
        Ok(instance)
    }

    /// The instance to run a process in: it is here, and it runs.
    pub async fn exec_target(&self, name: &str) -> Result<InstanceId, ControlError> {
        let instance = self.instance_here(name).await?;
        match instance.state() {
            InstanceState::Running { .. } => Ok(instance.row.id),
            state => {
                let message = format!("the instance `{name}` does not run; it is {}", state.as_str());
                Err(ControlError::new(ErrorKind::Conflict, message)
                    .hint("`toft ps` shows what runs, `toft logs` what it wrote"))
            }
        }
    }

    /// Starts a process in an instance that [`Ops::exec_target`] gave.
    pub async fn exec(&self, target: InstanceId, order: ExecOrder) -> Result<ExecSession, ExecRefused> {
        order.validate().map_err(ControlError::from)?;
        self.node.exec(target, order).await
    }
}
