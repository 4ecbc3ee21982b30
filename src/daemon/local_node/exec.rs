//! Processes run inside this node's containers: so many at once, and none left when the daemon ends.

use std::sync::Arc;

use async_trait::async_trait;
use toft_model::{exec::ExecOrder, ids::InstanceId};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{LocalNode, refused};
use crate::{
    agent::{
        exec::{self, Ways},
        runtime::RuntimeError,
    },
    control::{
        ControlError, ErrorKind,
        node_access::exec::{ExecRefused, ExecSession, NodeExec},
    },
};

/// Processes that may run in containers at once.
const AT_ONCE: usize = 64;
/// Messages that wait on each way.
pub(super) const WAITING: usize = 16;

/// The processes that run now.
#[derive(Clone)]
pub(in crate::daemon) struct Execs {
    places: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Default for Execs {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), tasks: TaskTracker::new() }
    }
}

impl Execs {
    /// Runs something that is to end with the daemon.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Waits until the last has ended after `cancel`.
    pub(in crate::daemon) async fn until_the_end(self, cancel: CancellationToken) {
        cancel.cancelled().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[async_trait]
impl NodeExec for LocalNode {
    async fn exec(&self, instance: InstanceId, order: ExecOrder) -> Result<ExecSession, ExecRefused> {
        let place = Arc::clone(&self.execs.places).try_acquire_owned().map_err(|_| {
            let message = format!("{AT_ONCE} processes run in this node's containers already");
            ControlError::new(ErrorKind::Unavailable, message).hint("end some of them, or try again later")
        })?;
        let (input, from_user) = mpsc::channel(WAITING);
        let (to_user, output) = mpsc::channel(WAITING);
        let (started, answer) = oneshot::channel();
        let (runtime, stop) = (Arc::clone(&self.runtime), self.cancel.clone());
        // A task of its own: whoever asked may be gone at any time, and the process is removed all the same.
        self.execs.tasks.spawn(async move {
            match runtime.exec(instance, &order).await {
                Ok(exec) => {
                    // Nobody there to hear it shows in the ways being closed.
                    let _ = started.send(Ok(()));
                    exec::run(exec, Ways { input: from_user, output: to_user }, stop).await;
                }
                Err(error) => drop(started.send(Err(error))),
            }
            drop(place);
        });
        match answer.await {
            Ok(Ok(())) => Ok(ExecSession { input, output }),
            Ok(Err(error)) => Err(not_started(error)),
            Err(_) => Err(ControlError::new(ErrorKind::Unavailable, "toft is stopping on this node").into()),
        }
    }
}

fn not_started(error: RuntimeError) -> ExecRefused {
    match error {
        RuntimeError::StartFailed { reason, exit_code } => {
            ExecRefused { error: ControlError::new(ErrorKind::Invalid, reason), exit_code: Some(exit_code) }
        }
        other => refused(other).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use toft_model::{
        exec::{ExecInput, ExecOutput},
        ids::NodeId,
    };
    use tokio::sync::Notify;
    use uuid::Uuid;

    use super::*;
    use crate::agent::image::{LoginFiles, Pulls, Registries, Settings};
    use crate::agent::runtime::{ContainerSpec, LoggerCommand, Runtime, fake::FakeRuntime};
    use crate::agent::volumes::{Volumes, VolumesConfig};
    use crate::daemon::mesh::MeshEye;
    use crate::seal::ClusterKey;

    async fn node(cancel: &CancellationToken) -> (LocalNode, InstanceId) {
        let runtime = Arc::new(FakeRuntime::new());
        let (id, image) = (InstanceId(Uuid::new_v4()), "busybox".parse().unwrap());
        runtime.add_image(&image);
        let spec = ContainerSpec::plain(id, image, &["serve"]);
        runtime.create_container(&spec).await.unwrap();
        runtime.create_task(id, &LoggerCommand { program: "/bin/logger".into(), args: Vec::new() }).await.unwrap();
        runtime.start_task(id).await.unwrap();
        let node_id = NodeId(Uuid::new_v4());
        let settings = Settings::default();
        let registries = Registries::new(settings.clone(), Arc::new(LoginFiles(settings)));
        let runtime: Arc<dyn Runtime> = runtime;
        let (pulls, _) = Pulls::new(Arc::clone(&runtime), registries);
        let retry = Arc::new(Notify::new());
        let dir = tempfile::tempdir().unwrap();
        let volumes = VolumesConfig {
            dir: dir.path().join("volumes"),
            pins: dir.path().join("pins"),
            bind_roots: Vec::new(),
            node: "box".parse().unwrap(),
            key: ClusterKey::from_bytes([7; 32]),
        };
        let volumes = Volumes::open(volumes).unwrap();
        (
            LocalNode::new(
                runtime,
                "/nowhere".into(),
                retry,
                (node_id, pulls, volumes, tokio::sync::watch::channel(None).1),
                MeshEye::none(),
                cancel.clone(),
            ),
            id,
        )
    }

    fn order(command: &str) -> ExecOrder {
        let (command, env) = (vec![command.to_owned()], BTreeMap::new());
        ExecOrder { command, env, user: None, dir: None, stdin: false, terminal: None }
    }

    #[tokio::test]
    async fn so_many_run_at_once_and_none_longer_than_the_daemon() {
        let cancel = CancellationToken::new();
        let (node, id) = node(&cancel).await;
        let mut sessions = Vec::new();
        for _ in 0..AT_ONCE {
            sessions.push(node.exec(id, order("serve")).await.unwrap_or_else(|refused| panic!("{refused:?}")));
        }
        let refused = node.exec(id, order("serve")).await.err().unwrap().error;
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        assert!(refused.message.contains("64"), "{refused}");
        // One leaves; its place is free once its process is gone.
        drop(sessions.pop());
        let again = async {
            while node.exec(id, order("no-such-command")).await.err().unwrap().exit_code != Some(127) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.unwrap();
        let ended = node.execs().until_the_end(cancel.clone());
        cancel.cancel();
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
        let last = sessions[0].output.recv().await;
        assert!(matches!(last, Some(ExecOutput::Lost(_))), "{last:?}");
        assert!(sessions[0].input.send(ExecInput::End).await.is_err());
    }
}
