//! What time it is, where clocks differ: nodes tell by their own clocks since when something runs.

use std::collections::BTreeMap;

use crate::ids::NodeId;

/// The time by the clock of who plans, and how far nodes' clocks are ahead of that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time<'a> {
    /// Milliseconds since 1970.
    pub(super) now_ms: i64,
    pub(super) ahead_ms: &'a BTreeMap<NodeId, i64>,
}

impl Time<'_> {
    /// What the clock here says when a node's says `there_ms`.
    pub(super) fn here(&self, node: NodeId, there_ms: i64) -> i64 {
        there_ms.saturating_sub(self.ahead_ms.get(&node).copied().unwrap_or(0))
    }
}
