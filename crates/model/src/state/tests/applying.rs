//! What each command does, what it refuses, and which decisions come too late.

use super::{
    cluster::{Cluster, Outcome, inventory, node_id, report, spec},
    fixtures,
};
use crate::{
    ids::{InstanceId, NodeId, WorkloadId},
    instance::{Desired, InstanceState, NetworkOrder},
    schedule::Plan,
    state::{Command, InstanceChange, NodeRow, Placement, PowerAction, PutMode, RefusalKind, Reply, query_assignments},
    workload::{NetworkMode, WorkloadSpec},
};

const ANY: PutMode = PutMode::Replace { if_generation: None };

fn generation(cluster: &Cluster, node: NodeId) -> u64 {
    query_assignments(&cluster.connection, node).unwrap().unwrap().generation
}

#[test]
fn every_command_of_the_fixtures_is_answered() {
    let mut cluster = Cluster::new();
    for command in fixtures::story() {
        match (&command, cluster.apply(command.clone())) {
            (
                Command::RegisterNode { .. } | Command::ConfigureGpu { .. } | Command::ReportInstances { .. },
                Reply::Done,
            ) => {}
            (Command::PutWorkload { spec, .. }, Reply::Workload(row)) => assert_eq!(row.spec, **spec),
            (Command::LabelWorkload { .. }, Reply::Generation { generation: 2 }) => {}
            (Command::PowerWorkload { .. }, Reply::Workload(row)) => assert_eq!(row.epoch, 2),
            (Command::RollBackWorkload { .. }, Reply::Workload(row)) => {
                assert_eq!(row.generation, 2, "it is as it was")
            }
            (Command::RemoveWorkload { .. }, Reply::Workload(row)) => assert_eq!(row.desired, Desired::Removed),
            (Command::CommitPlan { .. }, Reply::Plan { placed: 1, dropped: 0 }) => {}
            (Command::PutSecret { name, .. }, Reply::Secret(row)) => assert_eq!((&row.name, row.version), (name, 1)),
            (Command::RemoveSecret { .. } | Command::RemoveRegistry { .. }, Reply::Done) => {}
            (Command::PutRegistry { registry, .. }, Reply::Registry(row)) => assert_eq!(row.registry, *registry),
            (Command::ClaimSubnet { .. }, Reply::Subnet { subnet: Some(subnet) }) => {
                assert_eq!(subnet.to_string(), "10.210.0.0/24");
            }
            (Command::CreateVolume { name, .. }, Reply::Volume(row)) => assert_eq!(&row.name, name),
            (Command::BindVolume { node_id, .. }, Reply::Volume(row)) => assert_eq!(row.node_id, Some(*node_id)),
            (Command::RemoveVolume { .. } | Command::ForgetVolumes { .. }, Reply::Done) => {}
            (Command::MoveVolume { to: None, .. }, Reply::Volume(row)) => assert_eq!(row.moving, None),
            (Command::TurnVolume { .. }, Reply::Done) => {}
            (
                Command::ConfigureNode { .. } | Command::ConfigurePlacement { .. } | Command::NoteNodes { .. },
                Reply::Done,
            ) => {}
            (Command::MoveInstances { .. }, Reply::Done) => {}
            (Command::AnnounceMesh { .. }, Reply::Done) => {}
            (Command::CreateToken { token, .. }, Reply::Token(row)) => assert_eq!(row.uses_left, token.uses),
            (Command::RevokeToken { at_ms, .. }, Reply::Token(row)) => assert_eq!(row.revoked_at_ms, Some(*at_ms)),
            (Command::AdmitNode { node_id, .. }, Reply::Admitted(row)) => assert_eq!(row.node_id, *node_id),
            (Command::RemoveNode { .. }, Reply::Done) => {}
            (
                Command::CreateUser { .. }
                | Command::ChangeUser { .. }
                | Command::RemoveUser { .. }
                | Command::OpenSession { .. }
                | Command::EndSession { .. }
                | Command::CreateApiToken { .. }
                | Command::RevokeApiToken { .. }
                | Command::PutSecondFactor { .. }
                | Command::RemoveSecondFactor { .. }
                | Command::PutPasskey { .. }
                | Command::RemovePasskey { .. }
                | Command::ConfigureAccess { .. }
                | Command::PutSigningKey { .. }
                | Command::AcceptUser { .. }
                | Command::NoteUses { .. }
                | Command::NoteAction { .. },
                Reply::Done,
            ) => {}
            (command, reply) => panic!("{command:?} was answered with {reply:?}"),
        }
    }
}

