//! The mesh of this node: its keys, its device, who the peers are and where they may be.
//!
//! [`follow`] makes the device's desired configuration of the state and of what is known of places; [`talk`] asks the
//! peers through the mesh whether they answer and where others are; [`lan`] asks the local network; [`relay`] leads to those
//! whom no datagram reaches. All of it is one task of the daemon.

mod announce;
mod desired;
mod follow;
mod lan;
mod places;
mod relay;
mod talk;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use toft_mesh::{Settings, choice::ChosenDevice, keeper, keys::Keys, own};
use toft_model::{
    ids::{ClusterId, NodeId},
    mesh::{MeshConfig, MeshLink, MeshStatus},
    node::{Subnet, Subnet6},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{directories::Directories, membership::MeshDoor};
use crate::{
    agent::network::OtherNode,
    config::{Config, MeshConfig as Configured},
    consensus::Handle,
    observe::chain,
    wire::relay::relay_server::RelayServer,
};
use desired::Known;
use follow::Follow;
use places::Places;
use relay::{Counter, Followed, Hub, Relays, Told};
use talk::{Pulse, Talk};

/// News of places that wait to be taken in; more are dropped, for they come again.
const SIGHTINGS: usize = 64;

/// The node's keys; nothing where there shall be no mesh, or none can be.
fn keys(config: &Config, directories: &Directories) -> Option<Arc<Keys>> {
    if !config.mesh.enabled {
        return None;
    }
    match Keys::open(&directories.mesh_keys()) {
        Ok(keys) => Some(Arc::new(keys)),
        Err(error) => {
            tracing::error!(error = chain(&error), "there is no mesh: this node's key for it cannot be had");
            None
        }
    }
}

/// Name of the mesh interface of this appliance.
pub(super) fn interface(config: &Config, directories: &Directories) -> String {
    config.mesh.interface.clone().unwrap_or_else(|| directories.network_names().mesh)
}

/// Who this node is in the mesh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Me {
    pub(super) node_id: NodeId,
    /// Of its containers; a witness has none and uses the first address only.
    pub(super) subnet: Subnet,
    pub(super) subnet6: Option<Subnet6>,
    pub(super) cluster: Option<ClusterId>,
}

/// News of where a node may be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sighting {
    /// A peer has a session with it there.
    Told(NodeId, SocketAddr),
    /// Somebody in the local network says that it is there.
    Lan(NodeId, Vec<SocketAddr>),
    /// A peer sees this node there.
    Me(SocketAddr),
}

/// What the other rooms get of the mesh.
pub(super) struct Outlook {
    /// The other nodes' networks.
    pub(super) others: watch::Receiver<Vec<OtherNode>>,
    /// How each of the other nodes is reached.
    #[allow(dead_code, reason = "it is there for whoever shows the mesh")]
    pub(super) links: watch::Receiver<Vec<MeshLink>>,
}

/// What is needed to have a mesh.
pub(super) struct Mesh {
    me: Me,
    config: Configured,
    keys: Arc<Keys>,
    state: Handle,
    /// Interfaces that others make or that are ours.
    ours: BTreeSet<String>,
    interface: String,
    places: PathBuf,
    others: watch::Sender<Vec<OtherNode>>,
    links: watch::Sender<Vec<MeshLink>>,
    door: Option<MeshDoor>,
}

impl Mesh {
    /// The mesh of a node, unless there shall be none; with what others get of it.
    pub(super) fn new(
        config: &Config,
        directories: &Directories,
        (state, door): (&Handle, Option<MeshDoor>),
        me: Option<Me>,
    ) -> (Option<Self>, Outlook) {
        let (others, outlook) = watch::channel(Vec::new());
        let (links, seen) = watch::channel(Vec::new());
        let outlook = Outlook { others: outlook, links: seen };
        let Some((me, keys)) = me.zip(keys(config, directories)) else { return (None, outlook) };
        let interface = interface(config, directories);
        let ours = BTreeSet::from([directories.network_names().bridge, interface.clone()]);
        let places = directories.mesh_keys().join("places.json");
        let (config, state) = (config.mesh.clone(), state.clone());
        (Some(Self { me, config, keys, state, ours, interface, places, others, links, door }), outlook)
    }

    /// Keeps it until `cancel`. The device stays.
    pub(super) async fn run(self, cancel: CancellationToken) {
        let Self { me, config, keys, state, ours, interface, places, others, links, door } = self;
        let device = Arc::new(ChosenDevice::new(Settings { interface, keys: Arc::clone(&keys) }));
        let (want, wanted) = watch::channel::<Option<MeshConfig>>(None);
        let (tell, observed) = watch::channel::<Option<MeshStatus>>(None);
        let (own, addresses) = watch::channel(BTreeSet::new());
        let (sight, sightings) = mpsc::channel(SIGHTINGS);
        let (beat, pulse) = watch::channel::<BTreeMap<Ipv4Addr, Pulse>>(BTreeMap::new());
        let port = config.listen_port;
        let (names, peers) = watch::channel(Vec::new());
        let next_key = watch::Sender::new(keys.next());
        let hub = Arc::new(Hub::default());
        let counter = Arc::clone(&hub);
        let _offered = state.offer(move |routes| routes.add_service(RelayServer::new(Counter(Arc::clone(&counter)))));
        let followed = Followed {
            sights: peers.clone(),
            observed: observed.clone(),
            wanted: wanted.clone(),
            pulse: pulse.clone(),
        };
        let (relayed, to_relay) = watch::channel(BTreeMap::new());
        let relays = Relays::new(me, port, state.clone(), hub, followed, Told { relayed, links });
        let talk = Talk {
            me,
            state: state.clone(),
            sights: peers.clone(),
            observed: observed.clone(),
            wanted: wanted.clone(),
            next_key: next_key.subscribe(),
            pulse: beat,
            sight: sight.clone(),
        };
        let lan = lan::Lan { me, port, ours: ours.clone(), addresses: addresses.clone(), sights: peers, sight };
        let (announcement, announced) = watch::channel(None);
        let announce = announce::announce(state.clone(), me.node_id, announced, cancel.clone());
        let follow = Follow {
            me,
            config,
            keys,
            state,
            announcement,
            want,
            observed: observed.clone(),
            addresses,
            sightings,
            pulse,
            next_key,
            sights: names,
            others,
            known: Known { places: Places::load(&places), ..Known::default() },
            relayed: to_relay,
            file: places,
        };
        let answer = async {
            match door {
                Some(door) => door.answer(me.subnet.gateway(), cancel.clone()).await,
                None => cancel.cancelled().await,
            }
        };
        tokio::join!(
            keeper::keep(device, wanted, tell, cancel.clone()),
            own::follow(ours, own, cancel.clone()),
            follow.run(cancel.clone()),
            announce,
            talk.run(cancel.clone()),
            lan.run(cancel.clone()),
            relays.run(cancel.clone()),
            answer,
        );
    }
}
