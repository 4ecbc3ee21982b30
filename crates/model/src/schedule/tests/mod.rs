//! Tests of the scheduler: what it decides (here), and that its decisions lead to rest (`convergence`).

mod convergence;
mod draining;
mod losing;
mod oracle;
mod placing;
mod preempting;
mod properties;
mod rebalancing;
mod rolling;

use crate::{
    instance::NetworkOrder,
    node::Inventory,
    schedule::why_nowhere,
    state::{
        NodeRow, PowerAction, query_snapshot,
        tests::cluster::{Cluster, inventory, spec},
    },
    workload::{HealthCheck, HealthTest, NetworkMode, Resources, WorkloadSpec},
};

/// What the scheduler would do now, one line a decision, in words.
fn decisions(cluster: &mut Cluster) -> Vec<String> {
    let plan = cluster.think();
    let snapshot = query_snapshot(&cluster.connection).unwrap();
    let name_of = |id| snapshot.workloads.iter().find(|w| w.id == id).unwrap().spec.name.to_string();
    let node_of = |id| snapshot.nodes.iter().find(|n: &&NodeRow| n.id == id).unwrap().name.to_string();
    let mut lines = Vec::new();
    for placement in &plan.placements {
        let network = match &placement.container.network {
            NetworkOrder::Host => "host".to_owned(),
            NetworkOrder::None => "none".to_owned(),
            NetworkOrder::Bridge { address, ports, .. } => {
                let ports = ports.iter().map(|port| format!(" {}:{}/{}", port.host, port.container, port.protocol));
                format!("{address}{}", ports.collect::<String>())
            }
        };
        let (name, ordinal) = (name_of(placement.workload_id), placement.ordinal);
        lines.push(format!("{name}-{ordinal} on {}: {network}", node_of(placement.node_id)));
    }
    for change in &plan.changes {
        let instance = snapshot.instances.iter().find(|i| i.id == change.instance_id).unwrap();
        let name = format!("{}-{}", name_of(instance.workload_id), instance.ordinal);
        lines.push(format!("{name} {} epoch {}", change.desired.as_str(), change.epoch));
    }
    for (id, reason) in &plan.pending {
        lines.push(format!("{} waits: {}", name_of(*id), reason.as_deref().unwrap_or("no more")));
    }
    for preemption in &plan.preemptions {
        let instance = snapshot.instances.iter().find(|i| i.id == preemption.instance_id).unwrap();
        let name = format!("{}-{}", name_of(instance.workload_id), instance.ordinal);
        lines.push(format!("{name} makes room for {}", name_of(preemption.by)));
    }
    for change in &plan.rollouts {
        lines.push(format!(
            "{} generation {} {}",
            name_of(change.workload_id),
            change.generation,
            change.rollout.as_str()
        ));
    }
    lines
}

#[track_caller]
fn check(cluster: &mut Cluster, expected: &[&str]) {
    assert_eq!(decisions(cluster), expected);
}

fn with_ports(name: &str, ports: &[&str]) -> WorkloadSpec {
    let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
    WorkloadSpec { ports, ..spec(name, "demo") }
}

fn two_nodes() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.register("one", Some("10.1.0.0/24"));
    cluster.register("two", Some("10.2.0.0/24"));
    cluster
}

#[test]
fn without_nodes_everything_waits() {
    let mut cluster = Cluster::new();
    check(&mut cluster, &[]);
    cluster.put(spec("web", "demo"));
    cluster.put(WorkloadSpec { replicas: 0, ..spec("zero", "demo") });
    check(&mut cluster, &["web waits: no node has registered yet", "zero generation 1 done"]);
    cluster.settle();
    cluster.register("one", Some("10.1.0.0/24"));
    check(&mut cluster, &["web-0 on one: 10.1.0.2", "web waits: no more"]);
}

#[test]
fn copies_spread_over_the_nodes() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 3, ..spec("web", "demo") });
    cluster.put(WorkloadSpec { network: NetworkMode::Host, ..spec("zzz", "demo") });
    check(
        &mut cluster,
        &["web-0 on one: 10.1.0.2", "web-1 on two: 10.2.0.2", "web-2 on one: 10.1.0.3", "zzz-0 on two: host"],
    );
}

