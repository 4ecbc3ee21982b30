//! Nodes that are to be emptied.

use super::{
    check,
    placing::{places, reserving, wishing},
    two_nodes, with_mounts,
};
use crate::{
    instance::Desired,
    node::Availability,
    schedule::{RemainingState, remaining},
    state::{
        NodeRow, PowerAction, query_snapshot,
        tests::cluster::{Cluster, Outcome, node_id},
    },
    volume::{VolumeKind, VolumeOptions},
    workload::{HealthCheck, HealthTest, WorkloadKind, WorkloadSpec},
};

const DRAIN: &str = r#"{"availability":"draining"}"#;

fn left(cluster: &Cluster, node: &str) -> Vec<String> {
    let left = remaining(&query_snapshot(&cluster.connection).unwrap(), node_id(node));
    left.iter().map(|one| format!("{} {:?}: {}", one.instance, one.state, one.why)).collect()
}

/// Copies that are up and are not to go, whatever their number.
fn up(cluster: &Cluster) -> usize {
    let is_up = |one: &crate::state::InstanceRow| {
        let state = one.report.as_ref().and_then(|report| report.state.as_ref());
        state.is_some_and(|state| state.as_str() == "running") && one.desired != Desired::Removed
    };
    cluster.instances().iter().filter(|one| is_up(one)).count()
}

#[test]
fn successors_run_before_their_predecessors_stop() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 4, ..wishing("web", "{}") });
    cluster.settle();
    cluster.configure("one", DRAIN);
    assert_eq!(
        left(&cluster, "one"),
        ["web-0 Moving: a successor will start on two", "web-2 Moving: a successor will start on two"]
    );
    check(&mut cluster, &["web-0 on two: none", "web-2 on two: none"]);
    cluster.schedule();
    check(&mut cluster, &[]);
    assert_eq!((cluster.instances().len(), up(&cluster)), (6, 4));
    assert_eq!(left(&cluster, "one")[0], "web-0 Moving: its successor starts on two");
    let mut least = up(&cluster);
    while !left(&cluster, "one").is_empty() {
        cluster.node_acts(node_id("two"), Outcome::Runs, |_| true);
        least = least.min(up(&cluster));
        cluster.schedule();
        least = least.min(up(&cluster));
        cluster.node_acts(node_id("one"), Outcome::Runs, |_| true);
        least = least.min(up(&cluster));
    }
    assert_eq!(least, 4, "a copy was missing meanwhile");
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["two"; 4]);
    cluster.configure("one", r#"{"availability":"active"}"#);
    check(&mut cluster, &[]);
}

#[test]
fn a_successor_counts_when_it_is_healthy() {
    let mut cluster = two_nodes();
    let health = Some(HealthCheck::new(HealthTest::Tcp { port: 80 }));
    cluster.put(WorkloadSpec { health, node: None, ..wishing("web", r#"{"affinities":["node.hostname == one"]}"#) });
    cluster.settle();
    cluster.configure("one", DRAIN);
    cluster.settle();
    assert_eq!(left(&cluster, "one"), ["web-0 Moving: its successor on two is not healthy yet"]);
    assert_eq!(places(&cluster, "web"), ["one", "two"]);
}

#[test]
fn a_drain_that_is_called_off_leaves_one_of_each() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { replicas: 2, ..wishing("web", "{}") });
    cluster.settle();
    cluster.configure("one", DRAIN);
    cluster.schedule();
    cluster.configure("one", r#"{"availability":"active"}"#);
    cluster.settle();
    assert_eq!(places(&cluster, "web").len(), 2);
    // Also when the successor is drained in its turn.
    cluster.configure("one", DRAIN);
    cluster.schedule();
    cluster.configure("two", DRAIN);
    cluster.settle();
    assert_eq!(cluster.instances().len(), 2);
    cluster.configure("one", r#"{"availability":"active"}"#);
    cluster.settle();
    assert_eq!(places(&cluster, "web"), ["one"; 2]);
}

#[test]
fn what_cannot_move_stays_and_says_why() {
    let mut cluster = two_nodes();
    cluster.put(WorkloadSpec { node: Some("one".parse().unwrap()), ..with_mounts("db", &["data:/data"]) });
    cluster.put(WorkloadSpec { node: Some("one".parse().unwrap()), ..wishing("pinned", "{}") });
    cluster.settle();
    cluster.put(with_mounts("db", &["data:/data"]));
    cluster.put(WorkloadSpec { node: Some("two".parse().unwrap()), ..reserving("full", 4, "{}") });
    let to_one = r#"{"affinities":["node.hostname == one weight 100"]}"#;
    cluster.put(reserving("big", 1, to_one));
    cluster.put(WorkloadSpec { kind: WorkloadKind::Job, ..wishing("job", to_one) });
    cluster.put(wishing("halted", to_one));
    cluster.settle();
    cluster.power("halted", PowerAction::Stop);
    cluster.settle();
    cluster.configure("one", DRAIN);
    cluster.settle();
    let drained = "one: it is being drained";
    assert_eq!(
        left(&cluster, "one"),
        [
            format!("big-0 Stuck: {drained}; two: 1 cores are to be reserved and 0 are left"),
            format!("db-0 Stuck: {drained}; two: volume `data` lies on one"),
            "halted-0 Down: nothing of it runs".to_owned(),
            "job-0 Finishing: a job, which is left to end".to_owned(),
            format!("pinned-0 Stuck: {drained}; two: the specification names another node"),
        ]
    );
    // None of them is missing, and none waits.
    assert!(["big", "db", "job", "pinned"].iter().all(|name| cluster.workload(name).unwrap().pending.is_none()));
    cluster.remove("full");
    cluster.settle();
    assert_eq!(places(&cluster, "big"), ["two"], "as soon as there is room");
}

#[test]
fn the_only_writer_of_a_volume_stops_before_its_successor_starts() {
    let mut cluster = two_nodes();
    let options =
        VolumeOptions { kind: Some(VolumeKind::Nfs), device: Some("nas:/media".into()), ..Default::default() };
    let (name, labels) = ("media".parse().unwrap(), Default::default());
    cluster.apply(crate::state::Command::CreateVolume { name, node_id: None, options, labels, at_ms: 1 });
    cluster.put(with_mounts("tv", &["media:/media"]));
    cluster.settle();
    let home = places(&cluster, "tv").remove(0);
    cluster.configure(&home, DRAIN);
    check(&mut cluster, &["tv-0 removed epoch 1"]);
    cluster.settle();
    let other = if home == "one" { "two" } else { "one" };
    assert_eq!(places(&cluster, "tv"), [other]);
    // Without room elsewhere it runs on.
    cluster.configure(other, DRAIN);
    check(&mut cluster, &[]);
}

#[test]
fn a_successor_is_not_placed_when_nothing_moves_any_more() {
    let mut cluster = two_nodes();
    cluster.put(wishing("web", r#"{"affinities":["node.hostname == one"]}"#));
    cluster.settle();
    cluster.configure("one", DRAIN);
    let late = cluster.think();
    cluster.configure("one", r#"{"availability":"active"}"#);
    assert_eq!(cluster.commit(late), (0, 1));
    let settings = NodeRow::all(&cluster.connection).unwrap()[0].settings.clone();
    assert_eq!(settings.availability, Availability::Active);
    assert!(remaining(&query_snapshot(&cluster.connection).unwrap(), node_id("two")).is_empty());
    assert_eq!(
        remaining(&query_snapshot(&cluster.connection).unwrap(), node_id("one"))[0].state,
        RemainingState::Moving
    );
}
