//! What the simulation found, one test each.

use std::collections::BTreeMap;

use toft_model::{
    ids::{NodeId, WorkloadId},
    instance::{ContainerOrder, NetworkOrder},
    workload::{Health, HealthCheck, HealthTest, WorkloadSpec},
};
use uuid::Uuid;

use super::*;

const EXIT: Exit = Exit::new(Some(0), 5);
const ID: InstanceId = InstanceId(Uuid::from_u128(1));

fn set(generation: u64, desired: Desired, epoch: u64) -> AssignmentSet {
    let mut spec = WorkloadSpec::new("web".parse().unwrap(), "a".parse().unwrap());
    spec.restart = Some("no".parse().unwrap());
    let order = Assignment {
        instance_id: ID,
        workload_id: WorkloadId(Uuid::nil()),
        workload: spec.name.clone(),
        ordinal: 0,
        desired,
        epoch,
        container: ContainerOrder::of(&spec, NetworkOrder::None),
        volumes: BTreeMap::new(),
    };
    AssignmentSet { node_id: NodeId(Uuid::nil()), generation, assignments: vec![order], secrets: BTreeMap::new() }
}

/// A keeper after a start, with a runtime that answers.
fn started(set: Option<AssignmentSet>, outcome: Option<Outcome>, task: Option<TaskState>) -> Keeper {
    let outcomes = outcome.map(|outcome| (ID, outcome)).into_iter().collect();
    let mut keeper = Keeper::new(Remembered { run: 3, set, outcomes });
    keeper.runtime_is(true);
    keeper.compare(task.map(|task| (ID, task)), 10);
    keeper
}

fn reported(effects: &[Effect]) -> Vec<Option<&str>> {
    let state = |effect: &'_ Effect| match effect {
        Effect::Report(report) => Some(report.state.as_ref().map(|state| state.as_str())),
        _ => None,
    };
    effects.iter().filter_map(state).collect()
}

fn works(effects: &[Effect]) -> Vec<&Work> {
    let mut works = Vec::new();
    for effect in effects {
        if let Effect::Do { work, .. } = effect {
            works.push(work);
        }
    }
    works
}

#[test]
fn an_older_set_does_not_replace_a_newer_one_that_could_not_be_saved() {
    let mut keeper = started(Some(set(5, Desired::Running, 1)), None, None);
    keeper.take_orders(set(9, Desired::Stopped, 1), false, 20);
    assert_eq!(keeper.incoming(&set(7, Desired::Running, 1)), Incoming::Older);
    assert_eq!(keeper.incoming(&set(9, Desired::Stopped, 1)), Incoming::Again);
    assert_eq!(keeper.saved().map(|set| set.generation), Some(5));
}

#[test]
fn what_is_gone_is_told_only_when_the_ledger_has_the_order() {
    let mut keeper = started(Some(set(5, Desired::Running, 1)), None, None);
    keeper.done(ID, Done::Started { pid: 7 }, 11);
    keeper.take_effects();
    keeper.take_orders(set(6, Desired::Removed, 1), false, 20);
    assert!(matches!(works(&keeper.take_effects())[..], [Work::Remove { .. }]), "removing makes room on the disk");
    keeper.done(ID, Done::Removed, 30);
    assert_eq!(reported(&keeper.take_effects()), []);
    let again = keeper.next_due_ms().unwrap();
    keeper.time_passed(again);
    assert!(keeper.take_effects().contains(&Effect::WriteSet));
    keeper.set_written(true, again);
    assert_eq!(reported(&keeper.take_effects()), [None]);
    assert_eq!(keeper.next_due_ms(), None);
}

#[test]
fn a_note_that_could_not_be_written_is_tried_again() {
    let mut keeper = started(None, None, None);
    let outcome = Outcome { epoch: 1, finished: Some(EXIT), ..Outcome::default() };
    keeper.note_failed(ID, outcome, 20);
    keeper.time_passed(21);
    assert_eq!(keeper.take_effects(), [Effect::ReleasePorts(false)]);
    keeper.time_passed(20 + WRITE_AGAIN_MS);
    assert_eq!(keeper.take_effects(), [Effect::Note { id: ID, outcome }]);
}