// Nodes.

#[test]
fn a_node_that_registers_again_is_updated_and_keeps_its_generation() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.schedule();
    let before = generation(&cluster, node);
    cluster.register_with("box", crate::node::Inventory { cpus: 64, ..inventory(None) });
    let row = NodeRow::by_id(&cluster.connection, node).unwrap().unwrap();
    assert_eq!((row.inventory.cpus, row.inventory.subnet), (64, None));
    assert_eq!(generation(&cluster, node), before);
    assert_eq!(cluster.story().iter().filter(|line| line.starts_with("node/")).count(), 1, "the version is no news");
}

#[test]
fn a_node_may_change_its_name_but_not_to_one_that_is_taken() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.register("other", None);
    let rename = |name: &str| Command::RegisterNode {
        node_id: node,
        name: name.parse().unwrap(),
        labels: Default::default(),
        inventory: inventory(None),
        at_ms: 9,
    };
    let (free, taken) = (rename("cellar"), rename("other"));
    assert_eq!(cluster.refused(taken), RefusalKind::Exists);
    cluster.apply(free);
    assert_eq!(NodeRow::by_id(&cluster.connection, node).unwrap().unwrap().name.as_str(), "cellar");
}

// Labels.

fn label(name: &str, labels: &[(&str, Option<&str>)], if_generation: Option<u64>) -> Command {
    let labels = labels.iter().map(|(key, value)| ((*key).into(), value.map(Into::into))).collect();
    Command::LabelWorkload { name: name.parse().unwrap(), labels, if_generation, at_ms: 9 }
}

#[test]
fn labels_are_set_and_removed_and_nothing_else_changes() {
    let (mut cluster, node) = Cluster::of_one();
    let before = cluster.put(spec("web", "demo"));
    cluster.schedule();
    let orders = generation(&cluster, node);
    let story = cluster.story();
    let reply = cluster.apply(label("web", &[("team", Some("kitchen")), ("tier", Some("front"))], Some(1)));
    assert_eq!(reply, Reply::Generation { generation: 2 });
    let reply = cluster.apply(label("web", &[("team", None), ("tier", Some("back")), ("gone", None)], None));
    assert_eq!(reply, Reply::Generation { generation: 3 });
    let row = cluster.workload("web").unwrap();
    let labels: Vec<_> = row.spec.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("tier", "back")]);
    let spec = WorkloadSpec { labels: Default::default(), ..row.spec.clone() };
    assert_eq!((row.desired, row.epoch, spec), (before.desired, before.epoch, before.spec));
    assert!(cluster.think().is_empty(), "nothing that runs is moved");
    assert_eq!((generation(&cluster, node), cluster.story()), (orders, story));
    let same = cluster.apply(label("web", &[("tier", Some("back"))], None));
    assert_eq!(same, Reply::Generation { generation: 3 }, "what is there already is no change");
}

#[test]
fn labels_that_cannot_be_are_refused() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.schedule();
    assert_eq!(cluster.refused(label("cat", &[], None)), RefusalKind::NotFound);
    assert_eq!(cluster.refused(label("web", &[("a", Some("b"))], Some(2))), RefusalKind::Stale);
    assert_eq!(cluster.refused(label("web", &[("a=b", Some("c"))], None)), RefusalKind::Invalid);
    assert_eq!(cluster.refused(label("web", &[("", Some("c"))], None)), RefusalKind::Invalid);
    let long = "x".repeat(WorkloadSpec::MAX_TEXT_BYTES);
    assert_eq!(cluster.refused(label("web", &[("a", Some(&long))], None)), RefusalKind::Invalid);
    cluster.remove("web");
    assert_eq!(cluster.refused(label("web", &[("a", Some("b"))], None)), RefusalKind::Removing);
}

