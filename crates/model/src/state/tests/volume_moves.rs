//! Volumes that are ordered to other nodes: nobody uses one on the way, nothing is lost when the order is taken back, and whoever
//! is late changes nothing.

use std::collections::BTreeMap;

use super::cluster::{Cluster, spec};
use crate::{
    ids::NodeId,
    name::Name,
    node::NodeHealth,
    state::{
        Command, MovePhase, MoveTurn, RefusalKind, Reply, VolumeRow, query_node_volumes, query_volume,
        volume_is_mounted,
    },
    volume::VolumeOptions,
};

fn data() -> Name {
    "data".parse().unwrap()
}

fn row(cluster: &Cluster) -> VolumeRow {
    VolumeRow::named(&cluster.connection, &data()).unwrap().unwrap()
}

fn order(to: Option<NodeId>) -> Command {
    Command::MoveVolume { name: data(), to, at_ms: 20 }
}

fn turn(born: u64, turn: MoveTurn) -> Command {
    Command::TurnVolume { name: data(), born, turn, at_ms: 30 }
}

/// Two nodes, and `web` whose volume `data` lies on the first, where it runs.
fn scene() -> (Cluster, NodeId, NodeId) {
    let mut cluster = Cluster::new();
    let near = cluster.register("near", Some("10.210.0.0/24"));
    let far = cluster.register("far", Some("10.210.1.0/24"));
    let (options, labels) = (VolumeOptions::default(), BTreeMap::new());
    cluster.apply(Command::CreateVolume { name: data(), node_id: Some(near), options, labels, at_ms: 7 });
    let mut web = spec("web", "demo");
    web.mounts = vec!["data:/data".parse().unwrap()];
    cluster.put(web);
    cluster.settle();
    assert_eq!(cluster.only_instance().node_id, near);
    (cluster, near, far)
}

