//! The way into other clusters and out of this one, as far as the running daemon goes it: it asks, writes down what it was told, and
//! starts again.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use nix::ifaddrs::getifaddrs;
use toft_model::{ids::NodeId, token::MemberRole};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify, oneshot},
};
use zeroize::Zeroizing;

use super::{
    Hinted,
    directories::Directories,
    joining::{self, Wish},
};
use crate::{
    config::{Config, NodeRole},
    consensus::{Handle, types::Role},
    control::{
        ControlError, ErrorKind,
        belonging::{Belong, FreshToken, JoinWish, Joined},
    },
    enroll::{Pins, Place, Token},
};

/// Addresses that are told.
const MOST_ADDRESSES: usize = 8;

/// What the daemon knows of its membership.
pub(super) struct Belonging {
    config: Config,
    data: PathBuf,
    keys: PathBuf,
    state: Handle,
    node_id: NodeId,
    authority: [u8; 32],
    pins: Arc<Pins>,
    /// Opens the door for members, unless it is open.
    opener: Mutex<Option<oneshot::Sender<TcpListener>>>,
    again: Arc<Notify>,
    /// One change of the membership at a time.
    changing: Mutex<()>,
}

impl Belonging {
    pub(super) fn new(
        config: &Config,
        directories: &Directories,
        (state, node_id, authority, pins): (Handle, NodeId, [u8; 32], Arc<Pins>),
        (opener, is_open): (oneshot::Sender<TcpListener>, bool),
    ) -> Self {
        Self {
            config: config.clone(),
            data: directories.data().to_owned(),
            keys: directories.cluster(),
            state,
            node_id,
            authority,
            pins,
            opener: Mutex::new((!is_open).then_some(opener)),
            again: Arc::new(Notify::new()),
            changing: Mutex::new(()),
        }
    }

    /// Told when the daemon is to start again.
    pub(super) fn again(&self) -> Arc<Notify> {
        Arc::clone(&self.again)
    }

    /// Whoever asked for it is still answered: the doors finish what they have begun.
    fn start_again(&self) {
        self.again.notify_one();
    }

    async fn open(&self) -> anyhow::Result<SocketAddr> {
        let place = Place::load(&self.keys)?;
        let mut opener = self.opener.lock().await;
        let known = self.config.cluster.bind.or(place.listen);
        if let (None, Some(address)) = (&*opener, known) {
            return Ok(address);
        }
        let address = match known {
            Some(address) => address,
            None => joining::listens(&self.config)?,
        };
        let listener = TcpListener::bind(address).await?;
        Place { listen: Some(address), ..place }.save(&self.keys)?;
        if let Some(opener) = opener.take() {
            drop(opener.send(listener));
            tracing::info!("members are let in at {address}");
        }
        Ok(address)
    }
}

/// An error of the daemon's own as operations tell it.
fn refused(error: &anyhow::Error) -> ControlError {
    let told: Vec<String> = error.chain().map(ToString::to_string).collect();
    let mut texts: Vec<String> = Vec::new();
    for text in told {
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
    }
    let refused = ControlError::new(ErrorKind::Conflict, texts.join(": "));
    match error.chain().find_map(|cause| cause.downcast_ref::<Hinted>()) {
        Some(hinted) => refused.hint(hinted.hint()),
        None => refused,
    }
}

#[async_trait]
impl Belong for Belonging {
    fn make_token(&self) -> Result<FreshToken, ControlError> {
        let made = Token::make(self.authority)
            .map_err(|error| ControlError::new(ErrorKind::Internal, format!("no token could be made: {error}")))?;
        Ok(FreshToken { id: made.id.clone(), secret: made.hash(), text: made.text() })
    }

    fn make_pin(&self, token: &str) -> Result<Zeroizing<String>, ControlError> {
        let failed = |reason: String| ControlError::new(ErrorKind::Internal, format!("no PIN could be made: {reason}"));
        let token: Token = token.parse().map_err(|error: crate::enroll::NoToken| failed(error.to_string()))?;
        Ok(self.pins.make(&token).map_err(|error| failed(error.to_string()))?.text())
    }

    async fn listen(&self) -> Result<Vec<String>, ControlError> {
        let address = self.open().await.map_err(|error| refused(&error))?;
        if let Some(reach) = &self.config.cluster.address {
            return Ok(vec![reach.clone()]);
        }
        if !address.ip().is_unspecified() {
            return Ok(vec![address.to_string()]);
        }
        Ok(reachable(address.is_ipv4()).into_iter().map(|ip| SocketAddr::new(ip, address.port()).to_string()).collect())
    }

    async fn join(&self, wish: JoinWish) -> Result<Joined, ControlError> {
        let _one = self.changing.lock().await;
        let token: Token = wish.token.parse().map_err(|error: crate::enroll::NoToken| {
            ControlError::new(ErrorKind::Invalid, error.to_string()).field("token")
        })?;
        if !wish.discard
            && let Some(found) = self.state.read(joining::belongings).await?
        {
            return Err(refused(&joining::occupied(found).into()));
        }
        let role = wish.role.map(|role| match role {
            MemberRole::Server => NodeRole::Server,
            MemberRole::Witness => NodeRole::Witness,
        });
        let wish =
            Wish { address: wish.address, token, name: wish.name, role, labels: wish.labels, discard: wish.discard };
        let answered =
            joining::ask(&self.config, &self.data, self.node_id, wish).await.map_err(|error| refused(&error))?;
        self.start_again();
        let (through, through_address) = answered.through;
        Ok(Joined {
            cluster_id: answered.identity.cluster_id,
            member_id: answered.identity.member_id,
            name: answered.name,
            role: match answered.role {
                Role::Server => MemberRole::Server,
                Role::Witness => MemberRole::Witness,
            },
            address: answered.address,
            labels: answered.labels,
            through,
            through_address,
        })
    }

    async fn forget_cluster(&self) -> Result<(), ControlError> {
        let _one = self.changing.lock().await;
        joining::leave(&self.data).map_err(|error| refused(&error))?;
        self.start_again();
        Ok(())
    }
}

/// Addresses of this machine that others may reach: that of the way out first, then those of all interfaces.
fn reachable(only_v4: bool) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    // Nothing is sent: the kernel says which address it would send from.
    for (here, there) in [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")] {
        if let Ok(socket) = UdpSocket::bind(here)
            && socket.connect(there).is_ok()
            && let Ok(address) = socket.local_addr()
        {
            found.push(address.ip());
        }
    }
    for interface in getifaddrs().into_iter().flatten() {
        // Those of containers and of the mesh lead nowhere for a machine that is no member yet.
        if interface.interface_name.starts_with("toft") {
            continue;
        }
        let address = interface.address.and_then(|address| {
            let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        found.extend(address);
    }
    let mut usable = Vec::new();
    for address in found {
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let fits = !address.is_unspecified() && !link_local && (address.is_ipv4() || !only_v4);
        if fits && !usable.contains(&address) {
            usable.push(address);
        }
    }
    // A machine without a network can be joined by what runs on it.
    usable.sort_by_key(|address| address.is_loopback());
    if usable.iter().any(|address| !address.is_loopback()) {
        usable.retain(|address| !address.is_loopback());
    }
    usable.truncate(MOST_ADDRESSES);
    usable
}
