//! Orders the nodes that can take an instance: the best first.

use crate::ids::NodeId;

/// Spreads: the node with the fewest instances, the lower id on a tie.
pub(super) fn key(node_id: NodeId, residents: usize) -> (usize, NodeId) {
    (residents, node_id)
}
