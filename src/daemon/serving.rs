//! The last part of every start and the whole of every end: open the doors, wait for a signal, end in order.

use std::{sync::Arc, time::Duration};

use toft_model::{ids::NodeId, node::NodeHealth};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Ending, StopSignals,
    directories::Directories,
    doors,
    lease::{self, BootTime},
    tasks::Tasks,
};
use crate::{
    agent::runtime::supervisor::ContainerdSupervisor, api::http::ApiState, config::Config, consensus::network::Offered,
};

/// Longest wait for the doors to finish what they are answering.
const LAST_ANSWERS: Duration = Duration::from_secs(3);
/// Longest wait for the others to take note that this node will be back.
const FAREWELL: Duration = Duration::from_secs(1);
/// Longest wait for the tasks to end.
const LAST_TASKS: Duration = Duration::from_secs(10);

/// What runs, and what ends it.
pub(super) struct Serving {
    pub(super) directories: Directories,
    pub(super) tasks: Tasks,
    pub(super) cancel: CancellationToken,
    /// What the other members may ask.
    pub(super) offered: Vec<Offered>,
}

impl Serving {
    pub(super) fn new(directories: Directories) -> Self {
        Self { directories, tasks: Tasks::default(), cancel: CancellationToken::new(), offered: Vec::new() }
    }

    /// Runs without doors until `end`.
    pub(super) async fn until(self, end: CancellationToken) {
        let Self { directories, mut tasks, cancel, offered } = self;
        tokio::select! {
            () = end.cancelled() => {}
            name = tasks.first_end() => tracing::error!("the task `{name}` ended unexpectedly"),
        }
        cancel.cancel();
        drop(offered);
        tasks.join(LAST_TASKS).await;
        directories.remove_traces();
    }

    /// Opens the doors and runs until a signal or the end of a task. `node`: this node, if it runs instances.
    pub(super) async fn until_the_end(
        self,
        (api, node): (ApiState, Option<NodeId>),
        config: &Config,
        (stop_signals, again): (&mut StopSignals, &Notify),
        supervisor: Option<Arc<ContainerdSupervisor>>,
    ) -> anyhow::Result<Ending> {
        let Self { directories, mut tasks, cancel, offered } = self;
        let (doors_cancel, ops) = (CancellationToken::new(), api.ops.clone());
        let mut doors = doors::open(api, config, &directories, doors_cancel.clone()).await?;
        tracing::info!(
            "toft {} serves on {} and {}",
            env!("CARGO_PKG_VERSION"),
            doors.url,
            directories.socket().display()
        );
        tell_systemd(&[sd_notify::NotifyState::Ready]);

        let mut ending = Ending::Stopped;
        let ended_early = tokio::select! {
            signal = stop_signals.first() => { tracing::info!("stopping on {signal}; containers go on"); None }
            () = again.notified() => {
                tracing::info!("starting again; containers go on");
                ending = Ending::Again;
                None
            }
            name = tasks.first_end() => Some(name),
            name = doors.tasks.first_end() => Some(name),
        };
        // Systemd would end a service for good that says it is stopping.
        if ending == Ending::Stopped {
            tell_systemd(&[sd_notify::NotifyState::Stopping]);
        }
        let told_at = BootTime::now();
        let told = match (node, ended_early) {
            // Whoever is not told finds out.
            (Some(node), None) => {
                let told = tokio::time::timeout(FAREWELL, ops.tell_presence(node, NodeHealth::Away)).await;
                matches!(told, Ok(Ok(())))
            }
            (None, _) | (_, Some(_)) => false,
        };
        drop(ops);
        doors_cancel.cancel();
        doors.tasks.join(LAST_ANSWERS).await;
        cancel.cancel();
        drop((doors, offered));
        tasks.join(LAST_TASKS).await;
        if told {
            lease::say_farewell(&directories.lease_file(), told_at);
        }
        if let (Some(supervisor), None) = (supervisor, ended_early) {
            supervisor.shut_down().await;
        }
        directories.remove_traces();
        match ended_early {
            None => Ok(ending),
            Some(name) => anyhow::bail!("the task `{name}` ended unexpectedly"),
        }
    }
}

fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
