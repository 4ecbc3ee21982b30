//! Tells the cluster what this node is: at once, and whenever the runtime comes with another version or the GPUs are others.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use toft_model::{
    gpu::{Gpu, GpuId},
    ids::NodeId,
    node::{NodeHealth, Subnet6},
    state::NodeRow,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::identity::Identity;
use crate::{
    agent::{
        gpu::GpuWatch,
        host::Host,
        runtime::{Availability, Runtime},
    },
    config::Config,
    control::ops::Ops,
    observe::chain,
};

/// How long the GPUs that were there before are waited for: drivers are loaded late, and who tells too early that a card is
/// gone sends its containers away.
const FOR_GPUS: Duration = Duration::from_secs(60);
/// Wait after a registration that was not taken.
const AGAIN: Duration = Duration::from_secs(5);

/// Tells that this node is back, if it said before that it would be.
pub(super) async fn come_back(ops: Ops, node_id: NodeId, cancel: CancellationToken) {
    while let Err(error) = ops.tell_presence(node_id, NodeHealth::Ready).await {
        tracing::warn!(error = chain(&error), "the others could not be told that this node is back");
        if cancel.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
            return;
        }
    }
    cancel.cancelled().await;
}

/// What this node tells of itself.
pub(super) struct Registration {
    pub(super) ops: Ops,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) identity: Identity,
    pub(super) subnet6: Option<Subnet6>,
    pub(super) config: Config,
    pub(super) gpus: GpuWatch,
    pub(super) host: Host,
}

impl Registration {
    /// Tells until `cancel`.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        if cancel.run_until_cancelled(self.wait_for_gpus()).await.is_none() {
            return;
        }
        let mut availability = self.runtime.availability();
        let mut told: Option<(String, Vec<Gpu>)> = None;
        loop {
            let version = match &*availability.borrow_and_update() {
                Availability::Up(version) => version.clone(),
                Availability::Down(_) => told.as_ref().map(|(version, _)| version.clone()).unwrap_or_default(),
            };
            let gpus = self.gpus.borrow_and_update().as_ref().map(|sight| sight.inventory()).unwrap_or_default();
            let now = (version, gpus);
            let failed = told.as_ref() != Some(&now) && !self.tell(&now).await;
            if !failed {
                told = Some(now);
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(AGAIN), if failed => {}
                changed = availability.changed() => if changed.is_err() { return cancel.cancelled().await },
                changed = self.gpus.changed() => if changed.is_err() { return cancel.cancelled().await },
            }
        }
    }

    async fn tell(&self, (version, gpus): &(String, Vec<Gpu>)) -> bool {
        let network = (self.identity.subnet, self.subnet6);
        let inventory = self.host.inventory(version.clone(), network, gpus.clone());
        let node = &self.config.node;
        let told = self.ops.register_node(self.identity.node_id, node.name.clone(), node.labels.clone(), inventory);
        match told.await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(error = chain(&error), "this node could not register");
                false
            }
        }
    }

    /// Waits for the first look, and for the cards that this node told of before.
    async fn wait_for_gpus(&mut self) {
        let id = self.identity.node_id;
        let before = self.ops.state().read(move |connection| NodeRow::by_id(connection, id)).await;
        let before = before.ok().flatten().map(|row| row.inventory.gpus).unwrap_or_default();
        let before: BTreeSet<GpuId> = before.into_iter().map(|gpu| gpu.id).collect();
        let complete = self.gpus.wait_for(|sight| {
            let there = |id: &GpuId| sight.as_ref().is_some_and(|sight| sight.of(id).is_some());
            sight.is_some() && before.iter().all(there)
        });
        if tokio::time::timeout_at(Instant::now() + FOR_GPUS, complete).await.is_err() {
            tracing::warn!("GPUs that were there before toft was started are not seen any more");
        }
    }
}