/// The order's own number.
fn ordered(cluster: &mut Cluster, to: NodeId) -> u64 {
    match cluster.apply(order(Some(to))) {
        Reply::Volume(row) => row.moving.unwrap().born,
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_uses_a_volume_stops_while_it_moves_and_starts_where_it_lies_then() {
    let (mut cluster, near, far) = scene();
    let before = row(&cluster);
    let born = ordered(&mut cluster, far);
    assert!(born > before.born);
    cluster.settle();
    assert_eq!(cluster.only_instance().node_id, near, "it goes on while the volume is copied");
    assert_eq!(cluster.refused(order(Some(far))), RefusalKind::InUse);
    assert_eq!(cluster.refused(Command::RemoveVolume { name: data(), at_ms: 9 }), RefusalKind::InUse);
    // What has not been held cannot arrive.
    cluster.apply(turn(born, MoveTurn::Settle));
    assert_eq!(row(&cluster).node_id, Some(near));

    cluster.apply(turn(born, MoveTurn::Hold));
    cluster.apply(turn(born, MoveTurn::Settle));
    assert_eq!(row(&cluster).node_id, Some(near), "an instance that stops has it still");
    cluster.settle();
    assert!(!volume_is_mounted(&cluster.connection, &data()).unwrap());
    assert_eq!(cluster.instances(), []);
    let pending = cluster.workload("web").unwrap().pending.unwrap();
    assert!(pending.contains("volume `data` is being moved to far"), "{pending}");

    cluster.apply(turn(born, MoveTurn::Settle));
    let now = row(&cluster);
    assert_eq!((now.node_id, now.born, now.moving), (Some(far), born, None));
    cluster.settle();
    assert_eq!(cluster.only_instance().node_id, far);
    assert_eq!(query_node_volumes(&cluster.connection, near).unwrap().removed, [(data(), before.born)]);
    // Whoever is late changes nothing.
    for late in [MoveTurn::Hold, MoveTurn::Settle, MoveTurn::Fail { reason: "late".to_owned() }] {
        assert_eq!(cluster.apply(turn(born, late)), Reply::Done);
    }
    assert_eq!(row(&cluster).moving, None);

    // And back again, before the first copy was deleted.
    let again = ordered(&mut cluster, near);
    assert!(again > born);
    cluster.apply(turn(again, MoveTurn::Hold));
    cluster.settle();
    cluster.apply(turn(again, MoveTurn::Settle));
    cluster.settle();
    assert_eq!(cluster.only_instance().node_id, near);
    assert_eq!(query_node_volumes(&cluster.connection, near).unwrap().kept, [(data(), again)]);
}

#[test]
fn what_is_taken_back_or_fails_stays_and_its_copy_goes() {
    let (mut cluster, near, far) = scene();
    for (at_once, fails) in [(true, true), (true, false), (false, true), (false, false)] {
        let born = ordered(&mut cluster, far);
        assert!(query_node_volumes(&cluster.connection, far).unwrap().kept.contains(&(data(), born)));
        if !at_once {
            cluster.apply(turn(born, MoveTurn::Hold));
            cluster.settle();
        }
        if fails {
            cluster.apply(turn(born, MoveTurn::Fail { reason: "it does not fit".to_owned() }));
            let told = row(&cluster).moving.unwrap().phase;
            assert_eq!(told, MovePhase::Failed { reason: "it does not fit".to_owned() });
            assert!(cluster.story().iter().any(|line| line.contains("stays: it does not fit")));
        } else {
            cluster.apply(order(None));
            assert_eq!(row(&cluster).moving, None);
        }
        cluster.settle();
        assert_eq!((row(&cluster).node_id, cluster.only_instance().node_id), (Some(near), near));
        let there = query_node_volumes(&cluster.connection, far).unwrap();
        assert!(there.removed.contains(&(data(), born)) && there.kept.is_empty(), "{there:?}");
        cluster.apply(turn(born, MoveTurn::Settle));
        assert_eq!(row(&cluster).node_id, Some(near));
    }
}

#[test]
fn what_cannot_be_moved_is_refused_with_its_reason() {
    let (mut cluster, near, far) = scene();
    assert_eq!(cluster.refused(order(Some(near))), RefusalKind::Invalid, "it lies there");
    let nowhere = NodeId(cluster.mint());
    assert_eq!(cluster.refused(order(Some(nowhere))), RefusalKind::NotFound);
    for health in [NodeHealth::Down, NodeHealth::Unreachable, NodeHealth::Away] {
        for name in ["near", "far"] {
            cluster.hear(name, health);
            assert_eq!(cluster.refused(order(Some(far))), RefusalKind::Invalid, "{name} is {health:?}");
            cluster.hear(name, NodeHealth::Ready);
        }
    }
    let kinds: [&[(&str, &str)]; 3] = [
        &[("type", "tmpfs")],
        &[("type", "none"), ("o", "bind"), ("device", "/srv")],
        &[("type", "nfs"), ("device", "nas:/x")],
    ];
    for (i, pairs) in kinds.into_iter().enumerate() {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (name, options): (Name, _) = (format!("v{i}").parse().unwrap(), VolumeOptions::from_pairs(&pairs).unwrap());
        let node_id = (!options.is_remote()).then_some(near);
        let labels = BTreeMap::new();
        cluster.apply(Command::CreateVolume { name: name.clone(), node_id, options, labels, at_ms: 7 });
        let refused = cluster.refused(Command::MoveVolume { name, to: Some(far), at_ms: 9 });
        assert_eq!(refused, RefusalKind::Invalid);
    }
    let mut pinned = spec("pinned", "demo");
    (pinned.mounts, pinned.node) = (vec!["data:/data".parse().unwrap()], Some("near".parse().unwrap()));
    cluster.put(pinned);
    assert_eq!(cluster.refused(order(Some(far))), RefusalKind::Invalid, "who uses it may run on `near` alone");
    assert_eq!(
        cluster.refused(Command::MoveVolume { name: "x".parse().unwrap(), to: None, at_ms: 9 }),
        RefusalKind::NotFound
    );
}

#[test]
fn a_node_that_is_removed_takes_its_orders_along() {
    let (mut cluster, near, far) = scene();
    ordered(&mut cluster, far);
    let name = "far".parse().unwrap();
    cluster.apply(Command::RemoveNode { node_id: far, name, lost: false, force: false, at_ms: 40 });
    assert_eq!((row(&cluster).moving, row(&cluster).node_id), (None, Some(near)));
    assert_eq!(query_volume(&cluster.connection, &data()).unwrap().unwrap().moves_to, None);
}

#[test]
fn an_order_has_a_number_of_its_own_also_in_the_batch_that_made_the_volume() {
    let (mut cluster, _, far) = scene();
    let before = row(&cluster);
    let applied = crate::state::apply(&cluster.connection, before.born, &order(Some(far))).unwrap().unwrap();
    let Reply::Volume(ordered) = applied else { panic!("{applied:?}") };
    assert!(ordered.moving.unwrap().born > before.born);
    cluster.apply(order(None));
    let removed = query_node_volumes(&cluster.connection, far).unwrap().removed;
    assert!(removed.iter().all(|(_, born)| *born > before.born), "{removed:?}");
}
