//! Who makes room for whom, and gangs.

use super::{
    check,
    placing::{places, reserving, wishing},
    two_nodes,
};
use crate::{
    instance::{Desired, InstanceState},
    schedule::explain,
    state::{
        InstanceRow, PowerAction, query_snapshot,
        tests::cluster::{Cluster, Outcome, node_id, report, spec},
    },
    workload::{WorkloadKind, WorkloadSpec},
};

fn on(node: &str, spec: WorkloadSpec) -> WorkloadSpec {
    WorkloadSpec { node: Some(node.parse().unwrap()), ..spec }
}

#[test]
fn the_least_important_makes_room_and_comes_back_elsewhere() {
    let mut cluster = two_nodes();
    cluster.put(on("one", reserving("mid", 2, r#"{"priority":50}"#)));
    cluster.put(on("one", reserving("low", 2, r#"{"priority":10}"#)));
    cluster.settle();
    cluster.put(reserving("low", 2, r#"{"priority":10}"#));
    cluster.put(on("two", reserving("two", 2, r#"{"priority":200}"#)));
    cluster.settle();
    cluster.put(on("one", reserving("top", 2, r#"{"priority":200}"#)));
    let wait = "top waits: one: it has room when low-0 made way (a lower priority)";
    check(&mut cluster, &[wait, "low-0 makes room for top"]);
    cluster.schedule();
    // It is asked to go once, and nobody else is.
    check(&mut cluster, &[]);
    let low = cluster.workload("low").unwrap().id;
    let going = InstanceRow::of_workload(&cluster.connection, low).unwrap().remove(0);
    assert_eq!(going.desired, Desired::Removed);
    let story = cluster.story();
    let told = "instance/low-0: makes room for `top`, whose priority is 200; its own is 10".to_owned();
    assert!(story.contains(&told), "{story:?}");
    cluster.settle();
    assert_eq!(
        (places(&cluster, "top"), places(&cluster, "low"), places(&cluster, "mid")),
        (vec!["one".into()], vec!["two".to_owned()], vec!["one".into()])
    );
    assert!(["top", "low", "mid"].iter().all(|name| cluster.workload(name).unwrap().pending.is_none()));
}

#[test]
fn equals_never_make_room_for_each_other() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(reserving("one", 3, "{}"));
    cluster.settle();
    cluster.put(reserving("two", 3, "{}"));
    check(&mut cluster, &["two waits: box: 3 cores are to be reserved and 1 are left"]);
    cluster.put(reserving("two", 3, r#"{"priority":99}"#));
    check(&mut cluster, &["two waits: box: 3 cores are to be reserved and 1 are left"]);
    cluster.put(reserving("two", 3, r#"{"priority":101}"#));
    check(
        &mut cluster,
        &["two waits: box: it has room when one-0 made way (a lower priority)", "one-0 makes room for two"],
    );
}

#[test]
fn as_few_go_as_can() {
    // Four cores: one each for a, b, c, d; the new one wants two.
    let mut cluster = Cluster::of_one().0;
    for (name, priority) in [("aaa", 10), ("bbb", 20), ("ccc", 20), ("ddd", 30)] {
        cluster.put(reserving(name, 1, &format!(r#"{{"priority":{priority}}}"#)));
    }
    cluster.settle();
    cluster.put(reserving("top", 2, "{}"));
    let plan = cluster.think();
    let rows = cluster.instances();
    let of = |name: &str| rows.iter().find(|row| row.workload_id == cluster.workload(name).unwrap().id).unwrap().id;
    let going: Vec<_> = plan.preemptions.iter().map(|one| one.instance_id).collect();
    assert_eq!(going.len(), 2);
    assert!(going.contains(&of("aaa")) && !going.contains(&of("ddd")), "the least important go");

    // One that is large enough goes alone, although two smaller ones are as unimportant.
    let mut cluster = Cluster::of_one().0;
    for (name, cores) in [("aaa", 1), ("bbb", 1), ("ccc", 2)] {
        cluster.put(reserving(name, cores, r#"{"priority":10}"#));
    }
    cluster.settle();
    cluster.put(reserving("top", 2, "{}"));
    check(
        &mut cluster,
        &["top waits: box: it has room when ccc-0 made way (a lower priority)", "ccc-0 makes room for top"],
    );
}

#[test]
fn nobody_goes_where_it_would_not_help() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(reserving("low", 4, r#"{"priority":1}"#));
    cluster.settle();
    cluster.put(reserving("huge", 5, "{}"));
    check(&mut cluster, &["huge waits: box: 5 cores are to be reserved and 0 are left"]);
    cluster.put(reserving("huge", 4, r#"{"constraints":["node.labels.zone == a"]}"#));
    check(&mut cluster, &["huge waits: box: `node.labels.zone == a` does not hold (it has no such label)"]);
}

#[test]
fn a_port_and_a_neighbour_are_made_room_for_too() {
    let mut cluster = Cluster::of_one().0;
    let ports = vec!["80:80".parse().unwrap()];
    let mut low = spec("low", "demo");
    low.placement.priority = 1;
    cluster.put(WorkloadSpec { ports: ports.clone(), ..low });
    cluster.settle();
    cluster.put(WorkloadSpec { ports, ..spec("top", "demo") });
    cluster.settle();
    assert_eq!(places(&cluster, "top"), ["box"]);
    cluster.put(wishing("shy", r#"{"priority":500,"constraints":["workload != top"]}"#));
    cluster.settle();
    assert_eq!((places(&cluster, "shy"), places(&cluster, "top").len()), (vec!["box".to_owned()], 0));
}

#[test]
fn what_became_of_it_meanwhile_counts() {
    for late in ["stopped", "changed", "raised"] {
        let mut cluster = Cluster::of_one().0;
        cluster.put(reserving("low", 4, r#"{"priority":1}"#));
        cluster.settle();
        cluster.put(reserving("top", 4, "{}"));
        let plan = cluster.think();
        match late {
            "stopped" => drop(cluster.power("top", PowerAction::Stop)),
            "changed" => drop(cluster.put(reserving("top", 1, "{}"))),
            _ => drop(cluster.put(reserving("low", 4, "{}"))),
        }
        cluster.commit(plan);
        assert_eq!(cluster.only_instance().desired, Desired::Running, "{late}");
    }
}

#[test]
fn what_waits_for_room_is_not_overtaken() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(reserving("low", 3, r#"{"priority":1}"#));
    cluster.settle();
    cluster.put(reserving("top", 4, r#"{"priority":300}"#));
    cluster.put(reserving("mid", 1, "{}"));
    cluster.schedule();
    assert_eq!(places(&cluster, "mid").len(), 0, "there is one core, which is kept");
    assert!(cluster.workload("mid").unwrap().pending.is_some());
    cluster.settle();
    assert_eq!((places(&cluster, "top").len(), places(&cluster, "mid").len()), (1, 0));
}

#[test]
fn explanations_say_who_would_make_room() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(reserving("low", 3, r#"{"priority":1}"#));
    cluster.settle();
    cluster.put(reserving("top", 4, "{}"));
    let explanation = explain(&query_snapshot(&cluster.connection).unwrap(), &"top".parse().unwrap()).unwrap();
    assert_eq!(explanation.would_make_room, ["low-0 on box"]);
}

#[test]
fn a_gang_is_placed_at_once_or_not_at_all() {
    let mut cluster = two_nodes();
    cluster.put(reserving("old", 2, "{}"));
    cluster.settle();
    cluster.put(WorkloadSpec { replicas: 3, ..reserving("gang", 3, r#"{"gang":true}"#) });
    let plan = cluster.think();
    assert!(plan.placements.is_empty());
    let why = plan.pending[0].1.clone().unwrap();
    assert!(why.starts_with("all 3 copies are placed at once or none, and 1 have a place; "), "{why}");
    cluster.put(WorkloadSpec { replicas: 2, ..reserving("gang", 2, r#"{"gang":true}"#) });
    cluster.settle();
    assert_eq!(places(&cluster, "gang").len(), 2);
}

#[test]
fn a_gang_of_which_one_has_no_place_any_more_is_not_committed() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 2, ..reserving("gang", 3, r#"{"gang":true}"#) });
    let late = cluster.think();
    assert_eq!(late.placements.len(), 2);
    cluster.configure("two", r#"{"availability":"cordoned"}"#);
    assert_eq!(cluster.commit(late), (0, 2));
    assert!(cluster.instances().is_empty());
    // What was taken back holds nothing.
    cluster.put(reserving("web", 4, "{}"));
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["one"]);
}

#[test]
fn a_gang_makes_room_and_leaves_together() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 2, ..reserving("low", 3, r#"{"gang":true,"priority":10}"#) });
    cluster.settle();
    cluster.put(WorkloadSpec { replicas: 2, ..reserving("high", 3, r#"{"gang":true,"priority":20}"#) });
    let plan = cluster.think();
    assert_eq!((plan.preemptions.len(), plan.placements.len()), (2, 0));
    cluster.commit(plan);
    // One node has done its part: nobody starts before the other.
    cluster.node_acts(node_id("one"), Outcome::Runs, |_| true);
    assert!(cluster.think().placements.is_empty());
    cluster.settle();
    assert_eq!(places(&cluster, "high").len(), 2);
    // One of a gang is of no use: both go.
    cluster.put(on("one", reserving("top", 4, r#"{"priority":30}"#)));
    assert_eq!(cluster.think().preemptions.len(), 2);
}

#[test]
fn a_gang_with_places_for_some_pushes_nobody_aside() {
    let mut cluster = two_nodes();
    cluster.put(on("one", reserving("low", 3, r#"{"priority":10}"#)));
    cluster.put(on("two", reserving("peer", 3, "{}")));
    cluster.settle();
    cluster.put(WorkloadSpec { replicas: 2, ..reserving("gang", 3, r#"{"gang":true}"#) });
    let plan = cluster.think();
    assert!(plan.preemptions.is_empty() && plan.placements.is_empty());
}

#[test]
fn nobody_makes_room_for_a_gang_whose_volume_would_tie_it_to_one_node() {
    // Three of four cores are taken on either node, and each copy wants three: both would go, and only one copy would come.
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 2, ..reserving("low", 3, r#"{"priority":10}"#) });
    cluster.settle();
    let mounts = vec!["data:/data".parse().unwrap()];
    cluster.put(WorkloadSpec { replicas: 2, mounts, ..reserving("gang", 3, r#"{"gang":true,"priority":20}"#) });
    let plan = cluster.think();
    assert!(plan.preemptions.is_empty() && plan.placements.is_empty(), "{plan:?}");
    cluster.settle();
    assert_eq!(places(&cluster, "low").len(), 2);
}

#[test]
fn jobs_make_room_as_well() {
    let mut cluster = Cluster::of_one().0;
    cluster.put(WorkloadSpec { kind: WorkloadKind::Job, ..reserving("batch", 4, r#"{"priority":1}"#) });
    cluster.settle();
    cluster.put(reserving("web", 4, "{}"));
    cluster.settle();
    assert_eq!((places(&cluster, "web").len(), places(&cluster, "batch").len()), (1, 0));
    let row = cluster.only_instance();
    cluster.report(row.node_id, vec![report(&row, Some(InstanceState::Running { pid: 7, since_ms: 1 }))]);
}
