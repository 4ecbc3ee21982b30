//! The way to nodes that no datagram reaches: through a member that both reach by TCP, inside TLS with the cluster's
//! certificates. What is carried are WireGuard's own packets, which only the two ends can read.
//!
//! For the device a relayed peer is at an address of this machine: a UDP socket, one for each such peer, whose packets go to
//! whichever relay is nearest ([`link`]; [`hub`] is the relay that this node is for others). So no device knows of relays, and
//! another relay takes over without its notice. While a peer is relayed, some of its packets are tried directly as well, from the
//! device's own port: once one gets through, WireGuard itself goes on there.

mod hub;
mod link;
mod queue;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use toft_mesh::knock::Knocker;
use toft_model::{
    ids::NodeId,
    mesh::{MAX_PEERS, MeshConfig, MeshLink, MeshPath, MeshPeerStatus, MeshStatus, MeshWay},
    state::MeshSight,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Me, talk::Pulse};
use crate::consensus::{Handle, types::Member};
pub(super) use hub::{Counter, Hub};
use link::Link;
pub(super) use link::addresses;
use socket::Socket;

/// Time between two looks at who is to be relayed.
const LOOK: Duration = Duration::from_millis(500);
/// How long a node may be silent until a relay is called, and until its packets go there: it is asked each five seconds, and each
/// second once an answer is missing.
const LATE: Duration = Duration::from_millis(6_500);
const LOST: Duration = Duration::from_secs(8);
/// The same for a node that was never heard: both sides look for each other meanwhile.
const NEW_LATE: Duration = Duration::from_secs(3);
const NEW_LOST: Duration = Duration::from_secs(6);
/// Relays that carry for this node at a time, and of those it misses how many are called for that first: who answers them
/// directly needs no third.
const RELAYS: usize = 3;
const MISSED: usize = 2;
/// How long relays are kept after the last one was needed.
const KEEP: Duration = Duration::from_secs(60);
/// Wait before a relay is called again that did not answer, and the longest one.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_MOST: Duration = Duration::from_secs(30);
/// What is taken for the way to a relay until it is measured.
const UNKNOWN: Duration = Duration::from_millis(500);
/// Most nodes of one relay that are remembered.
const MOST: usize = MAX_PEERS;

/// The node that 16 bytes name.
fn id(bytes: &[u8]) -> Option<NodeId> {
    Uuid::from_slice(bytes).ok().map(NodeId)
}

/// What the parts of this have in common.
struct Shared {
    me: NodeId,
    hub: Arc<Hub>,
    links: Mutex<BTreeMap<NodeId, Link>>,
    /// By peer, the relay that its packets go to; this node itself, if the peer comes here for that.
    routes: Mutex<BTreeMap<NodeId, NodeId>>,
    sockets: Mutex<BTreeMap<NodeId, Arc<Socket>>>,
    /// Peers of whom something came in and who have no socket yet.
    needed: Mutex<BTreeSet<NodeId>>,
    news: Notify,
    /// UDP port of the device.
    port: u16,
    /// Absent where packets cannot be sent past its socket: then who is relayed is not tried directly.
    knocker: Option<Knocker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, BTreeMap<NodeId, Link>> {
        lock(&self.links)
    }

    /// Takes a datagram from the device to a peer.
    fn send(&self, to: NodeId, content: Vec<u8>) {
        let Some(relay) = lock(&self.routes).get(&to).copied() else { return };
        if relay == self.me {
            self.hub.pass(self.me, to, content);
        } else if let Some(link) = self.links().get(&relay) {
            link.queue.push(to, content);
        }
    }

    /// Takes a datagram from a peer to the device.
    fn deliver(&self, from: NodeId, content: &[u8]) {
        let socket = lock(&self.sockets).get(&from).cloned();
        match socket {
            Some(socket) => socket.give(content),
            None => {
                // It comes again.
                let mut needed = lock(&self.needed);
                if needed.len() < MOST && needed.insert(from) {
                    self.news.notify_one();
                }
            }
        }
    }

