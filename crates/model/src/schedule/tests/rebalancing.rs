//! Moves that users order: how they are planned, carried out, and given up.

use proptest::prelude::*;

use super::{
    convergence::cases,
    placing::{places, reserving, wishing},
    two_nodes,
};
use crate::{
    gpu::made,
    instance::Desired,
    node::Inventory,
    schedule::{Rebalance, Snapshot, rebalance, still_to_move},
    state::{
        Command, InstanceMove, InstanceRow, MOST_MOVES, NodeRow, RefusalKind, query_snapshot,
        tests::cluster::{Cluster, Outcome, inventory, node_id},
    },
    workload::{UpdateOrder, UpdateSpec, WorkloadKind, WorkloadSpec},
};

/// The same, of which two may run at once, and that counts as one that works at once.
fn starting_first(spec: WorkloadSpec) -> WorkloadSpec {
    let update = UpdateSpec { order: None, healthy_ms: 0, ..UpdateSpec::default() };
    WorkloadSpec { update, ..spec }
}

fn on_cards(name: &str, gpus: &str) -> WorkloadSpec {
    starting_first(WorkloadSpec { gpus: Some(gpus.parse().unwrap()), ..wishing(name, "{}") })
}

fn with_cards(cluster: &mut Cluster, name: &str, cards: u32) {
    let card = |number: u32| made::card(&format!("GPU-{name}-{number}"), "NVIDIA A2", 1_000);
    cluster.register_with(name, Inventory { gpus: (0..cards).map(card).collect(), ..inventory(None) });
}

fn snapshot(cluster: &Cluster) -> Snapshot {
    query_snapshot(&cluster.connection).unwrap()
}

fn planned(cluster: &Cluster, most: usize) -> (Rebalance, Vec<InstanceMove>) {
    let (plan, moves) = rebalance(&snapshot(cluster), most);
    assert_eq!(rebalance(&snapshot(cluster), most), (plan.clone(), moves.clone()), "one state gave two plans");
    assert_eq!(plan.moves.len(), moves.len());
    assert!(moves.len() <= most);
    assert!(plan.after.usable >= plan.before.usable - 1e-9, "the cards are more fragmented: {plan:?}");
    (plan, moves)
}

fn told(plan: &Rebalance) -> Vec<String> {
    plan.moves.iter().map(|one| format!("{} {} -> {}", one.instance, one.from, one.to)).collect()
}

fn order(cluster: &mut Cluster, moves: Vec<InstanceMove>) {
    let at_ms = cluster.now_ms();
    cluster.apply(Command::MoveInstances { moves, at_ms });
}

/// An order to move the only instance of a workload.
fn moving(cluster: &Cluster, name: &str, to: &str) -> InstanceMove {
    let workload = cluster.workload(name).unwrap();
    let row = InstanceRow::of_workload(&cluster.connection, workload.id).unwrap().remove(0);
    InstanceMove { instance_id: row.id, generation: workload.generation, from: row.node_id, to: node_id(to) }
}

fn still(cluster: &Cluster) -> Vec<String> {
    still_to_move(&snapshot(cluster)).into_iter().map(|one| format!("{}: {}", one.instance, one.why)).collect()
}

/// Instances that are up and are not to go, each copy once.
fn up(cluster: &Cluster) -> usize {
    let is_up = |one: &&InstanceRow| {
        let state = one.report.as_ref().and_then(|report| report.state.as_ref());
        one.desired == Desired::Running && state.is_some_and(|state| state.as_str() == "running")
    };
    let instances = cluster.instances();
    let copies = instances.iter().filter(is_up).map(|one| (one.workload_id, one.ordinal));
    copies.collect::<std::collections::HashSet<_>>().len()
}

/// Carries everything out step by step; gives the fewest copies that were up meanwhile, and the most instances that a workload
/// had beside its own number of copies.
fn carried_out(cluster: &mut Cluster) -> (usize, usize) {
    let (mut fewest, mut most) = (up(cluster), 0);
    for _ in 0..400 {
        let placed = cluster.think();
        let quiet = placed.is_empty();
        cluster.commit(placed);
        fewest = fewest.min(up(cluster));
        for workload in snapshot(cluster).workloads {
            let own = cluster.instances().iter().filter(|one| one.workload_id == workload.id).count();
            most = most.max(own.saturating_sub(workload.spec.replicas as usize));
        }
        let mut moved = false;
        for node in NodeRow::all(&cluster.connection).unwrap() {
            moved |= cluster.node_acts(node.id, Outcome::Runs, |_| true);
            fewest = fewest.min(up(cluster));
        }
        if quiet && !moved {
            return (fewest, most);
        }
    }
    panic!("the moves do not end: {:?}", still(cluster));
}

