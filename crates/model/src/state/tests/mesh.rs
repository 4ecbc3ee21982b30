//! Where the nodes find each other.

use super::cluster::{Cluster, node_id};
use crate::{
    mesh::{MeshNode, PublicKey},
    state::{Command, MeshRow, RefusalKind, Reply, query_mesh},
};

fn node(key: u8) -> MeshNode {
    let endpoints = vec![format!("192.0.2.{key}:51820").parse().unwrap()];
    MeshNode { key: PublicKey([key; 32]), next_key: None, port: 51820, endpoints, relay_port: None }
}

fn announce(name: &str, mesh: &MeshNode, at_ms: i64) -> Command {
    Command::AnnounceMesh { node_id: node_id(name), mesh: mesh.clone(), at_ms }
}

fn claim(name: &str) -> Command {
    let range = "10.210.0.0/16".parse().unwrap();
    Command::ClaimSubnet { node_id: node_id(name), range, used: None, taken: Vec::new(), first: 0 }
}

#[test]
fn a_node_is_found_once_it_has_told_and_has_a_network() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.apply(announce("a", &node(1), 1)), Reply::Done);
    assert_eq!(query_mesh(&cluster.connection).unwrap(), []);
    cluster.apply(claim("a"));
    cluster.apply(claim("b"));
    let found = query_mesh(&cluster.connection).unwrap();
    assert_eq!(found.len(), 1, "who has told nothing is not looked for");
    assert_eq!((found[0].node_id, &found[0].mesh), (node_id("a"), &node(1)));
    assert_eq!(found[0].subnet.to_string(), "10.210.0.0/24");
}

#[test]
fn only_what_changed_is_written() {
    let mut cluster = Cluster::new();
    cluster.apply(announce("a", &node(1), 1));
    cluster.apply(announce("a", &node(1), 2));
    assert_eq!(MeshRow::all(&cluster.connection).unwrap()[0].at_ms, 1);
    let moved = MeshNode { endpoints: node(9).endpoints, ..node(1) };
    cluster.apply(announce("a", &moved, 3));
    let rows = MeshRow::all(&cluster.connection).unwrap();
    assert_eq!((rows.len(), rows[0].at_ms, &rows[0].mesh), (1, 3, &moved));
}

#[test]
fn keys_of_others_and_nonsense_are_refused_and_change_nothing() {
    let mut cluster = Cluster::new();
    let changing = MeshNode { next_key: Some(PublicKey([2; 32])), ..node(1) };
    cluster.apply(announce("a", &changing, 1));
    for stolen in [node(1), node(2), MeshNode { next_key: Some(PublicKey([1; 32])), ..node(3) }] {
        assert_eq!(cluster.refused(announce("b", &stolen, 2)), RefusalKind::Exists);
    }
    let nonsense = MeshNode { endpoints: vec!["0.0.0.0:1".parse().unwrap()], ..node(3) };
    assert_eq!(cluster.refused(announce("b", &nonsense, 2)), RefusalKind::Invalid);
    assert_eq!(MeshRow::all(&cluster.connection).unwrap().len(), 1);
    // The node itself switches.
    cluster.apply(announce("a", &node(2), 3));
    assert_eq!(MeshRow::all(&cluster.connection).unwrap()[0].mesh, node(2));
}
