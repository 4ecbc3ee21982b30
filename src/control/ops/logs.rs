//! What workloads wrote.

use std::pin::Pin;

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use toft_model::{
    ids::InstanceId,
    instance::InstanceState,
    log::{LogLine, LogQuery},
    name::Name,
    state::{WorkloadView, query_workload},
};
use tokio_util::sync::CancellationToken;

use super::Ops;
use crate::{
    consensus::Handle,
    control::{
        ControlError,
        node_access::{GoneInstance, LogLines},
    },
};

/// The lines of one instance.
pub struct InstanceLogs {
    /// What people call the instance.
    pub instance: String,
    /// Its lines, oldest first.
    pub lines: LogLines,
}

/// A line and the name of the instance that wrote it.
pub type NamedLine = (String, Result<LogLine, ControlError>);

impl Ops {
    /// What the instances of a workload wrote. With `query.follow` the instances that are yet to be placed are waited
    /// for, and the lines of each go on until it has stopped, finished or gone.
    pub async fn workload_logs(&self, name: &Name, query: LogQuery) -> Result<Vec<InstanceLogs>, ControlError> {
        let workload = if query.follow { self.placed_workload(name).await? } else { self.workload(name).await? };
        let mut logs = Vec::with_capacity(workload.instances.len());
        for instance in &workload.instances {
            let ended = CancellationToken::new();
            let lines = self.node.logs(instance.row.id, query.clone(), ended.clone()).await?;
            let lines = if query.follow {
                let watcher = cancel_at_end(self.state.clone(), name.clone(), instance.row.id, ended);
                // Both are polled together; the watcher itself gives no line.
                let watcher = stream::once(watcher).filter_map(async |()| None);
                stream::select(lines, watcher).boxed()
            } else {
                lines
            };
            logs.push(InstanceLogs { instance: instance.name(), lines });
        }
        Ok(logs)
    }

    /// What instances of a workload wrote that are gone from this node, oldest first. The workload may be gone too.
    pub async fn gone_logs(&self, name: &Name, query: LogQuery) -> Result<Vec<InstanceLogs>, ControlError> {
        let query = LogQuery { follow: false, ..query };
        let mut logs = Vec::new();
        for gone in self.node.gone_logs(Some(name)).await? {
            let lines = self.node.logs(gone.id, query.clone(), CancellationToken::new()).await?;
            logs.push(InstanceLogs { instance: gone.name, lines });
        }
        Ok(logs)
    }

    /// The instances that are gone from this node and whose logs are kept, oldest first.
    pub async fn kept_logs(&self) -> Result<Vec<GoneInstance>, ControlError> {
        self.node.gone_logs(None).await
    }

    /// The workload once it has an instance, or a reason to have none.
    async fn placed_workload(&self, name: &Name) -> Result<WorkloadView, ControlError> {
        let mut applied = self.state.watch();
        loop {
            applied.mark_unchanged();
            let workload = self.workload(name).await?;
            let waits = workload.instances.is_empty() && workload.status() == "starting";
            if !waits || applied.changed().await.is_err() {
                return Ok(workload);
            }
        }
    }
}

/// Cancels `ended` when the instance writes no more.
async fn cancel_at_end(state: Handle, name: Name, id: InstanceId, ended: CancellationToken) {
    let mut applied = state.watch();
    loop {
        applied.mark_unchanged();
        let asked = name.clone();
        let workload = state.read(move |connection| query_workload(connection, &asked)).await.ok().flatten();
        let instance = workload.as_ref().and_then(|w| w.instances.iter().find(|instance| instance.row.id == id));
        let over = instance
            .is_none_or(|i| matches!(i.state(), InstanceState::Finished { .. } | InstanceState::Stopped { .. }));
        if over || applied.changed().await.is_err() {
            return ended.cancel();
        }
    }
}

/// Several instances' lines in one stream, in the order they come.
pub fn merged(logs: Vec<InstanceLogs>) -> BoxStream<'static, NamedLine> {
    let named = |logs: InstanceLogs| logs.lines.map(move |line| (logs.instance.clone(), line)).boxed();
    stream::select_all(logs.into_iter().map(named)).boxed()
}

/// The lines of logs that end, by when they were written.
pub fn in_time(logs: Vec<InstanceLogs>) -> BoxStream<'static, NamedLine> {
    let logs: Vec<_> = logs.into_iter().map(|logs| (logs.instance, logs.lines.peekable())).collect();
    let next = async |mut logs: Vec<(String, stream::Peekable<LogLines>)>| {
        let mut first: Option<(i64, usize)> = None;
        for (i, (_, lines)) in logs.iter_mut().enumerate() {
            let Some(head) = Pin::new(lines).peek().await else { continue };
            // What went wrong is told at once.
            let at_ns = head.as_ref().map_or(i64::MIN, |line| line.at_ns);
            if first.is_none_or(|(earliest_ns, _)| at_ns < earliest_ns) {
                first = Some((at_ns, i));
            }
        }
        let (_, i) = first?;
        let line = logs[i].1.next().await?;
        Some(((logs[i].0.clone(), line), logs))
    };
    stream::unfold(logs, next).boxed()
}

#[cfg(test)]
mod tests {
    use toft_model::log::LogStream;

    use super::*;

    #[tokio::test]
    async fn lines_of_several_instances_come_in_the_order_of_their_times() {
        let of = |instance: &str, times: &[i64]| {
            let line =
                |at_ns: &i64| LogLine { at_ns: *at_ns, stream: LogStream::Stdout, text: String::new(), partial: false };
            let lines: Vec<Result<LogLine, ControlError>> = times.iter().map(line).map(Ok).collect();
            InstanceLogs { instance: instance.into(), lines: stream::iter(lines).boxed() }
        };
        let lines = in_time(vec![of("c", &[]), of("b", &[2, 5, 5]), of("a", &[1, 3, 5, 9])]);
        let told: Vec<String> =
            lines.map(|(instance, line)| format!("{instance}{}", line.unwrap().at_ns)).collect().await;
        assert_eq!(told, ["a1", "b2", "a3", "b5", "b5", "a5", "a9"]);
    }
}
