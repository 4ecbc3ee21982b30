//! What instances use.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::try_join_all;
use toft_model::{
    ids::NodeId,
    instance::InstanceState,
    name::Name,
    state::InstanceView,
    usage::{Process, Usage},
};

use super::{Ops, far::Away};
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
    /// What the instances use that run now: of all workloads, or of those named, which must be there. With it the nodes that do
    /// not tell.
    pub async fn usage(&self, workloads: &[Name], pss: bool) -> Result<(Vec<InstanceUsage>, Vec<Away>), ControlError> {
        for name in workloads {
            self.workload(name).await?;
        }
        let instances = self.instances().await?;
        let wanted = instances.into_iter().filter(|i| workloads.is_empty() || workloads.contains(&i.workload));
        self.usage_of(wanted.collect(), pss).await
    }

    /// What some instances use that run. With it the nodes that do not tell.
    pub async fn usage_of(
        &self,
        instances: Vec<InstanceView>,
        pss: bool,
    ) -> Result<(Vec<InstanceUsage>, Vec<Away>), ControlError> {
        let mut asked: BTreeMap<NodeId, (Name, Vec<RunningInstance>)> = BTreeMap::new();
        for (instance, running) in instances.iter().filter_map(|instance| Some((instance, running(instance)?))) {
            let (_, of_node) = asked.entry(instance.row.node_id).or_insert_with(|| (instance.node.clone(), Vec::new()));
            of_node.push(running);
        }
        let asked = asked.into_iter().map(async |(id, (node, running))| {
            let used = async { self.access(id, &node)?.usage(running, pss).await };
            match used.await {
                Err(error) if self.node.node_id() != Some(id) => Ok(Err(Away { node, error })),
                used => used.map(Ok),
            }
        });
        let (mut used, mut away) = (HashMap::new(), Vec::new());
        for told in try_join_all(asked).await? {
            match told {
                Ok(told) => used.extend(told),
                Err(silent) => away.push(silent),
            }
        }
        let told = |instance: InstanceView| {
            let usage = used.remove(&instance.row.id)?;
            Some(InstanceUsage { instance, usage })
        };
        Ok((instances.into_iter().filter_map(told).collect(), away))
    }

    /// The processes of the instance people call `name`, which must run.
    pub async fn processes(&self, name: &str) -> Result<Vec<Process>, ControlError> {
        let instance = self.instance_called(name).await?;
        let Some(running) = running(&instance) else {
            let message = format!("the instance `{name}` does not run; it is {}", instance.state().as_str());
            return Err(ControlError::new(ErrorKind::Conflict, message).hint("`toft ps` shows what runs"));
        };
        self.access(instance.row.node_id, &instance.node)?.processes(running).await
    }
}

fn running(instance: &InstanceView) -> Option<RunningInstance> {
    match instance.state() {
        InstanceState::Running { pid, .. } => Some(RunningInstance { id: instance.row.id, pid }),
        _ => None,
    }
}
