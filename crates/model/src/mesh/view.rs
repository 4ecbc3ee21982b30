//! The mesh as one node sees it, for people.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{MeshDevice, MeshPath};
use crate::ids::NodeId;

/// Most packets of one ping to each node.
pub const MOST_PACKETS: u32 = 100;

/// What one node sees of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshSeen {
    /// Its own address in the mesh.
    pub address: Option<IpAddr>,
    /// What carries it; absent while nothing does.
    pub device: Option<MeshDevice>,
    /// UDP port at which it listens.
    pub listen_port: Option<u16>,
    /// Size in bytes of the packets its tunnels carry.
    pub mtu: Option<u16>,
    /// Version of toft.
    pub version: String,
    /// The other nodes.
    pub peers: Vec<PeerSeen>,
}

/// What one node sees of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSeen {
    /// Who it is.
    pub node_id: NodeId,
    /// Its address in the mesh.
    pub address: IpAddr,
    /// Where it is reached.
    pub endpoint: Option<SocketAddr>,
    /// How; absent: not at all.
    pub path: Option<MeshPath>,
    /// The node that passes on what is sent, when it is relayed.
    #[serde(default)]
    pub via: Option<NodeId>,
    /// Milliseconds since both agreed on a session.
    pub handshake_age_ms: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Time to it and back when it was asked last, in microseconds; absent when it did not answer.
    pub round_trip_us: Option<u64>,
    /// Milliseconds by which its clock is ahead of this node's; absent when it did not tell.
    #[serde(default)]
    pub clock_ahead_ms: Option<i64>,
    /// Version of toft that it told.
    #[serde(default)]
    pub version: Option<String>,
    /// Whether it told that the disk of its state has no room.
    #[serde(default)]
    pub disk_full: bool,
}

/// What came of packets sent to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingRow {
    /// To whom.
    pub node_id: NodeId,
    /// How many were sent.
    pub sent: u32,
    /// The times to it and back, in microseconds, of those that were answered.
    pub round_trips_us: Vec<u64>,
}

impl PingRow {
    /// How many of a hundred were not answered.
    pub fn loss_percent(&self) -> u32 {
        let answered = (self.round_trips_us.len() as u32).min(self.sent);
        (self.sent - answered) * 100 / self.sent.max(1)
    }

    /// The time half of them were faster than.
    pub fn median_us(&self) -> Option<u64> {
        let mut times = self.round_trips_us.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_median_are_of_what_was_answered() {
        let row = |sent, times: &[u64]| PingRow {
            node_id: NodeId(uuid::Uuid::from_u128(1)),
            sent,
            round_trips_us: times.to_vec(),
        };
        assert_eq!((row(4, &[9, 1, 5]).loss_percent(), row(4, &[9, 1, 5]).median_us()), (25, Some(5)));
        assert_eq!((row(3, &[]).loss_percent(), row(3, &[]).median_us()), (100, None));
        assert_eq!(row(0, &[]).loss_percent(), 0);
        assert_eq!(row(1, &[1, 2]).loss_percent(), 0, "a packet that came twice");
    }
}
