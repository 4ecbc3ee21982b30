//! Follows the state: who the other nodes are, and what this one tells of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use toft_mesh::keys::{KEY_AGE, Keys, Step};
use toft_model::{
    ids::NodeId,
    mesh::{MAX_TOLD, MeshConfig, MeshNode, MeshStatus, PublicKey, canonical, is_somebodys},
    state::{MeshSight, query_mesh},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Me, Sighting,
    desired::{self, Known, desired},
    places::Places,
    relay,
    talk::Pulse,
};
use crate::{agent::network::OtherNode, config::MeshConfig as Configured, consensus::Handle, observe::chain};

/// Shortest time between two looks at the state.
const PACE: Duration = Duration::from_millis(500);
/// How often everything is looked at although nothing was heard.
const REPEAT: Duration = Duration::from_secs(5);
/// How long peers must see this node at the same place before the state hears of it, and how often it does.
const STEADY: Duration = Duration::from_secs(30);
const OUTSIDE_EVERY: Duration = Duration::from_secs(60);
/// How long what a peer said of a place counts.
const FRESH: Duration = Duration::from_secs(15);
/// Most places outside that are told.
const OUTSIDE: usize = 2;
/// Shortest time between two writes of where everybody was reached.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// Longest wait for this machine's addresses when it starts.
const FIRST: Duration = Duration::from_secs(2);

/// The task.
pub(super) struct Follow {
    pub(super) me: Me,
    pub(super) config: Configured,
    pub(super) keys: Arc<Keys>,
    pub(super) state: Handle,
    pub(super) want: watch::Sender<Option<MeshConfig>>,
    pub(super) observed: watch::Receiver<Option<MeshStatus>>,
    /// This machine's addresses.
    pub(super) addresses: watch::Receiver<BTreeSet<IpAddr>>,
    pub(super) sightings: mpsc::Receiver<Sighting>,
    pub(super) pulse: watch::Receiver<BTreeMap<Ipv4Addr, Pulse>>,
    pub(super) next_key: watch::Sender<Option<PublicKey>>,
    /// Every node, this one too.
    pub(super) sights: watch::Sender<Vec<MeshSight>>,
    pub(super) others: watch::Sender<Vec<OtherNode>>,
    pub(super) known: Known,
    /// Where those are found that are to be relayed.
    pub(super) relayed: watch::Receiver<BTreeMap<NodeId, SocketAddr>>,
    pub(super) file: PathBuf,
    /// What this node tells of itself.
    pub(super) announcement: watch::Sender<Option<MeshNode>>,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Memory {
    /// Places outside where peers see this node: since when, and when last.
    outside: BTreeMap<SocketAddr, (Instant, Instant)>,
    /// The places outside that are told, and since when.
    told: Option<(Vec<SocketAddr>, Instant)>,
    /// Reasons that were logged.
    refused: Vec<String>,
    /// Whether the file is behind, and when it was written.
    dirty: bool,
    written: Option<Instant>,
}

impl Follow {
    /// Follows until `cancel`.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut memory = Memory::default();
        let mut applied = self.state.watch();
        // What is told first shall be true.
        drop(tokio::time::timeout(FIRST, self.addresses.changed()).await);
        loop {
            applied.mark_unchanged();
            if cancel.run_until_cancelled(self.look(&mut memory)).await.is_none() {
                return self.write(&mut memory);
            }
            let news = async {
                tokio::time::sleep(PACE).await;
                tokio::select! {
                    _ = applied.changed() => {}
                    Ok(()) = self.addresses.changed() => {}
                    Ok(()) = self.observed.changed() => {}
                    Ok(()) = self.relayed.changed() => {}
                    Some(sighting) = self.sightings.recv() => {
                        take(&mut self.known.places, &mut memory, sighting, Instant::now());
                        while let Ok(sighting) = self.sightings.try_recv() {
                            take(&mut self.known.places, &mut memory, sighting, Instant::now());
                        }
                    }
                    () = tokio::time::sleep(REPEAT) => {}
                }
            };
            if cancel.run_until_cancelled(news).await.is_none() {
                return self.write(&mut memory);
            }
        }
    }