#[test]
fn what_finished_is_told_again_after_a_start() {
    let outcome = Outcome { epoch: 1, finished: Some(EXIT), ..Outcome::default() };
    let mut keeper = started(Some(set(5, Desired::Running, 1)), Some(outcome), None);
    assert_eq!(reported(&keeper.take_effects()), [Some("finished")]);
    keeper.look_at_all(20);
    assert_eq!(keeper.take_effects(), [], "once is enough");
}

#[test]
fn what_nobody_ordered_stays_until_the_cluster_is_heard() {
    let mut keeper = started(None, None, Some(TaskState::Running { pid: 7 }));
    assert_eq!(works(&keeper.take_effects()), [] as [&Work; 0]);
    let nothing = AssignmentSet { assignments: Vec::new(), ..set(5, Desired::Running, 1) };
    keeper.take_orders(nothing, true, 20);
    assert!(matches!(works(&keeper.take_effects())[..], [Work::Remove { .. }]));
}

#[test]
fn an_older_order_to_stop_ends_nothing_that_was_started_since() {
    for task in [TaskState::Running { pid: 7 }, TaskState::Ended(EXIT)] {
        // It was started in epoch 2; the ledger still holds the order that stopped epoch 1.
        let outcome = Outcome { epoch: 2, ..Outcome::default() };
        let mut keeper = started(Some(set(5, Desired::Stopped, 1)), Some(outcome), Some(task));
        assert_eq!(works(&keeper.take_effects()), [] as [&Work; 0], "{task:?}");
        keeper.take_orders(set(6, Desired::Running, 2), true, 20);
        let effects = keeper.take_effects();
        if let TaskState::Ended(exit) = task {
            assert_eq!(works(&effects), [&Work::Reap]);
            let outcome = Outcome { last_exit: Some(exit), finished: Some(exit), ..outcome };
            assert!(effects.contains(&Effect::Note { id: ID, outcome }), "{effects:?}");
            keeper.done(ID, Done::Ended { exit: Some(exit) }, 30);
            assert_eq!(reported(&keeper.take_effects()), [Some("finished")]);
        } else {
            assert_eq!(reported(&effects), [Some("running")]);
        }
    }
    // Heard again, it stands.
    let outcome = Outcome { epoch: 2, ..Outcome::default() };
    let mut keeper = started(Some(set(5, Desired::Stopped, 1)), Some(outcome), Some(TaskState::Running { pid: 7 }));
    keeper.take_effects();
    keeper.take_orders(set(6, Desired::Stopped, 2), true, 20);
    assert!(matches!(works(&keeper.take_effects())[..], [Work::Stop { .. }]));
}

#[test]
fn an_order_that_the_ledger_could_not_take_does_not_run_twice() {
    // The process was started in epoch 2 and ended; the ledger still holds the order of epoch 1.
    let outcome = Outcome { epoch: 2, ..Outcome::default() };
    let mut keeper = started(Some(set(5, Desired::Running, 1)), Some(outcome), Some(TaskState::Ended(EXIT)));
    assert_eq!(works(&keeper.take_effects()), [&Work::Reap]);
    keeper.done(ID, Done::Ended { exit: Some(EXIT) }, 20);
    let effects = keeper.take_effects();
    assert_eq!((works(&effects), reported(&effects)), (vec![], vec![Some("finished")]));
}

#[test]
fn a_process_of_a_newer_epoch_than_the_ledger_orders_goes_on() {
    let outcome = Outcome { epoch: 2, ..Outcome::default() };
    let runs = Some(TaskState::Running { pid: 7 });
    let mut keeper = started(Some(set(5, Desired::Running, 1)), Some(outcome), runs);
    keeper.take_orders(set(6, Desired::Running, 2), true, 20);
    assert_eq!(works(&keeper.take_effects()), [] as [&Work; 0]);
}

#[test]
fn reports_are_counted_over_the_runs_of_the_daemon() {
    let finished = Outcome { epoch: 1, finished: Some(EXIT), ..Outcome::default() };
    let first = |run| {
        let outcomes = [(ID, finished)].into();
        let mut keeper = Keeper::new(Remembered { run, set: Some(set(5, Desired::Running, 1)), outcomes });
        keeper.runtime_is(true);
        keeper.compare([], 10);
        match &keeper.take_effects()[..] {
            [Effect::Report(report), ..] => report.sequence,
            other => panic!("no report but {other:?}"),
        }
    };
    assert!(first(1) > 0 && first(1) + 1_000_000 < first(2));
}

