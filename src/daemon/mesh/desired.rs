//! What the device shall be, by the state, the configuration file and what is known of places. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use toft_model::{
    ids::NodeId,
    invalid::Invalid,
    mesh::{MAX_ENDPOINTS, MeshConfig, MeshEndpoint, MeshNet, MeshPath, MeshPeer, PublicKey},
    node::{Subnet, Subnet6},
    state::MeshSight,
};

use super::{Me, places::Places};
use crate::{agent::network::OtherNode, config::MeshConfig as Configured};

/// Seconds after which something is sent to a node in any case: routers between both keep the way open, and a tunnel
/// that nobody uses is known to work.
const KEEPALIVE_S: u16 = 25;

/// Where nodes may be.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) places: Places,
    /// Where those are found that are to be relayed.
    pub(super) relayed: BTreeMap<NodeId, SocketAddr>,
}

impl Known {
    fn of(&self, sight: &MeshSight) -> Vec<MeshEndpoint> {
        let relayed = self.relayed.get(&sight.node_id);
        let relayed = relayed.map(|address| MeshEndpoint { address: *address, path: MeshPath::Relayed });
        relayed.into_iter().chain(self.places.of(sight.node_id, &sight.mesh)).take(MAX_ENDPOINTS).collect()
    }
}

/// What the device shall be, and the peers that cannot be in it with the reason.
pub(super) fn desired(
    me: &Me,
    configured: &Configured,
    key: PublicKey,
    sights: &[MeshSight],
    known: &Known,
) -> (MeshConfig, Vec<Invalid>) {
    let mut config = MeshConfig {
        key,
        listen_port: configured.listen_port,
        addresses: std::iter::once(IpAddr::V4(me.subnet.gateway()))
            .chain(me.subnet6.map(|six| six.gateway().into()))
            .collect(),
        networks: networks(me.subnet, me.subnet6).collect(),
        mtu: configured.mtu,
        peers: Default::default(),
    };
    let nodes = sights.iter().filter(|sight| sight.node_id != me.node_id).map(|sight| {
        let peer = MeshPeer {
            next_key: sight.mesh.next_key,
            endpoints: known.of(sight),
            allowed: networks(sight.subnet, six(me, sight.subnet)).collect(),
            keepalive_s: Some(KEEPALIVE_S),
        };
        (sight.mesh.key, peer)
    });
    let written = configured.peers.iter().map(|(key, peer)| (*key, peer.clone()));
    let all: Vec<(PublicKey, MeshPeer)> = nodes.chain(written).collect();
    let mut whole = config.clone();
    whole.peers.extend(all.iter().cloned());
    if whole.peers.len() == all.len() && whole.check().is_ok() {
        return (whole, Vec::new());
    }
    // One who claims what is another's keeps only itself out. Nodes come first.
    let mut refused = Vec::new();
    for (key, peer) in all {
        if config.peers.contains_key(&key) {
            refused.push(Invalid::value(format!("the key {key} is used twice"), "give every peer a key of its own"));
            continue;
        }
        config.peers.insert(key, peer);
        if let Err(invalid) = config.check() {
            config.peers.remove(&key);
            refused.push(invalid);
        }
    }
    (config, refused)
}

/// The other nodes' networks.
pub(super) fn others(me: &Me, sights: &[MeshSight]) -> Vec<OtherNode> {
    let others = sights.iter().filter(|sight| sight.node_id != me.node_id && !sight.subnet.overlaps(me.subnet));
    others.map(|sight| OtherNode { subnet: sight.subnet, subnet6: six(me, sight.subnet) }).collect()
}

/// The IPv6 network that belongs to another node's, where this node has one.
fn six(me: &Me, subnet: Subnet) -> Option<Subnet6> {
    me.subnet6.and(me.cluster).map(|cluster| Subnet6::of(cluster, subnet))
}

fn networks(subnet: Subnet, six: Option<Subnet6>) -> impl Iterator<Item = MeshNet> {
    let six = six.and_then(|six| MeshNet::new(six.base.into(), Subnet6::PREFIX).ok());
    MeshNet::new(subnet.base.into(), subnet.prefix).ok().into_iter().chain(six)
}

#[cfg(test)]
mod tests {
    use toft_model::{ids::ClusterId, mesh::MeshNode};
    use uuid::Uuid;

