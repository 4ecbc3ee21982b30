//! People attached to this node's containers: so many at once.

use std::sync::Arc;

use async_trait::async_trait;
use toft_model::{exec::AttachOrder, ids::InstanceId};
use tokio::sync::{Semaphore, mpsc};

use super::{LocalNode, exec::WAITING, refused};
use crate::{
    agent::{
        attach::{self, Audience},
        exec::Ways,
        runtime::RuntimeError,
    },
    control::{
        ControlError, ErrorKind,
        node_access::{attach::NodeAttach, exec::ExecSession},
    },
};

/// Most that are attached at once.
const AT_ONCE: usize = 64;

/// Who is attached now.
#[derive(Clone)]
pub(in crate::daemon) struct Attached {
    places: Arc<Semaphore>,
    pub(in crate::daemon) audience: Audience,
}

impl Default for Attached {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), audience: Audience::default() }
    }
}

#[async_trait]
impl NodeAttach for LocalNode {
    async fn attach(&self, instance: InstanceId, order: AttachOrder) -> Result<ExecSession, ControlError> {
        let stopping = || ControlError::new(ErrorKind::Unavailable, "toft is stopping on this node");
        let place = Arc::clone(&self.attached.places).try_acquire_owned().map_err(|_| {
            let message = format!("{AT_ONCE} clients are attached to this node's containers already");
            ControlError::new(ErrorKind::Unavailable, message).hint("detach some of them, or try again later")
        })?;
        let mut seats = self.attached.audience.watch();
        let attachment = loop {
            seats.mark_unchanged();
            match self.runtime.attach(instance, &order).await {
                Ok(attachment) => break attachment,
                Err(RuntimeError::NotRunning { .. }) => {
                    tokio::select! {
                        _ = seats.changed() => {}
                        () = self.cancel.cancelled() => return Err(stopping()),
                    }
                }
                Err(error) => return Err(refused(error)),
            }
        };
        let seat = self.attached.audience.seat(instance);
        let (input, from_user) = mpsc::channel(WAITING);
        let (to_user, output) = mpsc::channel(WAITING);
        let stop = self.cancel.clone();
        self.execs.spawn(async move {
            attach::run(attachment, Ways { input: from_user, output: to_user }, stop).await;
            drop((seat, place));
        });
        Ok(ExecSession { input, output })
    }
}
