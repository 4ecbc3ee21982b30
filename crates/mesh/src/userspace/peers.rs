//! Who is at the other ends: sessions, where everybody is, and whose addresses are whose. The protocol itself, its
//! handshake and its cryptography, is [`gotatun::noise`]'s; nothing of it is done here.
//!
//! A peer has one lane for each pair of keys that both may speak with: usually one, more while either changes its key.
//! Packets to it go by the newest pair that has a session, and packets from it are taken from all of them, so that a
//! change of keys loses nothing.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use gotatun::{
    noise::{Tunn, TunnResult, handshake::parse_handshake_anon, index_table::IndexTable, rate_limiter::RateLimiter},
    packet::{Packet, WgKind},
    tun::MtuWatcher,
    x25519,
};
use toft_model::mesh::{MeshConfig, MeshPeer, MeshPeerStatus, PublicKey, canonical};

use super::{
    super::keys::PrivateKey,
    headers::{destination, ip_length, source},
};

/// Handshakes a second from one address, and from all together, after which whoever wants more must show that packets
/// reach the address it says it has.
const HANDSHAKES_OF_ONE: u64 = 50;
const HANDSHAKES_OF_ALL: u32 = 200;
/// Handshakes a second that are answered at all, and that are looked at at all. The rest is lost.
const MOST_ANSWERED: u32 = 500;
const MOST_SEEN: u32 = 5_000;
/// The same for those that come from where peers are, so that a flood from elsewhere keeps no peer out.
const MOST_OF_KNOWN: u32 = 1_000;
/// How long sessions of a key go on that this node has changed: as long as sessions live.
const RETIREMENT: Duration = Duration::from_secs(180);

/// Datagrams to be sent, in their order.
pub(super) type Outbox = Vec<(SocketAddr, Packet)>;

/// Everybody, and this node's key.
pub(super) struct Peers {
    identity: Identity,
    slots: Vec<Option<Peer>>,
    by_remote: HashMap<PublicKey, usize>,
    by_index: HashMap<u32, Way>,
    /// Whose addresses are whose: first, last, slot; in order, without overlaps.
    ranges: Vec<(u128, u128, usize)>,
    indices: IndexTable,
    mtu: MtuWatcher,
    next_lane: u64,
    second: Second,
}

struct Identity {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    number: u64,
    limiter: Arc<RateLimiter>,
    /// In force while too much comes in: it takes nobody at their word.
    strict: RateLimiter,
}

/// What has come in within this second.
#[derive(Default)]
struct Second {
    seen: u32,
    answered: u32,
    of_known: u32,
}

struct Peer {
    key: PublicKey,
    config: MeshPeer,
    lanes: Vec<Lane>,
    endpoint: Option<SocketAddr>,
    rx_bytes: u64,
    tx_bytes: u64,
}

struct Lane {
    id: u64,
    /// Number of this node's key.
    identity: u64,
    remote: PublicKey,
    tunn: Tunn,
    tried: Instant,
    /// When it goes, if its key is one this node has changed.
    ends: Option<Instant>,
}

/// A peer, and the pair of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    slot: usize,
    lane: u64,
}

impl Peers {
    /// Nobody, yet.
    pub(super) fn new(key: &PrivateKey) -> Self {
        Self {
            identity: Identity::new(key, 0),
            slots: Vec::new(),
            by_remote: HashMap::new(),
            by_index: HashMap::new(),
            ranges: Vec::new(),
            indices: IndexTable::from_os_rng(),
            mtu: MtuWatcher::new(toft_model::mesh::MIN_MTU),
            next_lane: 0,
            second: Second::default(),
        }
    }

    /// Makes everybody be as `config` says. Who is in it as before is not touched.
    pub(super) fn set(&mut self, key: &PrivateKey, config: &MeshConfig, mtu: u16, now: Instant, out: &mut Outbox) {
        self.mtu = MtuWatcher::new(mtu);
        let switched = PublicKey(self.identity.public.to_bytes()) != key.public();
        if switched {
            self.identity = Identity::new(key, self.identity.number + 1);
            for lane in self.slots.iter_mut().flatten().flat_map(|peer| &mut peer.lanes) {
                lane.ends.get_or_insert(now + RETIREMENT);
                lane.tunn.set_persistent_keepalive(None);
            }
        }
        for slot in 0..self.slots.len() {
            let Some(peer) = &mut self.slots[slot] else { continue };
            // Who has changed its key goes on under the new one.
            let next = peer.config.next_key.filter(|next| config.peers.contains_key(next));
            if let (false, Some(next)) = (config.peers.contains_key(&peer.key), next) {
                peer.key = next;
            }
            if !config.peers.contains_key(&peer.key) {
                self.slots[slot] = None;
            }
        }
        let mut taken: HashMap<PublicKey, usize> =
            self.slots.iter().enumerate().filter_map(|(slot, peer)| Some((peer.as_ref()?.key, slot))).collect();
        for (key, wanted) in &config.peers {
            let slot = taken.remove(key).unwrap_or_else(|| self.free_slot());
            self.set_peer(slot, *key, wanted, switched, now, out);
        }
        self.index();
    }

