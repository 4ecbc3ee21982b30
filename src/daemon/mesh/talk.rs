//! What nodes say to each other through the mesh: whether they answer, where they see each other, and whether they know
//! a key that is about to be used.
//!
//! Small datagrams between the nodes' own addresses. Where one comes from is what WireGuard lets through; what it says
//! of places is a guess like any other. Each node tells the leader four times a second that it is there, and everybody asks
//! everybody each five seconds, among few each two. Who does not hear a peer asks the
//! others where that is; who hears both tells each where the other is, so that both knock at the same time, as routers
//! in between may need. No majority is needed for any of this, and the state is not written.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use serde::{Deserialize, Serialize};
use toft_mesh::keeper::FEW;
use toft_model::{
    ids::NodeId,
    mesh::{MeshConfig, MeshPeerStatus, MeshStatus, PublicKey, TALK_PORT, canonical, is_somebodys},
    state::MeshSight,
};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, interval_at},
};
use tokio_util::sync::CancellationToken;

use super::{Me, Sighting};
use crate::{consensus::Handle, control::ops::now_ms};

/// How often everybody is asked.
const EVERY: Duration = Duration::from_secs(5);
/// The same among few.
const EVERY_OF_FEW: Duration = Duration::from_secs(2);
/// How often those are asked who did not answer, and for how long.
const CLOSELY: Duration = Duration::from_secs(1);
const CLOSELY_FOR: Duration = Duration::from_secs(30);
/// How often the leader is told that this node is there. Of so many that are lost by chance, some arrive in time.
const BEAT: Duration = Duration::from_millis(250);
/// How long an answer stands for a peer that answers: one may be lost.
const ANSWERS: Duration = Duration::from_secs(12);
/// Longest message in bytes; it fits into the smallest packet of a tunnel.
const LONGEST: usize = 1_200;
/// Most nodes that are asked for or told of in one message.
const NODES: usize = 8;
/// Questions of one peer that are answered between two of our own.
const QUESTIONS: u32 = 20;
/// Short questions of one peer that are answered in that time, whoever there asks them.
const PINGS: u32 = 300;
/// Longest text that is kept as a version.
const LONGEST_VERSION: usize = 40;
/// What this node says it is.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Wait before the socket is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// Do you answer?
    Ask {
        /// Comes back with the answer.
        number: u64,
        /// Nodes that the asker does not hear.
        seek: Vec<NodeId>,
        /// The key it will speak with soon.
        next_key: Option<PublicKey>,
    },
    /// Yes.
    Told {
        /// The question's.
        number: u64,
        /// Where the asker is, as seen from here.
        you: Option<SocketAddr>,
        /// Where the nodes are that were asked for.
        seen: Vec<(NodeId, SocketAddr)>,
        /// Whether the asker's next key is known here.
        knows: bool,
    },
    /// I am there; to the leader.
    Beat,
    /// Somebody who does not hear you is there.
    Knock {
        /// Who, and where.
        from: (NodeId, SocketAddr),
    },
    /// Are you there? From any port.
    Ping {
        /// Comes back with the answer.
        number: u64,
    },
    /// Yes; to where the question came from.
    Pong {
        /// The question's.
        number: u64,
        /// The clock there, in milliseconds since 1970.
        clock_ms: i64,
        /// Version of toft there.
        version: String,
        /// Whether the disk of its state has no room.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        disk_full: bool,
    },
}

/// How a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pulse {
    /// When it answered last.
    pub(super) at: Instant,
    /// From question to answer.
    pub(super) round_trip: Duration,
    /// Whether it knows this node's next key.
    pub(super) knows: bool,
}

impl Pulse {
    /// Whether it answers now.
    pub(super) fn beats(&self, now: Instant) -> bool {
        now.duration_since(self.at) < ANSWERS
    }
}

/// What a node says of its clock and itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clock {
    /// Milliseconds by which it is ahead of this node's, give or take half of the way there and back.
    pub(super) ahead_ms: i64,
    /// Version of toft there.
    pub(super) version: String,
    /// Whether the disk of its state has no room.
    pub(super) disk_full: bool,
}

/// What is under way.
#[derive(Default)]
struct Pending {
    /// Nodes that were asked for their clocks: when, and what this node's clock said.
    clocks: BTreeMap<u64, (Ipv4Addr, Instant, i64)>,
    /// How often each has asked whether this node is there.
    pings: BTreeMap<Ipv4Addr, u32>,
    /// Questions without an answer: to whom and since when.
    asked: BTreeMap<u64, (Ipv4Addr, Instant)>,
    /// How much each has asked since this node asked last.
    questions: BTreeMap<Ipv4Addr, u32>,
    /// Since when each does not answer.
    missed: BTreeMap<Ipv4Addr, Instant>,
}

