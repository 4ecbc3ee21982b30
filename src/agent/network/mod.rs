//! The network of this node's containers, as one desired whole: a bridge, published ports, and a link for each
//! container. [`kernel`] is the real one, [`fake`] stands beside it for tests of everything above; both pass the same
//! conformance tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use async_trait::async_trait;
use toft_model::{
    instance::PublishedPort,
    node::{Subnet, Subnet6},
    workload::NetworkName,
};

mod bridge;
pub mod fake;
pub mod kernel;
mod link;
mod netfilter;
mod netlink;
mod nft;
mod port;
mod rules;
mod subnet;

pub use port::{PortClaim, check_free};

/// The part that all containers share. It is applied whole: what is not in it is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Network of the bridge; the bridge has its first address.
    pub subnet: Subnet,
    /// Their IPv6 network: each container has the address that belongs to its IPv4 one.
    pub subnet6: Option<Subnet6>,
    /// Published ports with the container address each leads to.
    pub ports: Vec<(PublishedPort, Ipv4Addr)>,
    /// Every container's address with the networks it is in. Who is not in here reaches nobody.
    pub members: BTreeMap<Ipv4Addr, BTreeSet<NetworkName>>,
    /// Port on the gateway's address where toft answers questions for names; containers ask port 53.
    pub names_port: Option<u16>,
    /// Who is on the other nodes.
    pub others: Others,
}

/// The containers of the other nodes, whose packets come and go through the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Their nodes' networks.
    pub nodes: Vec<OtherNode>,
    /// Their addresses with the networks they are in.
    pub members: BTreeMap<Ipv4Addr, BTreeSet<NetworkName>>,
}

/// Another node's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherNode {
    /// Of its containers; its host has the first address.
    pub subnet: Subnet,
    /// The IPv6 one that belongs to it.
    pub subnet6: Option<Subnet6>,
}

impl Others {
    /// Those who share one of `networks`, which are the only ones that need to be known.
    fn near(&self, networks: &BTreeSet<&NetworkName>) -> Self {
        let near = |names: &BTreeSet<NetworkName>| -> BTreeSet<NetworkName> {
            names.iter().filter(|name| networks.contains(name)).cloned().collect()
        };
        let members = self.members.iter().map(|(address, names)| (*address, near(names)));
        Self { nodes: self.nodes.clone(), members: members.filter(|(_, names)| !names.is_empty()).collect() }
    }

    /// The IPv6 address that belongs to one of theirs.
    fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let node = self.nodes.iter().find(|node| node.subnet.contains(address))?;
        Some(node.subnet6?.address(node.subnet, address))
    }
}

impl NetworkConfig {
    /// A network of nobody.
    pub fn new(subnet: Subnet) -> Self {
        Self {
            subnet,
            subnet6: None,
            ports: Vec::new(),
            members: BTreeMap::new(),
            names_port: None,
            others: Others::default(),
        }
    }

    /// The same with those of `others` that its containers share a network with.
    pub(super) fn beside(self, others: &Others) -> Self {
        let networks = self.members.values().flatten().collect();
        let others = others.near(&networks);
        Self { others, ..self }
    }
}

/// A network that a route or an address of this machine uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNetwork {
    /// Its addresses.
    pub subnet: Subnet,
    /// The interface it lies behind; empty when it leads nowhere.
    pub link: String,
    /// Whether it belongs to the containers of another appliance on this machine.
    pub of_toft: bool,
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
    /// The kernel refuses us.
    #[error("{doing} is not permitted: the capability CAP_NET_ADMIN is missing")]
    NotPermitted {
        /// What was being done.
        doing: &'static str,
    },
    /// The process whose namespace was meant does not exist any more.
    #[error("process {pid} is gone")]
    ProcessGone {
        /// Its id.
        pid: u32,
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
    /// Makes bridge, address translation, published ports and networks be exactly `config`. Idempotent; says nothing when
    /// nothing changes.
    async fn set(&self, config: &NetworkConfig) -> Result<(), NetworkError>;

    /// Gives the network namespace of process `pid` loopback, an interface `eth0` with `address` on the bridge, and a
    /// default route. Repeating it for the same namespace is no error.
    async fn attach(&self, pid: u32, address: Ipv4Addr) -> Result<(), NetworkError>;

    /// Brings loopback up in the network namespace of process `pid`.
    async fn loopback(&self, pid: u32) -> Result<(), NetworkError>;

    /// Whether a host port can be published now: no foreign process listens on it.
    async fn check_port_free(&self, port: PublishedPort) -> Result<(), NetworkError>;

    /// Keeps other processes from binding a published port that is free now.
    fn claim_port(&self, port: PublishedPort) -> PortClaim;

    /// Removes everything this appliance ever made: bridge, links and rules.
    async fn remove_all(&self) -> Result<(), NetworkError>;
}

/// The subnet, when there is one and `address` can be a container's in it.
fn member(subnet: Option<Subnet>, address: Ipv4Addr) -> Result<Subnet, NetworkError> {
    let failed = |reason| NetworkError::Failed { doing: "attaching a container to the bridge", reason };
    let subnet = subnet.ok_or_else(|| failed("the bridge is not set up yet".to_owned()))?;
    let reserved = [Some(subnet.base), Some(subnet.gateway()), subnet.nth(subnet.size() - 1)];
    if !subnet.contains(address) || reserved.contains(&Some(address)) {
        return Err(failed(format!("{address} cannot be a container's address in {subnet}")));
    }
    Ok(subnet)
}
