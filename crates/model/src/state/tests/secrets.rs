//! Secrets: written sealed, versioned, handed to the nodes that need them, kept while they are used.

use super::cluster::{Cluster, report, spec};
use crate::{
    ids::NodeId,
    instance::{AssignmentSet, InstanceState},
    secret::{MAX_SECRETS, MAX_TOTAL_BYTES, MAX_VALUE_BYTES, SealedSecret},
    state::{Command, PutMode, RefusalKind, Reply, SecretRow, query_assignments, query_secret},
    workload::WorkloadSpec,
};

const ANY: PutMode = PutMode::Replace { if_generation: None };

pub(super) fn put(name: &str, version: u64, mode: PutMode) -> Command {
    sized(name, version, mode, 5)
}

fn sized(name: &str, version: u64, mode: PutMode, size_bytes: u64) -> Command {
    let sealed = format!("sealed {name} {version}").into_bytes().into();
    let value = SealedSecret { version, sealed };
    Command::PutSecret { name: name.parse().unwrap(), value, size_bytes, mode, at_ms: 1_000 + version as i64 }
}

fn remove(name: &str) -> Command {
    Command::RemoveSecret { name: name.parse().unwrap(), at_ms: 9_000 }
}

fn using(name: &str, secrets: &[&str]) -> WorkloadSpec {
    let mut spec = spec(name, "demo");
    spec.secrets = secrets.iter().map(|secret| secret.parse().unwrap()).collect();
    spec
}

fn orders(cluster: &Cluster, node: NodeId) -> AssignmentSet {
    query_assignments(&cluster.connection, node).unwrap().unwrap()
}

fn users(cluster: &Cluster, name: &str) -> Vec<(String, bool)> {
    let view = query_secret(&cluster.connection, &name.parse().unwrap()).unwrap().unwrap();
    view.users.into_iter().map(|user| (user.workload.to_string(), user.outdated)).collect()
}

#[test]
fn versions_count_and_lost_updates_are_refused() {
    let mut cluster = Cluster::new();
    let Reply::Secret(first) = cluster.apply(put("db", 1, PutMode::Create)) else { panic!("no secret was answered") };
    assert_eq!((first.version, first.size_bytes, first.created_at_ms), (1, 5, 1_001));
    assert_eq!(cluster.refused(put("db", 2, PutMode::Create)), RefusalKind::Exists);
    let Reply::Secret(second) = cluster.apply(put("db", 2, ANY)) else { panic!("no secret was answered") };
    assert_eq!((second.version, second.created_at_ms, second.updated_at_ms), (2, 1_001, 1_002));
    let seen = |version| PutMode::Replace { if_generation: Some(version) };
    assert_eq!(cluster.refused(put("db", 3, seen(1))), RefusalKind::Stale);
    cluster.apply(put("db", 3, seen(2)));
    assert_eq!(cluster.refused(put("other", 2, seen(1))), RefusalKind::NotFound);
    // Sealed for a version that is taken by now, or not due yet.
    for version in [0, 1, 3, 5] {
        assert_eq!(cluster.refused(put("db", version, ANY)), RefusalKind::Stale, "{version}");
    }
    let sealed = SecretRow::sealed(&cluster.connection, &"db".parse().unwrap()).unwrap().unwrap();
    assert_eq!((sealed.version, sealed.sealed.as_bytes()), (3, &b"sealed db 3"[..]));
    cluster.apply(remove("db"));
    assert_eq!(cluster.refused(remove("db")), RefusalKind::NotFound);
    assert_eq!(SecretRow::all(&cluster.connection).unwrap(), []);
    assert_eq!(
        cluster.story(),
        [
            "secret/db: created",
            "secret/db: changed to version 2",
            "secret/db: changed to version 3",
            "secret/db: removed"
        ]
    );
}

#[test]
fn a_workload_that_names_a_missing_secret_is_refused() {
    let mut cluster = Cluster::new();
    cluster.apply(put("there", 1, PutMode::Create));
    let command = cluster.put_command(using("web", &["there", "absent"]), ANY);
    let refusal = cluster.try_apply(command).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::NoSecret);
    assert!(refusal.message.contains("`absent`") && refusal.hint.contains("toft secret create absent"), "{refusal:?}");
    cluster.put(using("web", &["there"]));
}