#[test]
fn a_finished_process_is_in_the_ledger_before_its_task_is_deleted() {
    let started_once = Outcome { epoch: 1, ..Outcome::default() };
    let mut keeper = started(Some(set(5, Desired::Running, 1)), Some(started_once), Some(TaskState::Ended(EXIT)));
    let effects = keeper.take_effects();
    let noted = effects
        .iter()
        .position(|effect| matches!(effect, Effect::Note { outcome, .. } if outcome.finished == Some(EXIT)));
    let reaped = effects.iter().position(|effect| matches!(effect, Effect::Do { work: Work::Reap, .. }));
    assert!(noted.is_some() && noted < reaped, "{effects:?}");
    keeper.done(ID, Done::Ended { exit: Some(EXIT) }, 20);
    let effects = keeper.take_effects();
    assert_eq!(reported(&effects), [Some("finished")], "when its log is complete");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Note { .. })), "once is enough");
}

#[test]
fn late_news_of_an_end_are_not_taken_for_the_end_of_the_next_process() {
    let ended = Some(TaskState::Ended(EXIT));
    let mut keeper =
        started(Some(set(5, Desired::Running, 2)), Some(Outcome { epoch: 1, ..Outcome::default() }), ended);
    keeper.done(ID, Done::Ended { exit: Some(EXIT) }, 20);
    assert!(matches!(works(&keeper.take_effects())[..], [.., Work::Start { .. }]), "a newer epoch is ordered");
    keeper.task_ended(ID, EXIT, 21);
    keeper.done(ID, Done::Started { pid: 8 }, 22);
    let effects = keeper.take_effects();
    assert_eq!((works(&effects), reported(&effects)), (vec![], vec![Some("running")]));
}

fn checked(restart: &str) -> Keeper {
    let mut set = set(5, Desired::Running, 1);
    let container = &mut set.assignments[0].container;
    container.restart = restart.parse().unwrap();
    let mut check = HealthCheck::new(HealthTest::Tcp { port: 1 });
    (check.retries, check.start_period_ms) = (2, 1_000);
    container.health = Some(check);
    let mut keeper = started(Some(set), None, None);
    keeper.done(ID, Done::Started { pid: 7 }, 100);
    assert!(keeper.take_effects().iter().any(|effect| matches!(effect, Effect::Watch { pid: 7, .. })));
    keeper
}

fn health_told(keeper: &mut Keeper) -> Vec<Option<Health>> {
    let told = |effect: &Effect| match effect {
        Effect::Report(report) => Some(report.health),
        _ => None,
    };
    keeper.take_effects().iter().filter_map(told).collect()
}

#[test]
fn only_changes_of_health_are_told() {
    let mut keeper = checked("no");
    let bad = || Err("no answer".to_owned());
    for (answer, at, told) in [
        (bad(), 500, None),
        (bad(), 900, None),
        (Ok(()), 950, Some(Health::Healthy)),
        (Ok(()), 960, None),
        (bad(), 970, None),
        (Ok(()), 980, None),
        (bad(), 990, None),
        (bad(), 995, Some(Health::Unhealthy)),
        (bad(), 2_000, None),
        (Ok(()), 2_100, Some(Health::Healthy)),
    ] {
        keeper.answered(ID, 7, answer, at);
        assert_eq!(health_told(&mut keeper), told.map(Some).into_iter().collect::<Vec<_>>(), "at {at}");
    }
    keeper.answered(ID, 8, bad(), 3_000);
    keeper.answered(ID, 8, bad(), 3_000);
    assert_eq!(health_told(&mut keeper), [], "another process was asked");
}

