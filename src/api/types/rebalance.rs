//! Rebalancing.

use serde::{Deserialize, Serialize};
use toft_model::schedule::Rebalance;
use utoipa::ToSchema;

use crate::control::ops::RebalancePlan as Planned;

/// A plan of moves. Nothing of it is kept.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RebalancePlan {
    /// What tells it from other plans; who has it carried out names it.
    #[schema(example = "9f86d081884c7d65")]
    pub plan: String,
    /// The last command that the state held of which it was made.
    pub index: u64,
    /// The plan.
    #[serde(flatten)]
    pub rebalance: Rebalance,
}

impl From<Planned> for RebalancePlan {
    fn from(planned: Planned) -> Self {
        Self { plan: planned.id, index: planned.index, rebalance: planned.rebalance }
    }
}

/// Which plan is to be carried out.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebalanceRequest {
    /// The plan as it was shown.
    pub plan: String,
    /// Most moves, as they were when it was shown: 1 to 1000; default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_moves: Option<u32>,
}