#[test]
fn ports_without_a_host_port_get_free_ones() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(with_ports("aaa", &["20001:80", "80", "53/udp", "81"]));
    cluster.put(with_ports("bbb", &["80", "20003:81"]));
    check(
        &mut cluster,
        &[
            "aaa-0 on box: 10.210.0.2 20001:80/tcp 20000:80/tcp 20000:53/udp 20002:81/tcp",
            "bbb-0 on box: 10.210.0.3 20004:80/tcp 20003:81/tcp",
        ],
    );
}

#[test]
fn a_free_port_that_was_given_is_kept_when_the_specification_names_it() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(with_ports("web", &["80"]));
    cluster.settle();
    cluster.put(with_ports("web", &["20000:80"]));
    check(&mut cluster, &["web generation 2 done"]);
    cluster.put(with_ports("web", &["20001:80"]));
    check(&mut cluster, &["web-0 removed epoch 1"]);
}

#[test]
fn a_host_port_that_is_named_no_more_is_given_up() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(with_ports("web", &["80:80"]));
    cluster.settle();
    cluster.put(with_ports("web", &["80"]));
    cluster.put(with_ports("zzz", &["80:80"]));
    check(&mut cluster, &["web-0 removed epoch 1", "zzz waits: box: host port 80/tcp is in use"]);
    cluster.settle();
    assert_eq!(cluster.workload("zzz").unwrap().pending, None);
}

#[test]
fn a_host_port_serves_one_copy_a_node_and_protocol() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 3, ..with_ports("aaa", &["53:53"]) });
    cluster.put(with_ports("bbb", &["53:53/udp"]));
    let wait = "aaa waits: one: host port 53/tcp is in use; two: host port 53/tcp is in use";
    check(
        &mut cluster,
        &[
            "aaa-0 on one: 10.1.0.2 53:53/tcp",
            "aaa-1 on two: 10.2.0.2 53:53/tcp",
            "bbb-0 on one: 10.1.0.3 53:53/udp",
            wait,
        ],
    );
}

#[test]
fn reasons_name_every_node() {
    let mut cluster = Cluster::new();
    cluster.register("away", None);
    cluster.register("full", Some("10.1.0.0/30"));
    cluster.register_with("tiny", Inventory { memory_bytes: 1 << 20, ..inventory(Some("10.2.0.0/24")) });
    cluster.put(WorkloadSpec { node: Some("full".parse().unwrap()), ..spec("aaa", "demo") });
    cluster.settle();
    let resources = Resources { cpu_millis: None, memory_bytes: Some(64 << 20), ..Resources::default() };
    cluster.put(WorkloadSpec { resources, ..spec("web", "demo") });
    let why = "away: it has no container network; full: every address of 10.1.0.0/30 is in use; \
               tiny: 64 MiB of memory are wanted and it has 1.0 MiB";
    check(&mut cluster, &[&format!("web waits: {why}")]);
    let web = cluster.workload("web").unwrap().spec;
    let snapshot = query_snapshot(&cluster.connection).unwrap();
    assert_eq!(why_nowhere(&web, &snapshot).as_deref(), Some(why));
    assert_eq!(why_nowhere(&WorkloadSpec { network: NetworkMode::None, ..spec("x", "demo") }, &snapshot), None);
    cluster.put(WorkloadSpec { node: Some("nowhere".parse().unwrap()), ..spec("web", "demo") });
    let other = "the specification names another node";
    check(&mut cluster, &[&format!("web waits: away: {other}; full: {other}; tiny: {other}")]);
}

#[test]
fn what_is_reserved_on_a_node_is_not_given_twice() {
    let mut cluster = Cluster::new();
    // Four cores and 8 GiB.
    cluster.register("one", Some("10.1.0.0/24"));
    let resources = Resources { memory_reserved_bytes: Some(3 << 30), ..Resources::default() };
    cluster.put(WorkloadSpec { resources, replicas: 3, ..spec("aaa", "demo") });
    let resources = Resources { cpu_reserved_millis: Some(4_500), ..Resources::default() };
    cluster.put(WorkloadSpec { resources, ..spec("bbb", "demo") });
    let late = cluster.think();
    cluster.settle();
    assert_eq!(cluster.instances().len(), 2);
    let why = |name| cluster.workload(name).unwrap().pending.unwrap();
    assert_eq!(why("aaa"), "one: 3.0 GiB of memory are to be reserved and 2.0 GiB are left");
    assert_eq!(why("bbb"), "one: 4.5 cores are to be reserved and 4 are left");
    cluster.commit(late);
    assert_eq!(cluster.instances().len(), 2, "a plan made twice places nothing twice");
}