#[test]
fn a_secret_in_use_stays() {
    let (mut cluster, _) = Cluster::of_one();
    cluster.apply(put("db", 1, PutMode::Create));
    cluster.put(using("web", &["db"]));
    cluster.put(using("api", &["db,target=password"]));
    let refusal = cluster.try_apply(remove("db")).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::InUse);
    assert!(refusal.message.contains("`api`, `web`"), "{refusal}");
    cluster.settle();
    cluster.put(spec("api", "demo"));
    assert_eq!(users(&cluster, "db"), [("web".to_owned(), false)]);
    cluster.remove("web");
    cluster.apply(remove("db"));
    cluster.settle();
}

#[test]
fn nodes_get_the_newest_version_of_what_their_instances_name_and_nothing_else() {
    let mut cluster = Cluster::new();
    let nodes = [cluster.register("one", Some("10.1.0.0/24")), cluster.register("two", Some("10.2.0.0/24"))];
    for name in ["db", "key", "unused"] {
        cluster.apply(put(name, 1, PutMode::Create));
    }
    let mut web = using("web", &["db"]);
    web.node = Some("one".parse().unwrap());
    cluster.put(web);
    let mut api = using("api", &["key"]);
    api.node = Some("two".parse().unwrap());
    cluster.put(api);
    cluster.settle();
    let names =
        |cluster: &Cluster, node| orders(cluster, node).secrets.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((names(&cluster, nodes[0]), names(&cluster, nodes[1])), (vec!["db".to_owned()], vec!["key".to_owned()]));
    let before = nodes.map(|node| orders(&cluster, node).generation);
    let update = put("db", 2, ANY);
    assert!(update.concerns_scheduler(), "the nodes are to look at their orders");
    cluster.apply(update);
    let after = nodes.map(|node| orders(&cluster, node).generation);
    assert!(after[0] > before[0] && after[1] == before[1], "{before:?} {after:?}");
    assert_eq!(orders(&cluster, nodes[0]).secrets[&"db".parse().unwrap()].version, 2);
    cluster.remove("web");
    cluster.schedule();
    assert_eq!(names(&cluster, nodes[0]), Vec::<String>::new(), "what is on its way out needs none");
}

#[test]
fn another_list_of_secrets_needs_another_container() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.apply(put("db", 1, PutMode::Create));
    cluster.put(spec("web", "demo"));
    cluster.settle();
    let before = orders(&cluster, node).assignments[0].instance_id;
    cluster.put(using("web", &["db,mode=0400"]));
    cluster.settle();
    let after = orders(&cluster, node).assignments[0].clone();
    assert!(after.instance_id != before && after.container.secrets[0].mode.bits() == 0o400);
}

#[test]
fn who_runs_with_an_older_value_is_told() {
    let (mut cluster, node) = Cluster::of_one();
    cluster.apply(put("db", 1, PutMode::Create));
    cluster.put(using("web", &["db"]));
    cluster.settle();
    let row = cluster.only_instance();
    let runs = |since_ms| report(&row, Some(InstanceState::Running { pid: 7, since_ms }));
    cluster.report(node, vec![runs(1_001)]);
    assert_eq!(users(&cluster, "db"), [("web".to_owned(), false)]);
    cluster.apply(put("db", 2, ANY));
    assert_eq!(users(&cluster, "db"), [("web".to_owned(), true)]);
    cluster.report(node, vec![runs(1_002)]);
    assert_eq!(users(&cluster, "db"), [("web".to_owned(), false)]);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(sized("big", 1, ANY, MAX_VALUE_BYTES as u64 + 1)), RefusalKind::Full);
    let mut long = sized("long", 1, ANY, 1);
    if let Command::PutSecret { value, .. } = &mut long {
        value.sealed = vec![0; MAX_VALUE_BYTES + 1_000].into();
    }
    assert_eq!(cluster.refused(long), RefusalKind::Full);
    let full = MAX_TOTAL_BYTES / MAX_VALUE_BYTES as u64;
    for i in 0..full {
        cluster.apply(sized(&format!("big-{i}"), 1, ANY, MAX_VALUE_BYTES as u64));
    }
    assert_eq!(cluster.refused(sized("one-more", 1, ANY, MAX_VALUE_BYTES as u64)), RefusalKind::Full);
    cluster.apply(sized("big-0", 2, ANY, MAX_VALUE_BYTES as u64));
    for i in 0..MAX_SECRETS - full {
        cluster.apply(put(&format!("small-{i}"), 1, ANY));
    }
    assert_eq!(cluster.refused(put("one-more", 1, ANY)), RefusalKind::Full);
    cluster.apply(put("small-0", 2, ANY));
}