// Specifications.

#[test]
fn put_counts_generations_and_ignores_a_specification_that_is_there_already() {
    let (mut cluster, _) = Cluster::of_one();
    let first = cluster.put(spec("web", "demo:1"));
    assert_eq!((first.generation, first.epoch, first.desired), (1, 1, Desired::Running));
    let same = cluster.put(spec("web", "demo:1"));
    assert_eq!(same, first);
    let second = cluster.put(spec("web", "demo:2"));
    assert_eq!((second.id, second.generation, second.epoch), (first.id, 2, 1));
    assert!(second.updated_at_ms > first.updated_at_ms);
    assert_eq!(second.created_at_ms, first.created_at_ms);
    assert_eq!(cluster.workload("web").unwrap(), second);
}

#[test]
fn put_refuses_what_its_mode_does_not_allow() {
    let (mut cluster, _) = Cluster::of_one();
    let put = |cluster: &mut Cluster, image: &str, mode| {
        let command = cluster.put_command(spec("web", image), mode);
        cluster.try_apply(command).map_err(|refusal| refusal.kind)
    };
    let at = |generation| PutMode::Replace { if_generation: Some(generation) };
    assert_eq!(put(&mut cluster, "a", at(1)), Err(RefusalKind::NotFound));
    assert!(put(&mut cluster, "a", PutMode::Create).is_ok());
    assert_eq!(put(&mut cluster, "b", PutMode::Create), Err(RefusalKind::Exists));
    assert_eq!(put(&mut cluster, "b", at(2)), Err(RefusalKind::Stale));
    assert!(put(&mut cluster, "b", at(1)).is_ok());
    assert_eq!(put(&mut cluster, "c", at(1)), Err(RefusalKind::Stale));
    assert_eq!(cluster.workload("web").unwrap().generation, 2);
    cluster.schedule();
    cluster.remove("web");
    for mode in [PutMode::Create, ANY, at(2)] {
        assert_eq!(put(&mut cluster, "d", mode), Err(RefusalKind::Removing));
    }
}

#[test]
fn an_id_that_is_in_use_cannot_take_over_another_workload() {
    let (mut cluster, _) = Cluster::of_one();
    let web = cluster.put(spec("web", "demo"));
    let spec = Box::new(spec("thief", "demo"));
    let command = Command::PutWorkload { workload_id: web.id, spec, mode: ANY, at_ms: 9 };
    assert_eq!(cluster.refused(command), RefusalKind::Exists);
    assert_eq!(cluster.workload("web").unwrap(), web);
}

// Power.

#[test]
fn a_stop_and_a_start_reach_the_node_through_plans() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.settle();
    let mut seen = Vec::new();
    for (action, desired, epoch) in [
        (PowerAction::Stop, Desired::Stopped, 1),
        (PowerAction::Stop, Desired::Stopped, 1),
        (PowerAction::Start, Desired::Running, 2),
        (PowerAction::Start, Desired::Running, 2),
        (PowerAction::Restart, Desired::Running, 3),
        (PowerAction::Stop, Desired::Stopped, 3),
        (PowerAction::Restart, Desired::Running, 4),
    ] {
        let id = cluster.only_instance().id;
        let row = cluster.power("web", action);
        assert_eq!((row.desired, row.epoch), (desired, epoch), "{action:?}");
        cluster.settle();
        let instance = cluster.only_instance();
        assert_eq!((instance.id, instance.desired, instance.epoch), (id, desired, epoch), "{action:?}");
        seen.push(generation(&cluster, node));
    }
    assert!(seen.is_sorted() && seen[0] == seen[1] && seen[1] < seen[2], "{seen:?}");
}

#[test]
fn power_refuses_what_is_not_there_or_on_its_way_out() {
    let (mut cluster, _) = Cluster::of_one();
    let power = |action| Command::PowerWorkload { name: "web".parse().unwrap(), action, at_ms: 9 };
    for action in [PowerAction::Start, PowerAction::Stop, PowerAction::Restart] {
        assert_eq!(cluster.refused(power(action)), RefusalKind::NotFound);
    }
    cluster.put(spec("web", "demo"));
    cluster.schedule();
    cluster.remove("web");
    for action in [PowerAction::Start, PowerAction::Stop, PowerAction::Restart] {
        assert_eq!(cluster.refused(power(action)), RefusalKind::Removing);
    }
}

