//! Where the other nodes may be: what peers told, where they were reached last (also in a file, for the time after a
//! power cut), and what is said in the local network. All of it are guesses: WireGuard finds out who is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    net::SocketAddr,
    path::Path,
};

use serde::{Deserialize, Serialize};
use toft_model::{
    ids::NodeId,
    mesh::{MAX_ENDPOINTS, MAX_PEERS, MeshEndpoint, MeshNode, canonical, is_somebodys},
};

use crate::{files::write_whole, observe::chain};

/// Most places of one node that are remembered of each kind.
const EACH: usize = 3;
/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// The guesses, by node, newest first.
#[derive(Debug, Default)]
pub(super) struct Places {
    told: BTreeMap<NodeId, Vec<SocketAddr>>,
    reached: BTreeMap<NodeId, Vec<SocketAddr>>,
    lan: BTreeMap<NodeId, Vec<SocketAddr>>,
}

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    reached: BTreeMap<NodeId, Vec<SocketAddr>>,
}

impl Places {
    /// Where everybody was reached last, as the file says; without one, nobody was.
    pub(super) fn load(path: &Path) -> Self {
        match read(path) {
            Ok(reached) => Self { reached, ..Self::default() },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "where the other nodes were last cannot be read; they are looked for anew"
                );
                Self::default()
            }
        }
    }

    /// Writes down where everybody was reached last.
    pub(super) fn save(&self, path: &Path) -> std::io::Result<()> {
        write_whole(path, 0o600, &serde_json::to_vec_pretty(&File { reached: self.reached.clone() })?)
    }

    /// A peer says that a node is there. True when that is news.
    pub(super) fn told(&mut self, node: NodeId, at: SocketAddr) -> bool {
        remember(&mut self.told, node, at)
    }

    /// A node was reached there. True when that is news.
    pub(super) fn reached(&mut self, node: NodeId, at: SocketAddr) -> bool {
        remember(&mut self.reached, node, at)
    }

    /// Somebody in the local network says that a node is there; what was said before is forgotten. True when that is news.
    pub(super) fn seen_in_lan(&mut self, node: NodeId, at: &[SocketAddr]) -> bool {
        let mut at: Vec<SocketAddr> = at.iter().copied().map(canonical).filter(|at| is_somebodys(*at)).collect();
        at.sort_unstable();
        at.dedup();
        at.truncate(EACH);
        if self.lan.get(&node) == Some(&at) || (self.lan.len() >= MAX_PEERS && !self.lan.contains_key(&node)) {
            return false;
        }
        self.lan.insert(node, at);
        true
    }

    /// Forgets all but these nodes. True when somebody was forgotten who was reached before.
    pub(super) fn keep_only(&mut self, nodes: &BTreeSet<NodeId>) -> bool {
        let before = self.reached.len();
        for known in [&mut self.told, &mut self.reached, &mut self.lan] {
            known.retain(|node, _| nodes.contains(node));
        }
        self.reached.len() != before
    }

    /// Where a node may be, most likely first. What anybody in the local network can say never comes first as long as
    /// there is something better, so it keeps nobody from what works.
    pub(super) fn of(&self, node: NodeId, told: &MeshNode) -> Vec<MeshEndpoint> {
        let known = |places: &BTreeMap<NodeId, Vec<SocketAddr>>| places.get(&node).cloned().unwrap_or_default();
        let mut better = known(&self.told);
        better.extend(known(&self.reached));
        better.extend(&told.endpoints);
        let lan = known(&self.lan);
        let first = better.len().min(1);
        let rest = better.split_off(first);
        let mut seen = BTreeSet::new();
        let all = better.into_iter().chain(lan).chain(rest).map(canonical);
        all.filter(|at| is_somebodys(*at) && seen.insert(*at)).take(MAX_ENDPOINTS).map(MeshEndpoint::direct).collect()
    }
}

