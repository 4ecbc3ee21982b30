//! What a node observed of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Subnet, Subnet6};
use crate::gpu::Gpu;

/// What a node has and is, as it told when it last registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Inventory {
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Distribution, as people call it.
    pub os: String,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// Version of toft.
    pub version: String,
    /// Version of the container runtime, empty while it is away.
    pub runtime: String,
    /// The network its containers live in; absent when the node can make no bridge.
    #[schema(value_type = Option<String>, example = "10.210.0.0/24")]
    pub subnet: Option<Subnet>,
    /// Their IPv6 network, when the node has it switched on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "fd23:4567:89ab:d203::/64")]
    pub subnet6: Option<Subnet6>,
    /// Names of the container runtimes that `isolation` can ask for; empty when the node does not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolation: Vec<String>,
    /// Its GPUs, in the order in which people count them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
}

impl Inventory {
    /// Power that its cards draw in watts, when they tell.
    pub fn gpu_watts(&self) -> Option<u32> {
        self.gpus.iter().filter_map(|gpu| gpu.watts).reduce(u32::saturating_add)
    }

    /// The labels that are made of it: `toft/arch`, `toft/os`, `toft/gpus` (how many cards), and for each model of card one such
    /// as `toft/gpu.nvidia-geforce-rtx-4090` with the number of cards.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from(
            [("toft/arch", self.arch.clone()), ("toft/os", "linux".to_owned())]
                .map(|(key, value)| (key.to_owned(), value)),
        );
        let mut models = BTreeMap::<String, u32>::new();
        // A MIG device is a part of a card that counts already.
        let cards = self.gpus.iter().filter(|gpu| gpu.parent.is_none());
        for gpu in cards {
            let words = gpu.model.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            let model = words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-");
            *models.entry(model).or_default() += 1;
        }
        if !models.is_empty() {
            labels.insert("toft/gpus".to_owned(), models.values().sum::<u32>().to_string());
        }
        labels.extend(models.into_iter().map(|(model, count)| (format!("toft/gpu.{model}"), count.to_string())));
        labels
    }
}