    /// The nearest relay for every peer that one is there for. One that is hardly nearer than the present one is left alone.
    fn choose(&self) {
        let mut offers: BTreeMap<NodeId, Vec<(Duration, NodeId)>> = BTreeMap::new();
        for (peer, distance) in self.hub.present() {
            offers.entry(peer).or_default().push((distance, self.me));
        }
        for (relay, link) in self.links().iter() {
            let here = link.round_trip.unwrap_or(UNKNOWN);
            for (peer, distance) in &link.present {
                offers.entry(*peer).or_default().push((here + *distance, *relay));
            }
        }
        offers.remove(&self.me);
        let mut routes = lock(&self.routes);
        let mut chosen = BTreeMap::new();
        for (peer, offers) in offers {
            let Some((nearest, relay)) = offers.iter().min().copied() else { continue };
            let present = routes.get(&peer).and_then(|now| offers.iter().find(|(_, relay)| relay == now));
            let stays = present.filter(|(distance, _)| *distance <= nearest * 3 / 2 + Duration::from_millis(2));
            chosen.insert(peer, stays.map_or(relay, |(_, relay)| *relay));
        }
        *routes = chosen;
    }
}

/// What the relays follow.
pub(super) struct Followed {
    pub(super) sights: watch::Receiver<Vec<MeshSight>>,
    pub(super) observed: watch::Receiver<Option<MeshStatus>>,
    pub(super) wanted: watch::Receiver<Option<MeshConfig>>,
    pub(super) pulse: watch::Receiver<BTreeMap<Ipv4Addr, Pulse>>,
}

/// What follows of it.
pub(super) struct Told {
    /// By node that is to be relayed, where the device finds it.
    pub(super) relayed: watch::Sender<BTreeMap<NodeId, SocketAddr>>,
    /// What is known of the way to each node.
    pub(super) links: watch::Sender<Vec<MeshLink>>,
}

/// The task.
pub(super) struct Relays {
    me: Me,
    state: Handle,
    shared: Arc<Shared>,
    followed: Followed,
    told: Told,
}

/// A node as the relays see it.
struct Peer {
    node: NodeId,
    /// Whether it is silent, or relayed: then relays are called.
    missed: bool,
    /// Whether its packets shall go through a relay.
    lost: bool,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Memory {
    /// When each node was seen for the first time.
    since: BTreeMap<NodeId, Instant>,
    /// Relays that are called.
    calls: JoinSet<(NodeId, String, Instant)>,
    called: BTreeMap<NodeId, tokio::task::AbortHandle>,
    /// Relays that did not answer: when each is called again, and the wait after that.
    failed: BTreeMap<NodeId, (Instant, Duration)>,
    needed: Option<Instant>,
    readers: JoinSet<NodeId>,
    reading: BTreeMap<NodeId, tokio::task::AbortHandle>,
}

impl Relays {
    /// The relays of a node whose device listens at `port`.
    pub(super) fn new(me: Me, port: u16, state: Handle, hub: Arc<Hub>, followed: Followed, told: Told) -> Self {
        let shared = Shared {
            me: me.node_id,
            port,
            hub,
            links: Mutex::default(),
            routes: Mutex::default(),
            sockets: Mutex::default(),
            needed: Mutex::default(),
            news: Notify::new(),
            knocker: Knocker::open().ok(),
        };
        Self { me, state, shared: Arc::new(shared), followed, told }
    }

    /// Relays until `cancel`.
    pub(super) async fn run(self, cancel: CancellationToken) {
        let Some(seat) = self.shared.hub.seat(self.me.node_id, Some(Duration::ZERO)) else { return };
        let inward = async {
            while let Some(message) = seat.queue.next().await {
                for datagram in message.datagrams {
                    if let Some(from) = id(&datagram.node) {
                        self.shared.deliver(from, &datagram.content);
                    }
                }
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = inward => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let (mut memory, mut changed) = (Memory::default(), self.shared.hub.watch());
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.shared.news.notified() => {}
                _ = changed.changed() => {}
            }
            self.look(&mut memory);
        }
    }

