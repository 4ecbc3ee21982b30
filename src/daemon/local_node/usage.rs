//! What this node's containers use.

use async_trait::async_trait;
use toft_model::{
    ids::InstanceId,
    usage::{Process, Usage},
};

use super::{LocalNode, refused};
use crate::{
    agent::runtime::usage::RunningTask,
    control::{
        ControlError,
        node_access::usage::{NodeUsage, RunningInstance},
    },
};

#[async_trait]
impl NodeUsage for LocalNode {
    async fn usage(
        &self,
        instances: Vec<RunningInstance>,
        pss: bool,
    ) -> Result<Vec<(InstanceId, Usage)>, ControlError> {
        let tasks: Vec<RunningTask> = instances.into_iter().map(task).collect();
        self.meter.usage(&tasks, pss).await.map_err(refused)
    }

    async fn processes(&self, instance: RunningInstance) -> Result<Vec<Process>, ControlError> {
        self.runtime.processes(task(instance)).await.map_err(refused)
    }
}

fn task(instance: RunningInstance) -> RunningTask {
    RunningTask { id: instance.id, pid: instance.pid }
}
