//! Tells the local network, by mDNS, that a machine with a PIN may join here, as long as the PIN is valid; and finds who tells
//! so. What is told is no secret, and what is heard is not believed: the PIN finds out who is who.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use sha2::{Digest, Sha256};
use toft_model::{name::Name, state::ClusterRow};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    consensus::Handle,
    enroll::{IntroductionError, Pin, Place, Token, introduce},
};

const SERVICE: &str = "_toft-join._tcp.local.";
/// How long is listened, at most, and after the first one was heard.
const LISTEN: Duration = Duration::from_secs(10);
const MORE: Duration = Duration::from_millis(1_500);
/// Most that are heard of, and addresses of one.
const MOST: usize = 32;
const ADDRESSES: usize = 8;

/// Tells of a PIN.
pub(super) struct Beacon {
    pub(super) state: Handle,
    /// What this node is called.
    pub(super) name: Name,
    /// The folder that says where this node listens.
    pub(super) place: PathBuf,
    /// Interfaces that lead to no other machine.
    pub(super) ours: BTreeSet<String>,
    /// Until when a PIN is valid.
    pub(super) until: watch::Receiver<Option<Instant>>,
}

impl Beacon {
    /// Tells until `cancel`, while there is a PIN.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        loop {
            let open = cancel.run_until_cancelled(self.until.wait_for(Option::is_some)).await;
            let Some(Ok(Some(until))) = open.map(|open| open.map(|until| *until)) else {
                return cancel.cancelled().await;
            };
            let told = self.tell().await;
            if let Err(error) = &told {
                tracing::warn!(%error, "the local network cannot be told that a machine with a PIN may join here");
            }
            let over = async {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    changed = self.until.wait_for(|now| *now != Some(until)) => drop(changed),
                }
            };
            if cancel.run_until_cancelled(over).await.is_none() {
                return;
            }
            drop(told);
            // One that has expired is still there until somebody asks for it.
            let news = async { drop(self.until.wait_for(|now| *now != Some(until)).await) };
            if cancel.run_until_cancelled(news).await.is_none() {
                return;
            }
        }
    }

    async fn tell(&self) -> anyhow::Result<Daemon> {
        let listen = Place::load(&self.place)?.listen;
        let port = listen.map_or(super::joining::PORT, |listen| listen.port());
        let cluster = self.state.read(ClusterRow::load).await?.cluster_id;
        let cluster = cluster.ok_or_else(|| anyhow::anyhow!("this node is of no cluster yet"))?;
        let cluster = hex::encode(&Sha256::digest(format!("toft cluster {cluster}"))[..4]);
        let daemon = Daemon(ServiceDaemon::new()?);
        let mut without = vec![IfKind::LoopbackV4, IfKind::LoopbackV6];
        without.extend(self.ours.iter().cloned().map(IfKind::Name));
        daemon.0.disable_interface(without)?;
        let name = self.name.to_string();
        let (instance, host) = (format!("{name}-{cluster}"), format!("toft-join-{name}-{cluster}.local."));
        let about = [("cluster", cluster.as_str()), ("node", name.as_str())];
        let bound: Vec<IpAddr> = listen.map(|at| at.ip()).into_iter().filter(|ip| !ip.is_unspecified()).collect();
        let service = ServiceInfo::new(SERVICE, &instance, &host, &bound[..], port, &about[..])?;
        daemon.0.register(if bound.is_empty() { service.enable_addr_auto() } else { service })?;
        Ok(daemon)
    }
}

/// The thread of mDNS; it ends with this.
struct Daemon(ServiceDaemon);

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.shutdown());
    }
}

/// A member with a PIN, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What tells its cluster from others.
    pub cluster: String,
    /// What the node is called.
    pub node: String,
    /// Where it says it is.
    pub addresses: Vec<SocketAddr>,
}

/// Why a PIN leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// Nobody says that a PIN is valid there.
    #[error("no cluster in the local network says that it has a PIN")]
    Nobody,
    /// Several do.
    #[error("several clusters in the local network have a PIN: {}", .0.join(", "))]
    Several(Vec<String>),
    /// None of them is the one that is meant.
    #[error("no cluster in the local network that has a PIN is called that; there are: {}", .0.join(", "))]
    Another(Vec<String>),
    /// The local network cannot be asked.
    #[error("the local network cannot be asked")]
    Mdns(#[from] mdns_sd::Error),
    /// The PIN gives no token.
    #[error(transparent)]
    Introduction(#[from] IntroductionError),
}

impl NotFound {
    /// The next step for a person.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Nobody | Self::Mdns(_) => {
                "run `toft token create --pin` on a member in the same network; where multicast does not pass, give its address: `toft join ADDRESS --pin PIN`"
            }
            Self::Several(_) | Self::Another(_) => {
                "choose one with --cluster: the node's name, or what stands behind it"
            }
            Self::Introduction(_) => {
                "nothing was changed here; look at the PIN, or make a new one: `toft token create --pin`"
            }
        }
    }
}

