//! The mesh, as it is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toft_model::{ids::NodeId, mesh::MeshPath};
use utoipa::ToSchema;

use super::NodeAway;
use crate::control::ops::{
    far::Away,
    mesh::{MeshView, PeerView, PingFrom},
};

/// From that difference on a clock is worth a word, in milliseconds.
pub const CLOCK_APART_MS: i64 = crate::control::ops::mesh::CLOCK_APART_MS;

/// The mesh as one node sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Mesh {
    /// Which node looks.
    pub node: String,
    /// Its address in the mesh; absent when it has no mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What carries it: `kernel` or `userspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// UDP port at which it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Size in bytes of the packets its tunnels carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Version of toft.
    pub version: String,
    /// The other nodes, by name.
    pub peers: Vec<MeshPeer>,
}

/// Another node as the one sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MeshPeer {
    /// Its name.
    pub node: String,
    /// Its address in the mesh; absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Where it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How it is reached: `direct`, `relayed` or `none`.
    pub path: String,
    /// The node that passes on what is sent, when it is relayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Milliseconds since both agreed on a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_age_ms: Option<u64>,
    /// Bytes received from it.
    pub received_bytes: u64,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Time to it and back, in microseconds, when it was asked last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
    /// Size in bytes of the packets its own tunnels carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Milliseconds by which its clock is ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// Version of toft.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl From<MeshView> for Mesh {
    fn from(view: MeshView) -> Self {
        let MeshView { from, seen, peers } = view;
        let device = seen.device.and_then(|device| serde_json::to_value(device).ok());
        let name = |peer: &PeerView| Some((peer.seen.as_ref()?.node_id, peer.node.to_string()));
        let names: BTreeMap<NodeId, String> = peers.iter().filter_map(name).collect();
        // Who is no other node is the one that tells.
        let named = |id: &NodeId| names.get(id).cloned().unwrap_or_else(|| from.to_string());
        Self {
            node: from.to_string(),
            address: seen.address.map(|address| address.to_string()),
            device: device.and_then(|device| Some(device.as_str()?.to_owned())),
            listen_port: seen.listen_port,
            mtu: seen.mtu,
            version: seen.version,
            peers: peers.into_iter().map(|peer| MeshPeer::of(peer, named)).collect(),
        }
    }
}

impl MeshPeer {
    fn of(view: PeerView, named: impl Fn(&NodeId) -> String) -> Self {
        let PeerView { id: _, node, seen, mtu } = view;
        let path = match seen.as_ref().and_then(|seen| seen.path) {
            Some(MeshPath::Direct) => "direct",
            Some(MeshPath::Relayed) => "relayed",
            None => "none",
        };
        let seen = seen.as_ref();
        Self {
            node: node.to_string(),
            address: seen.map(|seen| seen.address.to_string()),
            endpoint: seen.and_then(|seen| seen.endpoint).map(|endpoint| endpoint.to_string()),
            path: path.to_owned(),
            via: seen.and_then(|seen| seen.via.as_ref()).map(named),
            handshake_age_ms: seen.and_then(|seen| seen.handshake_age_ms),
            received_bytes: seen.map_or(0, |seen| seen.rx_bytes),
            sent_bytes: seen.map_or(0, |seen| seen.tx_bytes),
            round_trip_us: seen.and_then(|seen| seen.round_trip_us),
            mtu,
            clock_ahead_ms: seen.and_then(|seen| seen.clock_ahead_ms),
            version: seen.and_then(|seen| seen.version.clone()),
        }
    }
}

/// What every node heard when it asked the others through the mesh.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MeshPings {
    /// Each node with what it heard, by name.
    pub rows: Vec<MeshPingRow>,
    /// Nodes that do not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub away: Vec<NodeAway>,
}

/// What one node heard.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MeshPingRow {
    /// Which node asked.
    pub from: String,
    /// Whom, by name.
    pub to: Vec<MeshPing>,
}

/// What came of the packets from one node to another.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MeshPing {
    /// Who was asked.
    pub node: String,
    /// Packets sent.
    pub sent: u32,
    /// How many of a hundred were not answered.
    pub loss_percent: u32,
    /// The shortest time there and back, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_us: Option<u64>,
    /// The time half of the answers were faster than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_us: Option<u64>,
    /// The longest time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_us: Option<u64>,
}

impl MeshPings {
    /// As it is told.
    pub fn of((rows, away): (Vec<PingFrom>, Vec<Away>)) -> Self {
        let row = |PingFrom { from, to }: PingFrom| MeshPingRow {
            from: from.to_string(),
            to: to
                .into_iter()
                .map(|(node, row)| MeshPing {
                    node: node.to_string(),
                    sent: row.sent,
                    loss_percent: row.loss_percent(),
                    least_us: row.round_trips_us.iter().min().copied(),
                    median_us: row.median_us(),
                    most_us: row.round_trips_us.iter().max().copied(),
                })
                .collect(),
        };
        Self { rows: rows.into_iter().map(row).collect(), away: away.into_iter().map(NodeAway::from).collect() }
    }
}
