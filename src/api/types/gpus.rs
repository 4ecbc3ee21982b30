//! What the API says of GPUs.

use serde::{Deserialize, Serialize};
use toft_model::gpu::{Gpu, GpuFacts, GpuPolicy};
use utoipa::ToSchema;

use crate::control::ops::gpus::{GpuHolder, GpuView};

/// A GPU of the cluster, or a MIG device of one.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeGpu {
    /// Its node.
    pub node: String,
    /// Its place among the node's GPUs, from 0.
    pub place: usize,
    /// What matters for placement, as its node told last.
    #[serde(flatten)]
    pub gpu: Gpu,
    /// How many may hold it.
    pub policy: GpuPolicy,
    /// Whether it takes no new work.
    pub cordoned: bool,
    /// Memory that instances hold, in MiB, used or not.
    pub reserved_mib: u32,
    /// Who holds it.
    pub holders: Vec<Holder>,
    /// How it is now; only of the node that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<GpuFacts>,
}

/// An instance that holds a GPU or a share of one.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// What people call it.
    pub instance: String,
    /// Its id.
    pub id: String,
    /// Its share in MiB; absent when it has the GPU to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_mib: Option<u32>,
}

/// What to change of a GPU; what is absent stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuChange {
    /// How many may hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<GpuPolicy>,
    /// Whether it takes no new work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<bool>,
}

impl From<GpuView> for NodeGpu {
    fn from(view: GpuView) -> Self {
        let reserved_mib = view.reserved_mib();
        Self {
            node: view.node.to_string(),
            place: view.place,
            gpu: view.gpu,
            policy: view.settings.policy,
            cordoned: view.settings.cordoned,
            reserved_mib,
            holders: view.holders.into_iter().map(Holder::from).collect(),
            facts: view.facts,
        }
    }
}

impl From<GpuHolder> for Holder {
    fn from(holder: GpuHolder) -> Self {
        Self { instance: holder.instance, id: holder.instance_id.to_string(), vram_mib: holder.vram_mib }
    }
}
