//! The network of this node's containers: a part of the cluster's range that no other node has, and nothing else on this
//! machine uses.

use std::time::Duration;

use anyhow::Context;
use toft_model::{
    node::{Subnet, Subnet6},
    state::{ClusterRow, Command, Reply},
};

use super::{Hinted, directories::Directories, identity::Identity, mesh::Me};
use crate::{
    agent::network::{HostNetwork, kernel::KernelNetwork},
    config::Config,
    consensus::Handle,
    observe::chain,
};

/// Longest wait for the cluster's answer. The node starts without it, and asks again at its next start.
const ANSWER: Duration = Duration::from_secs(60);
/// Wait between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Ranges to advise, the usual one first.
const RANGES: [&str; 5] = ["10.210.0.0/16", "172.30.0.0/16", "10.99.0.0/16", "192.168.192.0/20", "100.96.0.0/16"];

/// Why the configured range cannot be used on this machine.
#[derive(Debug, thiserror::Error)]
#[error("network.range: {range} overlaps {subnet}, which this machine has {place}")]
struct Overlap {
    range: Subnet,
    subnet: Subnet,
    place: String,
}

/// The networks that this machine has already.
pub(super) async fn used(kernel: &KernelNetwork) -> Vec<HostNetwork> {
    kernel.host_networks().await.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "the host's routes could not be read");
        Vec::new()
    })
}

/// Who this node is, with the network of its containers, on a machine that has some networks already. One that it has is kept, whatever overlaps it now: containers
/// use it.
pub(super) async fn settle(
    config: &Config,
    directories: &Directories,
    used: Vec<HostNetwork>,
    state: &Handle,
) -> anyhow::Result<Identity> {
    let identity = Identity::load_or_make(directories)?;
    let range = config.network.range;
    let kept = identity.subnet.filter(|subnet| range.holds(*subnet));
    if let Some((overlap, hint)) = overlap(range, &used) {
        if kept.is_none() {
            return Err(Hinted::new(overlap, hint).into());
        }
        tracing::warn!("{overlap}; containers may not reach everything: {hint}");
    }
    if identity.claimed && kept.is_some() {
        return Ok(identity);
    }
    let taken = used.iter().map(|used| used.subnet).filter(|subnet| subnet.overlaps(range)).collect();
    let first = directories.first_subnet();
    let command = Command::ClaimSubnet { node_id: identity.node_id, range, used: kept, taken, first };
    let identity = match tokio::time::timeout(ANSWER, claim(state, command)).await {
        Ok(Some(subnet)) => Identity { subnet: Some(subnet), claimed: true, ..identity },
        Ok(None) => {
            tracing::error!(
                "network.range: no /24 of {range} is left, so instances get no network here; use a larger range"
            );
            Identity { subnet: None, claimed: false, ..identity }
        }
        Err(_) => {
            tracing::error!(
                "the cluster gave this node no network for its containers; it will be asked at the next start"
            );
            Identity { subnet: kept, ..identity }
        }
    };
    identity.save(directories)?;
    Ok(identity)
}

/// The IPv6 network of this node's containers, when they are to have one.
pub(super) async fn of_ipv6(config: &Config, identity: &Identity, state: &Handle) -> anyhow::Result<Option<Subnet6>> {
    let Some(subnet) = identity.subnet.filter(|_| config.network.ipv6) else { return Ok(None) };
    let cluster = state.read(ClusterRow::load).await.context("reading which cluster this is")?.cluster_id;
    Ok(cluster.map(|cluster| Subnet6::of(cluster, subnet)))
}

/// Who this node is in the mesh; nobody while it has no network.
pub(super) async fn in_mesh(identity: &Identity, state: &Handle) -> anyhow::Result<Option<Me>> {
    let Some(subnet) = identity.subnet else { return Ok(None) };
    let cluster = state.read(ClusterRow::load).await.context("reading which cluster this is")?.cluster_id;
    Ok(Some(Me { node_id: identity.node_id, subnet, subnet6: None, cluster }))
}

/// Asks until there is an answer.
async fn claim(state: &Handle, command: Command) -> Option<Subnet> {
    loop {
        match state.propose(command.clone()).await {
            Ok(Reply::Subnet { subnet }) => return subnet,
            Ok(other) => tracing::error!(?other, "a claim for a network was answered with something else"),
            Err(error) => tracing::debug!(error = chain(&error), "the cluster could not be asked for a network"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What of this machine overlaps the range, with advice. Another appliance on it has its share of the same range.
fn overlap(range: Subnet, used: &[HostNetwork]) -> Option<(Overlap, String)> {
    let foreign: Vec<&HostNetwork> = used.iter().filter(|used| !used.of_toft).collect();
    let found = foreign.iter().find(|used| used.subnet.overlaps(range))?;
    let place = match found.link.as_str() {
        "" => "a route to".to_owned(),
        link => format!("behind `{link}`"),
    };
    let free = |text: &&&str| {
        let other: Option<Subnet> = text.parse().ok();
        other.is_some_and(|other| !foreign.iter().any(|used| used.subnet.overlaps(other)))
    };
    let example = RANGES.iter().find(free).map(|text| format!(", such as \"{text}\"")).unwrap_or_default();
    let hint =
        format!("set `range` in section [network] of the configuration to a range that is free on every node{example}");
    Some((Overlap { range, subnet: found.subnet, place }, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(subnet: &str, link: &str, of_toft: bool) -> HostNetwork {
        HostNetwork { subnet: subnet.parse().unwrap(), link: link.into(), of_toft }
    }

    #[test]
    fn an_overlap_is_told_with_field_and_remedy() {
        let range = "10.210.0.0/16".parse().unwrap();
        let check = |networks: &[HostNetwork]| overlap(range, networks).map(|(why, hint)| format!("{why}; {hint}"));
        assert_eq!(check(&[used("192.168.1.0/24", "eth0", false), used("10.210.3.0/24", "toft-1", true)]), None);
        let told = check(&[used("10.0.0.0/8", "eth0", false)]).unwrap();
        assert!(
            told.starts_with("network.range: 10.210.0.0/16 overlaps 10.0.0.0/8, which this machine has behind `eth0`")
        );
        assert!(told.ends_with("such as \"172.30.0.0/16\""), "{told}");
        let told = check(&[used("10.210.7.4/30", "", false), used("172.16.0.0/12", "tun0", false)]).unwrap();
        assert!(told.contains("has a route to") && told.contains("\"10.99.0.0/16\""), "{told}");
    }
}