#[test]
fn a_runtime_that_no_node_has_is_waited_for() {
    let mut cluster = Cluster::new();
    cluster.register("old", Some("10.1.0.0/24"));
    let isolation = vec!["crun".to_owned(), "runc".to_owned()];
    cluster.register_with("new", Inventory { isolation, ..inventory(Some("10.2.0.0/24")) });
    let mut web = spec("web", "demo");
    web.process.isolation = Some("kata".parse().unwrap());
    cluster.put(web.clone());
    check(
        &mut cluster,
        &["web waits: new: it has no runtime `kata` (it has crun, runc); old: it has no runtime `kata` (it has runc)"],
    );
    web.process.isolation = Some("crun".parse().unwrap());
    cluster.put(web);
    check(&mut cluster, &["web-0 on new: 10.2.0.2"]);
}

#[test]
fn every_change_of_what_a_container_is_made_of_replaces_it() {
    type Change = fn(&mut WorkloadSpec);
    let changes: [(Change, bool); 20] = [
        (|s| s.image = "demo:2".parse().unwrap(), true),
        (|s| s.entrypoint = Some(vec!["/x".into()]), true),
        (|s| s.command = vec!["x".into()], true),
        (|s| drop(s.env.insert("A".into(), "b".into())), true),
        (|s| s.resources.cpu_millis = Some(100), true),
        (|s| s.resources.memory_bytes = Some(8 << 20), true),
        (|s| s.resources.memory_reserved_bytes = Some(8 << 20), true),
        (|s| s.resources.pids_limit = Some(8), true),
        (|s| s.process.read_only = true, true),
        (|s| s.process.init = true, true),
        (|s| s.health = Some(HealthCheck::new(HealthTest::Tcp { port: 80 })), true),
        (|s| s.process.user = Some("web".parse().unwrap()), true),
        (|s| s.restart = Some("no".parse().unwrap()), true),
        (|s| s.stop_grace_ms = 1, true),
        (|s| s.network = NetworkMode::Host, true),
        (|s| s.ports = vec!["80".parse().unwrap()], true),
        (|s| s.node = Some("two".parse().unwrap()), true),
        (|s| s.node = Some("one".parse().unwrap()), false),
        (|s| drop(s.labels.insert("a".into(), "b".into())), false),
        (|s| s.restart = Some("always".parse().unwrap()), false),
    ];
    for (i, (change, replaces)) in changes.into_iter().enumerate() {
        let mut cluster = two_nodes();
        let mut web = spec("web", "demo");
        cluster.put(web.clone());
        cluster.settle();
        let before = cluster.only_instance();
        change(&mut web);
        cluster.put(web);
        let mut decided = decisions(&mut cluster);
        decided.retain(|line| line != "web generation 2 done");
        assert_eq!(decided, if replaces { &["web-0 removed epoch 1"][..] } else { &[] }, "change {i}");
        cluster.schedule();
        // Its place is free only when its node said so.
        check(&mut cluster, &[]);
        cluster.settle();
        assert_eq!(cluster.only_instance().id != before.id, replaces, "change {i}");
    }
}

#[test]
fn a_pinned_workload_follows_its_pin() {
    let mut cluster = two_nodes();
    let pinned = |node: &str| WorkloadSpec { node: Some(node.parse().unwrap()), replicas: 2, ..spec("web", "demo") };
    cluster.put(pinned("one"));
    cluster.settle();
    cluster.put(pinned("two"));
    cluster.settle();
    check(&mut cluster, &[]);
    let two = NodeRow::id_of(&cluster.connection, &"two".parse().unwrap()).unwrap().unwrap();
    assert!(cluster.instances().iter().all(|instance| instance.node_id == two));
}

#[test]
fn instances_move_into_the_new_network_of_their_node() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.put(WorkloadSpec { network: NetworkMode::Host, ..spec("host", "demo") });
    cluster.settle();
    // A node that could not make its bridge this time keeps what it has.
    cluster.register("box", None);
    check(&mut cluster, &[]);
    cluster.register("box", Some("10.99.0.0/24"));
    check(&mut cluster, &["web-0 removed epoch 1"]);
    cluster.schedule();
    cluster.settle();
    let web = cluster.workload("web").unwrap().id;
    let instances = cluster.instances();
    let moved = instances.iter().find(|instance| instance.workload_id == web).unwrap();
    assert!(
        matches!(moved.container.network, NetworkOrder::Bridge { address, .. } if address.octets() == [10, 99, 0, 2])
    );
}

