//! What becomes of an instance whose node is lost.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Mount, WorkloadSpec};
use crate::{invalid::Invalid, name::Name};

/// What becomes of an instance whose node is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNodeLoss {
    /// Another starts elsewhere.
    Reschedule,
    /// Its node is waited for.
    Wait,
}

impl OnNodeLoss {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reschedule => "reschedule",
            Self::Wait => "wait",
        }
    }
}

impl fmt::Display for OnNodeLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OnNodeLoss {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::Reschedule, Self::Wait].into_iter().find(|what| what.as_str() == text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Invalid::value(
                format!("`{shown}` is nothing that becomes of an instance without its node"),
                "use `reschedule` or `wait`",
            )
        })
    }
}

impl WorkloadSpec {
    /// What becomes of instances whose node is lost: what is written, or `wait` for what has data on its node and
    /// `reschedule` for the rest. `is_local` says of a volume whether its data lies on one node.
    pub fn on_node_loss(&self, is_local: impl Fn(&Name) -> bool) -> OnNodeLoss {
        self.on_node_loss.unwrap_or_else(|| {
            let holds = self.mounts.iter().any(|mount| match mount {
                Mount::Volume(volume) => is_local(&volume.name),
                Mount::Bind(bind) => !bind.read_only,
            });
            if holds { OnNodeLoss::Wait } else { OnNodeLoss::Reschedule }
        })
    }
}
