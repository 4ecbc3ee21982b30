//! What a plan reads of nodes and workloads before it is applied, which many placements ask for.

use rusqlite::{Connection, Params};

use super::cluster::{Cluster, inventory, node_id, spec};
use crate::{
    gpu::made,
    ids::NodeId,
    instance::NetworkOrder,
    node::Inventory,
    state::{Holding, InstanceRow, WorkloadRow},
    workload::{NetworkMode, Resources},
};

/// What stands in the containers.
fn in_containers(connection: &Connection, node: NodeId) -> Vec<Holding> {
    let held = |row: InstanceRow| {
        let (address, ports) = match row.container.network {
            NetworkOrder::Bridge { address, ports, .. } => (Some(address), ports.len()),
            NetworkOrder::Host | NetworkOrder::None => (None, 0),
        };
        Holding {
            workload_id: row.workload_id,
            cpu_reserved_millis: row.container.resources.cpu_reserved_millis,
            memory_reserved_bytes: row.container.resources.memory_reserved_bytes,
            address,
            has_more: ports + row.container.gpus.len() > 0,
        }
    };
    InstanceRow::of_node(connection, node).unwrap().into_iter().map(held).collect()
}

/// How SQLite finds what a query asks for.
fn plan_of(connection: &Connection, query: &str, parameters: impl Params) -> String {
    connection
        .prepare(&format!("EXPLAIN QUERY PLAN {query}"))
        .unwrap()
        .query_row(parameters, |row| row.get("detail"))
        .unwrap()
}

#[test]
fn holdings_are_read_from_an_index_alone_and_are_those_of_the_containers() {
    let mut cluster = Cluster::new();
    let node = node_id("box");
    cluster.register_with(
        "box",
        Inventory { gpus: vec![made::card("GPU-1", "RTX", 8_192)], ..inventory(Some("10.210.0.0/24")) },
    );
    cluster.register("other", Some("10.210.1.0/24"));
    cluster.configure("other", r#"{"availability": "cordoned"}"#);
    let most =
        Resources { cpu_reserved_millis: Some(10), memory_reserved_bytes: Some(4 << 20), ..Resources::default() };
    let mut plain = spec("plain", "demo");
    (plain.replicas, plain.resources) = (3, most);
    let mut open = spec("open", "demo");
    open.ports = vec!["8080:80".parse().unwrap(), "53:53/udp".parse().unwrap()];
    let mut bare = spec("bare", "demo");
    bare.network = NetworkMode::Host;
    let mut llm = spec("llm", "demo");
    llm.gpus = Some("1".parse().unwrap());
    for spec in [plain, open, bare, llm] {
        cluster.put(spec);
    }
    cluster.schedule();
    let mut held = InstanceRow::holdings_of_node(&cluster.connection, node).unwrap();
    let mut expected = in_containers(&cluster.connection, node);
    for all in [&mut held, &mut expected] {
        all.sort_by_key(|one| (one.workload_id, one.address));
    }
    assert_eq!(held, expected);
    assert_eq!(held.len(), 6, "the other node has none");
    assert_eq!(held.iter().filter(|one| one.cpu_reserved_millis == Some(10)).count(), 3);
    assert_eq!(held.iter().filter(|one| one.address.is_none()).count(), 1, "`bare` alone has no address");
    let more = InstanceRow::ports_and_gpus_of_node(&cluster.connection, node).unwrap();
    let ports: Vec<usize> = more
        .iter()
        .filter_map(|one| match &one.network {
            NetworkOrder::Bridge { ports, .. } => Some(ports.len()),
            NetworkOrder::Host | NetworkOrder::None => None,
        })
        .collect();
    assert_eq!((ports.iter().sum::<usize>(), more.iter().map(|one| one.gpus.len()).sum::<usize>()), (2, 1));
    assert_eq!(more.len(), held.iter().filter(|one| one.has_more).count());
    assert_eq!(
        plan_of(&cluster.connection, &InstanceRow::holdings_query(), [node]),
        "SEARCH instances USING COVERING INDEX instances_by_holding (node_id=?)"
    );
}

#[test]
fn who_wants_some_not_beside_it_is_found_without_reading_the_others() {
    let mut cluster = Cluster::new();
    let mut near = spec("near", "demo");
    near.placement.constraints = vec!["node.labels.disk == ssd".parse().unwrap(), "workload == db".parse().unwrap()];
    let mut far = spec("far", "demo");
    far.placement.constraints = vec!["workload != db".parse().unwrap()];
    let mut neither = spec("workload", "demo");
    neither.placement.constraints = vec!["node.hostname != workload".parse().unwrap()];
    for spec in [near, far, neither, spec("db", "demo")] {
        cluster.put(spec);
    }
    let mut names: Vec<String> =
        WorkloadRow::shy(&cluster.connection).unwrap().iter().map(|row| row.spec.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["far", "near"]);
    assert_eq!(plan_of(&cluster.connection, &WorkloadRow::shy_query(), []), "SCAN workloads USING INDEX workloads_shy");
}