/// The talk of one node.
pub(super) struct Talk {
    pub(super) me: Me,
    pub(super) state: Handle,
    pub(super) sights: watch::Receiver<Vec<MeshSight>>,
    pub(super) observed: watch::Receiver<Option<MeshStatus>>,
    pub(super) wanted: watch::Receiver<Option<MeshConfig>>,
    pub(super) next_key: watch::Receiver<Option<PublicKey>>,
    /// How each node answers, by its address in the mesh.
    pub(super) pulse: watch::Sender<BTreeMap<Ipv4Addr, Pulse>>,
    /// What each node's clock said last.
    pub(super) clocks: watch::Sender<BTreeMap<Ipv4Addr, Clock>>,
    pub(super) sight: mpsc::Sender<Sighting>,
}

impl Talk {
    /// Talks until `cancel`.
    pub(super) async fn run(self, cancel: CancellationToken) {
        let mut told = false;
        let (mut sights, me) = (self.sights.clone(), self.me.node_id);
        let others = sights.wait_for(|sights| sights.iter().any(|sight| sight.node_id != me));
        // A node that stands alone has nobody to talk to.
        if !matches!(cancel.run_until_cancelled(others).await, Some(Ok(_))) {
            return cancel.cancelled().await;
        }
        while !cancel.is_cancelled() {
            match bound((self.me.subnet.gateway(), TALK_PORT)) {
                Ok(socket) => {
                    let _ = cancel.run_until_cancelled(self.talk(&socket)).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "nodes cannot be asked through the mesh: UDP port {TALK_PORT} of its address cannot be had");
                    }
                    let _ = cancel.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
                }
            }
        }
    }

    async fn talk(&self, socket: &UdpSocket) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = interval(self.every());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closely = interval(CLOSELY);
        closely.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sights = self.sights.clone();
        let mut pending = Pending::default();
        let mut buffer = [0; LONGEST + 1];
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = closely.tick() => {
                    self.ask(socket, &mut pending, true).await;
                    continue;
                }
                _ = beats.tick() => {
                    self.beat(socket).await;
                    continue;
                }
                // A new node is asked at once.
                Ok(()) = sights.changed() => ticks.reset(),
                received = socket.recv_from(&mut buffer) => {
                    if let Ok((length, SocketAddr::V4(from))) = received
                        && let Some(message) = parse(&buffer[..length])
                    {
                        self.take(socket, (from, message), &mut pending).await;
                    }
                    continue;
                }
            }
            if ticks.period() != self.every() {
                ticks = interval_at(Instant::now() + self.every(), self.every());
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            pending.questions.clear();
            pending.pings.clear();
            pending.asked.retain(|_, (_, at)| at.elapsed() < ANSWERS);
            pending.clocks.retain(|_, (_, at, _)| at.elapsed() < ANSWERS);
            self.ask(socket, &mut pending, false).await;
        }
    }

    /// Tells the leader that this node is there, and those that may lead next: who has just been elected would take a node for
    /// dead that still beats for the leader before, above all that leader itself.
    async fn beat(&self, socket: &UdpSocket) {
        let leading = self.state.leading_nodes();
        let told: Vec<Ipv4Addr> =
            self.others().filter(|(node, ..)| leading.contains(node)).map(|(_, address, _)| address).collect();
        for address in told {
            self.say(socket, address, &Message::Beat).await;
        }
    }

    /// Asks everybody, and everybody for those who do not answer; `closely` only while there are such, and for a while.
    async fn ask(&self, socket: &UdpSocket, pending: &mut Pending, closely: bool) {
        let others: Vec<(NodeId, Ipv4Addr)> = self.others().map(|(node, address, _)| (node, address)).collect();
        let there: BTreeSet<Ipv4Addr> = others.iter().map(|(_, address)| *address).collect();
        self.pulse.send_modify(|pulse| pulse.retain(|address, _| there.contains(address)));
        self.clocks.send_modify(|clocks| clocks.retain(|address, _| there.contains(address)));
        if others.is_empty() || self.observed.borrow().is_none() {
            return;
        }
        let now = Instant::now();
        let beats = |address: &Ipv4Addr| self.pulse.borrow().get(address).is_some_and(|pulse| pulse.beats(now));
        let missed = self.others().filter(|(_, address, key)| !beats(address) || self.is_relayed(*key));
        let missed: Vec<NodeId> = missed.map(|(node, ..)| node).collect();
        let late = self.every() + CLOSELY;
        let waits = |pulse: &Pulse| now.duration_since(pulse.at) < late;
        let answers = |address: &Ipv4Addr| self.pulse.borrow().get(address).is_some_and(waits);
        pending.missed.retain(|address, _| there.contains(address) && !answers(address));
        for (_, address) in others.iter().filter(|(_, address)| !answers(address)) {
            pending.missed.entry(*address).or_insert(now);
        }
        if closely && !pending.missed.values().any(|since| now.duration_since(*since) < CLOSELY_FOR) {
            return;
        }
        let next_key = *self.next_key.borrow();
        for (i, (_, address)) in others.iter().enumerate() {
            let Ok(number) = random() else { return };
            // Each is asked for others, so that all are asked for when many are missed.
            let seek = missed.iter().copied().cycle().skip(i * NODES).take(missed.len().min(NODES)).collect();
            pending.asked.insert(number, (*address, now));
            self.say(socket, *address, &Message::Ask { number, seek, next_key }).await;
            let Ok(number) = random() else { return };
            pending.clocks.insert(number, (*address, Instant::now(), now_ms()));
            self.say(socket, *address, &Message::Ping { number }).await;
        }
    }

    async fn take(&self, socket: &UdpSocket, (from, message): (SocketAddrV4, Message), pending: &mut Pending) {
        let (from, asked_from) = (*from.ip(), from);
        let Some((asker, _, key)) = self.others().find(|(_, address, _)| *address == from) else { return };
        match message {
            Message::Ask { number, seek, next_key } => {
                let count = pending.questions.entry(from).or_default();
                *count += 1;
                if *count > QUESTIONS {
                    return;
                }
                let you = self.endpoint(key);
                let mut seen = Vec::new();
                for sought in seek.into_iter().take(NODES).filter(|sought| *sought != asker) {
                    let Some((node, address, place)) = self.heard(sought) else { continue };
                    seen.push((node, place));
                    if let Some(you) = you {
                        self.say(socket, address, &Message::Knock { from: (asker, you) }).await;
                    }
                }
                let known = |wanted: &MeshConfig| wanted.peers.get(&key).and_then(|peer| peer.next_key);
                let knows = next_key.is_some() && self.wanted.borrow().as_ref().and_then(known) == next_key;
                self.say(socket, from, &Message::Told { number, you, seen, knows }).await;
            }
            Message::Told { number, you, seen, knows } => {
                let Some((_, at)) = pending.asked.remove(&number).filter(|(address, _)| *address == from) else {
                    return;
                };
                let now = Instant::now();
                let pulse = Pulse { at: now, round_trip: now.duration_since(at), knows };
                self.pulse.send_modify(|all| _ = all.insert(from, pulse));
                self.sighted(you.map(Sighting::Me));
                for (node, place) in seen.into_iter().take(NODES) {
                    self.sighted(Some(Sighting::Told(node, place)));
                }
            }
            Message::Ping { number } => {
                let count = pending.pings.entry(from).or_default();
                *count += 1;
                if *count <= PINGS {
                    let disk_full = self.state.is_short();
                    let pong = Message::Pong { number, clock_ms: now_ms(), version: VERSION.to_owned(), disk_full };
                    let Ok(text) = serde_json::to_vec(&pong) else { return };
                    drop(socket.send_to(&text, asked_from).await);
                }
            }
            Message::Pong { number, clock_ms, version, disk_full } => {
                let known = pending.clocks.remove(&number).filter(|(address, ..)| *address == from);
                let Some((_, at, sent_ms)) = known else { return };
                let half_ms = i64::try_from(at.elapsed().as_millis() / 2).unwrap_or(i64::MAX);
                let ahead_ms = clock_ms.saturating_sub(sent_ms.saturating_add(half_ms));
                let version = version.chars().filter(|c| !c.is_control()).take(LONGEST_VERSION).collect();
                self.clocks.send_modify(|all| _ = all.insert(from, Clock { ahead_ms, version, disk_full }));
            }
            Message::Beat => self.state.note_beat(asker),
            Message::Knock { from: (node, place) } => self.sighted(Some(Sighting::Told(node, place))),
        }
    }

    /// How often everybody is asked now.
    fn every(&self) -> Duration {
        if self.others().count() <= FEW { EVERY_OF_FEW } else { EVERY }
    }

    /// The other nodes with their address in the mesh and their key.
    fn others(&self) -> impl Iterator<Item = (NodeId, Ipv4Addr, PublicKey)> + use<> {
        let me = self.me.node_id;
        let sights = self.sights.borrow().clone().into_iter();
        sights
            .filter(move |sight| sight.node_id != me)
            .map(|sight| (sight.node_id, sight.subnet.gateway(), sight.mesh.key))
    }

    /// A node that answers, with its address in the mesh and where it is.
    fn heard(&self, sought: NodeId) -> Option<(NodeId, Ipv4Addr, SocketAddr)> {
        let (node, address, key) = self.others().find(|(node, ..)| *node == sought)?;
        let beats = self.pulse.borrow().get(&address).is_some_and(|pulse| pulse.beats(Instant::now()));
        beats.then(|| self.endpoint(key)).flatten().map(|place| (node, address, place))
    }

    /// Whether a node is reached through a relay: it may be reached directly at a place that others know.
    fn is_relayed(&self, key: PublicKey) -> bool {
        let observed = self.observed.borrow();
        let endpoint = observed.as_ref().and_then(|status| status.peers.get(&key)?.endpoint);
        endpoint.is_some_and(|endpoint| endpoint.ip().to_canonical().is_loopback())
    }

    fn endpoint(&self, key: PublicKey) -> Option<SocketAddr> {
        let seen = |status: &MeshStatus| status.peers.get(&key).filter(|peer| peer.is_live()).and_then(endpoint);
        self.observed.borrow().as_ref().and_then(seen)
    }

    fn sighted(&self, news: Option<Sighting>) {
        if let Some(news) = news {
            // When nobody takes them in, they come again.
            drop(self.sight.try_send(news));
        }
    }

    async fn say(&self, socket: &UdpSocket, to: Ipv4Addr, message: &Message) {
        let Ok(text) = serde_json::to_vec(message) else { return };
        // What does not arrive is asked again.
        drop(socket.send_to(&text, (to, TALK_PORT)).await);
    }
}

