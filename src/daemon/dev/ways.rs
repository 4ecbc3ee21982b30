//! The mesh of made-up machines: everybody meets everybody, but for the first and the last, whom another relays.

use std::net::{IpAddr, Ipv4Addr};

use toft_model::{
    ids::NodeId,
    mesh::{
        MeshDevice, MeshPath,
        view::{MeshSeen, PeerSeen},
    },
    name::Name,
};

use crate::{
    agent::made_up::{Wave, hash},
    consensus::Handle,
};

/// Where made-up meshes listen.
const PORT: u16 = 51_820;

/// What a member sees: the others, at distances that depend on both.
pub(super) fn made_up(state: Handle) -> impl Fn() -> MeshSeen + Send + Sync {
    move || {
        let status = state.status();
        let own = status.identity.member_id;
        let mut members: Vec<(NodeId, Name, bool)> =
            status.members.into_iter().map(|m| (m.member.node_id, m.member.name, m.id == own)).collect();
        members.sort_by(|a, b| a.1.as_str().len().cmp(&b.1.as_str().len()).then_with(|| a.1.cmp(&b.1)));
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let place = members.iter().position(|member| member.2).unwrap_or(0);
        // Of three or more the first and the last do not meet: the second relays.
        let relayed = |other: usize| {
            let last = members.len() - 1;
            members.len() > 2 && ((place == 0 && other == last) || (place == last && other == 0))
        };
        let peer = |(other, (node_id, name, _)): (usize, &(NodeId, Name, bool))| {
            let pair = if place < other { (place, other) } else { (other, place) };
            let middle = 180.0 + (hash(&format!("{pair:?}")) % 900) as f64 + if relayed(other) { 9_000.0 } else { 0.0 };
            let traffic = Wave::new(name.as_str(), 2e5).between(now_ms - 86_400_000, now_ms);
            PeerSeen {
                node_id: *node_id,
                address: address(other),
                endpoint: Some((IpAddr::V4(Ipv4Addr::new(192, 168, 1, 20 + other as u8)), PORT).into()),
                path: Some(if relayed(other) { MeshPath::Relayed } else { MeshPath::Direct }),
                via: relayed(other).then(|| members[1].0),
                handshake_age_ms: Some((now_ms + i64::from(other as u8) * 31_000).rem_euclid(120_000) as u64),
                rx_bytes: traffic as u64,
                tx_bytes: (traffic * 0.8) as u64,
                round_trip_us: Some(Wave::new(&format!("{pair:?}"), middle).at(now_ms) as u64),
                clock_ahead_ms: Some((hash(name.as_str()) % 9) as i64 - 4),
                version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                disk_full: false,
            }
        };
        let peers = members.iter().enumerate().filter(|(other, _)| *other != place).map(peer).collect();
        MeshSeen {
            address: Some(address(place)),
            device: Some(MeshDevice::Fake),
            listen_port: Some(PORT),
            mtu: Some(1_420),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peers,
        }
    }
}

fn address(place: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 210, place as u8, 1))
}
