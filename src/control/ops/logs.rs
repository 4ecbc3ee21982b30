//! What workloads wrote.

use futures_util::{StreamExt, stream};
use toft_model::{log::LogQuery, name::Name};

use super::Ops;
use crate::control::{ControlError, node_access::LogLines};

/// The lines of one instance.
pub struct InstanceLogs {
    /// What people call the instance.
    pub instance: String,
    /// Its lines, oldest first.
    pub lines: LogLines,
}

impl Ops {
    /// What the instances of a workload wrote. With `query.follow` the streams end when their instances are gone or
    /// have finished.
    pub async fn workload_logs(&self, name: &Name, query: LogQuery) -> Result<Vec<InstanceLogs>, ControlError> {
        let workload = self.workload(name).await?;
        let mut logs = Vec::with_capacity(workload.instances.len());
        for instance in &workload.instances {
            let lines = self.node.logs(instance.row.id, query).await?;
            logs.push(InstanceLogs { instance: instance.name(), lines });
        }
        Ok(logs)
    }
}

/// Several instances' lines in one stream, each with its instance's name, in the order they come.
pub fn merged(
    logs: Vec<InstanceLogs>,
) -> stream::BoxStream<'static, (String, Result<toft_model::log::LogLine, ControlError>)> {
    stream::select_all(
        logs.into_iter()
            .map(|InstanceLogs { instance, lines }| lines.map(move |line| (instance.clone(), line)).boxed()),
    )
    .boxed()
}
