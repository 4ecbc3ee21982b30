//! What users say of a card.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GpuId, GpuPolicy};

/// A card's settings. They outlive the card's absence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuSettings {
    /// How many may hold it.
    #[serde(default)]
    pub policy: GpuPolicy,
    /// Whether it takes no new work.
    #[serde(default)]
    pub cordoned: bool,
}

/// The settings of a node's cards; a card that is not in here has the usual ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuSettingsOf(pub BTreeMap<GpuId, GpuSettings>);

impl GpuSettingsOf {
    /// Of one card.
    pub fn of(&self, gpu: &GpuId) -> GpuSettings {
        self.0.get(gpu).copied().unwrap_or_default()
    }
}
