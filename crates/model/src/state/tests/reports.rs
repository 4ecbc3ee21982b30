//! What a node's word changes, and whose word counts.

use super::cluster::{Cluster, report, spec};
use crate::{
    ids::{InstanceId, NodeId},
    instance::{Exit, InstanceReport, InstanceState},
    state::{InstanceRow, query_assignments},
};

fn one_running() -> (Cluster, NodeId, InstanceRow) {
    let (mut cluster, node) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.settle();
    let row = cluster.only_instance();
    (cluster, node, row)
}

#[test]
fn the_newest_report_replaces_the_one_before_and_no_order() {
    let (mut cluster, node, before) = one_running();
    let news = report(&before, Some(InstanceState::Stopping));
    cluster.report(node, vec![news.clone()]);
    let after = cluster.only_instance();
    assert_eq!(after.report, Some(news.clone()));
    assert_eq!(InstanceRow { report: before.report.clone(), ..after }, before);
}

#[test]
fn reports_of_another_node_are_ignored() {
    let (mut cluster, _, before) = one_running();
    let other = cluster.register("other", None);
    cluster.report(other, vec![report(&before, Some(InstanceState::Stopping)), report(&before, None)]);
    assert_eq!(cluster.only_instance(), before);
    cluster.remove("web");
    cluster.schedule();
    cluster.report(other, vec![report(&before, None)]);
    assert_eq!(cluster.instances().len(), 1, "another node's word removed an instance");
    let unregistered = super::cluster::node_id("nobody");
    cluster.report(unregistered, vec![report(&before, None)]);
    assert_eq!(cluster.instances().len(), 1);
}

#[test]
fn reports_of_unknown_instances_are_ignored() {
    let (mut cluster, node, before) = one_running();
    let mut stranger = report(&before, Some(InstanceState::Starting));
    stranger.instance_id = InstanceId(uuid::Uuid::from_u128(99));
    let mut gone = stranger.clone();
    gone.state = None;
    cluster.report(node, vec![stranger, gone]);
    assert_eq!(cluster.instances(), vec![before]);
}

#[test]
fn an_instance_that_shall_stay_is_not_forgotten_when_its_node_lost_it() {
    let (mut cluster, node, before) = one_running();
    let generation = query_assignments(&cluster.connection, node).unwrap().unwrap().generation;
    cluster.report(node, vec![report(&before, None)]);
    assert_eq!(cluster.only_instance(), before);
    let set = query_assignments(&cluster.connection, node).unwrap().unwrap();
    assert_eq!((set.generation, set.assignments.len()), (generation, 1));
}

#[test]
fn only_a_change_of_state_is_told() {
    let (mut cluster, node, row) = one_running();
    let exit = |code| Exit::new(code, 7);
    let states = [
        InstanceState::Running { pid: 8, since_ms: 9 },
        InstanceState::BackOff { until_ms: 5, reason: "exited with code 1".into() },
        InstanceState::BackOff { until_ms: 9, reason: "exited with code 1".into() },
        InstanceState::Starting,
        InstanceState::Finished { exit: exit(Some(0)), reason: None },
        InstanceState::Assigned,
        InstanceState::Finished { exit: exit(Some(3)), reason: None },
        InstanceState::Assigned,
        InstanceState::Finished { exit: exit(None), reason: None },
        InstanceState::Assigned,
        InstanceState::Finished { exit: exit(Some(127)), reason: Some("the command `x` is not in the image".into()) },
        InstanceState::Stopped { exit: None },
    ];
    let before = cluster.story().len();
    cluster.report(node, states.map(|state| report(&row, Some(state))).into());
    assert_eq!(
        cluster.story()[before..],
        [
            "instance/web-0: exited with code 1; will be tried again",
            "instance/web-0: finished with exit code 0",
            "instance/web-0: ended with exit code 3",
            "instance/web-0: its process vanished",
            "instance/web-0: the command `x` is not in the image",
            "instance/web-0: stopped",
        ]
    );
}

#[test]
fn a_failure_that_repeats_is_told_once() {
    let (mut cluster, node, row) = one_running();
    let failing = |reason: &str| InstanceState::BackOff { until_ms: 1, reason: reason.to_owned() };
    for reason in ["no image", "no image", "no image", "no space"] {
        cluster.report(node, vec![report(&row, Some(InstanceState::Starting))]);
        cluster.report(node, vec![report(&row, Some(failing(reason)))]);
    }
    let told = |part: &str| cluster.story().iter().filter(|line| line.contains(part)).count();
    assert_eq!((told("no image"), told("no space")), (1, 1), "{:#?}", cluster.story());
}

#[test]
fn a_late_report_does_not_undo_a_newer_one() {
    let (mut cluster, node, row) = one_running();
    let told = |sequence, state| InstanceReport { sequence, ..report(&row, state) };
    let newest = told(9, Some(InstanceState::Stopped { exit: None }));
    cluster.report(node, vec![newest.clone()]);
    cluster.report(node, vec![told(8, Some(InstanceState::Starting))]);
    assert_eq!(cluster.only_instance().report, Some(newest.clone()));
    cluster.report(node, vec![newest.clone()]);
    assert_eq!(cluster.only_instance().report, Some(newest));
    cluster.remove("web");
    cluster.schedule();
    cluster.report(node, vec![told(7, None)]);
    assert_eq!(cluster.instances().len(), 1, "a late word removed an instance");
    cluster.report(node, vec![told(10, None)]);
    assert_eq!(cluster.instances(), []);
}

#[test]
fn a_warning_becomes_an_event_once() {
    let (mut cluster, node, row) = one_running();
    let warned = |sequence, warning: &str| InstanceReport {
        sequence,
        warning: Some(warning.to_owned()),
        ..report(&row, Some(InstanceState::Running { pid: 7, since_ms: 1 }))
    };
    cluster.report(node, vec![warned(8, "holds too much")]);
    // The same message comes twice when its answer was lost.
    cluster.report(node, vec![warned(8, "holds too much")]);
    cluster.report(node, vec![warned(9, &"x".repeat(5_000))]);
    let told = |part: &str| cluster.story().iter().filter(|line| line.contains(part)).count();
    assert_eq!((told("instance/web-0: holds too much"), told(&"x".repeat(300))), (1, 1), "{:#?}", cluster.story());
    assert_eq!(told(&"x".repeat(301)), 0);
}
