//! This node as a member of its cluster: joining, answering the others, going on alone.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
};

use anyhow::Context;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{
    Hinted,
    beacon::Beacon,
    belonging::Belonging,
    directories::Directories,
    identity::Identity,
    joining::{self, Wish},
    tasks::Tasks,
};
use crate::{
    config::{Config, NodeRole},
    consensus::{
        self, Door, Edition, Handle, Opened,
        network::Admission,
        types::{FOUNDER, Member, MemberId, Role},
    },
    enroll::{Keys, Pins, Place, Token},
    seal::ClusterKey,
};

pub use crate::consensus::Account;

fn myself(config: &Config, directories: &Directories) -> anyhow::Result<Member> {
    let node_id = Identity::load_or_make(directories)?.node_id;
    let cluster = &config.cluster;
    // Who listens on all addresses learns from those who come which one reaches it.
    let listens = cluster.bind.filter(|address| !address.ip().is_unspecified());
    let listens = listens.map(|address| address.to_string()).unwrap_or_default();
    let role = match cluster.role {
        NodeRole::Server => Role::Server,
        NodeRole::Witness => Role::Witness,
    };
    let address = cluster.address.clone().unwrap_or(listens);
    Ok(Member { node_id, name: config.node.name.clone(), address, role, edition: Edition::own() })
}

/// A member that is open.
pub(super) struct Membership {
    pub(super) state: Handle,
    /// What seals and opens secrets.
    pub(super) cluster_key: ClusterKey,
    /// The way into other clusters and out of this one.
    pub(super) belonging: Arc<Belonging>,
    /// The way in through the mesh; absent when nobody is let in.
    pub(super) mesh_door: Option<MeshDoor>,
}

/// Answers the other members at this node's address in the mesh.
pub(super) struct MeshDoor {
    door: Door,
    admission: Arc<dyn Admission>,
    trusted: Vec<MemberId>,
    /// Where it is answered already.
    bound: SocketAddr,
    /// The port that the others know.
    port: u16,
}

impl MeshDoor {
    /// Answers until `cancel`. The address may come later.
    pub(super) async fn answer(self, address: Ipv4Addr, cancel: CancellationToken) {
        let Self { door, admission, trusted, bound, port } = self;
        if bound.ip().is_unspecified() && bound.port() == port {
            return cancel.cancelled().await;
        }
        match early(SocketAddrV4::new(address, port)) {
            Ok(listener) => door.serve(listener, admission, trusted, cancel).await,
            Err(error) => {
                tracing::warn!(%error, "other members are not answered in the mesh at {address}:{port}");
                cancel.cancelled().await;
            }
        }
    }
}

/// Listens where the configuration says. A member whose machine has another address now is reached through the mesh.
async fn listen_at(address: SocketAddr, member: bool) -> io::Result<TcpListener> {
    match (TcpListener::bind(address).await, address) {
        (Err(error), SocketAddr::V4(address)) if member && error.kind() == io::ErrorKind::AddrNotAvailable => {
            tracing::warn!(
                "`cluster.bind`: this machine has no address {} now; other members reach it through the mesh only",
                address.ip()
            );
            early(address)
        }
        (other, _) => other,
    }
}

/// Listens at an address that may not be there yet.
fn early(address: SocketAddrV4) -> io::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let streams = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&streams, sockopt::IpFreebind, &true)?;
    setsockopt(&streams, sockopt::ReuseAddr, &true)?;
    bind(streams.as_raw_fd(), &SockaddrIn::from(address))?;
    listen(&streams, Backlog::new(128)?)?;
    TcpListener::from_std(streams.into())
}

