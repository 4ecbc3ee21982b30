//! Whether the others hear of a node. Only the leader says so; what users say is [`Availability`](super::Availability).

use serde::{Deserialize, Serialize};

/// Whether a node is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeHealth {
    /// It is.
    #[default]
    Ready,
    /// It said that it will be back in a moment, as it does when it is updated: it gets nothing new, and what runs there counts as
    /// running.
    Away,
    /// Not for a moment: it gets nothing new, and what runs there counts as running.
    Unreachable,
    /// Not for so long that it counts as lost: nobody knows what runs there.
    Down,
    /// Down for so long that what is exclusive has stopped there by itself, if it was only cut off.
    Fenced,
}

impl NodeHealth {
    /// The word for it in the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Away => "away",
            Self::Unreachable => "unreachable",
            Self::Down => "down",
            Self::Fenced => "fenced",
        }
    }

    /// Whether it counts as lost.
    pub fn is_down(self) -> bool {
        matches!(self, Self::Down | Self::Fenced)
    }
}