fn remember(places: &mut BTreeMap<NodeId, Vec<SocketAddr>>, node: NodeId, at: SocketAddr) -> bool {
    let at = canonical(at);
    if !is_somebodys(at) || (places.len() >= MAX_PEERS && !places.contains_key(&node)) {
        return false;
    }
    let known = places.entry(node).or_default();
    if known.first() == Some(&at) {
        return false;
    }
    known.retain(|other| *other != at);
    known.insert(0, at);
    known.truncate(EACH);
    true
}

fn read(path: &Path) -> std::io::Result<BTreeMap<NodeId, Vec<SocketAddr>>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(LARGEST).read_to_end(&mut text)?;
    let File { mut reached } = serde_json::from_slice(&text)?;
    while reached.len() > MAX_PEERS {
        reached.pop_last();
    }
    for places in reached.values_mut() {
        places.truncate(EACH);
    }
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use toft_model::mesh::PublicKey;
    use uuid::Uuid;

    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn mesh(endpoints: &[&str]) -> MeshNode {
        let endpoints = endpoints.iter().map(|text| at(text)).collect();
        MeshNode { key: PublicKey([1; 32]), next_key: None, port: 51820, endpoints, relay_port: None }
    }

    fn texts(places: &Places, told: &MeshNode) -> Vec<String> {
        places.of(node(1), told).iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[test]
    fn better_guesses_come_first_and_each_once() {
        let mut places = Places::default();
        let told = mesh(&["192.0.2.1:1", "192.0.2.2:1"]);
        assert_eq!(texts(&places, &told), ["192.0.2.1:1", "192.0.2.2:1"]);
        assert!(places.seen_in_lan(node(1), &[at("192.0.2.9:1")]));
        assert_eq!(texts(&places, &told), ["192.0.2.1:1", "192.0.2.9:1", "192.0.2.2:1"], "the LAN is never first");
        assert!(places.reached(node(1), at("[::ffff:192.0.2.2]:1")));
        assert!(!places.reached(node(1), at("192.0.2.2:1")));
        assert!(places.told(node(1), at("198.51.100.1:7")));
        assert_eq!(texts(&places, &told), ["198.51.100.1:7", "192.0.2.9:1", "192.0.2.2:1", "192.0.2.1:1"]);
        assert_eq!(texts(&Places::default(), &mesh(&[])), Vec::<String>::new());
    }

    #[test]
    fn what_strangers_say_is_bounded_and_checked() {
        let mut places = Places::default();
        let many: Vec<SocketAddr> = (1..=200).map(|last| at(&format!("192.0.2.{last}:1"))).collect();
        places.seen_in_lan(node(1), &many);
        places.seen_in_lan(node(1), &[at("127.0.0.1:1"), at("0.0.0.0:1"), at("224.0.0.1:1")]);
        assert_eq!(texts(&places, &mesh(&[])), Vec::<String>::new());
        for number in 0..5_000 {
            places.seen_in_lan(node(number), &many);
            places.told(node(number), many[0]);
        }
        assert_eq!((places.lan.len(), places.told.len()), (MAX_PEERS, MAX_PEERS));
        assert!(!places.told(node(1), at("127.0.0.1:1")));
        for place in &many {
            places.told(node(1), *place);
        }
        assert_eq!(texts(&places, &mesh(&[])).len(), 2 * EACH);
        places.keep_only(&BTreeSet::from([node(1)]));
        assert_eq!((places.lan.len(), places.told.len()), (1, 1));
    }

    #[test]
    fn the_last_places_survive_and_a_damaged_file_is_no_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("places.json");
        let mut places = Places::load(&path);
        places.reached(node(1), at("192.0.2.1:1"));
        places.told(node(1), at("192.0.2.2:1"));
        places.save(&path).unwrap();
        assert_eq!(texts(&Places::load(&path), &mesh(&[])), ["192.0.2.1:1"]);
        for damaged in ["", "{", "{\"reached\":{\"x\":[]}}", "[]", "{\"reached\":{}, \"reached\":7}"] {
            fs::write(&path, damaged).unwrap();
            assert!(Places::load(&path).reached.is_empty(), "{damaged}");
        }
    }
}
