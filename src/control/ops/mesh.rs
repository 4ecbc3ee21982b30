//! The mesh, as the nodes see it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use toft_model::{
    ids::NodeId,
    mesh::view::{MOST_PACKETS, MeshSeen, PeerSeen, PingRow},
    name::Name,
};

use super::{Ops, far::Away};
use crate::control::{ControlError, ErrorKind};

/// Longest wait for what another node sees.
const PATIENCE: Duration = Duration::from_secs(2);
/// From that difference on a clock is worth a warning, in milliseconds.
pub const CLOCK_APART_MS: i64 = 1_000;

/// The mesh as one node sees it.
#[derive(Debug, Clone)]
pub struct MeshView {
    /// Which node looks.
    pub from: Name,
    /// What it sees.
    pub seen: MeshSeen,
    /// The others by name, with what each says of itself where it answers.
    pub peers: Vec<PeerView>,
}

/// Another node, as one sees it.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// Which node.
    pub id: NodeId,
    /// Its name.
    pub node: Name,
    /// What is seen of it; absent when it has no end of the mesh.
    pub seen: Option<PeerSeen>,
    /// Size in bytes of the packets its own tunnels carry, if it tells.
    pub mtu: Option<u16>,
}

/// What one node hears of the others' answers.
#[derive(Debug, Clone)]
pub struct PingFrom {
    /// Which node sent.
    pub from: Name,
    /// To whom, and what came of it.
    pub to: Vec<(Name, PingRow)>,
}

impl Ops {
    /// Every member's node with its name, witnesses too.
    async fn named_nodes(&self) -> Result<BTreeMap<NodeId, Name>, ControlError> {
        let members = self.state.status().members.into_iter();
        let mut names: BTreeMap<NodeId, Name> =
            members.map(|member| (member.member.node_id, member.member.name)).collect();
        names.extend(self.seen().await?.nodes.iter().map(|node| (node.id, node.name.clone())));
        Ok(names)
    }

    /// The node that is asked; a witness too.
    fn me(&self) -> Option<NodeId> {
        let status = self.state.status();
        let me = status.members.iter().find(|member| member.id == status.identity.member_id);
        self.node.node_id().or(me.map(|me| me.member.node_id))
    }

    /// The mesh as a node sees it: the one that is asked, when none is named.
    pub async fn mesh(&self, from: Option<&Name>) -> Result<MeshView, ControlError> {
        let names = self.named_nodes().await?;
        let id = match from {
            None => self.me(),
            Some(name) => names.iter().find(|(_, known)| *known == name).map(|(id, _)| *id),
        };
        let Some((id, name)) = id.and_then(|id| Some((id, names.get(&id)?.clone()))) else {
            let message =
                from.map_or("this node is not known yet".to_owned(), |name| format!("there is no node `{name}`"));
            return Err(ControlError::new(ErrorKind::NotFound, message)
                .field("node")
                .hint("`toft cluster status` lists the members"));
        };
        let seen = self.mesh_of(id, &name).await?;
        let mut of: BTreeMap<NodeId, PeerSeen> = seen.peers.iter().map(|peer| (peer.node_id, peer.clone())).collect();
        let others = names.into_iter().filter(|(other, _)| *other != id);
        let mut peers: Vec<_> =
            others.map(|(id, node)| PeerView { id, node, seen: of.remove(&id), mtu: None }).collect();
        peers.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(MeshView { from: name, seen, peers })
    }

    /// The same with what each of the others tells of its own tunnels: a question to every node.
    pub async fn mesh_with_sizes(&self, from: Option<&Name>) -> Result<MeshView, ControlError> {
        let mut view = self.mesh(from).await?;
        let told = view.peers.iter_mut().map(async |peer| {
            if peer.seen.as_ref().is_some_and(|seen| seen.path.is_some()) {
                peer.mtu = self.mesh_of(peer.id, &peer.node).await.ok().and_then(|own| own.mtu);
            }
        });
        join_all(told.collect::<Vec<_>>()).await;
        Ok(view)
    }

