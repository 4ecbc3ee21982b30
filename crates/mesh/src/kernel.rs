//! The kernel's own WireGuard. What it is told is only what differs from what it says it is, so that sessions of peers
//! that stay the same go on; its interface outlives the daemon and is taken over by the next.

use std::{collections::BTreeMap, io, net::SocketAddr, time::SystemTime};

use async_trait::async_trait;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec,
    packet_route::link::{InfoKind, LinkAttribute, LinkInfo},
};
use toft_model::mesh::{MeshConfig, MeshDevice, MeshNet, MeshPeer, MeshPeerStatus, MeshStatus, PublicKey, canonical};
use tokio::sync::Mutex;
use wireguard_control::{AllowedIp, Backend, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo};

use crate::{
    Device, MeshError, Settings,
    keys::PrivateKey,
    link::{self, Found, Kind, code, failed, find, with_netlink},
    path::sizes,
};

/// The kernel's device.
pub struct KernelDevice {
    settings: Settings,
    /// What was asked for last.
    last: Mutex<Option<MeshConfig>>,
}

impl KernelDevice {
    /// One that is not there yet, or that an earlier daemon left.
    pub fn new(settings: Settings) -> Self {
        Self { settings, last: Mutex::new(None) }
    }

    /// Whether this kernel has WireGuard. It makes an interface to find out, so this is for a network namespace of one's own.
    pub async fn is_supported() -> Result<bool, MeshError> {
        const NAME: &str = "toft-wg-probe";
        match with_netlink(async |handle| make(handle, NAME).await).await {
            Err(MeshError::Unsupported { .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Makes the interface exist. What else of ours has the name makes room.
    async fn ensure(&self) -> Result<(), MeshError> {
        let name = self.settings.interface.as_str();
        with_netlink(async |handle| {
            match find(handle, name).await? {
                Some(Found { kind: Kind::Wireguard, .. }) => return Ok(()),
                Some(Found { kind: Kind::Other, .. }) => return Err(MeshError::NameTaken { name: name.to_owned() }),
                Some(Found { kind: Kind::Tun, .. }) => link::remove(handle, name).await?,
                None => {}
            }
            make(handle, name).await
        })
        .await
    }

    async fn read(&self) -> Result<wireguard_control::Device, MeshError> {
        const DOING: &str = "reading the mesh device";
        let name = interface(&self.settings.interface)?;
        blocking(DOING, move || wireguard_control::Device::get(&name, Backend::Kernel)).await
    }
}

#[async_trait]
impl Device for KernelDevice {
    async fn set(&self, config: &MeshConfig) -> Result<(), MeshError> {
        const DOING: &str = "configuring the mesh device";
        config.check()?;
        let key = self.settings.keys.private(config.key).ok_or(MeshError::NoKey { key: config.key })?;
        let mut last = self.last.lock().await;
        self.ensure().await?;
        let there = self.read().await?;
        let update = update(&there, &key, config, last.as_ref());
        let name = interface(&self.settings.interface)?;
        blocking(DOING, move || update.apply(&name, Backend::Kernel)).await.map_err(|error| taken(error, config))?;
        *last = Some(config.clone());
        let seen = seen(&there);
        let sizes = sizes(config, |key| seen.get(key).and_then(|peer| peer.config.endpoint).map(canonical));
        with_netlink(async |handle| link::shape(handle, &self.settings.interface, config, &sizes, None).await)
            .await
            .map_err(|error| taken(error, config))
    }

    async fn status(&self) -> Result<Option<MeshStatus>, MeshError> {
        let last = self.last.lock().await;
        let Some(config) = &*last else { return Ok(None) };
        let name = self.settings.interface.as_str();
        let Some(found) = with_netlink(async |handle| find(handle, name).await).await? else { return Ok(None) };
        let there = self.read().await?;
        let seen = seen(&there);
        let peers = config.peers.iter().map(|(key, peer)| (*key, status(*key, peer, &seen))).collect();
        Ok(Some(MeshStatus {
            device: MeshDevice::Kernel,
            key: there.public_key.map_or(config.key, |key| PublicKey(key.0)),
            listen_port: there.listen_port.unwrap_or(config.listen_port),
            mtu: u16::try_from(found.mtu).unwrap_or(u16::MAX),
            peers,
        }))
    }

    async fn remove(&self) -> Result<(), MeshError> {
        let mut last = self.last.lock().await;
        *last = None;
        with_netlink(async |handle| link::remove(handle, &self.settings.interface).await).await
    }
}

async fn make(handle: &Handle, name: &str) -> Result<(), MeshError> {
    let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]);
    let message = LinkMessageBuilder::<LinkUnspec>::default().name(name).append_extra_attribute(kind).build();
    match handle.link().add(message).execute().await {
        Err(error) if code(&error) == Some(Errno::EOPNOTSUPP) => {
            Err(MeshError::Unsupported { what: "the kernel's module `wireguard`" })
        }
        other => other.map_err(failed("making the mesh interface")),
    }
}

type Seen = BTreeMap<PublicKey, PeerInfo>;

fn seen(there: &wireguard_control::Device) -> Seen {
    there.peers.iter().map(|peer| (PublicKey(peer.config.public_key.0), peer.clone())).collect()
}

/// What must be said so that the device becomes `config`.
fn update(
    there: &wireguard_control::Device,
    key: &PrivateKey,
    config: &MeshConfig,
    last: Option<&MeshConfig>,
) -> DeviceUpdate {
    let mut update = DeviceUpdate::new();
    // Told again it would make every session anew. The kernel keeps the private half in a form of its own.
    if there.public_key.as_ref().is_none_or(|own| own.0 != key.public().0) {
        update = update.set_private_key(Key(*key.bytes()));
    }
    if there.listen_port != Some(config.listen_port) {
        update = update.set_listen_port(config.listen_port);
    }
    let seen = seen(there);
    let wanted: BTreeMap<PublicKey, Entry<'_>> =
        config.peers.iter().flat_map(|(key, peer)| entries(*key, peer, &seen)).collect();
    // Who goes, goes first: its addresses may be another's now.
    for key in seen.keys().filter(|key| !wanted.contains_key(key)) {
        update = update.remove_peer_by_key(&Key(key.0));
    }
    for (key, entry) in &wanted {
        if let Some(peer) = entry.changes(*key, seen.get(key), last) {
            update = update.add_peer(peer);
        }
    }
    update
}

/// What the kernel holds for one key.
struct Entry<'a> {
    /// The key by which the configuration knows the peer.
    of: PublicKey,
    peer: &'a MeshPeer,
    /// Whether the peer's networks are behind this key.
    carries: bool,
}

/// A peer that changes its key is two for the kernel. Its networks are behind the one that was heard last.
fn entries<'a>(key: PublicKey, peer: &'a MeshPeer, seen: &Seen) -> Vec<(PublicKey, Entry<'a>)> {
    let uses_next = uses_next(key, peer, seen);
    let mut all = vec![(key, Entry { of: key, peer, carries: !uses_next })];
    all.extend(peer.next_key.map(|next| (next, Entry { of: key, peer, carries: uses_next })));
    all
}