    async fn look(&mut self, memory: &mut Memory) {
        let sights = match self.state.read(query_mesh).await {
            Ok(sights) => sights,
            Err(error) => return tracing::error!(error = chain(&error), "the nodes of the mesh could not be read"),
        };
        let nodes: BTreeSet<NodeId> = sights.iter().map(|sight| sight.node_id).collect();
        memory.dirty |= self.known.places.keep_only(&nodes);
        self.note_reached(&sights, memory);
        self.known.relayed.clone_from(&self.relayed.borrow_and_update());
        let (config, refused) = desired(&self.me, &self.config, self.keys.current(), &sights, &self.known);
        let refused: Vec<String> = refused.into_iter().map(|invalid| invalid.message).collect();
        if refused != memory.refused {
            for reason in &refused {
                tracing::warn!("a peer is kept out of the mesh: {reason}");
            }
            memory.refused = refused;
        }
        let others = desired::others(&self.me, &sights);
        self.sights.send_if_modified(|before| replace(before, &sights));
        self.others.send_if_modified(|before| replace(before, &others));
        self.want.send_if_modified(|before| replace(before, &Some(config)));
        self.state.prefer(self.answering(&sights));
        self.state.also_at(&self.open_doors(&sights));
        let own = sights.iter().find(|sight| sight.node_id == self.me.node_id).map(|sight| &sight.mesh);
        self.change_keys(own, &sights);
        let mesh = self.myself(memory);
        self.announcement.send_if_modified(|before| replace(before, &Some(mesh)));
        if memory.written.is_none_or(|at| at.elapsed() >= WRITE_EVERY) {
            self.write(memory);
        }
    }

    /// Remembers where everybody is who answers.
    fn note_reached(&mut self, sights: &[MeshSight], memory: &mut Memory) {
        let (observed, pulse) = (self.observed.borrow(), self.pulse.borrow());
        let Some(status) = &*observed else { return };
        let now = Instant::now();
        for sight in sights.iter().filter(|sight| pulse.get(&sight.subnet.gateway()).is_some_and(|p| p.beats(now))) {
            if let Some(at) = status.peers.get(&sight.mesh.key).and_then(|peer| peer.endpoint) {
                memory.dirty |= self.known.places.reached(sight.node_id, at);
            }
        }
    }

    /// The nodes that answer in the mesh, with their addresses there.
    fn answering(&self, sights: &[MeshSight]) -> BTreeMap<NodeId, IpAddr> {
        let (now, pulse) = (Instant::now(), self.pulse.borrow());
        let address = |sight: &MeshSight| {
            let address = sight.subnet.gateway();
            pulse.get(&address).filter(|pulse| pulse.beats(now)).map(|_| (sight.node_id, address.into()))
        };
        sights.iter().filter_map(address).collect()
    }

    /// Where nodes answer other members beside the address that the cluster knows: those that relay at a port of its own.
    fn open_doors(&self, sights: &[MeshSight]) -> BTreeMap<NodeId, Vec<String>> {
        let members = self.state.members();
        let relays = sights.iter().filter(|sight| sight.mesh.relay_port.is_some() && sight.node_id != self.me.node_id);
        let doors = |sight: &MeshSight| {
            let member = members.values().find(|member| member.node_id == sight.node_id)?;
            let mut all = relay::addresses(member, Some(&sight.mesh));
            all.retain(|address| *address != member.address);
            Some((sight.node_id, all))
        };
        relays.filter_map(doors).collect()
    }

    fn write(&self, memory: &mut Memory) {
        if !std::mem::take(&mut memory.dirty) {
            return;
        }
        memory.written = Some(Instant::now());
        if let Err(error) = self.known.places.save(&self.file) {
            tracing::warn!(%error, "where the other nodes are could not be written down");
            memory.dirty = true;
        }
    }

    /// Makes the next key when it is time, and uses it when all who answer know it. Peers of the configuration file
    /// cannot be told, so a node with such peers keeps its key.
    fn change_keys(&self, own: Option<&MeshNode>, sights: &[MeshSight]) {
        if !self.config.peers.is_empty() {
            return;
        }
        let now = Instant::now();
        let pulse = self.pulse.borrow();
        let others = || sights.iter().filter(|sight| sight.node_id != self.me.node_id);
        let pulses = others().filter_map(|sight| pulse.get(&sight.subnet.gateway()));
        let mut there = pulses.filter(|pulse| pulse.beats(now)).peekable();
        // While nobody answers, all who are away have their time.
        let known = (there.peek().is_some() || others().next().is_none()) && there.all(|pulse| pulse.knows);
        match self.keys.step(KEY_AGE, known) {
            // Nobody can know a key that was not told.
            Ok(Step::Switch) if self.keys.next().is_some() && own.and_then(|own| own.next_key) == self.keys.next() => {
                match self.keys.switch() {
                    Ok(key) => tracing::info!("this node has a new key for the mesh: {key}"),
                    Err(error) => tracing::error!(%error, "the node's key for the mesh could not be changed"),
                }
            }
            Ok(Step::Wait | Step::Announce(_) | Step::Switch) => {}
            Err(error) => tracing::error!(%error, "the node's keys for the mesh could not be looked at"),
        }
        self.next_key.send_if_modified(|before| replace(before, &self.keys.next()));
    }

