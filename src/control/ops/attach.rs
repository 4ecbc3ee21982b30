//! Attaching to instances.

use toft_model::{
    exec::AttachOrder,
    ids::InstanceId,
    instance::{Desired, InstanceState},
    state::query_instances,
};

use super::{Ops, exec::Target};
use crate::control::{ControlError, ErrorKind, node_access::exec::ExecSession};

impl Ops {
    /// The instance to attach to: it has input or a terminal.
    pub async fn attach_target(&self, name: &str) -> Result<Target, ControlError> {
        let instance = self.instance_called(name).await?;
        if !instance.row.container.process.is_interactive() {
            let message = format!("the instance `{name}` has neither input nor a terminal");
            return Err(ControlError::new(ErrorKind::Conflict, message).hint(
                "its logs show what it writes; `toft run` with -i or -t makes a workload that can be attached to",
            ));
        }
        self.target(&instance)
    }

    /// Attaches to an instance that [`Ops::attach_target`] gave, as soon as its process is there; fails as soon as it is clear
    /// that it does not come.
    pub async fn attach(&self, target: Target, order: AttachOrder) -> Result<ExecSession, ControlError> {
        order.validate()?;
        tokio::select! {
            session = target.node.attach(target.instance, order) => session,
            why = self.does_not_come(target.instance) => Err(why),
        }
    }

    /// Returns when an instance's process does not run and will not for now.
    async fn does_not_come(&self, target: InstanceId) -> ControlError {
        let mut applied = self.state.watch();
        loop {
            applied.mark_unchanged();
            let instances = match self.state.read(query_instances).await {
                Ok(instances) => instances,
                Err(error) => return error.into(),
            };
            let Some(instance) = instances.into_iter().find(|instance| instance.row.id == target) else {
                return ControlError::new(ErrorKind::NotFound, "the instance was removed");
            };
            // What was reported of an earlier order says nothing of this one.
            let epoch = instance.row.report.as_ref().map(|report| report.epoch);
            let current = epoch.is_some_and(|epoch| epoch >= instance.row.epoch);
            let state = instance.state();
            let why = match &state {
                _ if instance.row.desired == Desired::Removed => Some("it is being removed".to_owned()),
                InstanceState::Unknown => Some("its node is down".to_owned()),
                InstanceState::BackOff { reason, .. } if current => Some(reason.clone()),
                InstanceState::Finished { exit, reason } if current => Some(reason.clone().unwrap_or(exit.reason())),
                InstanceState::Stopped { .. } if current => Some("it is stopped".to_owned()),
                InstanceState::BackOff { .. }
                | InstanceState::Finished { .. }
                | InstanceState::Stopped { .. }
                | InstanceState::Assigned
                | InstanceState::Starting
                | InstanceState::Running { .. }
                | InstanceState::Stopping => None,
            };
            if let Some(why) = why {
                let message = format!("the instance `{}` does not run: {why}", instance.name());
                return ControlError::new(ErrorKind::Conflict, message)
                    .hint("`toft ps` shows what runs, `toft start` starts what is stopped");
            }
            if applied.changed().await.is_err() {
                return ControlError::new(ErrorKind::Unavailable, "toft is stopping on this node");
            }
        }
    }
}
