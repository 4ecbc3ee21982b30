//! Nodes that nobody hears of.

use super::{check, placing::wishing, two_nodes, with_mounts};
use crate::{
    instance::Desired,
    node::NodeHealth,
    schedule::remaining,
    state::{
        Names, query_snapshot, query_workload,
        tests::cluster::{Cluster, Outcome, node_id, spec},
    },
    volume::VolumeOptions,
    workload::{OnNodeLoss, UpdateOrder, UpdateSpec, WorkloadKind, WorkloadSpec},
};

/// Where instances are and what shall become of them: `web-0 on one: running`.
fn orders(cluster: &Cluster) -> Vec<String> {
    let snapshot = query_snapshot(&cluster.connection).unwrap();
    let mut orders: Vec<String> = snapshot
        .instances
        .iter()
        .map(|row| {
            let workload = snapshot.workloads.iter().find(|workload| workload.id == row.workload_id).unwrap();
            let node = snapshot.nodes.iter().find(|node| node.id == row.node_id).unwrap();
            format!("{}-{} on {}: {}", workload.spec.name, row.ordinal, node.name, row.desired.as_str())
        })
        .collect();
    orders.sort();
    orders
}

fn serving(cluster: &Cluster, node: &str) -> usize {
    let names = Names::read(&cluster.connection).unwrap().of(node_id(node), |_| true);
    names.iter().flat_map(|workload| &workload.instances).filter(|instance| instance.serves).count()
}

