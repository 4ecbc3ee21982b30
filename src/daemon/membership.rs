//! This node as a member of its cluster: joining, answering the others, going on alone.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
};

use anyhow::Context;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Hinted, directories::Directories, identity::Identity, tasks::Tasks};
use crate::{
    config::{Config, NodeRole},
    consensus::{
        self, Door, Handle, Opened,
        types::{FOUNDER, Member, Role},
    },
    enroll::{self, Keys, Token},
    seal::ClusterKey,
};

pub use crate::consensus::Account;

fn myself(config: &Config, directories: &Directories) -> anyhow::Result<Member> {
    let node_id = Identity::load_or_make(directories)?.node_id;
    let cluster = &config.cluster;
    let listens = cluster.bind.map(|address| address.to_string()).unwrap_or_default();
    let role = match cluster.role {
        NodeRole::Server => Role::Server,
        NodeRole::Witness => Role::Witness,
    };
    let address = cluster.address.clone().unwrap_or(listens);
    Ok(Member { node_id, name: config.node.name.clone(), address, role })
}

/// A member that is open.
pub(super) struct Membership {
    pub(super) state: Handle,
    /// The token that lets others in; absent when nobody is let in.
    pub(super) join_token: Option<String>,
    /// What seals and opens secrets.
    pub(super) cluster_key: ClusterKey,
    /// The way in through the mesh; absent when nobody is let in.
    pub(super) mesh_door: Option<MeshDoor>,
}

/// Answers the other members at this node's address in the mesh.
pub(super) struct MeshDoor {
    door: Door,
    keys: Arc<Keys>,
    /// Where it is answered already.
    bound: SocketAddr,
    /// The port that the others know.
    port: u16,
}

impl MeshDoor {
    /// Answers until `cancel`. The address may come later.
    pub(super) async fn answer(self, address: Ipv4Addr, cancel: CancellationToken) {
        let Self { door, keys, bound, port } = self;
        if bound.ip().is_unspecified() && bound.port() == port {
            return cancel.cancelled().await;
        }
        match early(SocketAddrV4::new(address, port)) {
            Ok(listener) => door.serve(listener, keys, cancel).await,
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

/// Opens the state, having joined a cluster first if that was asked for, and lets the other members in.
pub(super) async fn enter(
    config: &Config,
    directories: &Directories,
    tasks: &mut Tasks,
    cancel: CancellationToken,
) -> anyhow::Result<Membership> {
    let me = myself(config, directories)?;
    let files = directories.consensus();
    // Bound before anything is changed: an address that is taken shall leave no half of a join behind.
    let listener = match config.cluster.bind {
        Some(address) => Some(listen_at(address, files.log.exists()).await.with_context(|| {
            format!("binding {address} for the other members; choose another address with --cluster-bind")
        })?),
        None => None,
    };
    if let Some(join) = &config.cluster.join {
        if files.log.exists() {
            tracing::info!("this node is a member already; --join is passed over");
        } else {
            let text = fs::read_to_string(&join.token_file)
                .with_context(|| format!("reading the token in `{}`", join.token_file.display()))?;
            let token: Token = text.parse().context("reading the token")?;
            tracing::info!("joining the cluster at {}", join.address);
            let joined = enroll::join(&join.address, &token, &me, &directories.cluster()).await;
            let identity = joined.map_err(|error| {
                let hint = error.hint();
                Hinted::new(error, hint)
            })?;
            consensus::adopt(&files, &identity).map_err(hinted)?;
            tracing::info!("joined cluster {} as member {}", identity.cluster_id, identity.member_id);
        }
    }
    let told = me.address.clone();
    let keys = Keys::load_or_make(&directories.cluster(), FOUNDER).context("reading the cluster's keys")?;
    let opened = consensus::open(&files, me, keys.transport().clone()).await;
    let Opened { handle, task, door } = opened.map_err(hinted)?;
    tasks.spawn("consensus", task);
    let cluster_key = keys.cluster_key().clone();
    let join_token = listener.is_some().then(|| keys.token().to_string());
    let mut mesh_door = None;
    if let Some(listener) = listener {
        let keys = Arc::new(keys);
        let bound = listener.local_addr().context("asking where other members are answered")?;
        let port = told.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(bound.port());
        mesh_door = Some(MeshDoor { door: door.clone(), keys: Arc::clone(&keys), bound, port });
        tasks.spawn("member door", answer(door, listener, keys, cancel));
    }
    Ok(Membership { state: handle, join_token, cluster_key, mesh_door })
}

async fn answer(door: Door, listener: TcpListener, keys: Arc<Keys>, cancel: CancellationToken) {
    door.serve(listener, keys, cancel).await;
}

/// Makes this node a cluster of its own with what it has, if `agree` says so after it saw what that means.
pub fn recover(config: &Config, agree: &mut dyn FnMut(&Account) -> bool) -> anyhow::Result<Option<Account>> {
    let directories = Directories::locked(&config.paths)?;
    let me = myself(config, &directories)?;
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