#[test]
fn start_runs_again_what_ended_or_waits_for_a_retry() {
    for outcome in [Outcome::Finishes, Outcome::BacksOff] {
        let (mut cluster, node) = Cluster::of_one();
        cluster.put(spec("job", "demo"));
        cluster.schedule();
        cluster.node_acts(node, outcome, |_| true);
        let started = |cluster: &mut Cluster, epoch| {
            cluster.power("job", PowerAction::Start);
            assert_eq!(cluster.only_instance().epoch, epoch, "{outcome:?}");
        };
        started(&mut cluster, 2);
        // Asked again before the node could answer: the new start is on its way already.
        started(&mut cluster, 2);
        cluster.schedule();
        started(&mut cluster, 2);
        cluster.node_acts(node, outcome, |_| true);
        started(&mut cluster, 3);
        // What comes later is newer for every instance.
        assert_eq!(cluster.power("job", PowerAction::Restart).epoch, 4);
    }
}

#[test]
fn start_leaves_alone_what_runs() {
    for outcome in [Outcome::Finishes, Outcome::BacksOff] {
        let (mut cluster, node) = Cluster::of_one();
        cluster.put(WorkloadSpec { replicas: 3, ..spec("web", "demo") });
        cluster.schedule();
        cluster.node_acts(node, outcome, |i| i == 1);
        cluster.node_acts(node, Outcome::Runs, |i| i != 1);
        let epochs = |cluster: &Cluster| cluster.instances().iter().map(|i| i.epoch).collect::<Vec<_>>();
        let before = generation(&cluster, node);
        cluster.power("web", PowerAction::Start);
        assert_eq!(epochs(&cluster), [1, 2, 1], "{outcome:?}");
        assert!(generation(&cluster, node) > before, "the node is told");
        cluster.settle();
        assert_eq!(epochs(&cluster), [1, 2, 1], "{outcome:?}");
        let settled = generation(&cluster, node);
        cluster.power("web", PowerAction::Start);
        assert_eq!((epochs(&cluster), generation(&cluster, node)), (vec![1, 2, 1], settled), "all runs");
        cluster.power("web", PowerAction::Restart);
        cluster.settle();
        assert_eq!(epochs(&cluster), [3, 3, 3], "a restart means all");
    }
}

#[test]
fn an_ended_instance_on_its_way_out_is_no_reason_to_start_its_successor_twice() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.put(spec("job", "demo:1"));
    cluster.schedule();
    cluster.node_acts(node, Outcome::Finishes, |_| true);
    cluster.put(spec("job", "demo:2"));
    cluster.schedule();
    assert_eq!(cluster.power("job", PowerAction::Start).epoch, 1);
}

// Removal.

#[test]
fn a_workload_goes_only_after_its_node_said_that_every_instance_is_gone() {
    let (mut cluster, node) = Cluster::of_one();
    let mut web = spec("web", "demo");
    web.replicas = 2;
    cluster.put(web);
    cluster.settle();
    cluster.remove("web");
    cluster.remove("web");
    assert_eq!(cluster.workload("web").unwrap().desired, Desired::Removed);
    cluster.schedule();
    assert!(cluster.instances().iter().all(|instance| instance.desired == Desired::Removed));
    let before = generation(&cluster, node);
    cluster.node_acts(node, Outcome::Runs, |i| i == 0);
    assert!(generation(&cluster, node) > before);
    assert_eq!(cluster.only_instance().ordinal, 1);
    assert!(cluster.workload("web").is_some());
    cluster.node_acts(node, Outcome::Runs, |_| true);
    assert!(cluster.workload("web").is_none());
    assert_eq!(cluster.story().last().unwrap(), "workload/web: removed");
    let command = Command::RemoveWorkload { name: "web".parse().unwrap(), at_ms: 9 };
    assert_eq!(cluster.refused(command), RefusalKind::NotFound);
}