/// Finds the member that `pin` is of, and gives its address and the token. `address` is asked if one is given; else the local
/// network is, for the cluster called `cluster` if there are several.
pub async fn find(pin: &Pin, address: Option<String>, cluster: Option<&str>) -> Result<(String, Token), NotFound> {
    if let Some(address) = address {
        let token = introduce(&address, pin).await?;
        return Ok((address, token));
    }
    let found = choose(listen().await?, cluster)?;
    let mut last = None;
    for address in &found.addresses {
        let address = address.to_string();
        match introduce(&address, pin).await {
            Ok(token) => return Ok((address, token)),
            // Another address of the same machine may lead there.
            Err(error @ IntroductionError::Unreachable { .. }) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or(NotFound::Nobody, NotFound::from))
}

async fn listen() -> Result<Vec<Found>, mdns_sd::Error> {
    let daemon = Daemon(ServiceDaemon::new()?);
    let heard = daemon.0.browse(SERVICE)?;
    let mut found: BTreeMap<(String, String), BTreeSet<SocketAddr>> = BTreeMap::new();
    let mut until = Instant::now() + LISTEN;
    while let Ok(event) = tokio::time::timeout_at(until, heard.recv_async()).await {
        let Ok(event) = event else { break };
        let ServiceEvent::ServiceResolved(service) = event else { continue };
        let Some((key, addresses)) = read(&service) else { continue };
        if found.len() >= MOST && !found.contains_key(&key) {
            continue;
        }
        until = until.min(Instant::now() + MORE);
        found.entry(key).or_default().extend(addresses);
    }
    let found = found.into_iter().map(|((cluster, node), addresses)| Found {
        cluster,
        node,
        addresses: addresses.into_iter().take(ADDRESSES).collect(),
    });
    Ok(found.filter(|found| !found.addresses.is_empty()).collect())
}

fn read(service: &ResolvedService) -> Option<((String, String), Vec<SocketAddr>)> {
    let cluster = service.get_property_val_str("cluster")?;
    let plain = (1..=16).contains(&cluster.len()) && cluster.bytes().all(|byte| byte.is_ascii_hexdigit());
    let node: Name = service.get_property_val_str("node")?.parse().ok()?;
    let port = service.get_port();
    let usable = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let addresses = service.get_addresses().iter().take(MOST).map(|address| address.to_ip_addr()).filter(usable);
    let addresses = addresses.map(|ip| SocketAddr::new(ip, port)).collect();
    (plain && port != 0).then(|| ((cluster.to_owned(), node.to_string()), addresses))
}

fn choose(mut found: Vec<Found>, cluster: Option<&str>) -> Result<Found, NotFound> {
    let names = |found: &[Found]| found.iter().map(|found| format!("{} ({})", found.node, found.cluster)).collect();
    if found.is_empty() {
        return Err(NotFound::Nobody);
    }
    if let Some(wanted) = cluster {
        let all: Vec<String> = names(&found);
        found.retain(|found| found.node == wanted || found.cluster == wanted);
        if found.is_empty() {
            return Err(NotFound::Another(all));
        }
    }
    if found.len() > 1 {
        return Err(NotFound::Several(names(&found)));
    }
    found.pop().ok_or(NotFound::Nobody)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cluster: &str, node: &str) -> Found {
        let addresses = vec!["192.0.2.1:7444".parse().unwrap()];
        Found { cluster: cluster.into(), node: node.into(), addresses }
    }

    #[test]
    fn of_several_clusters_one_is_chosen_by_name() {
        let both = || vec![found("aa11", "attic"), found("bb22", "box")];
        assert!(matches!(choose(Vec::new(), None), Err(NotFound::Nobody)));
        assert_eq!(choose(both()[..1].to_vec(), None).unwrap().node, "attic");
        let told = choose(both(), None).unwrap_err().to_string();
        assert!(told.contains("attic (aa11), box (bb22)"), "{told}");
        assert_eq!(choose(both(), Some("box")).unwrap().cluster, "bb22");
        assert_eq!(choose(both(), Some("aa11")).unwrap().node, "attic");
        assert!(matches!(choose(both(), Some("cellar")), Err(NotFound::Another(all)) if all.len() == 2));
        let twice = vec![found("aa11", "box"), found("bb22", "box")];
        assert!(matches!(choose(twice, Some("box")), Err(NotFound::Several(_))));
    }
}
