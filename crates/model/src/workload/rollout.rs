//! How far a specification has reached the instances, and why it was written.

use serde::{Deserialize, Serialize};

/// How far the newest specification has reached the instances.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Rollout {
    /// Instances are still replaced, or have not come to work yet.
    Rolling,
    /// Every instance was made from it and has worked.
    #[default]
    Done,
    /// A successor did not come to work; nothing more is replaced.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Rollout {
    /// The word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Rolling => "rolling",
            Self::Done => "done",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Why a version was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum VersionCause {
    /// A user wrote it.
    User,
    /// An older version was written again.
    Rollback {
        /// Which.
        to: u64,
        /// Why, when no user asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}
