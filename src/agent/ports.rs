//! Keeps the node's shared network as the running instances need it.
//!
//! The reconciler opens and closes instances; one task applies the newest whole configuration and tells which version
//! is in force, so that a start can wait for its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use toft_model::{ids::InstanceId, instance::PublishedPort, workload::NetworkName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::network::{Network, NetworkConfig, Others, PortClaim};
use crate::observe::chain;

/// Wait after a configuration that could not be applied.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Longest wait of a start for its configuration.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
struct Wanted {
    version: u64,
    config: NetworkConfig,
}

/// The version in force, or why the newest could not be applied.
#[derive(Debug, Clone, Default)]
struct InForce {
    version: u64,
    trouble: Option<String>,
}

/// What an instance has of the shared network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) address: Ipv4Addr,
    pub(super) ports: Vec<PublishedPort>,
    pub(super) networks: BTreeSet<NetworkName>,
}

/// The reconciler's side.
pub(super) struct OpenPorts {
    /// The network of nobody.
    empty: NetworkConfig,
    network: Arc<dyn Network>,
    open: BTreeMap<InstanceId, Share>,
    claims: BTreeMap<InstanceId, Vec<PortClaim>>,
    version: u64,
    held: bool,
    wanted: watch::Sender<Option<Wanted>>,
    in_force: watch::Receiver<InForce>,
}

impl OpenPorts {
    /// For a node whose network is `empty` until something is open; the future applies until `cancel`. Nothing is applied before
    /// [`OpenPorts::release`]: what an earlier daemon opened stays open until it is known which of it is still needed.
    pub(super) fn new(
        empty: NetworkConfig,
        network: Arc<dyn Network>,
        others: watch::Receiver<Others>,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (wanted, wants) = watch::channel(None);
        let (tells, in_force) = watch::channel(InForce::default());
        let ports = Self {
            empty,
            network: Arc::clone(&network),
            open: BTreeMap::new(),
            claims: BTreeMap::new(),
            version: 0,
            held: true,
            wanted,
            in_force,
        };
        (ports, apply(network, (wants, others), tells, cancel))
    }

    pub(super) fn is_open(&self, id: InstanceId) -> bool {
        self.open.contains_key(&id)
    }

    pub(super) fn open(&mut self, id: InstanceId, share: Share) {
        if self.open.get(&id) != Some(&share) {
            self.open.insert(id, share);
            self.publish();
        }
    }

    /// Keeps others from the ports of an instance that runs. Only once it does: until then they are looked at for others.
    pub(super) fn claim(&mut self, id: InstanceId) {
        let Some(share) = self.open.get(&id).filter(|_| !self.claims.contains_key(&id)) else { return };
        let claims = share.ports.iter().map(|port| self.network.claim_port(*port)).collect();
        self.claims.insert(id, claims);
    }

    pub(super) fn close(&mut self, id: InstanceId) {
        self.claims.remove(&id);
        if self.open.remove(&id).is_some() {
            self.publish();
        }
    }

    /// Lets what is open now come into force, and what is opened later at once. With `anew` also when nothing is open:
    /// an earlier daemon may have left something.
    pub(super) fn release(&mut self, anew: bool) {
        if std::mem::take(&mut self.held) && (anew || !self.open.is_empty()) {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.version += 1;
        if self.held {
            return;
        }
        let ports =
            self.open.values().flat_map(|share| share.ports.iter().map(|port| (*port, share.address))).collect();
        let members = self.open.values().map(|share| (share.address, share.networks.clone())).collect();
        let config = NetworkConfig { ports, members, ..self.empty.clone() };
        self.wanted.send_replace(Some(Wanted { version: self.version, config }));
    }

    /// Waits until what is open now is in force.
    pub(super) fn ready(&self) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let mut in_force = self.in_force.clone();
        let version = self.version;
        async move {
            let reached = in_force.wait_for(|now| now.version >= version || now.trouble.is_some());
            match tokio::time::timeout(READY_TIMEOUT, reached).await {
                Ok(Ok(now)) if now.version >= version => Ok(()),
                Ok(Ok(now)) => Err(now.trouble.clone().unwrap_or_default()),
                Ok(Err(_)) => Err("the appliance is shutting down".into()),
                Err(_) => Err("the network was not ready in time".into()),
            }
        }
    }
}

async fn apply(
    network: Arc<dyn Network>,
    (mut wants, mut others): (watch::Receiver<Option<Wanted>>, watch::Receiver<Others>),
    tells: watch::Sender<InForce>,
    cancel: CancellationToken,
) {
    loop {
        let wanted = wants.borrow_and_update().clone();
        let mut failed = false;
        if let Some(Wanted { version, config }) = wanted {
            let config = config.beside(&others.borrow_and_update());
            match network.set(&config).await {
                Ok(()) => drop(tells.send_replace(InForce { version, trouble: None })),
                Err(error) => {
                    failed = true;
                    let trouble = chain(&error);
                    tracing::error!(error = trouble, "the container network could not be set up");
                    tells.send_modify(|now| now.trouble = Some(trouble));
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(AFTER_FAILURE), if failed => {}
            changed = wants.changed() => if changed.is_err() { return },
            // Who tells of the others may end before the agent does.
            Ok(()) = others.changed() => {}
        }
    }
}