fn endpoint(peer: &MeshPeerStatus) -> Option<SocketAddr> {
    peer.endpoint.map(canonical).filter(|endpoint| is_somebodys(*endpoint))
}

pub(super) fn parse(bytes: &[u8]) -> Option<Message> {
    if bytes.len() > LONGEST {
        return None;
    }
    serde_json::from_slice(bytes).ok()
}

pub(super) fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let provider = rustls::crypto::ring::default_provider();
    provider.secure_random.fill(&mut bytes).map_err(|_| io::Error::other("the kernel gave no random bytes"))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A socket at an address that may not be there yet.
pub(super) fn bound((address, port): (Ipv4Addr, u16)) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let datagrams = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&datagrams, sockopt::IpFreebind, &true)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&datagrams), &SockaddrIn::from(SocketAddrV4::new(address, port)))?;
    UdpSocket::from_std(datagrams.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_they_were_and_noise_is_none() {
        let node = NodeId(uuid::Uuid::from_u128(7));
        let place: SocketAddr = "[2001:db8:ffff:ffff:ffff:ffff:ffff:fff1]:51820".parse().unwrap();
        let messages = [
            Message::Ask { number: u64::MAX, seek: vec![node; NODES], next_key: Some(PublicKey([255; 32])) },
            Message::Told { number: u64::MAX, you: Some(place), seen: vec![(node, place); NODES], knows: true },
            Message::Knock { from: (node, place) },
            Message::Beat,
            Message::Ping { number: u64::MAX },
            Message::Pong { number: u64::MAX, clock_ms: i64::MAX, version: "0.1.0".into(), disk_full: true },
        ];
        for message in messages {
            let text = serde_json::to_vec(&message).unwrap();
            assert!(text.len() <= LONGEST, "{}", text.len());
            assert_eq!(parse(&text), Some(message));
            for end in 0..text.len() {
                assert_eq!(parse(&text[..end]), None);
            }
        }
        let long = format!("{{\"knock\":{{\"from\":[\"{node}\",\"192.0.2.1:1\"]}}{}}}", " ".repeat(LONGEST));
        for noise in ["", "7", "{}", "null", "{\"ask\":{}}", "{\"knock\":{\"from\":[\"x\",\"y\"]}}", &long] {
            assert_eq!(parse(noise.as_bytes()), None, "{noise}");
        }
    }
}
