//! A device that only says what would be: on a network made of nothing, who has whose keys and addresses can reach whom.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use toft_model::mesh::{MeshConfig, MeshDevice, MeshNet, MeshPeer, MeshPeerStatus, MeshStatus, PublicKey, canonical};

use crate::{Device, MeshError, keys::Keys};

/// The network that devices are on.
#[derive(Debug, Clone, Default)]
pub struct FakeNet(Arc<Mutex<BTreeMap<IpAddr, Node>>>);

#[derive(Debug, Default)]
struct Node {
    config: Option<MeshConfig>,
    peers: BTreeMap<PublicKey, Seen>,
    sets: usize,
    removes: usize,
    failures: usize,
}

#[derive(Debug, Default)]
struct Seen {
    session: Option<Instant>,
    endpoint: Option<SocketAddr>,
    rx_bytes: u64,
    tx_bytes: u64,
    uses_next_key: bool,
}

/// One node's end.
#[derive(Debug)]
pub struct FakeDevice {
    net: FakeNet,
    at: IpAddr,
    /// The keys it has; without them it has every key.
    keys: Option<Arc<Keys>>,
}

impl FakeDevice {
    /// One at an address of the network.
    pub fn new(net: &FakeNet, at: IpAddr) -> Self {
        net.nodes().insert(at, Node::default());
        Self { net: net.clone(), at, keys: None }
    }

    /// The same with keys of its own.
    pub fn with_keys(mut self, keys: Arc<Keys>) -> Self {
        self.keys = Some(keys);
        self
    }

    /// How often it was set.
    pub fn sets(&self) -> usize {
        self.net.nodes()[&self.at].sets
    }

    /// How often it was removed.
    pub fn removes(&self) -> usize {
        self.net.nodes()[&self.at].removes
    }

    /// Lets the next `times` calls of `set` fail.
    pub fn fail(&self, times: usize) {
        if let Some(node) = self.net.nodes().get_mut(&self.at) {
            node.failures = times;
        }
    }

    /// Whether a packet to that address arrives and is answered.
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.net.reach(self.at, address).is_some()
    }
}

impl FakeNet {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a packet from a node to an address behind one of its peers, and an answer back.
    fn reach(&self, from: IpAddr, address: IpAddr) -> Option<()> {
        const BYTES: u64 = 128;
        let mut nodes = self.nodes();
        let own = nodes.get(&from)?.config.clone()?;
        let source = *own.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4())?;
        let (key, peer) = own.peers.iter().find(|(_, peer)| behind(peer, address))?;
        let endpoint = nodes[&from].peers.get(key)?.endpoint?;
        let other = nodes.get(&endpoint.ip())?.config.clone().filter(|other| other.listen_port == endpoint.port())?;
        if other.key != *key && Some(other.key) != peer.next_key {
            return None;
        }
        let (back, knows) =
            other.peers.iter().find(|(back, peer)| **back == own.key || peer.next_key == Some(own.key))?;
        if !behind(knows, source) {
            return None;
        }
        let now = Instant::now();
        let mut note = |node: IpAddr, peer: &PublicKey, seen_at: SocketAddr, next: bool| {
            let seen = nodes.get_mut(&node).and_then(|node| node.peers.get_mut(peer));
            if let Some(seen) = seen {
                if seen.uses_next_key != next {
                    seen.session = None;
                }
                seen.session.get_or_insert(now);
                seen.endpoint = Some(seen_at);
                seen.uses_next_key = next;
                seen.rx_bytes += BYTES;
                seen.tx_bytes += BYTES;
            }
        };
        note(from, key, endpoint, other.key != *key);
        note(endpoint.ip(), back, SocketAddr::new(from, own.listen_port), own.key != *back);
        Some(())
    }
}

fn behind(peer: &MeshPeer, address: IpAddr) -> bool {
    peer.allowed.iter().any(|net| net.overlaps(MeshNet::of(address)))
}

#[async_trait]
impl Device for FakeDevice {
    async fn set(&self, config: &MeshConfig) -> Result<(), MeshError> {
        config.check()?;
        if self.keys.as_ref().is_some_and(|keys| keys.private(config.key).is_none()) {
            return Err(MeshError::NoKey { key: config.key });
        }
        let mut nodes = self.net.nodes();
        let node = nodes.entry(self.at).or_default();
        if node.failures > 0 {
            node.failures -= 1;
            return Err(MeshError::Failed { doing: "pretending", reason: "a test asked for it".to_owned() });
        }
        node.sets += 1;
        let first = |peer: &MeshPeer| peer.endpoints.first().map(|endpoint| canonical(endpoint.address));
        let last = node.config.replace(config.clone());
        let mut old = std::mem::take(&mut node.peers);
        for (key, peer) in &config.peers {
            let before = last.as_ref().and_then(|last| {
                let renamed = || last.peers.iter().find(|(_, peer)| peer.next_key == Some(*key));
                last.peers.get_key_value(key).or_else(renamed)
            });
            let mut seen = before.and_then(|(before, _)| old.remove(before)).unwrap_or_default();
            if before.is_some_and(|(before, _)| before != key) {
                seen.uses_next_key = false;
            }
            if first(peer).is_some() && before.and_then(|(_, before)| first(before)) != first(peer) {
                seen.endpoint = first(peer);
            }
            node.peers.insert(*key, seen);
        }
        Ok(())
    }

    async fn status(&self) -> Result<Option<MeshStatus>, MeshError> {
        let nodes = self.net.nodes();
        let Some((node, config)) = nodes.get(&self.at).and_then(|node| Some((node, node.config.as_ref()?))) else {
            return Ok(None);
        };
        let status = |(key, seen): (&PublicKey, &Seen)| {
            let told = MeshPeerStatus {
                handshake_age_ms: seen.session.map(|at| at.elapsed().as_millis() as u64),
                endpoint: seen.endpoint,
                path: seen.endpoint.map(|endpoint| config.peers[key].path_of(endpoint)),
                rx_bytes: seen.rx_bytes,
                tx_bytes: seen.tx_bytes,
                uses_next_key: seen.uses_next_key,
            };
            (*key, told)
        };
        Ok(Some(MeshStatus {
            device: MeshDevice::Fake,
            key: config.key,
            listen_port: config.listen_port,
            mtu: config.mtu.unwrap_or(1_420),
            peers: node.peers.iter().map(status).collect(),
        }))
    }

    async fn remove(&self) -> Result<(), MeshError> {
        let mut nodes = self.net.nodes();
        let node = nodes.entry(self.at).or_default();
        node.removes += 1;
        node.config = None;
        node.peers.clear();
        Ok(())
    }
}