/// Where this machine itself reaches what is bound to an address.
fn reached_here(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// Opens the state, having joined a cluster first if that was asked for, and lets the other members in.
pub(super) async fn enter(
    config: &mut Config,
    directories: &Directories,
    tasks: &mut Tasks,
    cancel: CancellationToken,
) -> anyhow::Result<Membership> {
    let files = directories.consensus();
    if let Some(join) = config.cluster.join.take() {
        if files.log.exists() {
            tracing::info!("this node is a member already; --join is passed over");
        } else {
            let text = fs::read_to_string(&join.token_file).map(Zeroizing::new);
            let text = text.with_context(|| format!("reading the token in `{}`", join.token_file.display()))?;
            let token: Token = text.parse().context("reading the token")?;
            let wish =
                Wish { address: join.address, token, name: None, role: None, labels: BTreeMap::new(), discard: false };
            let node_id = Identity::load_or_make(directories)?.node_id;
            joining::ask(config, directories.data(), node_id, wish).await?;
            joining::finish(directories.data())?;
        }
    }
    *config = joining::remembered(config.clone(), directories)?;
    let me = myself(config, directories)?;
    let listener = match config.cluster.bind {
        Some(address) => Some(listen_at(address, files.log.exists()).await.with_context(|| {
            format!("binding {address} for the other members; choose another address with --cluster-bind")
        })?),
        None => None,
    };
    let told = me.address.clone();
    let keys = Keys::load_or_make(&directories.cluster(), FOUNDER).context("reading the cluster's keys")?;
    let opened = consensus::open(&files, me, keys.transport().clone()).await;
    let Opened { handle, task, door } = opened.map_err(hinted)?;
    tasks.spawn("consensus", task);
    let cluster_key = keys.cluster_key().clone();
    let Place { members: trusted, contact, .. } = Place::load(&directories.cluster())?;
    let authority = keys.authority_hash().context("reading the cluster's keys")?;
    let pins = Arc::new(Pins::default());
    let admission = keys.admissions(handle.clone(), Arc::clone(&pins));
    let (opener, opened) = oneshot::channel();
    let is_open = listener.is_some();
    let mut mesh_door = None;
    if let Some(listener) = &listener {
        let bound = listener.local_addr().context("asking where other members are answered")?;
        let port = told.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(bound.port());
        let (door, admission, trusted) = (door.clone(), Arc::clone(&admission), trusted.clone());
        let calls = door.clone().call_others(reached_here(bound), contact);
        let stop = cancel.clone();
        tasks.spawn("way back", async move { stop.run_until_cancelled(calls).await.unwrap_or_default() });
        mesh_door = Some(MeshDoor { door, admission, trusted, bound, port });
    }
    if let Some(address) = config.mesh.relay_listen.filter(|_| is_open) {
        let bound = TcpListener::bind(address).await;
        let listener = bound.with_context(|| format!("binding {address} for members; `mesh.relay_listen` says so"))?;
        let door = door.clone().serve(listener, Arc::clone(&admission), trusted.clone(), cancel.clone());
        tasks.spawn("relay door", door);
    }
    let cancel_beacon = cancel.clone();
    tasks.spawn("member door", answer(door, (listener, opened), (admission, trusted), cancel));
    let node_id = Identity::load_or_make(directories)?.node_id;
    let beacon = Beacon {
        state: handle.clone(),
        name: config.node.name.clone(),
        place: directories.cluster(),
        ours: [directories.network_names().bridge, super::mesh::interface(config, directories)].into(),
        until: pins.watch(),
    };
    tasks.spawn("beacon", beacon.run(cancel_beacon));
    let belonging = Belonging::new(config, directories, (handle.clone(), node_id, authority, pins), (opener, is_open));
    Ok(Membership { state: handle, cluster_key, belonging: Arc::new(belonging), mesh_door })
}

/// Answers at the door for members from when there is one.
async fn answer(
    door: Door,
    (listener, opened): (Option<TcpListener>, oneshot::Receiver<TcpListener>),
    (admission, trusted): (Arc<dyn Admission>, Vec<MemberId>),
    cancel: CancellationToken,
) {
    let listener = match listener {
        Some(listener) => listener,
        None => match cancel.run_until_cancelled(opened).await {
            Some(Ok(listener)) => listener,
            Some(Err(_)) => return cancel.cancelled().await,
            None => return,
        },
    };
    door.serve(listener, admission, trusted, cancel).await;
}

/// Makes this node a cluster of its own with what it has, if `agree` says so after it saw what that means.
pub fn recover(config: &Config, agree: &mut dyn FnMut(&Account) -> bool) -> anyhow::Result<Option<Account>> {
    let directories = Directories::locked(&config.paths)?;
    let config = joining::remembered(config.clone(), &directories)?;
    let me = myself(&config, &directories)?;
    let files = directories.consensus();
    if !agree(&consensus::survey(&files, &me).map_err(hinted)?) {
        return Ok(None);
    }
    Ok(Some(consensus::recover(&files, &me).map_err(hinted)?))
}

fn hinted(error: consensus::OpenError) -> Hinted {
    let hint = error.hint();
    Hinted::new(error, hint)
}