#[test]
fn a_workload_without_instances_goes_at_once_and_frees_its_name() {
    let mut cluster = Cluster::new();
    let first = cluster.put(spec("web", "demo"));
    cluster.remove("web");
    assert!(cluster.workload("web").is_none());
    let second = cluster.put(spec("web", "demo"));
    assert_ne!(first.id, second.id);
}

#[test]
fn removal_is_final() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.settle();
    let id = cluster.only_instance().id;
    let order =
        |desired| Plan { changes: vec![InstanceChange { instance_id: id, desired, epoch: 1 }], ..Plan::default() };
    cluster.commit(order(Desired::Removed));
    for desired in [Desired::Running, Desired::Stopped] {
        cluster.commit(order(desired));
        assert_eq!(cluster.only_instance().desired, Desired::Removed);
    }
}

// Plans that come too late.

/// What a plan for `web` on a fresh cluster places, before anything else happens to it.
fn first_placement(cluster: &mut Cluster) -> Placement {
    let mut web = spec("web", "demo");
    web.ports = vec!["80:80".parse().unwrap()];
    cluster.put(web);
    let plan = cluster.think();
    assert_eq!(plan.placements.len(), 1);
    plan.placements[0].clone()
}

#[test]
fn stale_placements_are_dropped() {
    type Change = fn(&mut Cluster, &mut Placement);
    let moves: [(&str, Change); 11] = [
        ("the specification changed", |cluster, _| drop(cluster.put(spec("web", "demo:2")))),
        ("the workload was stopped", |cluster, _| drop(cluster.power("web", PowerAction::Stop))),
        ("the workload was removed", |cluster, _| cluster.remove("web")),
        ("the workload is another of the same name", |cluster, _| {
            cluster.remove("web");
            cluster.put(spec("web", "demo"));
        }),
        ("the ordinal is taken", |cluster, _| assert_eq!(cluster.schedule(), 1)),
        ("the ordinal is not wanted", |_, placement| placement.ordinal = 1),
        ("the node has another network", |cluster, _| {
            cluster.register("box", Some("10.211.0.0/24"));
        }),
        ("the node is gone", |_, placement| placement.node_id = node_id("elsewhere")),
        ("the id is in use", |cluster, placement| {
            cluster.put(spec("aaa", "demo"));
            cluster.commit(Plan::default());
            let mut plan = cluster.think();
            plan.placements.retain(|other| other.workload_id != placement.workload_id);
            placement.instance_id = plan.placements[0].instance_id;
            if let NetworkOrder::Bridge { address, .. } = &mut plan.placements[0].container.network {
                *address = "10.210.0.200".parse().unwrap();
            }
            cluster.commit(plan);
        }),
        ("the port is taken", |cluster, placement| {
            let mut other = spec("aaa", "demo");
            other.ports = vec!["80:8080".parse().unwrap()];
            cluster.put(other);
            let mut plan = cluster.think();
            plan.placements.retain(|other| other.workload_id != placement.workload_id);
            if let NetworkOrder::Bridge { address, .. } = &mut plan.placements[0].container.network {
                *address = "10.210.0.200".parse().unwrap();
            }
            cluster.commit(plan);
        }),
        ("the address is taken", |cluster, placement| {
            cluster.put(spec("aaa", "demo"));
            let mut plan = cluster.think();
            plan.placements.retain(|other| other.workload_id != placement.workload_id);
            cluster.commit(plan);
        }),
    ];
    for (why, change) in moves {
        let (mut cluster, _) = Cluster::of_one();
        let mut placement = first_placement(&mut cluster);
        change(&mut cluster, &mut placement);
        let before = (cluster.instances(), cluster.story());
        let late = Plan { placements: vec![placement], ..Plan::default() };
        assert_eq!(cluster.commit(late), (0, 1), "{why}");
        assert_eq!((cluster.instances(), cluster.story()), before, "{why}");
    }
}

#[test]
fn the_fresh_part_of_a_plan_is_kept_when_another_part_is_stale() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("aaa", "demo"));
    cluster.put(spec("web", "demo"));
    let plan = cluster.think();
    cluster.put(spec("aaa", "demo:2"));
    assert_eq!(cluster.commit(plan), (1, 1));
    assert_eq!(cluster.schedule(), 1);
    assert!(cluster.think().is_empty());
}

