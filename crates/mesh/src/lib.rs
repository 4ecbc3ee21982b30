//! The encrypted network between nodes: a WireGuard device that is given its whole configuration and made to be so.
//!
//! [`kernel`] is the kernel's own WireGuard, [`userspace`] toft's, for kernels without it, and [`fake`] stands beside
//! them for tests of everything above; all pass the same conformance tests. [`keeper::keep`] drives one by a `watch`.
//! Who the peers are and where they may be is decided elsewhere; nothing here asks anybody.

use std::{io, sync::Arc};

use async_trait::async_trait;
use toft_model::{
    invalid::Invalid,
    mesh::{MeshConfig, MeshNet, MeshStatus, PublicKey},
};

pub mod choice;
pub mod fake;
pub mod keeper;
pub mod kernel;
pub mod keys;
pub mod knock;
mod link;
pub mod own;
mod path;
pub mod userspace;

/// The name of the interface when nobody chose another.
pub const DEFAULT_INTERFACE: &str = "toft-wg";

/// What can fail.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The kernel refused.
    #[error("{doing} failed: {reason}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The kernel's words.
        reason: String,
    },
    /// The kernel refuses us.
    #[error("{doing} is not permitted: the capability CAP_NET_ADMIN is missing")]
    NotPermitted {
        /// What was being done.
        doing: &'static str,
    },
    /// This machine has nothing that can carry the mesh.
    #[error("{what} is not there")]
    Unsupported {
        /// What is missing.
        what: &'static str,
    },
    /// The UDP port belongs to another process.
    #[error("UDP port {port} is taken by another process")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// An interface with our name belongs to somebody else.
    #[error("the interface `{name}` exists and is no WireGuard device of toft's")]
    NameTaken {
        /// Its name.
        name: String,
    },
    /// The machine sends packets for a peer's network elsewhere already.
    #[error("this machine has a route to {net} already, which leads elsewhere")]
    RouteTaken {
        /// The network.
        net: MeshNet,
    },
    /// The configuration contradicts itself.
    #[error("the mesh's configuration is wrong: {0}")]
    Invalid(#[from] Invalid),
    /// The configuration names a key whose secret half is not here.
    #[error("this node has no private key for {key}")]
    NoKey {
        /// The public half.
        key: PublicKey,
    },
}

impl MeshError {
    fn io(doing: &'static str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted { doing },
            _ => Self::Failed { doing, reason: error.to_string() },
        }
    }

    /// The next step for a person, where one is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotPermitted { .. } => Some("run toft as root"),
            Self::Unsupported { .. } => {
                Some("load the kernel's module `wireguard` or `tun`; `toft doctor` looks at both")
            }
            Self::PortTaken { .. } => Some("set `mesh.listen_port` to a free port"),
            Self::NameTaken { .. } => Some("remove that interface, or set `mesh.interface` to another name"),
            Self::RouteTaken { .. } => Some("`ip route` shows it; give the peer another network, or remove that route"),
            Self::Failed { .. } | Self::Invalid(_) | Self::NoKey { .. } => None,
        }
    }
}

/// A node's end of the mesh.
#[async_trait]
pub trait Device: Send + Sync + 'static {
    /// Makes the device, its addresses and its routes be exactly `config`. Idempotent; what stays the same, sessions
    /// above all, is not touched. A link that a killed daemon left is taken over. To be repeated now and then: paths
    /// change their size, and with [`kernel`] a peer that changes its key is followed here.
    async fn set(&self, config: &MeshConfig) -> Result<(), MeshError>;

    /// What the device is and has seen; nothing while there is none.
    async fn status(&self) -> Result<Option<MeshStatus>, MeshError>;

    /// Removes the device with its addresses and routes. Without one nothing happens.
    async fn remove(&self) -> Result<(), MeshError>;
}

/// Removes the interface called `name` with its addresses and routes, whatever carried it. Without one nothing happens.
pub async fn remove_interface(name: &str) -> Result<(), MeshError> {
    link::with_netlink(async |handle| link::remove(handle, name).await).await
}

/// What a device needs besides its configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the interface.
    pub interface: String,
    /// This node's keys.
    pub keys: Arc<keys::Keys>,
}
