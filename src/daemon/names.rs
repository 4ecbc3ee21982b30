//! The names that this node's containers ask for: a server for them, and the zone as the state says.

use std::{sync::Arc, time::Duration};

use toft_model::{
    ids::NodeId,
    node::Subnet6,
    state::{NamedWorkload, Names},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{identity::Identity, tasks::Tasks};
use crate::{
    agent::{
        dns::{NameServer, Zone, resolv_conf, zone::OwnAddresses},
        network::{OtherNode, Others},
    },
    config::Config,
    consensus::{Follows, Handle, ReadError, Rows},
    observe::chain,
};

/// Shortest time between two zones: what changes faster is seen in one.
const PACE: Duration = Duration::from_millis(20);

/// Starts what answers, and gives its port and what tells it the names; `None` on a node that cannot answer.
pub(super) fn open(
    config: &Config,
    (identity, six): (&Identity, Option<Subnet6>),
    tasks: &mut Tasks,
    cancel: &CancellationToken,
) -> Option<(u16, watch::Sender<Arc<Zone>>)> {
    let subnet = identity.subnet?;
    let (sender, zone) = watch::channel(Arc::new(Zone::default()));
    let places = vec![config.network.resolv_conf.clone(), resolv_conf::BEHIND_RESOLVED.into()];
    let own = OwnAddresses { range: config.network.range, six };
    let bound = NameServer::bind(subnet.gateway(), own, places, zone).and_then(|server| Ok((server.port()?, server)));
    match bound {
        Ok((port, server)) => {
            tasks.spawn("names", until_cancelled(server, cancel.clone()));
            Some((port, sender))
        }
        Err(error) => {
            tracing::error!(%error, "nobody answers the containers' questions for names: they ask the machine's servers");
            None
        }
    }
}

async fn until_cancelled(server: NameServer, cancel: CancellationToken) {
    server.run(cancel).await;
}

/// What the other nodes' containers are told to and asked for.
pub(super) struct Neighbours {
    /// The other nodes' networks; empty where there is no mesh, and then nobody there can be reached.
    pub(super) nodes: watch::Receiver<Vec<OtherNode>>,
    /// For the packet rules.
    pub(super) others: watch::Sender<Others>,
    /// For the names; absent where nobody answers.
    pub(super) zone: Option<watch::Sender<Arc<Zone>>>,
}

/// Makes the zone and the list of the others' containers anew whenever what they depend on may have changed.
pub(super) async fn feed(state: Handle, node_id: NodeId, mut neighbours: Neighbours, cancel: CancellationToken) {
    let mut moves = state.watch_schedule();
    let (mut names, mut known) = (None::<Names>, None);
    loop {
        moves.mark_unchanged();
        let written = state.take_written(Follows::Names);
        let began = Instant::now();
        // Much else moves what is placed (what a card draws, what a node has), and the names stay.
        if names.is_none() || written.touch(&Names::TABLES) || neighbours.nodes.has_changed().unwrap_or(false) {
            let nodes = neighbours.nodes.borrow_and_update().clone();
            match read(&state, node_id, (names.take(), written), nodes.clone()).await {
                Ok((kept, workloads)) => {
                    names = Some(kept);
                    let now = (workloads, nodes);
                    if known.as_ref() != Some(&now) {
                        let others = others(node_id, &now.0, now.1.clone());
                        neighbours.others.send_if_modified(|before| {
                            let changed = *before != others;
                            *before = others;
                            changed
                        });
                        if let Some(zone) = &neighbours.zone {
                            zone.send_replace(Arc::new(Zone::new(&now.0)));
                        }
                        known = Some(now);
                    }
                }
                Err(error) => tracing::error!(error = chain(&error), "the names of workloads could not be read"),
            }
        }
        // In a large cluster it takes long, and most of the time is to be others'.
        let pace = PACE.max(began.elapsed() * 3);
        let next = async {
            tokio::time::sleep(pace).await;
            tokio::select! {
                changed = moves.changed() => changed,
                Ok(()) = neighbours.nodes.changed() => Ok(()),
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = next => if changed.is_err() { return cancel.cancelled().await },
        }
    }
}

/// What names lead to now, of what was known and what was written since.
async fn read(
    state: &Handle,
    node_id: NodeId,
    (kept, written): (Option<Names>, Rows),
    nodes: Vec<OtherNode>,
) -> Result<(Names, Vec<NamedWorkload>), ReadError> {
    let read = move |connection: &rusqlite::Connection| {
        let names = match (kept, written) {
            (Some(mut kept), Rows::These(rows)) => {
                kept.follow(connection, &rows)?;
                kept
            }
            (None, _) | (_, Rows::All) => Names::read(connection)?,
        };
        let workloads = names.of(node_id, |address| nodes.iter().any(|node| node.subnet.contains(address)));
        Ok((names, workloads))
    };
    state.read(read).await
}

/// The containers on other nodes, with the networks they are in.
fn others(node_id: NodeId, workloads: &[NamedWorkload], nodes: Vec<OtherNode>) -> Others {
    let instances = workloads.iter().flat_map(|workload| &workload.instances).filter(|one| one.node_id != node_id);
    Others { nodes, members: instances.map(|one| (one.address, one.networks.clone())).collect() }
}
