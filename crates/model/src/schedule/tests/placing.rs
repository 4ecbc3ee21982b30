//! Where things go: what users say of nodes and workloads, and what the cluster's policy makes of it.

use super::{check, two_nodes};
use crate::{
    gpu::{Gpu, made},
    ids::InstanceId,
    node::Inventory,
    schedule::{Explanation, explain},
    state::{
        Command, InstanceRow, NodeRow, query_snapshot,
        tests::cluster::{Cluster, inventory, spec},
    },
    workload::{NetworkMode, PlacementSpec, Resources, WorkloadSpec},
};

/// A workload without network, with wishes as a specification has them.
pub(super) fn wishing(name: &str, placement: &str) -> WorkloadSpec {
    let placement: PlacementSpec = serde_json::from_str(placement).unwrap();
    let spec = WorkloadSpec { placement, network: NetworkMode::None, ..spec(name, "demo") };
    spec.validate().unwrap();
    spec
}

/// The same that reserves so many cores.
pub(super) fn reserving(name: &str, cores: u32, placement: &str) -> WorkloadSpec {
    let resources = Resources { cpu_reserved_millis: Some(cores * 1_000), ..Resources::default() };
    WorkloadSpec { resources, ..wishing(name, placement) }
}

fn explained(cluster: &Cluster, name: &str) -> Explanation {
    explain(&query_snapshot(&cluster.connection).unwrap(), &name.parse().unwrap()).unwrap()
}

fn pending(cluster: &Cluster, name: &str) -> String {
    cluster.workload(name).unwrap().pending.unwrap()
}

/// Where the instances of a workload are, by ordinal.
pub(super) fn places(cluster: &Cluster, name: &str) -> Vec<String> {
    let id = cluster.workload(name).unwrap().id;
    let nodes = NodeRow::all(&cluster.connection).unwrap();
    let of = InstanceRow::of_workload(&cluster.connection, id).unwrap();
    of.iter().map(|one| nodes.iter().find(|node| node.id == one.node_id).unwrap().name.to_string()).collect()
}

