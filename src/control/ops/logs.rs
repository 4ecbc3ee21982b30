//! What workloads wrote.

use std::pin::Pin;

use futures_util::{
    StreamExt,
    future::try_join_all,
    stream::{self, BoxStream},
};
use toft_model::{
    ids::InstanceId,
    instance::InstanceState,
    log::{LogLine, LogQuery},
    name::Name,
    state::{InstanceView, WorkloadView, query_workload},
};
use tokio_util::sync::CancellationToken;

use super::{Ops, far::Away};
use crate::{
    consensus::Handle,
    control::{
        ControlError, ErrorKind,
        node_access::{GoneInstance, LogLines},
    },
};

/// Most instances that are gone from another node whose output is read at once, the newest ones.
const GONE_AFAR: usize = 32;

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
        let of_each = workload.instances.iter().map(|instance| self.instance_logs(name, instance, query.clone()));
        try_join_all(of_each).await
    }

    async fn instance_logs(
        &self,
        name: &Name,
        instance: &InstanceView,
        query: LogQuery,
    ) -> Result<InstanceLogs, ControlError> {
        let (follow, ended) = (query.follow, CancellationToken::new());
        let here = self.node.node_id() == Some(instance.row.node_id);
        let asked = async {
            self.access(instance.row.node_id, &instance.node)?.logs(instance.row.id, query, ended.clone()).await
        };
        let lines = match asked.await {
            Ok(lines) => lines,
            // The others' lines come all the same, and it is told why these do not.
            Err(error) if !here && error.kind == ErrorKind::Unavailable => stream::iter([Err(error)]).boxed(),
            Err(error) => return Err(error),
        };
        let lines = if follow {
            let watcher = cancel_at_end(self.state.clone(), name.clone(), instance.row.id, ended);
            // Both are polled together; the watcher itself gives no line, and is over when the lines are.
            let lines = lines.map(Some).chain(stream::iter([None]));
            let watcher = stream::once(watcher).filter_map(async |()| None).chain(stream::pending());
            let both = stream::select(lines, watcher).take_while(|line| std::future::ready(line.is_some()));
            both.filter_map(async |line| line).boxed()
        } else {
            lines
        };
        Ok(InstanceLogs { instance: instance.name(), lines })
    }

    /// What instances of a workload wrote that are gone, oldest first, from every node that tells. The workload may be gone too.
    pub async fn gone_logs(&self, name: &Name, query: LogQuery) -> Result<Vec<InstanceLogs>, ControlError> {
        let query = LogQuery { follow: false, ..query };
        let told = self.of_all(|row, node| {
            let (query, here) = (query.clone(), self.node.node_id() == Some(row.id));
            async move {
                let mut logs = Vec::new();
                let mut all = node.gone_logs(Some(name)).await?;
                let older = if here { 0 } else { all.len().saturating_sub(GONE_AFAR) };
                if let Some(gone) = all.drain(..older).next_back() {
                    let error = ControlError::new(
                        ErrorKind::Unavailable,
                        format!("{older} that went earlier on node `{}` are left out", row.name),
                    )
                    .hint("ask that node for them");
                    let lines = stream::iter([Err(error)]).boxed();
                    logs.push((gone.gone_at_ms, InstanceLogs { instance: gone.name, lines }));
                }
                for gone in all {
                    let lines = node.logs(gone.id, query.clone(), CancellationToken::new()).await?;
                    logs.push((gone.gone_at_ms, InstanceLogs { instance: gone.name, lines }));
                }
                Ok(logs)
            }
        });
        let mut logs: Vec<(i64, InstanceLogs)> = self.told(told.await?)?.into_iter().flatten().collect();
        logs.sort_by_key(|(gone_at_ms, _)| *gone_at_ms);
        Ok(logs.into_iter().map(|(_, logs)| logs).collect())
    }

    /// The instances that are gone and whose logs are kept, oldest first, from every node that tells.
    pub async fn kept_logs(&self) -> Result<Vec<GoneInstance>, ControlError> {
        let told = self.of_all(|_, node| async move { node.gone_logs(None).await }).await?;
        let mut gone: Vec<GoneInstance> = self.told(told)?.into_iter().flatten().collect();
        gone.sort_by_key(|gone| gone.gone_at_ms);
        Ok(gone)
    }

    /// What was told, unless this node itself had to say why it does not tell.
    fn told<T>(&self, (told, away): (Vec<T>, Vec<Away>)) -> Result<Vec<T>, ControlError> {
        match away.into_iter().find(|away| told.is_empty() || away.error.kind != ErrorKind::Unavailable) {
            Some(away) => Err(away.error),
            None => Ok(told),
        }
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