/// One service on `one`, which is then lost, and room on `two`.
fn lost(spec: WorkloadSpec, health: NodeHealth) -> Cluster {
    let mut cluster = two_nodes();
    cluster.configure("two", r#"{"availability":"cordoned"}"#);
    cluster.put(spec);
    cluster.settle();
    cluster.configure("two", r#"{"availability":"active"}"#);
    cluster.hear("one", health);
    cluster
}

#[test]
fn what_a_lost_node_ran_is_unknown_and_starts_elsewhere() {
    let mut cluster = lost(wishing("web", "{}"), NodeHealth::Unreachable);
    check(&mut cluster, &[]);
    assert_eq!(orders(&cluster), ["web-0 on one: running"]);
    cluster.hear("one", NodeHealth::Down);
    let view = query_workload(&cluster.connection, &"web".parse().unwrap()).unwrap().unwrap();
    assert_eq!((view.instances[0].state().as_str(), view.status(), view.running()), ("unknown", "unknown", 0));
    check(&mut cluster, &["web-0 on two: none"]);
    cluster.schedule();
    // The one is not given up before the other works.
    assert_eq!(orders(&cluster), ["web-0 on one: running", "web-0 on two: running"]);
    cluster.node_acts(node_id("two"), Outcome::Runs, |_| true);
    cluster.schedule();
    assert_eq!(orders(&cluster), ["web-0 on one: removed", "web-0 on two: running"]);
    assert!(cluster.think().is_empty());
    // It returns, and does what it was ordered.
    cluster.hear("one", NodeHealth::Ready);
    cluster.settle();
    assert_eq!(orders(&cluster), ["web-0 on two: running"]);
    let story = cluster.story();
    for told in [
        "node/one: is down: nobody knows what runs there, and what may start elsewhere does",
        "node/one: is there again",
    ] {
        assert!(story.iter().any(|line| line == told), "{story:#?}");
    }
}

#[test]
fn names_do_not_lead_to_lost_nodes() {
    let mut cluster = lost(spec("web", "demo"), NodeHealth::Unreachable);
    assert_eq!(serving(&cluster, "one"), 1);
    cluster.hear("one", NodeHealth::Down);
    assert_eq!(serving(&cluster, "one"), 0);
    cluster.hear("one", NodeHealth::Ready);
    assert_eq!(serving(&cluster, "one"), 1);
}

#[test]
fn a_node_that_returns_before_the_successor_works_keeps_what_it_ran() {
    let mut cluster = lost(wishing("web", "{}"), NodeHealth::Down);
    cluster.schedule();
    cluster.hear("one", NodeHealth::Ready);
    cluster.settle();
    assert_eq!(orders(&cluster), ["web-0 on one: running"]);
}

#[test]
fn two_nodes_lost_one_after_the_other_leave_one_copy_behind() {
    let mut cluster = lost(wishing("web", "{}"), NodeHealth::Down);
    cluster.schedule();
    cluster.node_acts(node_id("two"), Outcome::Runs, |_| true);
    cluster.schedule();
    cluster.register("six", Some("10.210.6.0/24"));
    cluster.hear("two", NodeHealth::Down);
    cluster.schedule();
    cluster.node_acts(node_id("six"), Outcome::Runs, |_| true);
    cluster.schedule();
    assert_eq!(orders(&cluster), ["web-0 on one: removed", "web-0 on six: running", "web-0 on two: removed"]);
    for node in ["one", "two"] {
        cluster.hear(node, NodeHealth::Ready);
    }
    cluster.settle();
    assert_eq!(orders(&cluster), ["web-0 on six: running"]);
}

#[test]
fn what_has_data_on_its_node_waits_for_it_and_users_can_say_otherwise() {
    let mut cluster = lost(with_mounts("db", &["data:/data"]), NodeHealth::Down);
    check(&mut cluster, &[]);
    let mut cluster = lost(with_mounts("db", &["/srv:/data"]), NodeHealth::Fenced);
    check(&mut cluster, &[]);
    let mut cluster = lost(with_mounts("web", &["/srv:/data:ro"]), NodeHealth::Down);
    check(&mut cluster, &["web-0 on two: none"]);
    let wait = WorkloadSpec { on_node_loss: Some(OnNodeLoss::Wait), ..wishing("web", "{}") };
    let mut cluster = lost(wait, NodeHealth::Fenced);
    check(&mut cluster, &[]);
    // Its data is where nobody hears of it, whatever is wished.
    let reschedule =
        |mounts: &[&str]| WorkloadSpec { on_node_loss: Some(OnNodeLoss::Reschedule), ..with_mounts("db", mounts) };
    let mut cluster = lost(reschedule(&["data:/data"]), NodeHealth::Down);
    check(&mut cluster, &[]);
    // The folder is on the other node, too, says who knows.
    let mut cluster = lost(reschedule(&["/srv:/data"]), NodeHealth::Down);
    check(&mut cluster, &["db-0 on two: none"]);
}

#[test]
fn a_volume_on_a_server_keeps_nobody_waiting() {
    let mut cluster = two_nodes();
    let server = [("type", "nfs"), ("device", "nas.lan:/export"), ("o", "vers=4.2")];
    let server = server.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let options = VolumeOptions::from_pairs(&server).unwrap();
    let name = "data".parse().unwrap();
    let (labels, at_ms) = (Default::default(), cluster.now_ms());
    cluster.apply(crate::state::Command::CreateVolume { name, node_id: None, options, labels, at_ms });
    cluster.configure("two", r#"{"availability":"cordoned"}"#);
    cluster.put(with_mounts("db", &["data:/data"]));
    cluster.settle();
    cluster.configure("two", r#"{"availability":"active"}"#);
    cluster.hear("one", NodeHealth::Down);
    check(&mut cluster, &["db-0 on two: none", "db-0 removed epoch 1"]);
    cluster.schedule();
    // The only copy that writes: the other has the order to go in the same moment.
    assert_eq!(orders(&cluster), ["db-0 on one: removed", "db-0 on two: running"]);
}

#[test]
fn what_is_exclusive_starts_elsewhere_only_when_it_has_stopped_there() {
    let exclusive = WorkloadSpec { exclusive: true, ..wishing("db", "{}") };
    let mut cluster = lost(exclusive, NodeHealth::Down);
    check(&mut cluster, &[]);
    cluster.hear("one", NodeHealth::Fenced);
    check(&mut cluster, &["db-0 on two: none", "db-0 removed epoch 1"]);
    cluster.schedule();
    assert_eq!(orders(&cluster), ["db-0 on one: removed", "db-0 on two: running"]);
    cluster.hear("one", NodeHealth::Ready);
    cluster.settle();
    assert_eq!(orders(&cluster), ["db-0 on two: running"]);
}

#[test]
fn jobs_run_again_elsewhere_unless_they_had_finished() {
    let job = || WorkloadSpec { kind: WorkloadKind::Job, ..wishing("job", "{}") };
    let mut cluster = lost(job(), NodeHealth::Down);
    check(&mut cluster, &["job-0 on two: none"]);
    let mut cluster = two_nodes();
    cluster.configure("two", r#"{"availability":"cordoned"}"#);
    cluster.put(job());
    cluster.schedule();
    cluster.node_acts(node_id("one"), Outcome::Finishes, |_| true);
    cluster.configure("two", r#"{"availability":"active"}"#);
    cluster.hear("one", NodeHealth::Down);
    check(&mut cluster, &[]);
}

#[test]
fn nobody_waits_for_a_lost_node_to_say_that_something_is_gone() {
    let mut cluster = lost(wishing("web", "{}"), NodeHealth::Down);
    // Another specification: the instance that nobody hears of is replaced by one of the new.
    cluster.put(WorkloadSpec { image: "demo:2".parse().unwrap(), ..wishing("web", "{}") });
    for _ in 0..4 {
        cluster.schedule();
        cluster.node_acts(node_id("two"), Outcome::Runs, |_| true);
    }
    assert_eq!(orders(&cluster), ["web-0 on one: removed", "web-0 on two: running"]);
    assert_eq!(cluster.workload("web").unwrap().rollout.as_str(), "done");
    // Drained or not, nothing is to be waited for there.
    cluster.configure("one", r#"{"availability":"draining"}"#);
    let left = remaining(&query_snapshot(&cluster.connection).unwrap(), node_id("one"));
    assert_eq!(left[0].why, "its node is down, and its place is given to another");
    // Removed for good once its node says so.
    cluster.remove("web");
    cluster.schedule();
    cluster.node_acts(node_id("two"), Outcome::Runs, |_| true);
    assert_eq!(orders(&cluster), ["web-0 on one: removed"]);
    cluster.hear("one", NodeHealth::Ready);
    cluster.settle();
    assert!(cluster.workload("web").is_none());
}

#[test]
fn what_finds_no_place_says_who_is_down() {
    let mut cluster = lost(wishing("web", "{}"), NodeHealth::Down);
    cluster.hear("two", NodeHealth::Unreachable);
    cluster.put(wishing("other", "{}"));
    cluster.settle();
    let pending = cluster.workload("other").unwrap().pending.unwrap();
    assert!(pending.contains("one: it is down") && pending.contains("two: it has not been heard of"), "{pending}");
    assert_eq!(cluster.instances().iter().filter(|row| row.desired == Desired::Running).count(), 1);
}

#[test]
fn who_is_lost_with_what_was_to_succeed_an_older_copy_holds_up_no_update() {
    let web = |image: &str| WorkloadSpec { update: UpdateSpec::default(), ..spec("web", image) };
    let mut cluster = two_nodes();
    cluster.configure("two", r#"{"availability":"cordoned"}"#);
    cluster.put(web("old"));
    cluster.settle();
    cluster.configure("one", r#"{"availability":"cordoned"}"#);
    cluster.configure("two", r#"{"availability":"active"}"#);
    cluster.put(web("new"));
    cluster.schedule();
    assert_eq!(orders(&cluster), ["web-0 on one: running", "web-0 on two: running"]);
    cluster.hear("two", NodeHealth::Down);
    cluster.configure("one", r#"{"availability":"active"}"#);
    // What is planned is taken, and not planned again and again.
    assert_eq!(cluster.schedule(), 1);
    assert_eq!(orders(&cluster), ["web-0 on one: running", "web-0 on one: running", "web-0 on two: running"]);
    assert!(cluster.think().placements.is_empty());
    cluster.node_acts(node_id("one"), Outcome::Runs, |_| true);
    cluster.waited_ms += 5_000;
    cluster.schedule();
    assert_eq!(orders(&cluster), ["web-0 on one: removed", "web-0 on one: running", "web-0 on two: removed"]);
    cluster.hear("two", NodeHealth::Ready);
    cluster.settle();
    assert_eq!(orders(&cluster), ["web-0 on one: running"]);
}

#[test]
fn what_is_waited_for_holds_up_no_update_of_the_others() {
    for order in [UpdateOrder::StartFirst, UpdateOrder::StopFirst] {
        let web = |image: &str| WorkloadSpec {
            replicas: 2,
            on_node_loss: Some(OnNodeLoss::Wait),
            update: UpdateSpec { order: Some(order), ..UpdateSpec::default() },
            ..spec("web", image)
        };
        let mut cluster = two_nodes();
        cluster.put(web("old"));
        cluster.settle();
        assert_eq!(orders(&cluster), ["web-0 on one: running", "web-1 on two: running"]);
        cluster.hear("one", NodeHealth::Down);
        cluster.put(web("new"));
        let runs = |cluster: &mut Cluster| {
            for _ in 0..6 {
                cluster.schedule();
                cluster.node_acts(node_id("two"), Outcome::Runs, |_| true);
                cluster.waited_ms += 5_000;
            }
        };
        runs(&mut cluster);
        let renewed = |cluster: &Cluster| {
            let there = cluster.instances().into_iter().filter(|row| row.node_id == node_id("two"));
            let there: Vec<_> = there.map(|row| (row.ordinal, row.desired, row.container.image.to_string())).collect();
            there == [(1, Desired::Running, spec("web", "new").image.to_string())]
        };
        assert!(renewed(&cluster), "{order:?}: {:?}", orders(&cluster));
        // Its own part it is told when it returns.
        cluster.hear("one", NodeHealth::Ready);
        cluster.settle();
        cluster.waited_ms += 5_000;
        cluster.settle();
        assert!(renewed(&cluster), "{order:?}");
        assert_eq!(orders(&cluster).len(), 2);
        assert_eq!(cluster.workload("web").unwrap().rollout.as_str(), "done");
    }
}