    fn free_slot(&mut self) -> usize {
        match self.slots.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        }
    }

    fn set_peer(
        &mut self,
        slot: usize,
        key: PublicKey,
        wanted: &MeshPeer,
        switched: bool,
        now: Instant,
        out: &mut Outbox,
    ) {
        let mut peer = self.slots[slot].take().unwrap_or_else(|| Peer::new(key));
        let first = |config: &MeshPeer| config.endpoints.first().map(|endpoint| canonical(endpoint.address));
        // What was learned stays until somebody says something new.
        let moved = first(wanted).is_some() && first(wanted) != first(&peer.config);
        if moved {
            peer.endpoint = first(wanted);
        }
        let remotes: Vec<PublicKey> = std::iter::once(key).chain(wanted.next_key).collect();
        peer.lanes.retain(|lane| remotes.contains(&lane.remote));
        for remote in remotes {
            let number = self.identity.number;
            let known = peer.lanes.iter_mut().find(|lane| lane.remote == remote && lane.identity == number);
            match known {
                Some(lane) => {
                    if lane.tunn.persistent_keepalive() != wanted.keepalive_s {
                        lane.tunn.set_persistent_keepalive(wanted.keepalive_s);
                    }
                }
                None => {
                    self.next_lane += 1;
                    let tunn = Tunn::new(
                        self.identity.private.clone(),
                        x25519::PublicKey::from(remote.0),
                        None,
                        wanted.keepalive_s,
                        self.indices.clone(),
                        Arc::clone(&self.identity.limiter),
                    );
                    let lane = Lane { id: self.next_lane, identity: number, remote, tunn, tried: now, ends: None };
                    peer.lanes.push(lane);
                }
            }
        }
        peer.key = key;
        peer.config = wanted.clone();
        let asks = switched || (moved && wanted.keepalive_s.is_some());
        let number = self.identity.number;
        self.slots[slot] = Some(peer);
        if asks {
            self.ask(slot, number, now, out);
        }
    }

    /// Asks a peer for a session with each of its keys, unless there is one already.
    fn ask(&mut self, slot: usize, identity: u64, now: Instant, out: &mut Outbox) {
        let Some(peer) = &mut self.slots[slot] else { return };
        let Some(endpoint) = peer.endpoint else { return };
        for lane in peer.lanes.iter_mut().filter(|lane| lane.identity == identity) {
            if lane.tunn.has_active_session() {
                continue;
            }
            lane.tried = now;
            if let Some(initiation) = lane.tunn.format_handshake_initiation(true) {
                let kind = WgKind::HandshakeInit(initiation);
                remember(&mut self.by_index, &kind, Way { slot, lane: lane.id });
                peer.tx_bytes += post(out, endpoint, kind);
            }
        }
    }

    /// Makes anew what is found by key, index and address.
    fn index(&mut self) {
        self.by_remote.clear();
        self.ranges.clear();
        for (slot, peer) in self.slots.iter().enumerate() {
            let Some(peer) = peer else { continue };
            self.by_remote.extend(peer.lanes.iter().map(|lane| (lane.remote, slot)));
            self.ranges.extend(peer.config.allowed.iter().map(|net| {
                let (first, last) = net.range();
                (first, last, slot)
            }));
        }
        // A network of a peer may lie within another of the same one; the larger comes first.
        self.ranges.sort_unstable_by_key(|(first, last, _)| (*first, std::cmp::Reverse(*last)));
        self.ranges.dedup_by(|next, before| next.0 <= before.1);
        let slots = &self.slots;
        self.by_index.retain(|_, way| {
            let peer = slots.get(way.slot).and_then(Option::as_ref);
            peer.is_some_and(|peer| peer.lanes.iter().any(|lane| lane.id == way.lane))
        });
    }

    /// Whose an address is.
    fn owner(&self, address: u128) -> Option<usize> {
        let after = self.ranges.partition_point(|(first, _, _)| *first <= address);
        let (_, last, slot) = self.ranges.get(after.checked_sub(1)?)?;
        (address <= *last).then_some(*slot)
    }

    /// The way to whom a packet is for. It holds until the next [`Peers::set`] or [`Peers::tick`].
    pub(super) fn way(&self, packet: &[u8]) -> Option<Way> {
        ip_length(packet)?;
        let slot = self.owner(destination(packet))?;
        let peer = self.slots[slot].as_ref()?;
        peer.endpoint?;
        Some(Way { slot, lane: peer.best(self.identity.number)?.id })
    }

    /// Sends a whole IP packet.
    pub(super) fn send(&mut self, way: Way, packet: BytesMut, now: Instant, out: &mut Outbox) {
        let Some(peer) = self.slots.get_mut(way.slot).and_then(Option::as_mut) else { return };
        let Some(endpoint) = peer.endpoint else { return };
        let Some(lane) = peer.lanes.iter_mut().find(|lane| lane.id == way.lane) else { return };
        let Some(kind) = lane.tunn.handle_outgoing_packet(Packet::from_bytes(packet), Some(&mut self.mtu)) else {
            return;
        };
        let asks = matches!(kind, WgKind::HandshakeInit(_));
        remember(&mut self.by_index, &kind, way);
        peer.tx_bytes += post(out, endpoint, kind);
        if asks && peer.lanes.len() > 1 {
            self.ask(way.slot, self.identity.number, now, out);
        }
    }

    /// Takes a datagram. Gives the IP packet in it, if there is one and its sender may have sent it.
    pub(super) fn receive(&mut self, from: SocketAddr, datagram: BytesMut, out: &mut Outbox) -> Option<BytesMut> {
        let length = datagram.len() as u64;
        let kind = self.admit(from, Packet::from_bytes(datagram), out)?;
        let way = match &kind {
            WgKind::HandshakeInit(initiation) => self.initiator(from.ip(), initiation)?,
            WgKind::HandshakeResp(response) => *self.by_index.get(&response.receiver_idx.get())?,
            WgKind::CookieReply(reply) => *self.by_index.get(&reply.receiver_idx.get())?,
            WgKind::Data(data) => *self.by_index.get(&data.header.receiver_idx.get())?,
        };
        let peer = self.slots.get_mut(way.slot)?.as_mut()?;
        let lane = peer.lanes.iter_mut().find(|lane| lane.id == way.lane)?;
        match lane.tunn.handle_incoming_packet(kind) {
            TunnResult::Done | TunnResult::Err(_) => None,
            TunnResult::WriteToNetwork(answer) => {
                peer.endpoint = Some(from);
                peer.rx_bytes += length;
                remember(&mut self.by_index, &answer, way);
                peer.tx_bytes += post(out, from, answer);
                for waiting in lane.tunn.get_queued_packets(&mut self.mtu) {
                    remember(&mut self.by_index, &waiting, way);
                    peer.tx_bytes += post(out, from, waiting);
                }
                None
            }
            TunnResult::WriteToTunnel(mut packet) => {
                peer.endpoint = Some(from);
                peer.rx_bytes += length;
                let length = ip_length(&packet)?;
                packet.truncate(length);
                let sender = source(&packet);
                (self.owner(sender) == Some(way.slot)).then(|| std::mem::take(packet.buf_mut()))
            }
        }
    }

    /// Lets through what is formed like a message, and of handshakes only as many as can be afforded.
    fn admit(&mut self, from: SocketAddr, datagram: Packet, out: &mut Outbox) -> Option<WgKind> {
        const DATA: u8 = 4;
        if *datagram.first()? == DATA {
            return self.identity.limiter.verify_packet(from, datagram).ok();
        }
        self.second.seen = self.second.seen.saturating_add(1);
        let crowded = self.second.seen > HANDSHAKES_OF_ALL;
        let known = crowded && self.is_where_a_peer_is(from.ip());
        if known {
            self.second.of_known = self.second.of_known.saturating_add(1);
        }
        if (known && self.second.of_known > MOST_OF_KNOWN) || (!known && self.second.seen > MOST_SEEN) {
            return None;
        }
        let limiter = if crowded && !known { &self.identity.strict } else { &*self.identity.limiter };
        match limiter.verify_packet(from, datagram) {
            Ok(kind) => Some(kind),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                out.push((from, cookie.into()));
                None
            }
            Err(_) => None,
        }
    }

    /// Whether a peer is, or may be, at that address.
    fn is_where_a_peer_is(&self, address: IpAddr) -> bool {
        self.slots.iter().flatten().any(|peer| {
            let told = peer.config.endpoints.iter().map(|endpoint| canonical(endpoint.address));
            peer.endpoint.into_iter().chain(told).any(|endpoint| endpoint.ip() == address)
        })
    }

    /// Who begins a handshake, if it is somebody known.
    fn initiator(&mut self, from: IpAddr, initiation: &gotatun::packet::WgHandshakeInit) -> Option<Way> {
        self.second.answered = self.second.answered.saturating_add(1);
        if self.second.answered > MOST_ANSWERED && !self.is_where_a_peer_is(from) {
            return None;
        }
        let half = parse_handshake_anon(&self.identity.private, &self.identity.public, initiation).ok()?;
        let remote = PublicKey(half.peer_static_public);
        let slot = *self.by_remote.get(&remote)?;
        let number = self.identity.number;
        let lanes = &self.slots[slot].as_ref()?.lanes;
        let lane = lanes.iter().find(|lane| lane.remote == remote && lane.identity == number)?;
        Some(Way { slot, lane: lane.id })
    }

    /// What time asks for: keepalives, new sessions, and the end of old ones.
    pub(super) fn tick(&mut self, now: Instant, out: &mut Outbox) {
        let number = self.identity.number;
        for slot in 0..self.slots.len() {
            let Some(peer) = &mut self.slots[slot] else { continue };
            peer.lanes.retain(|lane| lane.ends.is_none_or(|end| now < end));
            let Peer { lanes, endpoint, config, tx_bytes, .. } = peer;
            for lane in lanes {
                let Some(endpoint) = *endpoint else {
                    let _ = lane.tunn.update_timers();
                    continue;
                };
                let mut kind = lane.tunn.update_timers().ok().flatten();
                // A session of a key that is changed is not made anew.
                if lane.ends.is_some() && matches!(kind, Some(WgKind::HandshakeInit(_))) {
                    kind = None;
                }
                let every = config.keepalive_s.map(|seconds| Duration::from_secs(seconds.into()));
                let gave_up = lane.identity == number && lane.tunn.is_expired();
                if gave_up && every.is_some_and(|every| now - lane.tried >= every) {
                    // Whoever keeps a way open keeps trying too.
                    kind = lane.tunn.format_handshake_initiation(true).map(WgKind::HandshakeInit);
                }
                if let Some(kind) = kind {
                    if matches!(kind, WgKind::HandshakeInit(_)) {
                        lane.tried = now;
                    }
                    remember(&mut self.by_index, &kind, Way { slot, lane: lane.id });
                    *tx_bytes += post(out, endpoint, kind);
                }
            }
        }
    }

    /// Ends a second: counts begin anew, and sessions that ended are forgotten.
    pub(super) fn end_second(&mut self) {
        self.second = Second::default();
        self.identity.limiter.try_reset_count();
        self.identity.strict.try_reset_count();
        self.by_index.retain(|index, _| self.indices.in_use(*index));
    }

    /// What was seen of everybody.
    pub(super) fn status(&self) -> BTreeMap<PublicKey, MeshPeerStatus> {
        self.slots.iter().flatten().map(|peer| (peer.key, peer.status())).collect()
    }
}

