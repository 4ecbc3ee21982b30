//! The mesh: which nodes a node keeps an encrypted tunnel to, and what it saw of them.
//!
//! [`MeshConfig`] is the whole of what one node's device shall be, [`MeshStatus`] what it is. Private keys are in
//! neither: a configuration names the public key whose other half the node has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

mod node;
mod way;

pub use node::{MAX_TOLD, MeshNode, is_somebodys};
pub use way::{MeshLink, MeshWay};

/// UDP port of the mesh when nobody chose another.
pub const DEFAULT_PORT: u16 = 51820;
/// UDP port at which nodes talk to each other through the mesh.
pub const TALK_PORT: u16 = 7447;
/// Most peers of one node.
pub const MAX_PEERS: usize = 1_024;
/// Most networks behind one peer.
pub const MAX_ALLOWED: usize = 64;
/// Most addresses at which one peer is looked for.
pub const MAX_ENDPOINTS: usize = 16;
/// Smallest size in bytes of the packets a tunnel carries: what IPv6 asks of every link.
pub const MIN_MTU: u16 = 1_280;
/// Largest one: a datagram has room for it and for what the tunnel adds.
pub const MAX_MTU: u16 = 9_000;

/// A node's public key for the mesh (Curve25519).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| {
            Invalid::value("it is no public key of WireGuard", "write its 44 characters as `wg pubkey` prints them")
        })
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A network behind a peer, `10.210.3.0/24` or `fd00::/64`; one address is a network too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshNet {
    address: IpAddr,
    prefix: u8,
}

impl MeshNet {
    /// The network of `prefix` bits that `address` begins. Bits behind the prefix are refused, and so is a network so
    /// large that it can only be a default route.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, Invalid> {
        let (bits, least) = if address.is_ipv4() { (32, 8) } else { (128, 16) };
        if prefix > bits || prefix < least {
            return Err(Invalid::value(
                format!("/{prefix} is no prefix length here"),
                format!("use {least} to {bits}"),
            ));
        }
        let net = Self { address, prefix };
        if net.first() & net.host_mask() != 0 {
            return Err(Invalid::value(
                format!("{net} has bits behind its prefix"),
                format!("write the network's first address, or {address}/{bits} for one address"),
            ));
        }
        Ok(net)
    }

    /// The network of one address.
    pub fn of(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Its first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Its prefix length in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// First and last address as numbers, those of IPv4 as IPv6 maps them, so that one order holds all.
    pub fn range(self) -> (u128, u128) {
        (self.first(), self.first() | self.host_mask())
    }

    /// Whether both have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        let ((first, last), (from, to)) = (self.range(), other.range());
        first <= to && from <= last
    }

    fn first(self) -> u128 {
        number(self.address)
    }

    fn host_mask(self) -> u128 {
        let bits = if self.address.is_ipv4() { 32 } else { 128 } - u32::from(self.prefix);
        1_u128.checked_shl(bits).map_or(u128::MAX, |bit| bit - 1)
    }
}

/// An address as a number, one of IPv4 as IPv6 maps it.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl fmt::Display for MeshNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for MeshNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MeshNet {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::value(format!("`{text}` is no network"), "write it like `10.210.3.0/24` or `fd00::1`");
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        prefix.map_or(Ok(Self::of(address)), |prefix| Self::new(address, prefix))
    }
}

impl Serialize for MeshNet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MeshNet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How packets get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeshPath {
    /// From node to node.
    Direct,
    /// Through a third node, which sees only what is encrypted.
    Relayed,
}

/// Where a peer may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshEndpoint {
    /// Address and UDP port.
    pub address: SocketAddr,
    /// What is there: the peer itself, or somebody who passes on what is sent there.
    pub path: MeshPath,
}

impl MeshEndpoint {
    /// Where the peer itself is.
    pub fn direct(address: SocketAddr) -> Self {
        Self { address, path: MeshPath::Direct }
    }
}

/// Everything one node's device shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshConfig {
    /// The key with which this node speaks. Another than before is a switch, for which the peers know it as the next.
    pub key: PublicKey,
    /// UDP port at which it listens.
    pub listen_port: u16,
    /// Its own addresses in the mesh.
    pub addresses: BTreeSet<IpAddr>,
    /// Networks that are on this node, such as that of its containers. Nobody else may claim them.
    #[serde(default)]
    pub networks: BTreeSet<MeshNet>,
    /// Size in bytes of the packets the tunnel carries; absent: what the paths to the peers have room for.
    pub mtu: Option<u16>,
    /// The others, by their key.
    pub peers: BTreeMap<PublicKey, MeshPeer>,
}

/// One of the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPeer {
    /// The key it will speak with soon. Its networks follow whichever of both it has used last.
    pub next_key: Option<PublicKey>,
    /// Where it may be, most likely first. A device tries the first; authenticated packets from elsewhere move it.
    pub endpoints: Vec<MeshEndpoint>,
    /// What is behind it: its addresses in the mesh and its containers. Nobody else may send from there.
    pub allowed: BTreeSet<MeshNet>,
    /// Seconds after which something is sent even if nobody asks, so that a router between both keeps the way open.
    pub keepalive_s: Option<u16>,
}