    /// What this node tells of itself: what a person wrote, its own addresses, and where peers see it.
    fn myself(&self, memory: &mut Memory) -> MeshNode {
        let port = self.config.listen_port;
        let mut endpoints = self.config.advertise.clone();
        let room = (MAX_TOLD - OUTSIDE).saturating_sub(endpoints.len());
        endpoints.extend(self.addresses.borrow().iter().map(|address| SocketAddr::new(*address, port)).take(room));
        let own: BTreeSet<SocketAddr> = endpoints.iter().copied().map(canonical).collect();
        endpoints.extend(memory.outside(&own, Instant::now()));
        let mut seen = BTreeSet::new();
        let mut endpoints: Vec<SocketAddr> = endpoints.into_iter().map(canonical).collect();
        endpoints.retain(|endpoint| is_somebodys(*endpoint) && seen.insert(*endpoint));
        endpoints.truncate(MAX_TOLD);
        let relay_port = self.config.relay_listen.map(|address| address.port());
        MeshNode { key: self.keys.current(), next_key: self.keys.next(), port, endpoints, relay_port }
    }
}

impl Memory {
    /// The places outside that are to be told: where peers have seen this node for a while, and seldom others.
    fn outside(&mut self, own: &BTreeSet<SocketAddr>, now: Instant) -> Vec<SocketAddr> {
        self.outside.retain(|_, (_, last)| now.duration_since(*last) < STEADY);
        let steady = self.outside.iter().filter(|(at, (since, last))| {
            !own.contains(*at) && last.duration_since(*since) >= STEADY && now.duration_since(*last) < FRESH
        });
        let steady: Vec<SocketAddr> = steady.map(|(at, _)| *at).take(OUTSIDE).collect();
        match &self.told {
            Some((told, since)) if *told == steady || now.duration_since(*since) < OUTSIDE_EVERY => told.clone(),
            // That nobody sees this node any more is no news of where it is.
            Some((told, _)) if steady.is_empty() => told.clone(),
            _ => {
                self.told = Some((steady.clone(), now));
                steady
            }
        }
    }
}

fn take(places: &mut Places, memory: &mut Memory, sighting: Sighting, now: Instant) {
    match sighting {
        Sighting::Told(node, at) => drop(places.told(node, at)),
        Sighting::Lan(node, at) => drop(places.seen_in_lan(node, &at)),
        Sighting::Me(at) => {
            let at = canonical(at);
            // Whoever says ever new places fills no memory with them.
            if memory.outside.len() < 16 || memory.outside.contains_key(&at) {
                memory.outside.entry(at).or_insert((now, now)).1 = now;
            }
        }
    }
}

pub(super) fn replace<T: PartialEq + Clone>(before: &mut T, now: &T) -> bool {
    let changed = before != now;
    if changed {
        before.clone_from(now);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_outside_is_told_when_it_is_steady_and_seldom_another() {
        let mut memory = Memory::default();
        let mut places = Places::default();
        let own = BTreeSet::from(["192.168.1.5:51820".parse().unwrap()]);
        let start = Instant::now();
        let mut see = |memory: &mut Memory, at: &str, now: Instant| {
            take(&mut places, memory, Sighting::Me(at.parse().unwrap()), now);
        };
        let mut told = Vec::new();
        for second in 0..300_u64 {
            let at = start + Duration::from_secs(second);
            if second % 5 == 0 {
                // The router gives another port after 40 and after 100 seconds.
                let port = 4_000
                    + if second < 40 {
                        0
                    } else if second < 100 {
                        1_000
                    } else {
                        2_000
                    };
                see(&mut memory, &format!("203.0.113.7:{port}"), at);
                see(&mut memory, "192.168.1.5:51820", at);
            }
            let now = memory.outside(&own, at);
            if told.last().is_none_or(|(_, before)| *before != now) {
                told.push((second, now));
            }
        }
        let texts: Vec<(u64, Vec<String>)> =
            told.iter().map(|(at, places)| (*at, places.iter().map(ToString::to_string).collect())).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert_eq!(texts[0], (0, Vec::new()));
        assert!(texts[1].0 >= 60 && texts[2].0 >= texts[1].0 + 60, "{texts:?}");
        assert_eq!(
            (&texts[1].1[..], &texts[2].1[..]),
            (&["203.0.113.7:5000".to_owned()][..], &["203.0.113.7:6000".to_owned()][..])
        );
        for number in 0..1_000_u32 {
            see(&mut memory, &format!("203.0.113.9:{}", 1 + number), start);
        }
        assert!(memory.outside.len() <= 16);
    }
}