#[test]
fn what_does_not_work_is_ended_and_started_again_by_its_policy() {
    let mut keeper = checked("on-failure");
    for at in [2_000, 2_100] {
        keeper.answered(ID, 7, Err("no answer".to_owned()), at);
    }
    let effects = keeper.take_effects();
    assert!(matches!(works(&effects)[..], [Work::Stop { .. }]), "{effects:?}");
    keeper.answered(ID, 7, Err("no answer".to_owned()), 2_150);
    assert_eq!(keeper.take_effects(), [], "once is enough");
    // It ends well when it is asked to, and has failed all the same.
    keeper.done(ID, Done::Ended { exit: Some(Exit::new(Some(0), 2_200)) }, 2_200);
    let effects = keeper.take_effects();
    assert!(effects.contains(&Effect::Unwatch(ID)), "{effects:?}");
    let report = effects.iter().find_map(|effect| match effect {
        Effect::Report(report) => Some(report.clone()),
        _ => None,
    });
    let report = report.unwrap();
    let reason = "unhealthy".to_owned();
    assert_eq!(report.state, Some(InstanceState::BackOff { until_ms: 2_300, reason }));
    assert_eq!((report.last_exit, report.health), (Some(Exit::new(Some(0), 2_200)), None));
    keeper.time_passed(2_300);
    assert!(matches!(works(&keeper.take_effects())[..], [Work::Start { .. }]));
}

#[test]
fn what_was_ended_because_it_does_not_work_is_not_noted_as_finished() {
    let mut keeper = checked("on-failure");
    for at in [2_000, 2_100] {
        keeper.answered(ID, 7, Err("no answer".to_owned()), at);
    }
    // The runtime goes away while it is being ended, and tells later that it ended well.
    let exit = Exit::new(Some(0), 2_200);
    keeper.done(ID, Done::Failed { reason: "no answer".to_owned() }, 2_300);
    keeper.take_effects();
    keeper.compare([(ID, TaskState::Ended(exit))], 3_000);
    let effects = keeper.take_effects();
    assert!(matches!(works(&effects)[..], [Work::Reap]), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Note { .. })), "{effects:?}");
    keeper.done(ID, Done::Ended { exit: Some(exit) }, 3_010);
    assert!(matches!(works(&keeper.take_effects())[..], [Work::Start { .. }]));
}

#[test]
fn ends_in_a_row_are_called_a_crash_loop() {
    let mut keeper = checked("always");
    let mut reasons = Vec::new();
    let mut now = 200;
    for pid in 7..14 {
        keeper.task_ended(ID, Exit::new(Some(1), now), now);
        keeper.done(ID, Done::Ended { exit: Some(Exit::new(Some(1), now)) }, now);
        for effect in keeper.take_effects() {
            if let Effect::Report(InstanceReport { state: Some(InstanceState::BackOff { reason, .. }), .. }) = effect {
                reasons.push(reason);
            }
        }
        now += 20_000;
        keeper.time_passed(now);
        now += 1;
        keeper.done(ID, Done::Started { pid: pid + 1 }, now);
        keeper.take_effects();
        now += 1;
    }
    assert_eq!(reasons.first().map(String::as_str), Some("exited with code 1"));
    assert_eq!(reasons.last().map(String::as_str), Some("crash loop: exited with code 1"));
}

#[test]
fn who_holds_too_much_of_a_gpu_is_warned_then_stopped_as_a_failure() {
    let mut orders = set(5, Desired::Running, 1);
    orders.assignments[0].container.restart = "on-failure".parse().unwrap();
    let mut keeper = started(Some(orders), None, None);
    assert!(!keeper.over_share(ID), "it does not run");
    keeper.done(ID, Done::Started { pid: 7 }, 11);
    keeper.take_effects();
    keeper.warn_of_share(ID, "holds too much".into(), 12);
    let told = keeper.take_effects();
    let warned = |effect: &Effect| match effect {
        Effect::Report(report) => report.warning.as_deref() == Some("holds too much"),
        _ => false,
    };
    assert!(told.len() == 1 && warned(&told[0]), "{told:?}");
    assert!(keeper.over_share(ID) && !keeper.over_share(ID), "one step at a time");
    assert!(matches!(works(&keeper.take_effects())[..], [Work::Stop { .. }]));
    // It ends in order, which is a failure all the same.
    keeper.done(ID, Done::Ended { exit: Some(EXIT) }, 20);
    let effects = keeper.take_effects();
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Report(report) => Some(report),
        _ => None,
    });
    let told = told.unwrap();
    assert!(told.last_exit.unwrap().gpu_out_of_memory, "{told:?}");
    let reason = |state: &InstanceState| match state {
        InstanceState::BackOff { reason, .. } => reason.clone(),
        other => other.as_str().to_owned(),
    };
    assert!(reason(told.state.as_ref().unwrap()).starts_with("GpuOutOfMemory"), "{told:?}");
    // The next end is another's.
    keeper.time_passed(10_000);
    keeper.done(ID, Done::Started { pid: 8 }, 10_001);
    keeper.task_ended(ID, Exit::new(Some(0), 10_050), 10_050);
    keeper.done(ID, Done::Ended { exit: Some(Exit::new(Some(0), 10_050)) }, 10_060);
    let last = keeper.take_effects().into_iter().rev().find_map(|effect| match effect {
        Effect::Report(report) => report.last_exit,
        _ => None,
    });
    assert!(!last.unwrap().gpu_out_of_memory);
}

