//! Versions of specifications, and going back to one.

use super::{
    cluster::{Cluster, spec},
    secrets,
};
use crate::{
    state::{Command, PutMode, Refusal, RefusalKind, Reply, RolloutChange, VersionRow, WorkloadRow, query_versions},
    workload::{Rollout, UpdateFailure, VersionCause, WorkloadKind, WorkloadSpec},
};

fn versions(cluster: &Cluster) -> Vec<VersionRow> {
    query_versions(&cluster.connection, &"web".parse().unwrap()).unwrap().unwrap()
}

/// `generation image rollout`, the newest first.
fn told(cluster: &Cluster) -> Vec<String> {
    let tell = |version: &VersionRow| {
        format!("{} {} {}", version.generation, version.spec.image.base_name(), version.rollout.as_str())
    };
    versions(cluster).iter().map(tell).collect()
}

fn ended(cluster: &mut Cluster, generation: u64, rollout: Rollout) {
    let workload_id = cluster.workload("web").unwrap().id;
    let rollouts = vec![RolloutChange { workload_id, generation, rollout }];
    let at_ms = cluster.now_ms();
    cluster.apply(Command::CommitPlan {
        placements: vec![],
        changes: vec![],
        pending: vec![],
        rollouts,
        preemptions: vec![],
        unmoved: vec![],
        at_ms,
    });
}

fn failed(cluster: &mut Cluster, generation: u64) {
    ended(cluster, generation, Rollout::Failed { reason: "web-0: exited with code 1".into() });
}

fn back(cluster: &mut Cluster, to: Option<u64>, if_generation: Option<u64>) -> Result<WorkloadRow, Refusal> {
    let (name, at_ms) = ("web".parse().unwrap(), cluster.now_ms());
    match cluster.try_apply(Command::RollBackWorkload { name, to, if_generation, at_ms })? {
        Reply::Workload(row) => Ok(*row),
        other => panic!("answered with {other:?}"),
    }
}

#[test]
fn versions_are_kept_and_the_oldest_go_but_for_one_that_worked() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("web", "one"));
    assert_eq!(told(&cluster), ["1 one rolling"]);
    ended(&mut cluster, 1, Rollout::Done);
    for i in 2..=13 {
        cluster.put(WorkloadSpec { stop_grace_ms: i, ..spec("web", "two") });
    }
    let kept: Vec<u64> = versions(&cluster).iter().map(|version| version.generation).collect();
    assert_eq!(kept, [13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 1], "the first is the only one that worked");
    ended(&mut cluster, 13, Rollout::Done);
    cluster.put(spec("web", "three"));
    assert!(versions(&cluster).iter().all(|version| version.generation > 4));
    cluster.put(spec("web", "three"));
    assert_eq!(versions(&cluster).len(), 10, "the same again is no version");
    cluster.remove("web");
    assert_eq!(query_versions(&cluster.connection, &"web".parse().unwrap()).unwrap(), None);
}

#[test]
fn a_user_goes_back_to_what_worked_or_to_what_is_named() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("web", "one"));
    assert_eq!(back(&mut cluster, None, None).unwrap_err().kind, RefusalKind::NotFound);
    ended(&mut cluster, 1, Rollout::Done);
    cluster.put(spec("web", "two"));
    let labels = [("tier".to_owned(), Some("front".to_owned()))].into();
    let at_ms = cluster.now_ms();
    cluster.apply(Command::LabelWorkload { name: "web".parse().unwrap(), labels, if_generation: None, at_ms });
    assert_eq!(back(&mut cluster, None, Some(2)).unwrap_err().kind, RefusalKind::Stale);
    let row = back(&mut cluster, None, Some(3)).unwrap();
    assert_eq!((row.generation, row.spec.image.base_name(), row.rollout), (4, "one", Rollout::Rolling));
    assert_eq!(row.spec.labels["tier"], "front", "labels describe the workload and stay");
    assert_eq!(versions(&cluster)[0].cause, VersionCause::Rollback { to: 1, reason: None });
    assert_eq!(back(&mut cluster, Some(2), None).unwrap().spec.image.base_name(), "two");
    assert_eq!(told(&cluster), ["5 two rolling", "4 one rolling", "2 two rolling", "1 one done"]);
    let refusal = back(&mut cluster, Some(3), None).unwrap_err();
    assert!(refusal.kind == RefusalKind::NotFound && refusal.hint.contains("toft history web"), "{refusal}");
}