impl MeshConfig {
    /// What is wrong with it, if anything: limits, two that claim the same address, and keys that are used twice.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.listen_port == 0 {
            return Err(Invalid::value("port 0 is no port", "use 1 to 65535").at("listen_port"));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
            let hint = format!("use {MIN_MTU} to {MAX_MTU}");
            return Err(Invalid::value(format!("{mtu} is out of range"), hint).at("mtu"));
        }
        if self.peers.len() > MAX_PEERS {
            let message = format!("{} peers are too many", self.peers.len());
            return Err(Invalid::value(message, format!("use at most {MAX_PEERS}")).at("peers"));
        }
        let mut keys = BTreeSet::from([self.key]);
        let mut claims: Vec<(MeshNet, Option<PublicKey>)> = self
            .addresses
            .iter()
            .map(|address| MeshNet::of(*address))
            .chain(self.networks.iter().copied())
            .map(|net| (net, None))
            .collect();
        for (key, peer) in &self.peers {
            let at = |invalid: Invalid| invalid.at(&format!("peers[{key}]"));
            for key in std::iter::once(key).chain(&peer.next_key) {
                if !keys.insert(*key) {
                    let hint = "give every node a key of its own";
                    return Err(at(Invalid::value(format!("the key {key} is used twice"), hint)));
                }
            }
            peer.check().map_err(at)?;
            claims.extend(peer.allowed.iter().map(|net| (*net, Some(*key))));
        }
        claims.sort_by_key(|(net, _)| net.range());
        let mut last: Option<(MeshNet, Option<PublicKey>)> = None;
        for (net, owner) in claims {
            if let Some((other, holder)) = last.filter(|(other, holder)| *holder != owner && other.overlaps(net)) {
                let who = |owner: Option<PublicKey>| owner.map_or("this node".to_owned(), |key| format!("peer {key}"));
                let message = format!("{net} of {} overlaps {other} of {}", who(owner), who(holder));
                return Err(Invalid::value(message, "give every address to one node only").at("peers"));
            }
            if last.is_none_or(|(other, _)| other.range().1 < net.range().1) {
                last = Some((net, owner));
            }
        }
        Ok(())
    }
}

impl MeshPeer {
    fn check(&self) -> Result<(), Invalid> {
        if self.allowed.len() > MAX_ALLOWED {
            let message = format!("{} networks are too many", self.allowed.len());
            return Err(Invalid::value(message, format!("use at most {MAX_ALLOWED}")).at("allowed"));
        }
        if self.endpoints.len() > MAX_ENDPOINTS {
            let message = format!("{} endpoints are too many", self.endpoints.len());
            return Err(Invalid::value(message, format!("use at most {MAX_ENDPOINTS}")).at("endpoints"));
        }
        for endpoint in &self.endpoints {
            let ip = endpoint.address.ip();
            if endpoint.address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
                let message = format!("{} is nobody's address", endpoint.address);
                return Err(Invalid::value(message, "write it like `192.0.2.7:51820`").at("endpoints"));
            }
        }
        if self.keepalive_s == Some(0) {
            return Err(Invalid::value("0 seconds is no time", "use 1 to 65535, or leave it out").at("keepalive_s"));
        }
        Ok(())
    }

    /// What is known of an address from which the peer was heard. Relays are never learned, only told.
    pub fn path_of(&self, seen: SocketAddr) -> MeshPath {
        let told = self.endpoints.iter().find(|endpoint| canonical(endpoint.address) == canonical(seen));
        told.map_or(MeshPath::Direct, |endpoint| endpoint.path)
    }
}

/// An IPv4 address that IPv6 maps is that IPv4 address.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What carries the mesh on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeshDevice {
    /// The kernel's own WireGuard.
    Kernel,
    /// toft itself, on /dev/net/tun.
    Userspace,
    /// Nobody: it is made for tests.
    Fake,
}

/// What a device is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshStatus {
    /// What carries it.
    pub device: MeshDevice,
    /// The key it speaks with.
    pub key: PublicKey,
    /// UDP port at which it listens.
    pub listen_port: u16,
    /// Size in bytes of the packets the tunnel carries.
    pub mtu: u16,
    /// The others, by the key of the configuration.
    pub peers: BTreeMap<PublicKey, MeshPeerStatus>,
}

/// What was seen of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPeerStatus {
    /// Milliseconds since both agreed on a session; absent: never. A live session is younger than three minutes.
    pub handshake_age_ms: Option<u64>,
    /// Where it is reached now.
    pub endpoint: Option<SocketAddr>,
    /// How.
    pub path: Option<MeshPath>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Whether it speaks with its next key already.
    pub uses_next_key: bool,
}

impl MeshPeerStatus {
    /// Whether packets can be sent to it now without asking first.
    pub fn is_live(&self) -> bool {
        self.handshake_age_ms.is_some_and(|age| age < 180_000)
    }
}

/// An address as a number, back to one.
pub fn from_number(number: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(number)).to_canonical()
}

#[cfg(test)]
#[path = "mesh/tests.rs"]
mod tests;