#[test]
fn a_new_node_takes_its_share_and_no_copy_is_missing() {
    let mut cluster = Cluster::new();
    cluster.configure_placement(r#"{"policy":"spread"}"#);
    cluster.register("one", None);
    cluster.put(starting_first(WorkloadSpec { replicas: 4, ..reserving("web", 1, "{}") }));
    cluster.settle();
    cluster.register("two", None);
    assert!(cluster.think().is_empty(), "nothing moves by itself");
    let (plan, moves) = planned(&cluster, 20);
    assert_eq!(told(&plan), ["web-0 one -> two", "web-1 one -> two"]);
    assert_eq!(planned(&cluster, 1).1, moves[..1]);
    order(&mut cluster, moves);
    assert_eq!(
        still(&cluster),
        ["web-0: it waits for its turn to move to two", "web-1: it waits for its turn to move to two"]
    );
    cluster.schedule();
    assert_eq!(still(&cluster), ["web-0: its successor starts on two", "web-1: it waits for its turn to move to two"]);
    assert_eq!(carried_out(&mut cluster), (4, 1), "no copy is missing, and one moves at a time");
    assert!(still(&cluster).is_empty());
    assert_eq!(places(&cluster, "web"), ["two", "two", "one", "one"]);
    let story = cluster.story();
    for told in ["is to be moved from node one to node two", "moved from node one to node two"] {
        assert!(story.contains(&format!("instance/web-1: {told}")), "{story:?}");
    }
    assert_eq!(told(&planned(&cluster, 20).0), [""; 0], "it is done");
}

/// Two nodes with two cards each, of which one each is idle, and `big`, which waits for two of one node.
fn fragmented() -> Cluster {
    let mut cluster = Cluster::new();
    for node in ["one", "two"] {
        with_cards(&mut cluster, node, 2);
    }
    for name in ["aaa", "bbb", "ccc", "ddd"] {
        cluster.put(on_cards(name, "1"));
    }
    cluster.settle();
    let of_one: Vec<&str> =
        ["aaa", "bbb", "ccc", "ddd"].into_iter().filter(|name| places(&cluster, name) == ["one"]).collect();
    let of_two: Vec<&str> =
        ["aaa", "bbb", "ccc", "ddd"].into_iter().filter(|name| places(&cluster, name) == ["two"]).collect();
    cluster.remove(of_one[0]);
    cluster.remove(of_two[0]);
    cluster.put(on_cards("big", "2"));
    cluster.settle();
    assert!(cluster.workload("big").unwrap().pending.is_some());
    cluster
}

#[test]
fn cards_that_lie_apart_come_together_for_who_waits() {
    let mut cluster = fragmented();
    let (plan, moves) = planned(&cluster, 20);
    assert_eq!((plan.moves.len(), &plan.fits[..]), (1, &["big".to_owned()][..]), "{plan:?}");
    assert_eq!((plan.before.cards, plan.before.idle, plan.after.idle), (4, 2.0, 2.0));
    assert!(plan.points_gained > 5.0 && plan.moves[0].cards > 0.2, "{plan:?}");
    order(&mut cluster, moves);
    assert_eq!(carried_out(&mut cluster).0, 2);
    assert_eq!(cluster.workload("big").unwrap().pending, None);
    assert_eq!(up(&cluster), 3);
    assert!(planned(&cluster, 20).1.is_empty());
}

#[test]
fn what_is_not_moved_is_told_with_its_reason() {
    let mut cluster = Cluster::new();
    cluster.configure_placement(r#"{"policy":"spread"}"#);
    cluster.register("one", None);
    let mounting = |name: &str, mount: &str| {
        let mounts = vec![mount.parse().unwrap()];
        starting_first(WorkloadSpec { mounts, ..wishing(name, "{}") })
    };
    cluster.put(WorkloadSpec { kind: WorkloadKind::Job, ..wishing("job", "{}") });
    cluster.put(starting_first(WorkloadSpec { node: Some("one".parse().unwrap()), ..wishing("pinned", "{}") }));
    cluster.put(mounting("data", "data:/data"));
    cluster.put(mounting("folder", "/srv:/srv"));
    cluster.put(starting_first(WorkloadSpec { replicas: 2, ..wishing("gang", r#"{"gang":true}"#) }));
    let update = UpdateSpec { order: Some(UpdateOrder::StopFirst), healthy_ms: 0, ..UpdateSpec::default() };
    cluster.put(WorkloadSpec { update, ..wishing("single", "{}") });
    cluster.settle();
    cluster.put(starting_first(wishing("new", "{}")));
    cluster.schedule();
    cluster.register("two", None);
    let (plan, moves) = planned(&cluster, 20);
    assert!(moves.is_empty(), "{plan:?}");
    let stay: Vec<String> = plan.stay.iter().map(|one| format!("{} {}", one.instances, one.why)).collect();
    assert_eq!(
        stay,
        [
            "2 copies of a gang stay together",
            "1 jobs are left to end",
            "1 their copies may not run twice at once",
            "2 their data lies on their node",
            "1 they are bound to their node",
            "1 they do not run, or do not work yet",
        ]
    );
}

/// `web` on node one, ordered to move to node two.
fn ordered() -> Cluster {
    let mut cluster = two_nodes();
    cluster.put(starting_first(wishing("web", r#"{"affinities":["node.hostname == one"]}"#)));
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["one"]);
    let moves = vec![moving(&cluster, "web", "two")];
    order(&mut cluster, moves);
    cluster
}

#[track_caller]
fn assert_stays(cluster: &mut Cluster, why: &str) {
    assert!(still(cluster).is_empty());
    let story = cluster.story();
    assert!(
        story.iter().any(|line| line.starts_with("instance/web-0: stays on node one") && line.contains(why)),
        "{story:?}"
    );
}

#[test]
fn an_order_that_cannot_be_carried_out_is_given_up() {
    let mut cluster = ordered();
    cluster.configure("two", r#"{"availability":"cordoned"}"#);
    cluster.settle();
    assert_stays(&mut cluster, "it is cordoned");
    assert_eq!(places(&cluster, "web"), ["one"]);

    let mut cluster = ordered();
    cluster.configure("one", r#"{"availability":"draining"}"#);
    cluster.settle();
    assert_stays(&mut cluster, "its node is being left");
    assert_eq!(places(&cluster, "web"), ["two"], "a drain moves it all the same");

    let mut cluster = ordered();
    let row = cluster.workload("web").unwrap();
    cluster.put(WorkloadSpec { image: "demo:2".parse().unwrap(), ..row.spec });
    cluster.schedule();
    assert_stays(&mut cluster, "of an earlier generation");
    cluster.settle();

    let mut cluster = ordered();
    cluster.power("web", crate::state::PowerAction::Stop);
    cluster.settle();
    assert_stays(&mut cluster, "it does not run");
}

#[test]
fn an_order_that_is_taken_back_takes_its_successor_back() {
    let mut cluster = ordered();
    let late = cluster.think();
    cluster.schedule();
    assert_eq!(cluster.instances().len(), 2);
    order(&mut cluster, Vec::new());
    assert_stays(&mut cluster, "the order to move it was taken back");
    assert_eq!(cluster.commit(late), (0, 1), "a late plan places no second successor");
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["one"]);
    // Nor one for an order that is no more.
    let moves = vec![moving(&cluster, "web", "two")];
    order(&mut cluster, moves);
    let late = cluster.think();
    order(&mut cluster, Vec::new());
    assert_eq!(cluster.commit(late), (0, 1));
}

#[test]
fn a_successor_that_does_not_work_goes_and_its_predecessor_stays() {
    let mut cluster = ordered();
    cluster.schedule();
    cluster.node_acts(node_id("two"), Outcome::BacksOff, |_| true);
    let waits = cluster.think();
    assert!(waits.unmoved.is_empty() && waits.wake_at_ms.is_some(), "it may need some time: {waits:?}");
    cluster.waited_ms = waits.wake_at_ms.unwrap() - 1_000;
    assert_eq!(cluster.think().unmoved.len(), 1);
    cluster.settle();
    assert_stays(&mut cluster, "its successor does not work: web-0: exited");
    assert_eq!((places(&cluster, "web"), up(&cluster)), (vec!["one".to_owned()], 1));
}

#[test]
fn whoever_waits_for_room_gets_it_before_those_behind() {
    let mut cluster = Cluster::new();
    for node in ["one", "two", "six"] {
        cluster.register(node, None);
    }
    let on = |name: &str, node: &str| {
        starting_first(reserving(name, 3, &format!(r#"{{"affinities":["node.hostname == {node}"]}}"#)))
    };
    for (name, node) in [("aaa", "one"), ("bbb", "two")] {
        cluster.put(on(name, node));
        cluster.settle();
        assert_eq!(places(&cluster, name), [node]);
    }
    // `aaa` needs the room of `bbb`, which goes first and yet later.
    let moves = vec![moving(&cluster, "bbb", "six"), moving(&cluster, "aaa", "two")];
    order(&mut cluster, moves);
    cluster.schedule();
    assert_eq!(still(&cluster), ["bbb-0: its successor starts on six", "aaa-0: it waits for its turn to move to two"]);
    assert_eq!(carried_out(&mut cluster).0, 2);
    assert_eq!((places(&cluster, "aaa"), places(&cluster, "bbb")), (vec!["two".into()], vec!["six".to_owned()]));
}

#[test]
fn orders_that_fit_the_state_no_more_are_refused_whole() {
    let mut cluster = two_nodes();
    for name in ["aaa", "bbb"] {
        cluster.put(starting_first(wishing(name, r#"{"affinities":["node.hostname == one"]}"#)));
    }
    cluster.settle();
    let (good, other) = (moving(&cluster, "aaa", "two"), moving(&cluster, "bbb", "two"));
    let nowhere = uuid::Uuid::from_u128(7);
    for bad in [
        InstanceMove { generation: 9, ..other },
        InstanceMove { from: node_id("two"), ..other },
        InstanceMove { to: node_id("one"), ..other },
        InstanceMove { to: crate::ids::NodeId(nowhere), ..other },
        InstanceMove { instance_id: crate::ids::InstanceId(nowhere), ..other },
        good,
    ] {
        let command = Command::MoveInstances { moves: vec![good, bad], at_ms: 9 };
        assert_eq!(cluster.refused(command), RefusalKind::Stale, "{bad:?}");
    }
    let command = Command::MoveInstances { moves: vec![good; MOST_MOVES + 1], at_ms: 9 };
    assert_eq!(cluster.refused(command), RefusalKind::Invalid);
    assert!(still(&cluster).is_empty());
    order(&mut cluster, vec![good, other]);
    assert_eq!(still(&cluster).len(), 2);
}

/// Wishes of services: what they reserve, whom they avoid, what they ask of cards.
fn a_service() -> impl Strategy<Value = (u32, u32, &'static str, Option<&'static str>)> {
    let wishes = prop::sample::select(
        &[
            "{}",
            "{}",
            r#"{"max_per_node":1}"#,
            r#"{"constraints":["workload != aaa"]}"#,
            r#"{"spread":["node.hostname"]}"#,
        ][..],
    );
    let gpus = prop::sample::select(&[None, Some("1"), Some("1"), Some("2"), Some("vram=400MiB")][..]);
    (1u32..4, 0u32..3, wishes, gpus)
}

proptest! {
    // Each case carries out a whole plan, step by step.
    #![proptest_config(ProptestConfig { cases: cases().cases / 2, ..cases() })]

    /// Whatever the cluster looks like: the plan makes nothing worse, its moves end where they were to, and no copy is missing.
    #[test]
    fn rebalancing_harms_nobody(
        cards in prop::collection::vec(0u32..4, 4),
        services in prop::collection::vec(a_service(), 5),
        gone in any::<u8>(),
        policy in prop::sample::select(&["best-fit", "binpack", "spread", "random"][..]),
        most in 1usize..6,
    ) {
        const NAMES: [&str; 5] = ["aaa", "bbb", "ccc", "ddd", "eee"];
        let mut cluster = Cluster::new();
        for (node, cards) in ["one", "two", "six"].iter().zip(&cards) {
            with_cards(&mut cluster, node, *cards);
        }
        for (name, (replicas, cores, wishes, gpus)) in NAMES.iter().zip(services) {
            let spec = if cores == 0 { wishing(name, wishes) } else { reserving(name, cores, wishes) };
            let gpus = gpus.map(|gpus| gpus.parse().unwrap());
            cluster.put(starting_first(WorkloadSpec { replicas, gpus, ..spec }));
        }
        cluster.settle();
        for (i, name) in NAMES.iter().enumerate().filter(|(i, _)| gone & (1 << i) != 0) {
            let row = cluster.workload(name).unwrap();
            let replicas = row.spec.replicas.saturating_sub(1 + u32::from(gone >> (i + 3) & 1));
            cluster.put(WorkloadSpec { replicas, ..row.spec });
        }
        with_cards(&mut cluster, "ten", cards[3]);
        cluster.configure_placement(&format!(r#"{{"policy":"{policy}"}}"#));
        cluster.settle();
        let (plan, moves) = planned(&cluster, most);
        let waits = |name: &&str| cluster.workload(name).is_some_and(|row| row.pending.is_some());
        let somebody_waits = NAMES.iter().any(waits);
        prop_assert!(plan.moves.iter().all(|one| one.points >= 5.0 && one.cards > -1e-9), "{plan:?}");
        let before = up(&cluster);
        order(&mut cluster, moves.clone());
        let (fewest, extra) = carried_out(&mut cluster);
        prop_assert_eq!(fewest, before, "a copy was missing meanwhile");
        prop_assert!(extra <= 1, "several copies of a workload moved at once");
        prop_assert!(still(&cluster).is_empty());
        for (told, moved) in plan.moves.iter().zip(&moves) {
            let (name, ordinal) = told.instance.rsplit_once('-').unwrap();
            let place = places(&cluster, name).remove(ordinal.parse::<usize>().unwrap());
            // Who waits may take the room first, also room that only some of the moves leave.
            prop_assert!(node_id(&place) == moved.to || somebody_waits, "{} is on {place}: {:?}", told.instance, cluster.story());
        }
    }
}
