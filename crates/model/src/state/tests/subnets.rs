//! Which node gets which network.

use super::cluster::{Cluster, inventory, node_id};
use crate::{
    node::Subnet,
    state::{Command, Reply, SubnetRow},
};

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

struct Asks<'a> {
    range: &'a str,
    used: Option<&'a str>,
    taken: &'a [&'a str],
}

const USUAL: Asks<'_> = Asks { range: "10.210.0.0/16", used: None, taken: &[] };

fn claim(cluster: &mut Cluster, node: &str, asks: &Asks<'_>) -> Option<String> {
    let command = Command::ClaimSubnet {
        node_id: node_id(node),
        range: subnet(asks.range),
        used: asks.used.map(subnet),
        taken: asks.taken.iter().map(|text| subnet(text)).collect(),
        first: 0,
    };
    match cluster.apply(command) {
        Reply::Subnet { subnet } => subnet.map(|subnet| subnet.to_string()),
        other => panic!("a claim was answered with {other:?}"),
    }
}

#[test]
fn nodes_get_different_networks_and_keep_them() {
    let mut cluster = Cluster::new();
    let first: Vec<_> = ["a", "b", "c"].map(|node| claim(&mut cluster, node, &USUAL).unwrap()).into();
    assert_eq!(first, ["10.210.0.0/24", "10.210.1.0/24", "10.210.2.0/24"]);
    let again: Vec<_> = ["c", "a", "b"].map(|node| claim(&mut cluster, node, &USUAL).unwrap()).into();
    assert_eq!(again, ["10.210.2.0/24", "10.210.0.0/24", "10.210.1.0/24"]);
    // What stands in the way now does not take away what is in use.
    let asks = Asks { taken: &["10.210.0.0/24"], ..USUAL };
    assert_eq!(claim(&mut cluster, "a", &asks).unwrap(), "10.210.0.0/24");
}

#[test]
fn what_a_node_used_before_it_claimed_is_kept_unless_another_has_it() {
    let mut cluster = Cluster::new();
    cluster.register_with("old", inventory(Some("10.210.7.0/24")));
    let used = Asks { used: Some("10.210.7.0/24"), ..USUAL };
    assert_eq!(claim(&mut cluster, "new", &used).unwrap(), "10.210.0.0/24", "the older one has it");
    assert_eq!(claim(&mut cluster, "old", &used).unwrap(), "10.210.7.0/24");
    let outside = Asks { used: Some("10.99.0.0/24"), ..USUAL };
    assert_eq!(claim(&mut cluster, "other", &outside).unwrap(), "10.210.1.0/24");
}

#[test]
fn another_range_gives_another_network_and_a_full_one_none() {
    let mut cluster = Cluster::new();
    assert_eq!(claim(&mut cluster, "a", &USUAL).unwrap(), "10.210.0.0/24");
    let moved = Asks { range: "172.30.0.0/23", taken: &["172.30.0.128/25"], ..USUAL };
    assert_eq!(claim(&mut cluster, "a", &moved).unwrap(), "172.30.1.0/24");
    assert_eq!(claim(&mut cluster, "b", &moved), None);
    assert_eq!(claim(&mut cluster, "b", &USUAL).unwrap(), "10.210.0.0/24", "what was given up is free");
    assert_eq!(SubnetRow::all(&cluster.connection).unwrap().len(), 2);
}