    use super::*;

    fn sight(number: u8, key: u8) -> MeshSight {
        MeshSight {
            node_id: NodeId(Uuid::from_u128(number.into())),
            mesh: MeshNode {
                key: PublicKey([key; 32]),
                next_key: None,
                port: 51820,
                endpoints: vec![format!("192.0.2.{number}:51820").parse().unwrap()],
                relay_port: None,
            },
            subnet: format!("10.210.{number}.0/24").parse().unwrap(),
        }
    }

    fn me() -> Me {
        let cluster = ClusterId(Uuid::from_u128(7));
        let own = sight(1, 1);
        let subnet6 = Some(Subnet6::of(cluster, own.subnet));
        Me { node_id: own.node_id, subnet: own.subnet, subnet6, cluster: Some(cluster) }
    }

    fn configured(peers: &[(u8, &str)]) -> Configured {
        let peers = peers.iter().map(|(key, allowed)| {
            let allowed = [allowed.parse().unwrap()].into();
            (PublicKey([*key; 32]), MeshPeer { allowed, ..MeshPeer::default() })
        });
        Configured {
            enabled: true,
            interface: None,
            listen_port: 51820,
            mtu: None,
            advertise: Vec::new(),
            relay_listen: None,
            peers: peers.collect(),
        }
    }

    fn keys(config: &MeshConfig) -> Vec<u8> {
        config.peers.keys().map(|key| key.0[0]).collect()
    }

    #[test]
    fn every_other_node_is_a_peer_with_its_networks() {
        let sights = [sight(1, 1), sight(2, 2), sight(3, 3)];
        let configured = configured(&[(9, "10.8.0.2")]);
        let (config, refused) = desired(&me(), &configured, PublicKey([1; 32]), &sights, &Known::default());
        assert_eq!((keys(&config), refused), (vec![2, 3, 9], Vec::new()));
        let peer = &config.peers[&PublicKey([2; 32])];
        let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
        assert_eq!(allowed[0], "10.210.2.0/24");
        assert!(allowed.len() == 2 && allowed[1].starts_with("fd"), "{allowed:?}");
        assert_eq!((peer.endpoints.len(), peer.keepalive_s), (1, Some(25)));
        assert_eq!(others(&me(), &sights).len(), 2);
        // Who is to be relayed is looked for there first.
        let relayed = [(sight(2, 2).node_id, "127.0.0.1:7".parse().unwrap())].into();
        let known = Known { relayed, ..Known::default() };
        let (config, _) = desired(&me(), &configured, PublicKey([1; 32]), &sights, &known);
        let endpoints = &config.peers[&PublicKey([2; 32])].endpoints;
        assert_eq!((endpoints.len(), endpoints[0].path, endpoints[1].path), (2, MeshPath::Relayed, MeshPath::Direct));
        assert_eq!(config.peers[&PublicKey([3; 32])].endpoints.len(), 1);
        // Alone there are none, and so there is no device.
        let (alone, _) = desired(&me(), &self::configured(&[]), PublicKey([1; 32]), &sights[..1], &Known::default());
        assert!(alone.peers.is_empty() && others(&me(), &sights[..1]).is_empty());
    }

    #[test]
    fn who_claims_what_is_anothers_keeps_only_itself_out() {
        let thief = MeshSight { subnet: "10.210.2.0/24".parse().unwrap(), ..sight(4, 4) };
        let mine = MeshSight { subnet: "10.210.1.0/24".parse().unwrap(), ..sight(5, 5) };
        let copied = sight(6, 1);
        let sights = [sight(2, 2), sight(3, 3), thief, mine, copied];
        let configured = configured(&[(3, "10.8.0.1"), (8, "10.210.3.7"), (9, "10.8.0.2")]);
        let (config, refused) = desired(&me(), &configured, PublicKey([1; 32]), &sights, &Known::default());
        assert_eq!(keys(&config), [2, 3, 9]);
        let texts: Vec<&str> = refused.iter().map(|invalid| invalid.message.as_str()).collect();
        assert_eq!(texts.iter().filter(|text| text.contains("overlaps")).count(), 3, "{texts:?}");
        assert_eq!(texts.iter().filter(|text| text.contains("used twice")).count(), 2, "{texts:?}");
        assert_eq!(config.check(), Ok(()));
    }
}
