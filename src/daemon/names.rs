//! The names that this node's containers ask for: a server for them, and the zone as the state says.

use std::{sync::Arc, time::Duration};

use toft_model::{ids::NodeId, node::Subnet6, state::query_names};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{identity::Identity, tasks::Tasks};
use crate::{
    agent::dns::{NameServer, Zone, resolv_conf, zone::OwnAddresses},
    config::Config,
    consensus::Handle,
    observe::chain,
};

/// Shortest time between two zones: what changes faster is seen in one.
const PACE: Duration = Duration::from_millis(20);

/// Starts what answers, and gives its port; `None` on a node that cannot answer.
pub(super) fn open(
    config: &Config,
    (identity, six): (&Identity, Option<Subnet6>),
    state: Handle,
    tasks: &mut Tasks,
    cancel: &CancellationToken,
) -> Option<u16> {
    let subnet = identity.subnet?;
    let (sender, zone) = watch::channel(Arc::new(Zone::default()));
    let places = vec![config.network.resolv_conf.clone(), resolv_conf::BEHIND_RESOLVED.into()];
    let own = OwnAddresses { range: config.network.range, six };
    let bound = NameServer::bind(subnet.gateway(), own, places, zone).and_then(|server| Ok((server.port()?, server)));
    match bound {
        Ok((port, server)) => {
            tasks.spawn("names", until_cancelled(server, cancel.clone()));
            tasks.spawn("zone of names", feed(state, identity.node_id, sender, cancel.clone()));
            Some(port)
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

/// Makes the zone anew whenever what it depends on may have changed.
async fn feed(state: Handle, node_id: NodeId, zone: watch::Sender<Arc<Zone>>, cancel: CancellationToken) {
    let mut moves = state.watch_schedule();
    let mut known = None;
    loop {
        moves.mark_unchanged();
        match state.read(move |connection| query_names(connection, node_id)).await {
            Ok(workloads) if known.as_ref() == Some(&workloads) => {}
            Ok(workloads) => {
                zone.send_replace(Arc::new(Zone::new(&workloads)));
                known = Some(workloads);
            }
            Err(error) => tracing::error!(error = chain(&error), "the names of workloads could not be read"),
        }
        let next = async {
            tokio::time::sleep(PACE).await;
            moves.changed().await
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = next => if changed.is_err() { return cancel.cancelled().await },
        }
    }
}
