//! Changed specifications reach the instances few at a time, and stop when a successor does not work.

use std::collections::BTreeMap;

use super::{check, placing::reserving};
use crate::{
    ids::InstanceId,
    instance::{Desired, Exit, InstanceReport, InstanceState},
    schedule::Scheduler,
    state::{
        InstanceRow, query_snapshot,
        tests::cluster::{Cluster, Outcome, node_id, report, spec},
    },
    workload::{Health, HealthCheck, UpdateFailure, UpdateOrder, UpdateSpec, WorkloadSpec},
};

/// `web` of an image, with the rules that count when nothing is said.
fn web(image: &str, replicas: u32) -> WorkloadSpec {
    WorkloadSpec { replicas, update: UpdateSpec::default(), ..spec("web", image) }
}

fn updating(spec: WorkloadSpec, change: impl FnOnce(&mut UpdateSpec)) -> WorkloadSpec {
    let mut spec = spec;
    change(&mut spec.update);
    spec
}

/// A cluster where generation 1 has worked.
fn running(first: WorkloadSpec) -> Cluster {
    let mut cluster = Cluster::of_one().0;
    cluster.put(first);
    cluster.settle();
    cluster.waited_ms += 5_000;
    cluster.settle();
    assert_eq!(cluster.workload("web").unwrap().rollout.as_str(), "done");
    cluster
}

/// `0:one 1:two-`: ordinals with their images, a minus for what is on its way out.
fn copies(cluster: &Cluster) -> String {
    let tell = |row: &InstanceRow| {
        let going = if row.desired == Desired::Removed { "-" } else { "" };
        format!("{}:{}{going}", row.ordinal, row.container.image.base_name())
    };
    let mut copies: Vec<String> = cluster.instances().iter().map(tell).collect();
    copies.sort();
    copies.join(" ")
}

/// Plans, and commits what was planned.
fn plan(cluster: &mut Cluster) -> String {
    cluster.schedule();
    copies(cluster)
}

/// The node does as it is told.
fn act(cluster: &mut Cluster) {
    cluster.node_acts(node_id("box"), Outcome::Runs, |_| true);
}

/// The newest instance of an image.
fn of_image(cluster: &Cluster, image: &str) -> InstanceRow {
    let of = |row: &&InstanceRow| row.container.image.base_name() == image && row.desired != Desired::Removed;
    cluster.instances().iter().filter(of).max_by_key(|row| row.id).unwrap().clone()
}

fn tell(cluster: &mut Cluster, image: &str, state: InstanceState, change: impl FnOnce(&mut InstanceReport)) {
    let row = of_image(cluster, image);
    let mut report = report(&row, Some(state));
    report.at_ms = cluster.now_ms();
    change(&mut report);
    cluster.report(row.node_id, vec![report]);
}

fn back_off() -> InstanceState {
    InstanceState::BackOff { until_ms: 0, reason: "exited with code 1".into() }
}

#[test]
fn successors_start_first_and_one_after_the_other() {
    let mut cluster = running(web("one", 3));
    cluster.put(web("two", 3));
    assert_eq!(plan(&mut cluster), "0:one 0:two 1:one 2:one");
    act(&mut cluster);
    check(&mut cluster, &[]);
    let works_at = cluster.now_ms() + 4_000;
    let wakes_at = cluster.think().wake_at_ms.unwrap();
    assert!(wakes_at > works_at && wakes_at < works_at + 2_000, "when it has worked for long enough");
    cluster.waited_ms += 5_000;
    assert_eq!(plan(&mut cluster), "0:one- 0:two 1:one 1:two 2:one");
    act(&mut cluster);
    cluster.waited_ms += 5_000;
    assert_eq!(plan(&mut cluster), "0:two 1:one- 1:two 2:one 2:two");
    act(&mut cluster);
    cluster.waited_ms += 5_000;
    cluster.settle();
    assert_eq!(copies(&cluster), "0:two 1:two 2:two");
    assert_eq!(cluster.workload("web").unwrap().rollout.as_str(), "done");
    assert_eq!(cluster.think().wake_at_ms, None, "nothing is waited for");
}

