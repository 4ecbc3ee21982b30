//! The network of this node's containers, as one desired whole: a bridge, published ports, and a link for each
//! container.

use std::net::Ipv4Addr;

use async_trait::async_trait;
use toft_model::{instance::PublishedPort, node::Subnet};

/// The part that all containers share. It is applied whole: what is not in it is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Network of the bridge; the bridge has its first address.
    pub subnet: Subnet,
    /// Published ports with the container address each leads to.
    pub ports: Vec<(PublishedPort, Ipv4Addr)>,
}

/// What can fail.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel or a tool refused.
    #[error("{doing} failed: {reason}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The kernel's or the tool's words.
        reason: String,
    },
    /// A tool is missing.
    #[error("`{tool}` is not installed")]
    ToolMissing {
        /// Its name, which is also its package's on Debian or said in `hint`.
        tool: &'static str,
        /// How to get it.
        hint: &'static str,
    },
    /// A host port belongs to a foreign process.
    #[error("host port {port}/{protocol} is taken by another process")]
    PortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: toft_model::workload::Protocol,
    },
}

/// The network of this node's containers.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Makes bridge, address translation and published ports be exactly `config`. Idempotent; says nothing when
    /// nothing changes.
    async fn set(&self, config: &NetworkConfig) -> Result<(), NetworkError>;

    /// Gives the network namespace of process `pid` loopback, an interface `eth0` with `address` on the bridge, and a
    /// default route. Repeating it for the same namespace is no error.
    async fn attach(&self, pid: u32, address: Ipv4Addr) -> Result<(), NetworkError>;

    /// Brings loopback up in the network namespace of process `pid`.
    async fn loopback(&self, pid: u32) -> Result<(), NetworkError>;

    /// Whether a host port can be published now: no foreign process listens on it.
    async fn check_port_free(&self, port: PublishedPort) -> Result<(), NetworkError>;

    /// Removes everything this appliance ever made: bridge, links and rules.
    async fn remove_all(&self) -> Result<(), NetworkError>;
}