    fn look(&self, memory: &mut Memory) {
        let now = Instant::now();
        let sights = self.followed.sights.borrow().clone();
        let others: Vec<&MeshSight> = sights.iter().filter(|sight| sight.node_id != self.me.node_id).collect();
        let nodes: BTreeSet<NodeId> = others.iter().map(|sight| sight.node_id).collect();
        self.forget_others(memory, &nodes);
        let peers: Vec<Peer> = others.iter().map(|sight| self.consider(memory, sight, now)).collect();
        if peers.iter().any(|peer| peer.missed) {
            memory.needed = Some(now);
        }
        self.call(memory, &sights, &peers, now);
        self.shared.choose();
        let routed: BTreeSet<NodeId> = lock(&self.shared.routes).keys().copied().collect();
        let wanted = peers.iter().filter(|peer| peer.lost && routed.contains(&peer.node)).map(|peer| peer.node);
        let wanted: BTreeSet<NodeId> = wanted.collect();
        let mut open = std::mem::take(&mut *lock(&self.shared.needed));
        open.extend(&wanted);
        for node in open.intersection(&nodes) {
            if let Err(error) = self.open(memory, *node) {
                tracing::warn!(%error, "packets to a node cannot be relayed");
            }
        }
        self.tell_where_to_try(&others);
        let relayed: BTreeMap<NodeId, SocketAddr> = {
            let sockets = lock(&self.shared.sockets);
            wanted.iter().filter_map(|node| Some((*node, sockets.get(node)?.address))).collect()
        };
        self.told.relayed.send_if_modified(|before| super::follow::replace(before, &relayed));
        let links = others.iter().map(|sight| self.link(sight, now)).collect();
        self.tell(links);
    }

    fn status(&self, sight: &MeshSight) -> Option<MeshPeerStatus> {
        self.followed.observed.borrow().as_ref()?.peers.get(&sight.mesh.key).cloned()
    }

    fn pulse(&self, sight: &MeshSight) -> Option<Pulse> {
        self.followed.pulse.borrow().get(&sight.subnet.gateway()).copied()
    }

    /// Whether the device sends to a node through a relay now.
    fn is_relayed(&self, node: NodeId, status: Option<&MeshPeerStatus>) -> bool {
        let socket = lock(&self.shared.sockets).get(&node).map(|socket| socket.address);
        socket.is_some() && status.and_then(|status| status.endpoint) == socket
    }

    fn consider(&self, memory: &mut Memory, sight: &MeshSight, now: Instant) -> Peer {
        let since = *memory.since.entry(sight.node_id).or_insert(now);
        let relayed = self.is_relayed(sight.node_id, self.status(sight).as_ref());
        let (silence, late, lost) = match self.pulse(sight) {
            Some(pulse) => (now.duration_since(pulse.at), LATE, LOST),
            None => (now.duration_since(since), NEW_LATE, NEW_LOST),
        };
        Peer { node: sight.node_id, missed: relayed || silence >= late, lost: relayed || silence >= lost }
    }

    /// Forgets nodes that are none any more.
    fn forget_others(&self, memory: &mut Memory, nodes: &BTreeSet<NodeId>) {
        memory.since.retain(|node, _| nodes.contains(node));
        memory.failed.retain(|node, _| nodes.contains(node));
        lock(&self.shared.sockets).retain(|node, _| nodes.contains(node));
        for tasks in [&mut memory.called, &mut memory.reading] {
            tasks.retain(|node, task| {
                let stays = nodes.contains(node);
                if !stays {
                    task.abort();
                }
                stays
            });
        }
    }

    /// Calls relays while one is needed, and for a while after that.
    fn call(&self, memory: &mut Memory, sights: &[MeshSight], peers: &[Peer], now: Instant) {
        while let Some(ended) = memory.calls.try_join_next() {
            let Ok((relay, reason, since)) = ended else { continue };
            memory.called.remove(&relay);
            tracing::debug!(reason, "a relay does not carry for this node any more");
            // Who carried for a while is asked at once.
            let before = memory.failed.get(&relay).map_or(AGAIN, |(_, wait)| *wait);
            let wait = if now.duration_since(since) > AGAIN_MOST { AGAIN } else { before };
            memory.failed.insert(relay, (now + wait, (wait * 2).min(AGAIN_MOST)));
        }
        if memory.needed.is_none_or(|needed| now.duration_since(needed) > KEEP) {
            memory.called.values().for_each(tokio::task::AbortHandle::abort);
            memory.called.clear();
            return;
        }
        let members: BTreeMap<NodeId, Member> = self
            .state
            .members()
            .into_values()
            .map(|member| (member.node_id, member))
            .filter(|(node, member)| *node != self.me.node_id && !member.address.is_empty())
            .collect();
        let missed = peers.iter().filter(|peer| peer.missed).map(|peer| peer.node).take(MISSED);
        let order: Vec<NodeId> = missed.chain(members.keys().copied()).collect();
        let mut enough = 0;
        let mut seen = BTreeSet::new();
        for relay in order.into_iter().filter(|relay| seen.insert(*relay)) {
            let Some(member) = members.get(&relay) else { continue };
            if enough >= RELAYS {
                break;
            }
            if memory.called.contains_key(&relay) {
                enough += usize::from(self.shared.links().contains_key(&relay));
                continue;
            }
            if memory.failed.get(&relay).is_some_and(|(at, _)| now < *at) {
                continue;
            }
            let mesh = sights.iter().find(|sight| sight.node_id == relay).map(|sight| &sight.mesh);
            let addresses = link::addresses(member, mesh);
            let held = link::find(Arc::clone(&self.shared), self.state.clone(), relay, addresses);
            let task = memory.calls.spawn(async move { (relay, held.await, now) });
            memory.called.insert(relay, task);
        }
    }