#[test]
fn several_at_a_time_and_with_what_may_be_missing() {
    let stop_first = |image: &str| {
        updating(web(image, 4), |update| {
            (update.order, update.parallel, update.max_unavailable) = (Some(UpdateOrder::StopFirst), 3, Some(2));
        })
    };
    let mut cluster = running(stop_first("one"));
    cluster.put(stop_first("two"));
    assert_eq!(plan(&mut cluster), "0:one- 1:one- 2:one 3:one", "two may be missing");
    act(&mut cluster);
    assert_eq!(plan(&mut cluster), "0:two 1:two 2:one 3:one");
    act(&mut cluster);
    check(&mut cluster, &["web-2 removed epoch 1"]);
    cluster.waited_ms += 5_000;
    assert_eq!(plan(&mut cluster), "0:two 1:two 2:one- 3:one-");
    let two_at_once = updating(web("three", 4), |update| update.parallel = 2);
    cluster.settle();
    cluster.put(two_at_once);
    assert_eq!(plan(&mut cluster), "0:three 0:two 1:three 1:two 2:two 3:two");
}

#[test]
fn without_room_for_both_the_old_one_goes_first() {
    let mut cluster = running(WorkloadSpec {
        image: "one".parse().unwrap(),
        update: UpdateSpec::default(),
        ..reserving("web", 3, "{}")
    });
    let next = |order| {
        let update = UpdateSpec { order, ..UpdateSpec::default() };
        WorkloadSpec { image: "two".parse().unwrap(), update, ..reserving("web", 3, "{}") }
    };
    cluster.put(next(Some(UpdateOrder::StartFirst)));
    let waits = "web waits: box: 3 cores are to be reserved and 1 are left";
    check(&mut cluster, &[waits]);
    cluster.put(next(None));
    assert_eq!(plan(&mut cluster), "0:one-");
    cluster.settle();
    assert_eq!(copies(&cluster), "0:two");
}

#[test]
fn what_works_stays_when_its_successor_has_no_place_at_all() {
    for order in [None, Some(UpdateOrder::StartFirst), Some(UpdateOrder::StopFirst)] {
        let mut cluster = running(web("one", 1));
        let impossible = WorkloadSpec { gpus: Some("8".parse().unwrap()), ..web("two", 1) };
        cluster.put(updating(impossible, |update| update.order = order));
        check(&mut cluster, &["web waits: box: it has no GPU"]);
        cluster.settle();
        assert_eq!(copies(&cluster), "0:one");
        let row = cluster.workload("web").unwrap();
        assert_eq!((row.rollout.as_str(), row.pending.unwrap()), ("rolling", "box: it has no GPU".to_owned()));
        cluster.put(web("three", 1));
        cluster.settle();
        cluster.waited_ms += 5_000;
        cluster.settle();
        assert_eq!((copies(&cluster), cluster.workload("web").unwrap().pending), ("0:three".into(), None));
    }
}

#[test]
fn a_successor_that_fails_is_taken_back() {
    let mut cluster = running(web("one", 3));
    cluster.put(web("two", 3));
    plan(&mut cluster);
    act(&mut cluster);
    tell(&mut cluster, "two", back_off(), |report| report.last_exit = Some(Exit::new(Some(1), 1)));
    check(&mut cluster, &[]);
    tell(&mut cluster, "two", back_off(), |report| {
        (report.last_exit, report.restarts) = (Some(Exit::new(Some(1), 1)), 1);
    });
    check(&mut cluster, &["web generation 2 failed"]);
    cluster.schedule();
    let row = cluster.workload("web").unwrap();
    assert_eq!((row.generation, row.spec.image.base_name()), (3, "one"));
    let old: Vec<_> =
        cluster.instances().iter().filter(|row| row.container.image.base_name() == "one").map(|row| row.id).collect();
    cluster.settle();
    cluster.waited_ms += 5_000;
    cluster.settle();
    assert_eq!(cluster.instances().iter().map(|row| row.id).collect::<Vec<_>>(), old, "none of them was touched");
    assert_eq!(cluster.workload("web").unwrap().rollout.as_str(), "done");
}