    async fn mesh_of(&self, id: NodeId, name: &Name) -> Result<MeshSeen, ControlError> {
        let asked = async {
            if self.me() == Some(id) {
                return self.node.mesh_seen().await;
            }
            self.access(id, name)?.mesh_seen().await
        };
        let late = || ControlError::new(ErrorKind::Unavailable, format!("node `{name}` did not answer in time"));
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(late()))
    }

    /// Lets every node send so many packets to every other, or to one, and gives what each heard; with it those that did not
    /// tell.
    pub async fn mesh_ping(&self, to: Option<&Name>, packets: u32) -> Result<(Vec<PingFrom>, Vec<Away>), ControlError> {
        if packets == 0 || packets > MOST_PACKETS {
            return Err(ControlError::new(ErrorKind::Invalid, format!("{packets} packets cannot be sent"))
                .field("packets")
                .hint(format!("send 1 to {MOST_PACKETS}")));
        }
        let names = self.named_nodes().await?;
        if let Some(name) = to.filter(|name| !names.values().any(|known| known == *name)) {
            return Err(ControlError::new(ErrorKind::NotFound, format!("there is no node `{name}`"))
                .field("node")
                .hint("`toft cluster status` lists the members"));
        }
        let me = self.me();
        let asked = names.iter().map(async |(id, name)| {
            let rows = async {
                if me == Some(*id) {
                    return self.node.mesh_ping(packets).await;
                }
                self.access(*id, name)?.mesh_ping(packets).await
            };
            match rows.await {
                Ok(rows) => Ok((name.clone(), rows)),
                Err(error) => Err(Away { node: name.clone(), error }),
            }
        });
        let (mut told, mut away) = (Vec::new(), Vec::new());
        for answer in join_all(asked).await {
            match answer {
                Ok((from, rows)) => {
                    let named = |row: PingRow| Some((names.get(&row.node_id)?.clone(), row));
                    let wanted = |(name, _): &(Name, PingRow)| to.is_none_or(|to| to == name);
                    let mut to: Vec<(Name, PingRow)> = rows.into_iter().filter_map(named).filter(wanted).collect();
                    to.sort_by(|(a, _), (b, _)| a.cmp(b));
                    told.push(PingFrom { from, to });
                }
                Err(silent) => away.push(silent),
            }
        }
        told.sort_by(|a, b| a.from.cmp(&b.from));
        away.sort_by(|a, b| a.node.cmp(&b.node));
        Ok((told, away))
    }

    /// Milliseconds by which the clock of who leads is ahead of this node's, as far as it is known.
    pub(super) async fn leader_ahead_ms(&self) -> i64 {
        let Some(leader) = self.state.leader_node() else { return 0 };
        let Ok(seen) = self.node.mesh_seen().await else { return 0 };
        let ahead = seen.peers.iter().find(|peer| peer.node_id == leader).and_then(|peer| peer.clock_ahead_ms);
        ahead.filter(|ms| ms.abs() > CLOCK_APART_MS).unwrap_or(0)
    }

    /// Milliseconds by which the clock of each node is ahead of what most of the clocks say, as the node that is asked hears
    /// them; of two clocks nobody knows which is right, and the other's difference to the own is told.
    pub async fn clocks(&self) -> Result<BTreeMap<NodeId, i64>, ControlError> {
        let seen = self.node.mesh_seen().await?;
        let mut ahead: BTreeMap<NodeId, i64> =
            seen.peers.iter().filter_map(|peer| Some((peer.node_id, peer.clock_ahead_ms?))).collect();
        if let Some(me) = self.me() {
            ahead.insert(me, 0);
        }
        let middle = if ahead.len() < 3 { 0 } else { median(ahead.values().copied().collect()) };
        Ok(ahead.into_iter().map(|(node, ms)| (node, ms.saturating_sub(middle))).collect())
    }

    /// The nodes whose state has no room on its disk, as the node that is asked hears.
    pub async fn without_room(&self) -> BTreeSet<NodeId> {
        let own = self.me().filter(|_| self.state.is_short());
        let seen = self.node.mesh_seen().await;
        let others = seen.iter().flat_map(|seen| &seen.peers).filter(|peer| peer.disk_full).map(|peer| peer.node_id);
        others.chain(own).collect()
    }
}

fn median(mut values: Vec<i64>) -> i64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