#[test]
fn what_users_say_of_a_node_outlives_its_registrations() {
    let mut cluster = two_nodes();
    cluster.configure("one", r#"{"labels":{"zone":"a"},"availability":"cordoned","watts":90}"#);
    let before = NodeRow::all(&cluster.connection).unwrap()[0].clone();
    cluster.register("one", Some("10.1.0.0/24"));
    let after = NodeRow::all(&cluster.connection).unwrap()[0].clone();
    assert_eq!(before.settings, after.settings);
    assert_eq!(after.label("zone").as_deref(), Some("a"));
    let story = cluster.story();
    assert!(story.contains(&"node/one: cordoned: takes nothing new".to_owned()), "{story:?}");
    let unknown = Command::ConfigureNode { name: "three".parse().unwrap(), changes: Box::default(), at_ms: 1 };
    cluster.refused(unknown);
    let wrong = r#"{"command":"configure_node","name":"one","changes":{"watts":100001},"at_ms":1}"#;
    cluster.refused(serde_json::from_str(wrong).unwrap());
}

#[test]
fn constraints_choose_nodes_and_move_what_runs() {
    let mut cluster = two_nodes();
    cluster.put(wishing("web", r#"{"constraints":["node.labels.zone == b"]}"#));
    let why = "`node.labels.zone == b` does not hold (it has no such label)";
    check(&mut cluster, &[&format!("web waits: one: {why}; two: {why}")]);
    cluster.configure("two", r#"{"labels":{"zone":"b"}}"#);
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["two"]);
    cluster.configure("two", r#"{"labels":{"zone":"a"}}"#);
    cluster.configure("one", r#"{"labels":{"zone":"B"}}"#);
    check(&mut cluster, &["web-0 removed epoch 1"]);
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["one"]);
}

#[test]
fn a_cordon_keeps_what_runs_and_takes_nothing_new() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 2, ..wishing("web", "{}") });
    cluster.settle();
    cluster.configure("one", r#"{"availability":"cordoned"}"#);
    check(&mut cluster, &[]);
    cluster.put(WorkloadSpec { replicas: 4, ..wishing("web", "{}") });
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["one", "two", "two", "two"]);
    cluster.configure("two", r#"{"availability":"cordoned"}"#);
    cluster.put(wishing("late", "{}"));
    check(&mut cluster, &["late waits: one: it is cordoned; two: it is cordoned"]);
}

#[test]
fn a_plan_that_was_made_before_a_cordon_places_nothing_there() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(wishing("web", "{}"));
    let late = cluster.think();
    cluster.configure("box", r#"{"availability":"cordoned"}"#);
    assert_eq!(cluster.commit(late), (0, 1));
}

#[test]
fn taints_keep_off_whom_they_are_meant_for() {
    let mut cluster = two_nodes();
    cluster.configure("one", r#"{"taints":["gpu=only:NoSchedule"]}"#);
    cluster.put(WorkloadSpec { replicas: 2, ..wishing("web", "{}") });
    cluster.put(WorkloadSpec { replicas: 2, ..wishing("ai", r#"{"tolerations":["gpu"]}"#) });
    cluster.settle();
    assert_eq!(
        (places(&cluster, "web"), places(&cluster, "ai")),
        (vec!["two".into(); 2], vec!["one".into(), "two".into()])
    );
    cluster.configure("one", r#"{"taints":["gpu-"]}"#);
    cluster.configure("two", r#"{"taints":["desk:PreferNoSchedule"]}"#);
    cluster.put(wishing("new", "{}"));
    cluster.settle();
    assert_eq!(places(&cluster, "new"), ["one"], "others go first");
    // Whoever does not tolerate it leaves.
    cluster.configure("one", r#"{"taints":["ill:NoExecute"]}"#);
    cluster.settle();
    assert_eq!((places(&cluster, "new"), places(&cluster, "ai")), (vec!["two".to_owned()], vec!["two".into(); 2]));
}

#[test]
fn workloads_that_want_to_be_apart_are() {
    let mut cluster = two_nodes();
    cluster.put(wishing("db", r#"{"constraints":["workload != cache"]}"#));
    cluster.put(WorkloadSpec {
        node: Some("one".parse().unwrap()),
        ..wishing("near", r#"{"constraints":["workload == db"]}"#)
    });
    cluster.settle();
    let db = places(&cluster, "db").remove(0);
    // The other asks for nothing, and is kept off all the same.
    cluster.put(WorkloadSpec { replicas: 2, ..wishing("cache", r#"{"max_per_node":1}"#) });
    cluster.settle();
    let other = if db == "one" { "two" } else { "one" };
    assert_eq!(places(&cluster, "cache"), [other]);
    let why = pending(&cluster, "cache");
    assert!(why.contains(&format!("{db}: `db` is there and says `workload != cache`")), "{why}");
    assert!(why.contains(&format!("{other}: a copy is there, and more may not be")), "{why}");
    assert_eq!(places(&cluster, "near").len(), usize::from(db == "one"));
}

#[test]
fn stale_plans_put_nobody_together_who_wants_to_be_apart() {
    for first in ["db", "cache"] {
        let mut cluster = Cluster::of_one().0;
        cluster.put(wishing("db", r#"{"constraints":["workload != cache"]}"#));
        cluster.power("db", crate::state::PowerAction::Stop);
        cluster.put(wishing("cache", "{}"));
        let of_cache = cluster.think();
        cluster.power("cache", crate::state::PowerAction::Stop);
        cluster.power("db", crate::state::PowerAction::Start);
        let of_db = cluster.think();
        cluster.power("cache", crate::state::PowerAction::Start);
        let (one, other) = if first == "db" { (of_db, of_cache) } else { (of_cache, of_db) };
        assert_eq!(cluster.commit(one).0, 1);
        assert_eq!(cluster.commit(other).0, 0, "{first} first");
    }
}

#[test]
fn copies_are_spread_over_labels() {
    let mut cluster = Cluster::new();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")] {
        cluster.register(name, None);
        cluster.configure(name, &format!(r#"{{"labels":{{"zone":"{zone}"}}}}"#));
    }
    cluster.put(WorkloadSpec { replicas: 4, ..wishing("web", r#"{"spread":["node.labels.zone"]}"#) });
    cluster.settle();
    let mut at = places(&cluster, "web");
    at.sort();
    assert_eq!(at.iter().filter(|node| *node == "b1").count(), 2, "{at:?}");
}

#[test]
fn affinities_draw_and_repel() {
    let mut cluster = two_nodes();
    cluster.configure("two", r#"{"labels":{"disk":"ssd"}}"#);
    cluster.put(WorkloadSpec {
        replicas: 2,
        ..wishing("web", r#"{"affinities":["node.labels.disk == ssd weight 100"]}"#)
    });
    cluster.put(wishing("loud", r#"{"affinities":["node.labels.disk == ssd weight -100"]}"#));
    cluster.settle();
    assert_eq!(places(&cluster, "loud"), ["one"]);
    assert_eq!(places(&cluster, "web"), ["two", "two"], "it counts more than that copies be apart");
}

#[test]
fn policies_choose_otherwise() {
    let place = |settings: &str| {
        let mut cluster = two_nodes();
        cluster.configure("two", r#"{"price_per_hour":0.5,"watts":300}"#);
        cluster.configure_placement(settings);
        cluster.put(WorkloadSpec { node: Some("two".parse().unwrap()), ..reserving("old", 2, "{}") });
        cluster.settle();
        cluster.put(reserving("new", 1, "{}"));
        cluster.settle();
        places(&cluster, "new").remove(0)
    };
    assert_eq!(place("{}"), "two", "the best fit, although it costs a little");
    assert_eq!(place(r#"{"policy":"binpack"}"#), "two");
    assert_eq!(place(r#"{"policy":"spread"}"#), "one");
    assert_eq!(place(r#"{"policy":"custom","weights":{"cost":1}}"#), "one");
    assert_eq!(place(r#"{"policy":"custom","weights":{"watts":-1}}"#), "two");
    assert_eq!(place(r#"{"policy":"custom","expression":"cpus_free"}"#), "one");
    assert_eq!(place(r#"{"policy":"custom","expression":"-cpus_free"}"#), "two");
    assert_eq!(place(r#"{"policy":"custom","electricity_price":1,"weights":{"cost":1}}"#), "one");
    assert_eq!(place(r#"{"policy":"random"}"#), place(r#"{"policy":"random"}"#));
}

#[test]
fn what_cards_measure_counts_instead_of_what_users_say() {
    let mut cluster = Cluster::new();
    let drawing = |watts: Option<u32>| {
        let card = |id: &str| Gpu { watts, ..made::card(id, "NVIDIA A2", 16_384) };
        Inventory { gpus: vec![card("GPU-0"), card("GPU-1")], ..inventory(None) }
    };
    cluster.register_with("one", drawing(Some(150)));
    cluster.register_with("two", drawing(None));
    cluster.configure("one", r#"{"watts":1,"base_watts":60}"#);
    cluster.configure("two", r#"{"watts":359,"base_watts":1000}"#);
    let nodes = NodeRow::all(&cluster.connection).unwrap();
    let told: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.watts())).collect();
    assert_eq!(told, [("one", Some(360)), ("two", Some(359))]);
    for (round, (settings, want)) in [
        (r#"{"policy":"custom","weights":{"watts":1}}"#, "two"),
        (r#"{"policy":"custom","weights":{"cost":1},"electricity_price":0.3}"#, "two"),
        (r#"{"policy":"custom","weights":{"watts":-1},"electricity_price":null}"#, "one"),
        (r#"{"policy":"custom","weights":{"watts":0},"expression":"watts"}"#, "one"),
    ]
    .into_iter()
    .enumerate()
    {
        cluster.configure_placement(settings);
        let name = format!("web{round}");
        cluster.put(wishing(&name, "{}"));
        cluster.settle();
        assert_eq!(places(&cluster, &name), [want], "{settings}");
    }
}

#[test]
fn chance_is_fair_and_the_same_again() {
    let mut cluster = two_nodes();
    cluster.configure_placement(r#"{"policy":"random"}"#);
    cluster.put(WorkloadSpec { replicas: 100, ..wishing("web", "{}") });
    cluster.settle();
    let one = places(&cluster, "web").iter().filter(|node| *node == "one").count();
    assert!((30..=70).contains(&one), "{one} of 100 are on the one node");
}

#[test]
fn nodes_are_overbooked_as_far_as_users_say() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(WorkloadSpec { replicas: 9, ..reserving("web", 1, "{}") });
    cluster.settle();
    assert_eq!(places(&cluster, "web").len(), 4);
    let late = {
        cluster.configure_placement(r#"{"cpu_percent":150}"#);
        cluster.think()
    };
    cluster.configure_placement(r#"{"cpu_percent":100}"#);
    assert_eq!(cluster.commit(late), (0, 2), "the ratio is looked at again");
    cluster.configure("box", r#"{"cpu_percent":200}"#);
    cluster.settle();
    assert_eq!(places(&cluster, "web").len(), 8);
    assert_eq!(pending(&cluster, "web"), "box: 1 cores are to be reserved and 0 are left");
}

fn with_cards(models: &[(&str, u32)]) -> Inventory {
    let card =
        |(place, (model, memory_mib)): (usize, &(&str, u32))| made::card(&format!("GPU-{place}"), model, *memory_mib);
    Inventory { gpus: models.iter().enumerate().map(card).collect(), ..inventory(None) }
}

#[test]
fn constraints_on_cards_choose_the_card() {
    let mut cluster = Cluster::new();
    cluster
        .register_with("box", with_cards(&[("NVIDIA GeForce RTX 3060", 12_288), ("NVIDIA GeForce RTX 4090", 24_564)]));
    cluster.register("none", None);
    let gpus = Some("1".parse().unwrap());
    cluster.put(WorkloadSpec { gpus: gpus.clone(), ..wishing("ai", r#"{"constraints":["gpu.memory >= 24GiB"]}"#) });
    cluster.settle();
    assert_eq!(cluster.only_instance().container.gpus[0].gpu.as_str(), "GPU-1");
    cluster.put(WorkloadSpec { gpus, ..wishing("ai", r#"{"constraints":["gpu.model == rtx3060"]}"#) });
    cluster.settle();
    assert_eq!(cluster.only_instance().container.gpus[0].gpu.as_str(), "GPU-0", "another card serves it now");
    cluster.put(wishing("cpu", r#"{"constraints":["gpu.vendor != nvidia"]}"#));
    cluster.settle();
    assert_eq!(places(&cluster, "cpu"), ["none"]);
}

#[test]
fn what_needs_no_card_leaves_the_cards_to_others() {
    let mut cluster = Cluster::new();
    cluster.register_with("a-gpus", with_cards(&[("NVIDIA H200", 143_771)]));
    cluster.register("z-none", None);
    cluster.put(wishing("web", "{}"));
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["z-none"]);
}

#[test]
fn where_the_image_is_goes_first() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { node: Some("two".parse().unwrap()), ..wishing("old", "{}") });
    cluster.settle();
    cluster.put(wishing("new", "{}"));
    cluster.settle();
    assert_eq!(places(&cluster, "new"), ["two"], "although more runs there");
}

#[test]
fn explanations_keep_every_reason_of_every_node() {
    let mut cluster = two_nodes();
    cluster.register("six", None);
    cluster.configure("one", r#"{"availability":"cordoned","taints":["gpu:NoSchedule"]}"#);
    let web = reserving("web", 5, r#"{"constraints":["node.labels.zone == a"]}"#);
    cluster.put(WorkloadSpec { network: NetworkMode::Bridge, ..web });
    cluster.settle();
    let explanation = explained(&cluster, "web");
    assert_eq!((explanation.wanted, explanation.instances.len()), (1, 0));
    let filters = |node: &str| {
        let node = explanation.nodes.iter().find(|verdict| verdict.node == node).unwrap();
        assert_eq!(node.score, None);
        node.refused.iter().map(|refused| refused.filter.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(filters("one"), "availability constraints cpu");
    assert_eq!(filters("two"), "constraints cpu");
    assert_eq!(filters("six"), "constraints cpu network");
    let two = explanation.nodes.iter().find(|verdict| verdict.node == "two").unwrap();
    assert_eq!(two.refused[1].message, "5 cores are to be reserved and 4 are left");
    assert_eq!(two.refused[1].remedy, "1 cores more free, or reserved less");
    assert!(explain(&query_snapshot(&cluster.connection).unwrap(), &"none".parse().unwrap()).is_none());
}

#[test]
fn explanations_choose_what_the_plan_chooses() {
    let mut cluster = two_nodes();
    cluster.register("six", Some("10.6.0.0/24"));
    cluster.configure_placement(r#"{"policy":"custom","expression":"7 if price == 0 else 1 / (price - 2)"}"#);
    cluster.configure("six", r#"{"price_per_hour":2}"#);
    cluster.put(WorkloadSpec { replicas: 2, ..reserving("web", 1, r#"{"affinities":["node.hostname == two"]}"#) });
    let first = explained(&cluster, "web").nodes[0].clone();
    assert_eq!((first.node.as_str(), first.score), ("two", Some(157.0)));
    cluster.settle();
    let explanation = explained(&cluster, "web");
    assert_eq!(explanation.instances[0].node, "two");
    assert_eq!(explanation.instances[0].better, None);
    assert!(explanation.expression_fails.is_some(), "it divides by zero on one node");
    let total = |verdict: &crate::schedule::NodeVerdict| verdict.points.iter().map(|one| one.points).sum::<f64>();
    assert!(explanation.nodes.iter().all(|node| node.score.is_none_or(|score| (score - total(node)).abs() < 1e-3)));
}

#[test]
fn long_reasons_are_cut() {
    let mut cluster = Cluster::new();
    for i in 0..40 {
        cluster.register(&format!("n{i}"), None);
    }
    cluster.put(spec("web", "demo"));
    cluster.settle();
    let why = pending(&cluster, "web");
    assert!(why.ends_with("; and 24 more nodes, of which `toft explain` tells"), "{why}");
    assert_eq!(explained(&cluster, "web").nodes.len(), 40);
    let first = InstanceId(uuid::Uuid::nil());
    assert!(cluster.instances().iter().all(|instance| instance.id != first));
}
