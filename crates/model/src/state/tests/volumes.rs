//! Volumes: made by hand or by their first use, tied to a node, kept while they are used, forgotten when their data is.

use std::collections::BTreeMap;

use super::cluster::{Cluster, report, spec};
use crate::{
    ids::NodeId,
    instance::InstanceState,
    state::{
        Command, PowerAction, PutMode, RefusalKind, Reply, VolumeRow, VolumeView, query_assignments,
        query_node_volumes, query_volume, tests::secrets::put,
    },
    volume::{MAX_VOLUMES, VolumeOptions},
    workload::WorkloadSpec,
};

fn options(pairs: &[(&str, &str)]) -> VolumeOptions {
    VolumeOptions::from_pairs(&pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()).unwrap()
}

fn create(name: &str, node_id: Option<NodeId>, options: VolumeOptions) -> Command {
    Command::CreateVolume { name: name.parse().unwrap(), node_id, options, labels: BTreeMap::new(), at_ms: 7 }
}

fn remove(name: &str) -> Command {
    Command::RemoveVolume { name: name.parse().unwrap(), at_ms: 9 }
}

fn bind(name: &str, node_id: NodeId) -> Command {
    Command::BindVolume { name: name.parse().unwrap(), node_id, at_ms: 8 }
}

fn mounting(name: &str, mounts: &[&str]) -> WorkloadSpec {
    let mounts = mounts.iter().map(|mount| mount.parse().unwrap()).collect();
    WorkloadSpec { mounts, ..spec(name, "demo") }
}

fn volume(cluster: &Cluster, name: &str) -> VolumeView {
    query_volume(&cluster.connection, &name.parse().unwrap()).unwrap().unwrap()
}

fn names(volumes: &[(crate::name::Name, u64)]) -> Vec<&str> {
    volumes.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn the_first_use_makes_a_volume_where_the_instance_is_placed() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.put(mounting("web", &["data:/data", "/srv:/srv", "data:/again:ro"]));
    assert_eq!(VolumeRow::all(&cluster.connection).unwrap(), [], "nothing was placed yet");
    cluster.settle();
    let data = volume(&cluster, "data");
    assert_eq!((data.row.node_id, data.node.as_ref().unwrap().as_str()), (Some(node), "box"));
    assert_eq!(data.users.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["web"]);
    assert_eq!(data.running, data.users);
    assert_eq!(cluster.only_instance().container.mounts.len(), 3);
    let set = query_assignments(&cluster.connection, node).unwrap().unwrap();
    assert_eq!(set.assignments[0].volumes[&"data".parse().unwrap()].born, data.row.born);
    assert!(cluster.story().contains(&"volume/data: created on node box".to_owned()));
}

#[test]
fn what_is_used_stays() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.put(mounting("web", &["data:/data"]));
    cluster.settle();
    let refusal = cluster.try_apply(remove("data")).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::InUse);
    assert!(refusal.message.contains("`web`"), "{refusal}");
    cluster.power("web", PowerAction::Stop);
    cluster.settle();
    assert_eq!(cluster.refused(remove("data")), RefusalKind::InUse, "what is stopped uses it too");
    assert_eq!(volume(&cluster, "data").running, []);
    // A workload that does without it, and one on its way out, keep it until their containers are gone.
    cluster.power("web", PowerAction::Start);
    cluster.settle();
    cluster.put(mounting("web", &[]));
    cluster.schedule();
    assert_eq!(cluster.refused(remove("data")), RefusalKind::InUse);
    cluster.settle();
    let generation = query_assignments(&cluster.connection, node).unwrap().unwrap().generation;
    cluster.apply(remove("data"));
    assert_eq!(cluster.refused(remove("data")), RefusalKind::NotFound);
    assert!(query_assignments(&cluster.connection, node).unwrap().unwrap().generation > generation);
}

#[test]
fn a_removed_volume_is_remembered_until_its_data_is_gone() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.apply(create("data", Some(node), VolumeOptions::default()));
    let first = volume(&cluster, "data").row.born;
    assert_eq!(query_node_volumes(&cluster.connection, node).unwrap().kept, [("data".parse().unwrap(), first)]);
    cluster.apply(remove("data"));
    // Made again, it is another one: its data is not what the node is to delete.
    cluster.apply(create("data", None, VolumeOptions::default()));
    let second = volume(&cluster, "data").row.born;
    assert!(second > first);
    let of_node = query_node_volumes(&cluster.connection, node).unwrap();
    assert_eq!(of_node.removed, [("data".parse().unwrap(), first)]);
    assert_eq!(names(&of_node.kept), ["data"]);
    let gone = |born| Command::ForgetVolumes { node_id: node, gone: vec![("data".parse().unwrap(), born)] };
    cluster.apply(gone(second));
    assert_eq!(query_node_volumes(&cluster.connection, node).unwrap().removed.len(), 1, "of another it says nothing");
    cluster.apply(gone(first));
    assert_eq!(query_node_volumes(&cluster.connection, node).unwrap().removed, []);
    // What lay nowhere leaves nothing to delete.
    cluster.apply(remove("data"));
    assert_eq!(query_node_volumes(&cluster.connection, node).unwrap(), Default::default());
}