#[test]
fn scaling_takes_the_highest_ordinals_first_and_fills_gaps() {
    let (mut cluster, _) = Cluster::of_one();
    let scaled = |replicas| WorkloadSpec { replicas, ..spec("web", "demo") };
    cluster.put(scaled(3));
    cluster.settle();
    cluster.put(scaled(1));
    check(&mut cluster, &["web-1 removed epoch 1", "web-2 removed epoch 1"]);
    cluster.schedule();
    cluster.put(scaled(4));
    // The ordinals on their way out are not free yet.
    check(&mut cluster, &["web-3 on box: 10.210.0.5"]);
    cluster.settle();
    assert_eq!(cluster.instances().iter().map(|i| i.ordinal).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn power_actions_become_orders() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(WorkloadSpec { replicas: 2, ..spec("web", "demo") });
    cluster.settle();
    for (action, orders) in [
        (PowerAction::Stop, ["web-0 stopped epoch 1", "web-1 stopped epoch 1"]),
        (PowerAction::Start, ["web-0 running epoch 2", "web-1 running epoch 2"]),
        (PowerAction::Restart, ["web-0 running epoch 3", "web-1 running epoch 3"]),
    ] {
        cluster.power("web", action);
        check(&mut cluster, &orders);
        cluster.settle();
    }
    cluster.remove("web");
    check(&mut cluster, &["web-0 removed epoch 3", "web-1 removed epoch 3"]);
    cluster.settle();
    check(&mut cluster, &[]);
}

#[test]
fn a_workload_changed_while_stopped_is_made_anew_only_when_it_starts() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("web", "demo:1"));
    cluster.settle();
    cluster.power("web", PowerAction::Stop);
    cluster.settle();
    cluster.put(spec("web", "demo:2"));
    cluster.settle();
    assert!(cluster.instances().is_empty());
    cluster.power("web", PowerAction::Start);
    check(&mut cluster, &["web-0 on box: 10.210.0.2"]);
}

#[test]
fn a_workload_that_is_not_to_run_does_not_wait() {
    let mut cluster = Cluster::new();
    cluster.put(spec("web", "demo"));
    cluster.settle();
    assert!(cluster.workload("web").unwrap().pending.is_some());
    cluster.power("web", PowerAction::Stop);
    check(&mut cluster, &["web waits: no more"]);
}

fn with_mounts(name: &str, mounts: &[&str]) -> WorkloadSpec {
    let mounts = mounts.iter().map(|mount| mount.parse().unwrap()).collect();
    WorkloadSpec { mounts, network: NetworkMode::None, ..spec(name, "demo") }
}

#[test]
fn who_shares_a_local_volume_shares_its_node() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 3, ..with_mounts("db", &["data:/data"]) });
    cluster.put(with_mounts("other", &["data:/d"]));
    // Decided at once, before the volume is there.
    check(&mut cluster, &["db-0 on one: none", "db-1 on one: none", "db-2 on one: none", "other-0 on one: none"]);
    cluster.settle();
    cluster.put(WorkloadSpec { node: Some("two".parse().unwrap()), ..with_mounts("late", &["data:/d"]) });
    check(&mut cluster, &["late waits: one: the specification names another node; two: volume `data` lies on one"]);
}

#[test]
fn volumes_on_two_nodes_go_together_nowhere() {
    let mut cluster = two_nodes();
    for (name, node) in [("aaa", "one"), ("bbb", "two")] {
        let data = format!("{name}-data:/data");
        cluster.put(WorkloadSpec { node: Some(node.parse().unwrap()), ..with_mounts(name, &[&data]) });
    }
    cluster.settle();
    cluster.put(with_mounts("both", &["aaa-data:/a", "bbb-data:/b"]));
    check(&mut cluster, &["both waits: one: volume `bbb-data` lies on two; two: volume `aaa-data` lies on one"]);
}

#[test]
fn a_volume_on_a_server_ties_nobody() {
    let mut cluster = two_nodes();
    let options = crate::volume::VolumeOptions {
        kind: Some(crate::volume::VolumeKind::Nfs),
        device: Some("nas:/media".into()),
        ..Default::default()
    };
    let (name, labels) = ("media".parse().unwrap(), Default::default());
    cluster.apply(crate::state::Command::CreateVolume { name, node_id: None, options, labels, at_ms: 1 });
    cluster.put(WorkloadSpec { replicas: 2, ..with_mounts("tv", &["media:/media"]) });
    check(&mut cluster, &["tv-0 on one: none", "tv-1 on two: none"]);
}