#[test]
fn every_way_to_fail_is_seen() {
    let health: HealthCheck = serde_json::from_str(r#"{"test":{"http":{"port":80}}}"#).unwrap();
    let up = InstanceState::Running { pid: 7, since_ms: 1 };
    let finished = InstanceState::Finished { exit: Exit::new(Some(3), 1), reason: None };
    type Change = fn(&mut InstanceReport);
    let ends = |report: &mut InstanceReport| {
        (report.restarts, report.last_exit) = (1, Some(Exit::new(Some(1), 1)));
    };
    // With how long one waits for it.
    let ways: [(InstanceState, Change, i64, &str); 5] = [
        (finished, |_| {}, 0, "exited with code 3"),
        (back_off(), ends, 0, "exited with code 1"),
        (back_off(), |_| {}, 30_000, "exited with code 1"),
        (up.clone(), |report| report.health = Some(Health::Unhealthy), 0, "it runs and is not healthy"),
        (up, |report| report.health = Some(Health::Starting), 600_000, "it did not come to work in time"),
    ];
    for (state, change, wait_ms, why) in ways {
        let pausing = |image: &str| {
            let with_health = WorkloadSpec { health: Some(health.clone()), ..web(image, 1) };
            updating(with_health, |update| update.on_failure = UpdateFailure::Pause)
        };
        let mut cluster = Cluster::of_one().0;
        cluster.put(pausing("one"));
        cluster.schedule();
        tell(&mut cluster, "one", InstanceState::Running { pid: 7, since_ms: 1 }, |report| {
            report.health = Some(Health::Healthy)
        });
        cluster.waited_ms += 5_000;
        cluster.schedule();
        cluster.put(pausing("two"));
        assert_eq!(plan(&mut cluster), "0:one 0:two");
        tell(&mut cluster, "two", state, change);
        if wait_ms > 0 {
            check(&mut cluster, &[]);
            let wake_at_ms = cluster.think().wake_at_ms.unwrap();
            assert!(wake_at_ms <= cluster.now_ms() + wait_ms, "it looks again in time");
            cluster.waited_ms += wait_ms;
        }
        check(&mut cluster, &["web generation 2 failed"]);
        cluster.schedule();
        let row = cluster.workload("web").unwrap();
        let reason = serde_json::to_value(&row.rollout).unwrap()["reason"].clone();
        assert_eq!(reason, format!("web-0: {why}"));
        assert_eq!(copies(&cluster), "0:one 0:two", "both stay to be looked at");
        check(&mut cluster, &[]);
    }
}

#[test]
fn going_on_is_a_choice() {
    let going_on = |image: &str| updating(web(image, 2), |update| update.on_failure = UpdateFailure::Continue);
    let mut cluster = running(going_on("one"));
    cluster.put(going_on("two"));
    plan(&mut cluster);
    tell(&mut cluster, "two", back_off(), |report| report.restarts = 9);
    cluster.waited_ms += 700_000;
    check(&mut cluster, &[]);
    assert_eq!(cluster.workload("web").unwrap().rollout.as_str(), "rolling");
}

#[test]
fn what_does_not_work_is_replaced_first_and_waited_for_by_nobody() {
    let mut cluster = running(web("one", 2));
    let broken = cluster.instances().into_iter().find(|row| row.ordinal == 1).unwrap();
    cluster.report(broken.node_id, vec![report(&broken, Some(back_off()))]);
    cluster.put(web("two", 2));
    assert_eq!(plan(&mut cluster), "0:one 1:one-");
}

#[test]
fn more_copies_are_no_rollout() {
    let mut cluster = running(web("one", 1));
    cluster.put(web("one", 3));
    assert_eq!(cluster.workload("web").unwrap().rollout.as_str(), "done");
    assert_eq!(plan(&mut cluster), "0:one 1:one 2:one");
    tell(&mut cluster, "one", back_off(), |report| report.restarts = 9);
    cluster.waited_ms += 700_000;
    check(&mut cluster, &[]);
}

#[test]
fn an_instance_on_a_node_whose_clock_is_wrong_works_by_that_clock() {
    for ahead_ms in [300_000, -300_000] {
        let mut cluster = running(web("one", 2));
        cluster.put(web("two", 2));
        assert_eq!(plan(&mut cluster), "0:one 0:two 1:one");
        act(&mut cluster);
        let since_ms = cluster.now_ms() + ahead_ms;
        tell(&mut cluster, "two", InstanceState::Running { pid: 7, since_ms }, |_| ());
        let snapshot = query_snapshot(&cluster.connection).unwrap();
        let mut scheduler = Scheduler::of(&snapshot);
        let goes_on = |scheduler: &mut Scheduler, now_ms: i64| {
            !scheduler.plan(now_ms, &mut || InstanceId(uuid::Uuid::from_u128(77))).placements.is_empty()
        };
        let works_at = cluster.now_ms() + 5_000;
        // By the clock of who plans it would have to be waited for, or would never have been.
        assert_eq!(goes_on(&mut scheduler, works_at), ahead_ms < 0);
        let mut scheduler = Scheduler::of(&snapshot);
        scheduler.set_clocks(BTreeMap::from([(node_id("box"), ahead_ms)]));
        assert!(!goes_on(&mut scheduler, works_at - 2_000), "{ahead_ms}");
        assert!(goes_on(&mut scheduler, works_at), "{ahead_ms}");
    }
}