#[test]
fn what_is_exclusive_runs_only_while_the_node_is_heard_of() {
    let exclusive = |generation| {
        let mut set = set(generation, Desired::Running, 1);
        set.assignments[0].container.exclusive = true;
        set.assignments[0].container.stop_grace_ms = 60_000;
        set
    };
    // After a start nobody has answered yet: what runs goes on, and nothing starts.
    let mut keeper = Keeper::new(Remembered { run: 3, set: Some(exclusive(5)), outcomes: Default::default() });
    keeper.lease_is(Lease::Awaited, 5);
    keeper.runtime_is(true);
    keeper.compare([], 10);
    keeper.take_orders(exclusive(6), true, 15);
    assert!(!works(&keeper.take_effects()).iter().any(|work| matches!(work, Work::Start { .. })));
    keeper.lease_is(Lease::Held, 20);
    assert!(matches!(works(&keeper.take_effects())[..], [Work::Start { .. }]));
    keeper.done(ID, Done::Started { pid: 7 }, 30);
    keeper.lease_is(Lease::Awaited, 40);
    assert_eq!(works(&keeper.take_effects()), [] as [&Work; 0]);
    // Nobody hears of the node: it stops, soon, and is not taken for one that ended by itself.
    keeper.lease_is(Lease::Over, 50);
    assert_eq!(works(&keeper.take_effects()), [&Work::Stop { grace_ms: 5_000 }]);
    keeper.done(ID, Done::Ended { exit: Some(EXIT) }, 60);
    assert_eq!(reported(&keeper.take_effects()).last(), Some(&Some("stopped")));
    keeper.lease_is(Lease::Held, 70);
    assert!(matches!(works(&keeper.take_effects())[..], [Work::Start { .. }]));
    // What has finished is not stopped, and does not start again when the node is heard of.
    let mut keeper = started(Some(exclusive(5)), None, Some(TaskState::Running { pid: 7 }));
    keeper.take_effects();
    keeper.task_ended(ID, EXIT, 20);
    assert_eq!(works(&keeper.take_effects()), [&Work::Reap]);
    keeper.done(ID, Done::Ended { exit: Some(EXIT) }, 21);
    assert_eq!(reported(&keeper.take_effects()).last(), Some(&Some("finished")));
    for (lease, at) in [(Lease::Over, 30), (Lease::Held, 40)] {
        keeper.lease_is(lease, at);
        assert_eq!(works(&keeper.take_effects()), [] as [&Work; 0]);
    }
    // What was ended for its lease while no daemon was there did not end by itself, what ended before did.
    for (over_ms, starts) in [(EXIT.at_ms, true), (EXIT.at_ms + 1, false)] {
        let outcomes = [(ID, Outcome { epoch: 1, ..Outcome::default() })].into_iter().collect();
        let mut keeper = Keeper::new(Remembered { run: 3, set: Some(exclusive(5)), outcomes });
        keeper.lease_was_over(Some(over_ms));
        keeper.runtime_is(true);
        keeper.compare([(ID, TaskState::Ended(EXIT))], 10);
        assert_eq!(works(&keeper.take_effects()), [&Work::Reap]);
        keeper.done(ID, Done::Ended { exit: Some(EXIT) }, 21);
        let effects = keeper.take_effects();
        assert_eq!(works(&effects).iter().any(|work| matches!(work, Work::Start { .. })), starts, "{effects:?}");
    }
    // What is not exclusive does not care.
    let mut keeper = started(Some(set(5, Desired::Running, 1)), None, Some(TaskState::Running { pid: 7 }));
    keeper.take_effects();
    keeper.lease_is(Lease::Over, 20);
    assert_eq!(works(&keeper.take_effects()), [] as [&Work; 0]);
}
