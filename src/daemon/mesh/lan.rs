//! Tells the local network, by mDNS, that this node is here, and hears where others are. Anybody can say anything there:
//! what is heard is a guess, and WireGuard finds out who answers.
//!
//! What is told: a hash of the cluster's id, the node's id, its UDP port and its addresses. A node that stands alone
//! tells nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use sha2::{Digest, Sha256};
use toft_model::{
    ids::{ClusterId, NodeId},
    mesh::MAX_TOLD,
    state::MeshSight,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Me, Sighting};

const SERVICE: &str = "_toft-mesh._udp.local.";
/// Addresses that change do so in several steps.
const SETTLED: Duration = Duration::from_secs(1);
/// When it is told again after a start: who has other addresses too may not have listened the first time.
const TOLD_AGAIN: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8), Duration::from_secs(16)];
/// Wait before it is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// What a node says in the local network.
pub(super) struct Lan {
    pub(super) me: Me,
    pub(super) port: u16,
    pub(super) ours: BTreeSet<String>,
    pub(super) addresses: watch::Receiver<BTreeSet<IpAddr>>,
    pub(super) sights: watch::Receiver<Vec<MeshSight>>,
    pub(super) sight: mpsc::Sender<Sighting>,
}

impl Lan {
    /// Tells and hears until `cancel`, while there are others.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let Some(cluster) = self.me.cluster else { return };
        let mut told = false;
        while !cancel.is_cancelled() {
            let me = self.me.node_id;
            let others = self.sights.wait_for(|sights| sights.iter().any(|sight| sight.node_id != me));
            match cancel.run_until_cancelled(others).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
            let error = match cancel.run_until_cancelled(self.listen(cluster)).await {
                Some(Ok(())) => continue,
                Some(Err(error)) => error,
                None => return,
            };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(%error, "nodes are not looked for in the local network");
            }
            let _ = cancel.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
        }
    }

    /// Tells and hears until this node has other addresses: whoever begins anew then asks and tells at once, with sockets of the
    /// addresses that there are.
    async fn listen(&mut self, cluster: ClusterId) -> Result<(), mdns_sd::Error> {
        let daemon = Daemon(ServiceDaemon::new()?);
        let mut without = vec![IfKind::LoopbackV4, IfKind::LoopbackV6];
        without.extend(self.ours.iter().cloned().map(IfKind::Name));
        daemon.0.disable_interface(without)?;
        let heard = daemon.0.browse(SERVICE)?;
        let cluster = fingerprint(cluster);
        let addresses = self.addresses.borrow_and_update().clone();
        let (begun, mut again) = (Instant::now(), TOLD_AGAIN.into_iter());
        let mut next = None;
        if !addresses.is_empty() {
            daemon.0.register(self.service(&cluster, &addresses)?)?;
            next = again.next();
        }
        loop {
            let later = async {
                match next {
                    Some(after) => tokio::time::sleep_until(begun + after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = later => {
                    daemon.0.register(self.service(&cluster, &addresses)?)?;
                    next = again.next();
                }
                changed = self.addresses.changed() => match changed {
                    Ok(()) => {
                        tokio::time::sleep(SETTLED).await;
                        return Ok(());
                    }
                    Err(_) => return std::future::pending().await,
                },
                event = heard.recv_async() => match event {
                    Ok(ServiceEvent::ServiceResolved(service)) => self.take(&cluster, &service),
                    Ok(_) => {}
                    Err(_) => return Err(mdns_sd::Error::Msg("its thread ended".into())),
                },
            }
        }
    }

    fn service(&self, cluster: &str, addresses: &BTreeSet<IpAddr>) -> Result<ServiceInfo, mdns_sd::Error> {
        let node = self.me.node_id.0.simple().to_string();
        let addresses: Vec<IpAddr> = addresses.iter().copied().take(MAX_TOLD).collect();
        let about = [("cluster", cluster), ("node", node.as_str())];
        ServiceInfo::new(SERVICE, &node, &format!("toft-{node}.local."), &addresses[..], self.port, &about[..])
    }

    fn take(&self, cluster: &str, service: &ResolvedService) {
        if service.get_property_val_str("cluster") != Some(cluster) {
            return;
        }
        let node = service.get_property_val_str("node").and_then(|text| text.parse::<NodeId>().ok());
        let known = |node: &NodeId| self.sights.borrow().iter().any(|sight| sight.node_id == *node);
        let Some(node) = node.filter(|node| *node != self.me.node_id && known(node)) else { return };
        let port = service.get_port();
        let places = service.get_addresses().iter().take(MAX_TOLD).map(|address| address.to_ip_addr());
        let places = places.map(|address| SocketAddr::new(address, port)).collect();
        // When nobody takes it in, it comes again.
        drop(self.sight.try_send(Sighting::Lan(node, places)));
    }
}

/// The thread of mDNS; it ends with this.
struct Daemon(ServiceDaemon);

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.shutdown());
    }
}

/// What tells clusters apart without telling which they are.
fn fingerprint(cluster: ClusterId) -> String {
    hex::encode(&Sha256::digest(format!("toft mesh {cluster}"))[..8])
}