#[test]
fn what_fails_is_taken_back_once() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("web", "one"));
    ended(&mut cluster, 1, Rollout::Done);
    cluster.put(spec("web", "two"));
    failed(&mut cluster, 1);
    assert_eq!(told(&cluster), ["2 two rolling", "1 one done"], "late news of another generation");
    failed(&mut cluster, 2);
    assert_eq!(told(&cluster), ["3 one rolling", "2 two failed", "1 one done"]);
    let reason = Some("web-0: exited with code 1".to_owned());
    assert_eq!(versions(&cluster)[0].cause, VersionCause::Rollback { to: 1, reason });
    let story = cluster.story();
    let told_it = "workload/web: generation 2 failed and 1 is written again: web-0: exited with code 1";
    assert!(story.iter().any(|line| line == told_it), "{story:#?}");
    failed(&mut cluster, 3);
    assert_eq!(cluster.workload("web").unwrap().generation, 3, "what mends a failure is not mended again");
    ended(&mut cluster, 3, Rollout::Done);
    assert_eq!(told(&cluster)[0], "3 one failed", "it has ended");
}

#[test]
fn an_update_may_stop_where_it_is() {
    let (mut cluster, _) = Cluster::of_one();
    let pausing = |image: &str| {
        let mut spec = spec("web", image);
        spec.update.on_failure = UpdateFailure::Pause;
        spec
    };
    cluster.put(pausing("one"));
    ended(&mut cluster, 1, Rollout::Done);
    cluster.put(pausing("two"));
    failed(&mut cluster, 2);
    let row = cluster.workload("web").unwrap();
    assert_eq!((row.generation, row.rollout.as_str()), (2, "failed"));
    assert_eq!(cluster.put(pausing("three")).rollout, Rollout::Rolling, "the next goes on");
}

#[test]
fn what_cannot_be_written_again_is_told() {
    let (mut cluster, _) = Cluster::of_one();
    let mut first = spec("web", "one");
    first.secrets = vec!["key".parse().unwrap()];
    cluster.apply(secrets::put("key", 1, PutMode::Create));
    cluster.put(first);
    ended(&mut cluster, 1, Rollout::Done);
    cluster.put(spec("web", "two"));
    let (name, at_ms) = ("key".parse().unwrap(), cluster.now_ms());
    cluster.apply(Command::RemoveSecret { name, at_ms });
    failed(&mut cluster, 2);
    assert_eq!(told(&cluster), ["2 two failed", "1 one done"]);
    let story = cluster.story();
    assert!(story.iter().any(|line| line.contains("generation 1 cannot be written again")), "{story:#?}");
}

#[test]
fn a_job_is_replaced_at_once() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(WorkloadSpec { kind: WorkloadKind::Job, ..spec("web", "one") });
    assert_eq!(told(&cluster), ["1 one done"]);
}

#[test]
fn what_runs_whole_when_it_is_replaced_has_worked() {
    let (mut cluster, _) = Cluster::of_one();
    let slow = |image: &str| {
        let mut spec = WorkloadSpec { replicas: 2, ..spec("web", image) };
        spec.update.healthy_ms = 3_600_000;
        spec
    };
    cluster.put(slow("one"));
    // Not all of it runs.
    cluster.put(slow("two"));
    cluster.settle();
    cluster.put(slow("three"));
    assert_eq!(told(&cluster), ["3 three rolling", "2 two done", "1 one rolling"]);
    failed(&mut cluster, 3);
    assert_eq!(told(&cluster)[0], "4 two rolling");
}