#[test]
fn a_volume_of_one_batch_is_not_taken_for_the_one_removed_in_it() {
    let (cluster, node) = Cluster::of_one();
    for command in [
        create("data", Some(node), VolumeOptions::default()),
        remove("data"),
        create("data", Some(node), VolumeOptions::default()),
    ] {
        crate::state::apply(&cluster.connection, 77, &command).unwrap().unwrap();
    }
    let of_node = query_node_volumes(&cluster.connection, node).unwrap();
    assert_eq!((of_node.removed[0].1, of_node.kept[0].1), (77, 78));
}

#[test]
fn a_volume_is_tied_to_one_node_once() {
    let mut cluster = Cluster::new();
    let [one, two] = ["one", "two"].map(|name| cluster.register(name, Some("10.0.0.0/24")));
    cluster.apply(create("data", None, VolumeOptions::default()));
    let Reply::Volume(row) = cluster.apply(bind("data", two)) else { panic!("no volume was answered") };
    assert_eq!(row.node_id, Some(two));
    cluster.apply(bind("data", two));
    assert_eq!(cluster.refused(bind("data", one)), RefusalKind::Stale);
    assert_eq!(cluster.refused(bind("other", one)), RefusalKind::NotFound);
    let nfs = || options(&[("type", "nfs"), ("device", "nas:/media")]);
    assert_eq!(cluster.refused(create("nas", Some(one), nfs())), RefusalKind::Invalid);
    cluster.apply(create("nas", None, nfs()));
    assert_eq!(cluster.refused(bind("nas", one)), RefusalKind::Stale);
    assert_eq!(cluster.refused(create("data", None, nfs())), RefusalKind::Exists);
    let nobody = NodeId(uuid::Uuid::from_u128(99));
    assert_eq!(cluster.refused(create("lost", Some(nobody), VolumeOptions::default())), RefusalKind::NotFound);
    // Every node that may mount it gets it; data on a server is nobody's to delete.
    cluster.apply(remove("nas"));
    assert_eq!(query_node_volumes(&cluster.connection, one).unwrap(), Default::default());
}

#[test]
fn a_password_is_a_secret_that_stays_while_the_volume_does() {
    let (mut cluster, node) = Cluster::of_one();
    let cifs = || options(&[("type", "cifs"), ("device", "//nas/media"), ("o", "username=me"), ("secret", "nas")]);
    assert_eq!(cluster.refused(create("media", None, cifs())), RefusalKind::NoSecret);
    cluster.apply(put("nas", 1, PutMode::Create));
    cluster.apply(create("media", None, cifs()));
    let drop_secret = || Command::RemoveSecret { name: "nas".parse().unwrap(), at_ms: 3 };
    assert_eq!(cluster.refused(drop_secret()), RefusalKind::InUse);
    cluster.put(mounting("tv", &["media:/media"]));
    cluster.settle();
    let set = query_assignments(&cluster.connection, node).unwrap().unwrap();
    assert_eq!(set.secrets[&"nas".parse().unwrap()].version, 1, "the node that mounts it gets the password");
    assert_eq!(set.assignments[0].volumes[&"media".parse().unwrap()].options, cifs());
    cluster.remove("tv");
    cluster.settle();
    cluster.apply(remove("media"));
    cluster.apply(drop_secret());
}

#[test]
fn there_is_an_end_to_volumes() {
    let (mut cluster, node) = Cluster::of_one();
    for i in 0..MAX_VOLUMES {
        let row = VolumeRow {
            name: format!("v{i}").parse().unwrap(),
            born: 1,
            node_id: Some(node),
            options: VolumeOptions::default(),
            labels: BTreeMap::new(),
            created_at_ms: 1,
            moving: None,
        };
        row.insert(&cluster.connection).unwrap();
    }
    assert_eq!(cluster.refused(create("more", None, VolumeOptions::default())), RefusalKind::Full);
    let command = cluster.put_command(mounting("web", &["more:/data"]), PutMode::Create);
    assert_eq!(cluster.refused(command), RefusalKind::Full);
    cluster.put(mounting("web", &["v7:/data"]));
}

#[test]
fn a_plan_made_before_the_volume_was_tied_elsewhere_is_dropped() {
    let mut cluster = Cluster::new();
    let [_, two] = ["one", "two"].map(|name| cluster.register(name, Some("10.0.0.0/24")));
    cluster.put(mounting("web", &["data:/data"]));
    let late = cluster.think();
    cluster.apply(create("data", Some(two), VolumeOptions::default()));
    assert_eq!(cluster.commit(late), (0, 1));
    cluster.settle();
    let placed = cluster.only_instance();
    assert_eq!(placed.node_id, two);
    let failed = InstanceState::BackOff { until_ms: 9, reason: "x".into() };
    cluster.report(two, vec![report(&placed, Some(failed))]);
    cluster.settle();
}