fn uses_next(key: PublicKey, peer: &MeshPeer, seen: &Seen) -> bool {
    let heard = |key: &PublicKey| seen.get(key).and_then(|peer| peer.stats.last_handshake_time);
    peer.next_key.and_then(|next| heard(&next)).is_some_and(|next| heard(&key).is_none_or(|now| next > now))
}

impl Entry<'_> {
    /// What must be said of it, if anything.
    fn changes(
        &self,
        key: PublicKey,
        there: Option<&PeerInfo>,
        last: Option<&MeshConfig>,
    ) -> Option<PeerConfigBuilder> {
        let mut change = PeerConfigBuilder::new(&Key(key.0));
        let mut differs = there.is_none();
        let first = |peer: &MeshPeer| peer.endpoints.first().map(|endpoint| canonical(endpoint.address));
        let endpoint = there.and_then(|there| there.config.endpoint).map(canonical);
        let known = last.and_then(|last| last.peers.get(&self.of)).map(first);
        // What the kernel learned stays until somebody says something new. After a restart nobody knows what was said.
        let news = match known {
            Some(known) => first(self.peer) != known,
            None => endpoint.is_none() || !there.is_some_and(is_live),
        };
        if let Some(address) =
            first(self.peer).filter(|address| (news || there.is_none()) && Some(*address) != endpoint)
        {
            change = change.set_endpoint(address);
            differs = true;
        }
        let keepalive = there.and_then(|there| there.config.persistent_keepalive_interval).filter(|every| *every > 0);
        if keepalive != self.peer.keepalive_s {
            change = change.set_persistent_keepalive_interval(self.peer.keepalive_s.unwrap_or(0));
            differs = true;
        }
        let wanted: Vec<MeshNet> = if self.carries { self.peer.allowed.iter().copied().collect() } else { Vec::new() };
        let mut held: Vec<MeshNet> =
            there.iter().flat_map(|there| &there.config.allowed_ips).filter_map(network).collect();
        held.sort_unstable();
        if held != wanted {
            let allowed: Vec<AllowedIp> =
                wanted.iter().map(|net| AllowedIp { address: net.address(), cidr: net.prefix() }).collect();
            change = change.replace_allowed_ips().add_allowed_ips(&allowed);
            differs = true;
        }
        differs.then_some(change)
    }
}

