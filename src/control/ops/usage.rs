//! What instances use.

use toft_model::{
    instance::InstanceState,
    name::Name,
    state::InstanceView,
    usage::{Process, Usage},
};

use super::Ops;
use crate::control::{ControlError, ErrorKind, node_access::usage::RunningInstance};

/// What one instance uses.
#[derive(Debug, Clone)]
pub struct InstanceUsage {
    /// The instance.
    pub instance: InstanceView,
    /// What it uses.
    pub usage: Usage,
}

impl Ops {
    /// What the instances of this node use that run now: of all workloads, or of those named, which must be there.
    pub async fn usage(&self, workloads: &[Name], pss: bool) -> Result<Vec<InstanceUsage>, ControlError> {
        for name in workloads {
            self.workload(name).await?;
        }
        let instances = self.instances().await?;
        let wanted = instances.into_iter().filter(|i| workloads.is_empty() || workloads.contains(&i.workload));
        self.usage_of(wanted.collect(), pss).await
    }

    /// What some instances use: of this node, and running.
    pub async fn usage_of(&self, instances: Vec<InstanceView>, pss: bool) -> Result<Vec<InstanceUsage>, ControlError> {
        let here = self.node.node_id();
        let running: Vec<(InstanceView, RunningInstance)> = instances
            .into_iter()
            .filter(|instance| Some(instance.row.node_id) == here)
            .filter_map(|instance| running(&instance).map(|running| (instance, running)))
            .collect();
        if running.is_empty() {
            return Ok(Vec::new());
        }
        let asked = running.iter().map(|(_, running)| *running).collect();
        let used = self.node.usage(asked, pss).await?;
        let mut used: std::collections::HashMap<_, _> = used.into_iter().collect();
        let told = |(instance, running): (InstanceView, RunningInstance)| {
            let usage = used.remove(&running.id)?;
            Some(InstanceUsage { instance, usage })
        };
        Ok(running.into_iter().filter_map(told).collect())
    }

    /// The processes of the instance people call `name`, which must be on this node and run.
    pub async fn processes(&self, name: &str) -> Result<Vec<Process>, ControlError> {
        let instance = self.instance_here(name).await?;
        let Some(running) = running(&instance) else {
            let message = format!("the instance `{name}` does not run; it is {}", instance.state().as_str());
            return Err(ControlError::new(ErrorKind::Conflict, message).hint("`toft ps` shows what runs"));
        };
        self.node.processes(running).await
    }
}

fn running(instance: &InstanceView) -> Option<RunningInstance> {
    match instance.state() {
        InstanceState::Running { pid, .. } => Some(RunningInstance { id: instance.row.id, pid }),
        _ => None,
    }
}
