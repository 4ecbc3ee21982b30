//! What instances use.

use serde::{Deserialize, Serialize};
use toft_model::usage::Usage;
use utoipa::ToSchema;

use crate::control::ops::usage::InstanceUsage;

/// What the instances of a node use at one moment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// When it was measured.
    pub at: String,
    /// The instances that run, by workload and number.
    pub instances: Vec<InstanceStats>,
}

/// What one instance uses.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct InstanceStats {
    /// Instance.
    pub instance: String,
    /// Workload.
    pub workload: String,
    /// Node.
    pub node: String,
    /// What it uses.
    #[serde(flatten)]
    pub usage: Usage,
}

impl From<InstanceUsage> for InstanceStats {
    fn from(used: InstanceUsage) -> Self {
        Self {
            instance: used.instance.name(),
            workload: used.instance.workload.to_string(),
            node: used.instance.node.to_string(),
            usage: used.usage,
        }
    }
}