#[test]
fn two_placements_of_one_plan_cannot_share_a_claim() {
    let (mut cluster, _) = Cluster::of_one();
    let mut web = spec("web", "demo");
    web.replicas = 3;
    cluster.put(web);
    let mut plan = cluster.think();
    plan.placements[1].container = plan.placements[0].container.clone();
    plan.placements[2].ordinal = 0;
    assert_eq!(cluster.commit(plan), (1, 2));
}

#[test]
fn a_node_without_network_conflicts_takes_host_network_instances_side_by_side() {
    let (mut cluster, _) = Cluster::of_one();
    for network in [NetworkMode::Host, NetworkMode::None] {
        let mut web = spec(if network == NetworkMode::Host { "hosted" } else { "lonely" }, "demo");
        web.network = network;
        web.replicas = 2;
        cluster.put(web);
    }
    assert_eq!(cluster.schedule(), 4);
}

#[test]
fn late_orders_cannot_undo_what_the_user_asked_since() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.settle();
    cluster.power("web", PowerAction::Stop);
    cluster.settle();
    cluster.power("web", PowerAction::Start);
    let late = cluster.think();
    assert_eq!(late.changes.len(), 1);
    cluster.power("web", PowerAction::Stop);
    cluster.commit(late);
    assert_eq!(cluster.only_instance().desired, Desired::Stopped, "a stopped workload was started for a moment");

    cluster.power("web", PowerAction::Start);
    let late = cluster.think();
    cluster.power("web", PowerAction::Restart);
    cluster.commit(late);
    assert_eq!(cluster.only_instance().desired, Desired::Stopped, "an older epoch was ordered");
    cluster.settle();
    let instance = cluster.only_instance();
    assert_eq!((instance.desired, instance.epoch), (Desired::Running, 4));
}

#[test]
fn orders_for_unknown_instances_and_repeated_orders_change_nothing() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.settle();
    let before = (cluster.instances(), generation(&cluster, node));
    let id = cluster.only_instance().id;
    for instance_id in [id, InstanceId(uuid::Uuid::from_u128(77))] {
        let changes = vec![InstanceChange { instance_id, desired: Desired::Running, epoch: 1 }];
        cluster.commit(Plan { changes, ..Plan::default() });
    }
    assert_eq!((cluster.instances(), generation(&cluster, node)), before);
}

#[test]
fn a_reason_to_wait_is_told_once() {
    let (mut cluster, _) = Cluster::of_one();
    let id = cluster.put(spec("web", "demo")).id;
    let wait = |reason: Option<&str>| Plan {
        pending: vec![(id, reason.map(str::to_owned)), (WorkloadId(uuid::Uuid::from_u128(99)), Some("?".into()))],
        ..Plan::default()
    };
    let told = |cluster: &Cluster| cluster.story().iter().filter(|line| line.contains("waits for a place")).count();
    for (reason, times) in [(Some("full"), 1), (Some("full"), 1), (None, 1), (Some("full"), 2), (Some("fuller"), 3)] {
        cluster.commit(wait(reason));
        assert_eq!(cluster.workload("web").unwrap().pending.as_deref(), reason);
        assert_eq!(told(&cluster), times, "{reason:?}");
    }
}

#[test]
fn the_story_is_bounded() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.put(spec("web", "demo"));
    cluster.schedule();
    let row = cluster.only_instance();
    let states = [InstanceState::Running { pid: 1, since_ms: 1 }, InstanceState::Stopped { exit: None }];
    let reports: Vec<_> = (0..6_000).map(|i| report(&row, Some(states[i % 2].clone()))).collect();
    cluster.report(node, reports);
    let count: i64 = cluster.connection.query_row("SELECT COUNT(*) FROM events", [], |row| row.get(0)).unwrap();
    assert!((5_000..5_300).contains(&count), "{count} events");
    let newest = crate::state::query_events(&cluster.connection, None, None, 1).unwrap();
    assert_eq!(newest[0].seq, 6_003);
}