    /// Opens the socket of a peer, unless it is open.
    fn open(&self, memory: &mut Memory, node: NodeId) -> io::Result<()> {
        while memory.readers.try_join_next().is_some() {}
        if lock(&self.shared.sockets).contains_key(&node) {
            return Ok(());
        }
        let socket = Arc::new(Socket::open(self.shared.port)?);
        lock(&self.shared.sockets).insert(node, Arc::clone(&socket));
        let shared = Arc::clone(&self.shared);
        let task = memory.readers.spawn(async move {
            socket.read(&shared, node).await;
            node
        });
        memory.reading.insert(node, task);
        Ok(())
    }

    /// Says where peers that are relayed may be reached directly.
    fn tell_where_to_try(&self, others: &[&MeshSight]) {
        let wanted = self.followed.wanted.borrow();
        let sockets = lock(&self.shared.sockets);
        for sight in others {
            let Some(socket) = sockets.get(&sight.node_id) else { continue };
            let peer = wanted.as_ref().and_then(|wanted| wanted.peers.get(&sight.mesh.key));
            let direct = peer.into_iter().flat_map(|peer| &peer.endpoints).filter(|at| at.path == MeshPath::Direct);
            socket.try_at(direct.map(|endpoint| endpoint.address).collect());
        }
    }

    fn link(&self, sight: &MeshSight, now: Instant) -> MeshLink {
        let (status, pulse) = (self.status(sight), self.pulse(sight).filter(|pulse| pulse.beats(now)));
        let relayed = self.is_relayed(sight.node_id, status.as_ref());
        let way = match (pulse, relayed) {
            (None, _) => MeshWay::None,
            (Some(_), false) => MeshWay::Direct,
            (Some(_), true) => match lock(&self.shared.routes).get(&sight.node_id) {
                Some(through) => MeshWay::Relayed { through: *through },
                None => MeshWay::None,
            },
        };
        MeshLink {
            node_id: sight.node_id,
            way,
            endpoint: status.as_ref().and_then(|status| status.endpoint).filter(|_| way == MeshWay::Direct),
            round_trip_us: pulse.map(|pulse| u64::try_from(pulse.round_trip.as_micros()).unwrap_or(u64::MAX)),
            handshake_age_ms: status.and_then(|status| status.handshake_age_ms),
        }
    }

    /// Tells the other rooms, and the log what changed.
    fn tell(&self, links: Vec<MeshLink>) {
        let members = self.state.members();
        let name = |node: NodeId| {
            let member = members.iter().find(|(_, member)| member.node_id == node);
            member.map_or_else(|| node.to_string(), |(_, member)| member.name.to_string())
        };
        let before: BTreeMap<NodeId, MeshWay> =
            self.told.links.borrow().iter().map(|link| (link.node_id, link.way)).collect();
        for link in &links {
            let (node, former) = (name(link.node_id), before.get(&link.node_id).copied().unwrap_or(MeshWay::None));
            match link.way {
                way if way == former => {}
                MeshWay::Direct => tracing::info!("`{node}` is reached directly"),
                MeshWay::Relayed { through } if through == self.me.node_id => {
                    tracing::info!("`{node}` comes here to be reached, for no datagrams pass in between");
                }
                MeshWay::Relayed { through } => tracing::info!("`{node}` is reached through `{}`", name(through)),
                MeshWay::None => tracing::info!("`{node}` is not reached in the mesh"),
            }
        }
        self.told.links.send_replace(links);
    }
}