fn network(allowed: &AllowedIp) -> Option<MeshNet> {
    MeshNet::new(allowed.address, allowed.cidr).ok()
}

fn age_ms(peer: &PeerInfo) -> Option<u64> {
    let at = peer.stats.last_handshake_time?;
    // A clock that was set back makes it new.
    let age = SystemTime::now().duration_since(at).unwrap_or_default();
    Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

fn is_live(peer: &PeerInfo) -> bool {
    age_ms(peer).is_some_and(|age| age < 180_000)
}

fn status(key: PublicKey, peer: &MeshPeer, seen: &Seen) -> MeshPeerStatus {
    let uses_next_key = uses_next(key, peer, seen);
    let both = || std::iter::once(key).chain(peer.next_key).filter_map(|key| seen.get(&key));
    let used = if uses_next_key { peer.next_key.unwrap_or(key) } else { key };
    let endpoint: Option<SocketAddr> = seen.get(&used).and_then(|there| there.config.endpoint).map(canonical);
    MeshPeerStatus {
        handshake_age_ms: both().filter_map(age_ms).min(),
        endpoint,
        path: endpoint.map(|endpoint| peer.path_of(endpoint)),
        rx_bytes: both().map(|there| there.stats.rx_bytes).sum(),
        tx_bytes: both().map(|there| there.stats.tx_bytes).sum(),
        uses_next_key,
    }
}

fn interface(name: &str) -> Result<InterfaceName, MeshError> {
    name.parse().map_err(|_| MeshError::Failed {
        doing: "naming the mesh interface",
        reason: format!("`{name}` is no name of an interface"),
    })
}

/// The kernel binds the port when the interface comes up, or when it is told another.
fn taken(error: MeshError, config: &MeshConfig) -> MeshError {
    let words = io::Error::from(Errno::EADDRINUSE).to_string();
    match error {
        MeshError::Failed { reason, .. } if reason == words => MeshError::PortTaken { port: config.listen_port },
        other => other,
    }
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, MeshError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| MeshError::io(doing, &error)),
        Err(error) => Err(MeshError::Failed { doing, reason: error.to_string() }),
    }
}
