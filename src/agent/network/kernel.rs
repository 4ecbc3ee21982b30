//! The real network: a bridge and veth pairs made by netlink, and packet rules made by `nft`.
//!
//! Everything has a name that the appliance was given, so that several can live side by side on one machine: the
//! bridge, the nftables table, and links that are known by the bridge they are on. It touches nothing else, except
//! that it lets the machine forward IPv4 packets and leaves that so.
//!
//! It works in the network namespace of the calling thread.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use toft_model::{
    instance::PublishedPort,
    node::{Subnet, Subnet6},
};

use super::{
    HostNetwork, Network, NetworkConfig, NetworkError, PortClaim, bridge, link,
    netfilter::{self, BRIDGE, INET, TableIdentity},
    netlink::{Netlink, io_failed},
    nft, port, rules,
};

/// Names of what an appliance makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelNetworkConfig {
    /// The bridge: letters, digits, `-` and `_`, at most 15.
    pub bridge: String,
    /// The nftables tables, families `inet` and `bridge`: letters, digits and `_`, a letter first.
    pub table: String,
    /// The interface of the mesh, which others make: letters, digits, `-` and `_`, at most 15.
    pub mesh: String,
}

impl KernelNetworkConfig {
    /// Refuses names that the kernel would refuse or `nft` would read as something else.
    fn check(&self) -> Result<(), NetworkError> {
        let word = |text: &str, more: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let bad = |name: &str| NetworkError::Failed {
            doing: "naming the container network",
            reason: format!("`{}` is no usable name", name.escape_default()),
        };
        if self.bridge.len() > 15 || !word(&self.bridge, "-_") {
            return Err(bad(&self.bridge));
        }
        // It may be one that somebody chose, and begin with a digit.
        if self.mesh.len() > 15 || !word(&format!("m{}", self.mesh), "-_") {
            return Err(bad(&self.mesh));
        }
        if self.table.len() > 64 || !word(&self.table, "_") {
            return Err(bad(&self.table));
        }
        Ok(())
    }
}

/// The network of this node's containers, in the kernel.
#[derive(Debug)]
pub struct KernelNetwork {
    names: KernelNetworkConfig,
    state: Mutex<State>,
}

/// What this process knows it did.
#[derive(Debug, Default)]
struct State {
    /// The bridge's networks, once it is set up.
    subnet: Option<Subnet>,
    subnet6: Option<Subnet6>,
    /// The rules in force.
    applied: Option<Applied>,
}

#[derive(Debug, Clone)]
struct Applied {
    script: String,
    tables: Tables,
    udp: BTreeSet<(u16, Ipv4Addr, u16)>,
}

/// The tables that are there, of families `inet` and `bridge`.
type Tables = [Option<TableIdentity>; 2];

impl KernelNetwork {
    /// Nothing is done before the first call.
    pub fn new(names: KernelNetworkConfig) -> Self {
        Self { names, state: Mutex::default() }
    }

    /// IPv4 networks that this machine's routes and addresses use, apart from our bridge's and default routes: what
    /// containers' addresses must keep clear of.
    pub async fn host_networks(&self) -> Result<Vec<HostNetwork>, NetworkError> {
        Netlink::here()?.run(async |handle| bridge::networks(&handle, &self.names.bridge).await).await
    }

    fn with_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // Every change is one assignment, so a panic elsewhere leaves it whole.
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the table be what `config` asks for, unless it is known to be.
    async fn apply_rules(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let script = rules::render(&self.names, config);
        let before = self.with_state(|state| state.applied.clone());
        if let Some(before) = &before
            && before.script == script
            && self.tables()? == before.tables
        {
            return Ok(());
        }
        nft::run(&script).await?;
        let udp = rules::udp(&config.ports);
        let known = before.map(|before| before.udp).unwrap_or_default();
        let changed: BTreeSet<u16> = udp.symmetric_difference(&known).map(|(host, ..)| *host).collect();
        let tables = self.tables()?;
        let whole = tables.iter().all(Option::is_some);
        self.with_state(|state| state.applied = whole.then_some(Applied { script, tables, udp }));
        tracing::debug!(table = self.names.table, ports = config.ports.len(), "packet rules applied");
        forget_flows(changed).await;
        Ok(())
    }

    fn tables(&self) -> Result<Tables, NetworkError> {
        let table = |family| {
            netfilter::table(family, &self.names.table)
                .map_err(|error| io_failed("looking at the packet rules", &error))
        };
        Ok([table(INET)?, table(BRIDGE)?])
    }
}

/// Lets UDP senders find the new rules. The rules are in force already, and flows end by themselves when they pause.
async fn forget_flows(ports: BTreeSet<u16>) {
    if ports.is_empty() {
        return;
    }
    let forgotten = tokio::task::spawn_blocking(move || netfilter::forget_udp(&ports)).await;
    if let Err(error) = forgotten.map_err(std::io::Error::other).flatten() {
        tracing::warn!(error = %error, "old UDP flows could not be forgotten: steady senders may miss a changed port");
    }
}

#[async_trait]
impl Network for KernelNetwork {
    async fn set(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        self.names.check()?;
        let name = &self.names.bridge;
        Netlink::here()?.run(async |handle| bridge::ensure(&handle, name, config.subnet, config.subnet6).await).await?;
        bridge::allow_forwarding(name)?;
        if config.subnet6.is_some() {
            bridge::allow_forwarding_v6()?;
        }
        self.apply_rules(config).await?;
        self.with_state(|state| (state.subnet, state.subnet6) = (Some(config.subnet), config.subnet6));
        Ok(())
    }

    async fn attach(&self, pid: u32, address: Ipv4Addr) -> Result<(), NetworkError> {
        let (subnet, subnet6) = self.with_state(|state| (state.subnet, state.subnet6));
        let subnet = super::member(subnet, address)?;
        link::attach(pid, link::Place { bridge: &self.names.bridge, subnet, address, subnet6 }).await
    }

    async fn loopback(&self, pid: u32) -> Result<(), NetworkError> {
        link::loopback(pid).await
    }

    async fn check_port_free(&self, port: PublishedPort) -> Result<(), NetworkError> {
        port::check_free(port)
    }

    fn claim_port(&self, port: PublishedPort) -> PortClaim {
        PortClaim::of(port)
    }

    async fn remove_all(&self) -> Result<(), NetworkError> {
        self.names.check()?;
        self.with_state(|state| *state = State::default());
        Netlink::here()?.run(async |handle| bridge::remove(&handle, &self.names.bridge).await).await?;
        if self.tables()?.iter().any(Option::is_some) {
            nft::run(&rules::render_removal(&self.names.table)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_script_are_refused() {
        let check = |bridge: &str, table: &str| {
            let with = |mesh: &str| {
                KernelNetworkConfig { bridge: bridge.into(), table: table.into(), mesh: mesh.into() }.check().is_ok()
            };
            assert!(!with("a\"") && !with("a b") && !with("sixteen-letters0"));
            with("0-mesh")
        };
        assert!(check("toft0", "toft"));
        assert!(check("toft-1a2b_3", "toft_1a2b"));
        for bad in ["", "a b", "0a", "a\"", "a;b", "a/b", "a\n", "ä", "sixteen-letters0"] {
            assert!(!check(bad, "toft"), "{bad:?}");
            assert!(!check("toft0", bad) || bad == "sixteen-letters0", "{bad:?}");
        }
    }
}
