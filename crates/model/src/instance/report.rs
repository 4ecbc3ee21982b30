//! What a node tells of an instance. Only the node writes it; the newest replaces the one before.

use serde::{Deserialize, Serialize};

use super::{Exit, InstanceState};
use crate::{ids::InstanceId, workload::Health};

/// One observation of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// The instance.
    pub instance_id: InstanceId,
    /// Where it stands; `None` says that nothing of it remains on the node.
    pub state: Option<InstanceState>,
    /// Epoch the state belongs to.
    pub epoch: u64,
    /// Automatic restarts since the last start a person asked for.
    pub restarts: u32,
    /// How the last process ended, if one did.
    pub last_exit: Option<Exit>,
    /// Whether it works, when it runs and is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// What somebody should know of it besides; told once, not again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// When it was observed, in milliseconds since 1970.
    pub at_ms: i64,
    /// Grows with everything the node tells, over restarts and whatever its clock says; 0 from a node that does not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sequence: u64,
}

fn is_zero(sequence: &u64) -> bool {
    *sequence == 0
}
