//! How a node reaches another one.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// The way that packets take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeshWay {
    /// From node to node.
    Direct,
    /// Through a member that passes on what it cannot read.
    Relayed {
        /// Which; this node itself, where the other one comes to it for that.
        through: NodeId,
    },
    /// It does not answer.
    None,
}

/// What a node knows of its tunnel to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshLink {
    /// The other one.
    pub node_id: NodeId,
    /// How it is reached.
    pub way: MeshWay,
    /// Where, if directly.
    pub endpoint: Option<SocketAddr>,
    /// Microseconds from a question to its answer, as measured last; absent while it does not answer.
    pub round_trip_us: Option<u64>,
    /// Milliseconds since both agreed on a session; absent: never.
    pub handshake_age_ms: Option<u64>,
}
