//! Operations on cards.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::join_all, stream};
use toft_model::{
    gpu::{Gpu, GpuFacts, GpuHold, GpuId, GpuPolicy, GpuSettings},
    ids::{InstanceId, NodeId},
    instance::Desired,
    name::Name,
    node::NodeHealth,
    state::{Command, InstanceView, NodeRow},
};

use super::{Ops, now_ms};
use crate::control::{ControlError, ErrorKind};

/// Longest wait for what another node says of its cards.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most nodes that are asked for it at a time while nobody waits.
const AT_ONCE: usize = 4;

/// A card of the cluster, or a MIG device of one.
#[derive(Debug, Clone)]
pub struct GpuView {
    /// Its node.
    pub node: Name,
    /// Its place among the node's cards.
    pub place: usize,
    /// What the node registered.
    pub gpu: Gpu,
    /// What users say of it.
    pub settings: GpuSettings,
    /// Who holds it.
    pub holders: Vec<GpuHolder>,
    /// How it is now, if its node tells.
    pub facts: Option<GpuFacts>,
}

/// An instance that holds a card or a share of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuHolder {
    /// What people call it.
    pub instance: String,
    /// Its id.
    pub instance_id: InstanceId,
    /// Its share in MiB; absent when it has the card to itself.
    pub vram_mib: Option<u32>,
}

impl GpuView {
    /// Memory that instances hold, in MiB, used or not.
    pub fn reserved_mib(&self) -> u32 {
        let shares = self.holders.iter().map(|holder| holder.vram_mib.unwrap_or(self.gpu.memory_mib));
        shares.fold(0u32, u32::saturating_add).min(self.gpu.memory_mib)
    }
}

/// Cards by their nodes.
type ByCard<T> = HashMap<(NodeId, GpuId), T>;

fn holders<'a>(instances: impl Iterator<Item = &'a InstanceView>) -> ByCard<Vec<GpuHolder>> {
    let mut holders = ByCard::<Vec<GpuHolder>>::new();
    for instance in instances {
        if instance.row.desired == Desired::Removed && instance.row.report.is_none() {
            continue;
        }
        for GpuHold { gpu, vram_mib } in &instance.row.container.gpus {
            let holder = GpuHolder { instance: instance.name(), instance_id: instance.row.id, vram_mib: *vram_mib };
            holders.entry((instance.row.node_id, gpu.clone())).or_default().push(holder);
        }
    }
    holders
}

fn views(node: &NodeRow, holders: &mut ByCard<Vec<GpuHolder>>, facts: &mut ByCard<GpuFacts>) -> Vec<GpuView> {
    let view = |(place, gpu): (usize, &Gpu)| {
        let key = (node.id, gpu.id.clone());
        GpuView {
            node: node.name.clone(),
            place,
            settings: node.gpus.of(&gpu.id),
            holders: holders.remove(&key).unwrap_or_default(),
            facts: facts.remove(&key),
            gpu: gpu.clone(),
        }
    };
    node.inventory.gpus.iter().enumerate().map(view).collect()
}

impl Ops {
    /// Every card, by node and place.
    pub async fn gpus(&self) -> Result<Vec<GpuView>, ControlError> {
        let seen = self.seen().await?;
        let mut holders = holders(seen.instances());
        let mut facts = self.gpu_facts(&seen.nodes).await;
        Ok(seen.nodes.iter().flat_map(|node| views(node, &mut holders, &mut facts)).collect())
    }

    /// The cards of a node, by place, with what it tells of them.
    pub async fn gpus_of(&self, node: &NodeRow, facts: &[GpuFacts]) -> Result<Vec<GpuView>, ControlError> {
        if node.inventory.gpus.is_empty() {
            return Ok(Vec::new());
        }
        let seen = self.seen().await?;
        let mut holders = holders(seen.instances().filter(|instance| instance.row.node_id == node.id));
        let mut facts = facts.iter().map(|card| ((node.id, card.gpu.id.clone()), card.clone())).collect();
        Ok(views(node, &mut holders, &mut facts))
    }

    /// How the cards are now, of the nodes that tell soon.
    async fn gpu_facts(&self, nodes: &[Arc<NodeRow>]) -> ByCard<GpuFacts> {
        let of_node = async |node: &Arc<NodeRow>| {
            if self.node.node_id() == Some(node.id) {
                return Some((node.id, self.node.gpus()));
            }
            if let Some(cards) = self.far_cards.of(node.id, &node.name) {
                return Some((node.id, cards));
            }
            Some((node.id, self.far_facts(node.id, &node.name).await?))
        };
        let ready = nodes.iter().filter(|node| !node.inventory.gpus.is_empty() && node.health == NodeHealth::Ready);
        let told = join_all(ready.map(of_node)).await.into_iter().flatten();
        told.flat_map(|(node, cards)| cards.into_iter().map(move |card| ((node, card.gpu.id.clone()), card))).collect()
    }

    /// What another node says of its cards now.
    async fn far_facts(&self, node: NodeId, name: &Name) -> Option<Vec<GpuFacts>> {
        let access = self.access(node, name).ok()?;
        let facts = tokio::time::timeout(PATIENCE, access.facts()).await.ok()?.ok()?;
        self.far_cards.note(node, name, &facts.gpus);
        Some(facts.gpus)
    }

    /// Asks those nodes for their cards again that somebody looks at, before what they told is of no use any more.
    pub async fn look_at_cards(&self) {
        let due = self.far_cards.due().into_iter();
        let asked = due.map(|(node, name)| async move { self.far_facts(node, &name).await });
        stream::iter(asked).buffer_unordered(AT_ONCE).for_each(async |_| {}).await;
    }

    /// Changes how a card of a node is given away; what is absent stays as it is.
    pub async fn configure_gpu(
        &self,
        node: &Name,
        gpu: GpuId,
        policy: Option<GpuPolicy>,
        cordoned: Option<bool>,
    ) -> Result<(), ControlError> {
        let node = self.node(node).await?;
        if !node.inventory.gpus.iter().any(|card| card.id == gpu) && !node.gpus.0.contains_key(&gpu) {
            let message = format!("the node `{}` has no GPU `{gpu}`", node.name);
            return Err(ControlError::new(ErrorKind::NotFound, message).hint("`toft gpu ls` shows the GPUs there are"));
        }
        if policy == Some(GpuPolicy::Mig) {
            let card = node.inventory.gpus.iter().find(|card| card.id == gpu);
            if let Some(card) = card.filter(|card| card.parent.is_some()) {
                let message = format!("`{}` is a MIG device itself", card.id);
                return Err(ControlError::new(ErrorKind::Invalid, message)
                    .field("policy")
                    .hint("name the card that it is a part of"));
            }
        }
        let command = Command::ConfigureGpu { node_id: node.id, gpu, policy, cordoned, at_ms: now_ms() };
        self.submit(command).await?;
        Ok(())
    }
}
