//! The call to a member that relays for this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::stream;
use toft_model::{ids::NodeId, mesh::MeshNode};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Shared, id, queue::Queue};
use crate::{
    consensus::{Handle, network::MemberChannel, types::Member},
    wire::relay::{Carried, relay_client::RelayClient},
};

/// Longest wait for the call to begin.
const BEGIN: Duration = Duration::from_secs(5);
/// Time between two questions how far away the relay is, and the silence after which it is gone.
const ASK: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(6);
/// Most addresses of a relay's machine that are tried beside the one that the cluster knows.
const TOLD: usize = 3;

/// What is known of a relay that carries for this node.
pub(super) struct Link {
    pub(super) queue: Arc<Queue>,
    /// From question to answer, as measured last.
    pub(super) round_trip: Option<Duration>,
    /// For whom else it carries, and how far away they are from it.
    pub(super) present: BTreeMap<NodeId, Duration>,
}

/// The link as long as the call lasts.
struct Held {
    shared: Arc<Shared>,
    relay: NodeId,
    queue: Arc<Queue>,
}

impl Held {
    fn change(&self, change: impl FnOnce(&mut Link)) {
        if let Some(link) =
            self.shared.links().get_mut(&self.relay).filter(|link| Arc::ptr_eq(&link.queue, &self.queue))
        {
            change(link);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.queue.close();
        let mut links = self.shared.links();
        if links.get(&self.relay).is_some_and(|link| Arc::ptr_eq(&link.queue, &self.queue)) {
            links.remove(&self.relay);
        }
        drop(links);
        self.shared.news.notify_one();
    }
}

/// Where a member may be called, most likely first; never through the mesh.
pub(in super::super) fn addresses(member: &Member, mesh: Option<&MeshNode>) -> Vec<String> {
    let mut all = vec![member.address.clone()];
    let Some((host, port)) = member.address.rsplit_once(':') else { return all };
    let port = port.parse::<u16>().ok();
    let relay_port = mesh.and_then(|mesh| mesh.relay_port);
    all.extend(relay_port.map(|port| format!("{host}:{port}")));
    // Its address may be another one since it told the cluster.
    let told = mesh.into_iter().flat_map(|mesh| &mesh.endpoints).map(|endpoint| endpoint.ip());
    for ip in told.take(TOLD) {
        all.extend(port.into_iter().chain(relay_port).map(|port| SocketAddr::new(ip, port).to_string()));
    }
    let mut seen = BTreeSet::new();
    all.retain(|address| seen.insert(address.clone()));
    all
}

/// Calls `relay` at one address after the other, and has it carry until the call breaks. Gives the reason.
pub(super) async fn find(shared: Arc<Shared>, state: Handle, relay: NodeId, addresses: Vec<String>) -> String {
    let mut reason = "it has no address".to_owned();
    for address in addresses {
        match state.connect_to(&relay, &address).await {
            Ok(channel) => return hold(shared, relay, channel).await,
            Err(error) => reason = error.to_string(),
        }
    }
    reason
}

/// Has `relay` carry for this node until the call breaks, and gives the reason.
async fn hold(shared: Arc<Shared>, relay: NodeId, channel: MemberChannel) -> String {
    let queue = Arc::new(Queue::default());
    let outward = stream::unfold(Arc::clone(&queue), async |queue| Some((queue.next().await?, queue)));
    let mut client = RelayClient::new(channel);
    let begun = tokio::time::timeout(BEGIN, client.carry(outward)).await;
    let mut inward = match begun {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return status.message().to_owned(),
        Err(_) => return "no answer came in time".to_owned(),
    };
    let link = Link { queue: Arc::clone(&queue), round_trip: None, present: BTreeMap::new() };
    shared.links().insert(relay, link);
    let held = Held { shared: Arc::clone(&shared), relay, queue: Arc::clone(&queue) };
    let mut asks = interval(ASK);
    asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = (0, Instant::now());
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            message = inward.message() => message,
            _ = asks.tick() => {
                if heard.elapsed() > SILENCE {
                    return "it is silent".to_owned();
                }
                asked = (asked.0 + 1, Instant::now());
                queue.ping(asked.0);
                continue;
            }
        };
        let Carried { datagrams, present, ping, pong } = match message {
            Ok(Some(message)) => message,
            Ok(None) => return "it ended the call".to_owned(),
            Err(status) => return status.message().to_owned(),
        };
        heard = Instant::now();
        for datagram in datagrams {
            if let Some(from) = id(&datagram.node) {
                shared.deliver(from, &datagram.content);
            }
        }
        if ping != 0 {
            queue.pong(ping);
        }
        if pong != 0 && pong == asked.0 {
            held.change(|link| link.round_trip = Some(asked.1.elapsed()));
        }
        if let Some(present) = present {
            let distance = |us: u32| Duration::from_micros(us.into());
            let nodes = present.nodes.iter().take(super::MOST);
            let nodes = nodes.filter_map(|node| Some((id(&node.node)?, distance(node.round_trip_us)))).collect();
            held.change(|link| link.present = nodes);
            shared.news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use toft_model::mesh::PublicKey;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_relay_is_called_where_it_listens_and_at_other_addresses_of_its_machine() {
        let member = |address: &str| Member {
            node_id: NodeId(Uuid::from_u128(1)),
            name: "c".parse().unwrap(),
            address: address.into(),
            ..Member::default()
        };
        let mesh = |relay_port| MeshNode {
            key: PublicKey([1; 32]),
            next_key: None,
            port: 51820,
            endpoints: ["192.0.2.1:51820", "[2001:db8::1]:51820"].map(|at| at.parse().unwrap()).to_vec(),
            relay_port,
        };
        assert_eq!(addresses(&member("box.lan:7444"), None), ["box.lan:7444"]);
        assert_eq!(addresses(&member("192.0.2.1:7444"), Some(&mesh(None))), ["192.0.2.1:7444", "[2001:db8::1]:7444"]);
        assert_eq!(
            addresses(&member("192.0.2.1:7444"), Some(&mesh(Some(443)))),
            ["192.0.2.1:7444", "192.0.2.1:443", "[2001:db8::1]:7444", "[2001:db8::1]:443"]
        );
    }
}