impl Identity {
    fn new(key: &PrivateKey, number: u64) -> Self {
        let private = key.secret();
        let public = x25519::PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_OF_ONE));
        Self { private, public, number, limiter, strict: RateLimiter::new(&public, 0) }
    }
}

impl Peer {
    fn new(key: PublicKey) -> Self {
        let config = MeshPeer::default();
        Self { key, config, lanes: Vec::new(), endpoint: None, rx_bytes: 0, tx_bytes: 0 }
    }

    /// The lane packets go by: of those with a session that of the newest keys, else the one to ask on.
    fn best(&self, identity: u64) -> Option<&Lane> {
        let newness = |lane: &&Lane| (lane.identity, Some(lane.remote) == self.config.next_key);
        let live = self.lanes.iter().filter(|lane| lane.tunn.has_active_session()).max_by_key(newness);
        live.or_else(|| self.lanes.iter().find(|lane| lane.identity == identity && lane.remote == self.key))
    }

    fn status(&self) -> MeshPeerStatus {
        let age = self.lanes.iter().filter_map(|lane| lane.tunn.time_since_last_handshake()).min();
        let next = |lane: &Lane| Some(lane.remote) == self.config.next_key && lane.tunn.has_active_session();
        MeshPeerStatus {
            handshake_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            endpoint: self.endpoint,
            path: self.endpoint.map(|endpoint| self.config.path_of(endpoint)),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            uses_next_key: self.lanes.iter().any(next),
        }
    }
}

/// Answers to a message of a handshake come back with the index it carries.
fn remember(by_index: &mut HashMap<u32, Way>, kind: &WgKind, way: Way) {
    let index = match kind {
        WgKind::HandshakeInit(initiation) => initiation.sender_idx.get(),
        WgKind::HandshakeResp(response) => response.sender_idx.get(),
        WgKind::CookieReply(_) | WgKind::Data(_) => return,
    };
    by_index.insert(index, way);
}

/// Puts a message into the outbox and gives its length.
fn post(out: &mut Outbox, to: SocketAddr, kind: WgKind) -> u64 {
    let packet: Packet = kind.into();
    let length = packet.len() as u64;
    out.push((to, packet));
    length
}
