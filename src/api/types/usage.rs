//! What instances use.

use serde::{Deserialize, Serialize};
use toft_model::usage::Usage;
use utoipa::ToSchema;

use super::ErrorBody;
use crate::control::ops::{far::Away, usage::InstanceUsage};

/// What instances use at one moment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// When it was measured.
    pub at: String,
    /// The instances that run, by workload and number.
    pub instances: Vec<InstanceStats>,
    /// Nodes that do not tell what theirs use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub away: Vec<NodeAway>,
}

/// A node that does not tell something.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeAway {
    /// Its name.
    pub node: String,
    /// Why.
    pub error: ErrorBody,
}

impl From<Away> for NodeAway {
    fn from(away: Away) -> Self {
        Self { node: away.node.to_string(), error: away.error.into() }
    }
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
