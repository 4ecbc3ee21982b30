//! Who reads only what was written knows what those know who read everything: the scheduler, and those who look on.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use super::cluster::{Cluster, node_id, spec};
use crate::{
    ids::InstanceId,
    schedule::{Snapshot, plan},
    state::{Command, Followed, Follower, Names, PowerAction, Views, query_snapshot},
    workload::WorkloadSpec,
};

fn minter() -> impl FnMut() -> InstanceId {
    let mut minted = 0;
    move || {
        minted += 1;
        InstanceId(uuid::Uuid::from_u128(minted))
    }
}

#[test]
fn who_follows_the_tables_knows_what_is_in_them() {
    let mut cluster = Cluster::new();
    let written: Arc<Mutex<BTreeSet<(Followed, i64)>>> = Arc::default();
    let noted = Arc::clone(&written);
    let note = move |_, _: &str, table: &str, row| {
        noted.lock().unwrap().extend(Followed::named(table).map(|table| (table, row)));
    };
    cluster.connection.update_hook(Some(note)).unwrap();
    let mut follower = Follower::read(&cluster.connection).unwrap();
    let mut views = Views::read(&cluster.connection).unwrap();
    let mut names = Names::read(&cluster.connection).unwrap();
    let mut most_named = 0;
    let mut agree = |cluster: &Cluster, what: &str| {
        let rows = std::mem::take(&mut *written.lock().unwrap());
        assert!(!rows.is_empty(), "{what}: nothing was noted");
        follower.follow(&cluster.connection, &rows).unwrap();
        views.follow(&cluster.connection, &rows).unwrap();
        let all = Views::read(&cluster.connection).unwrap();
        assert_eq!((views.nodes(), views.workloads()), (all.nodes(), all.workloads()), "{what}");
        names.follow(&cluster.connection, &rows).unwrap();
        let read = Names::read(&cluster.connection).unwrap();
        for node in ["one", "two"].map(node_id) {
            let known = names.of(node, |_| true);
            assert_eq!(known, read.of(node, |_| true), "{what}");
            most_named = most_named.max(known.iter().map(|workload| workload.instances.len()).sum());
        }
        let now_ms = cluster.now_ms();
        let whole = Snapshot { now_ms, ..query_snapshot(&cluster.connection).unwrap() };
        let (whole, followed) = (plan(&whole, &mut minter()), follower.scheduler().plan(now_ms, &mut minter()));
        assert_eq!(followed, whole, "{what}");
        !whole.is_empty()
    };
    cluster.put(WorkloadSpec { replicas: 3, ..spec("web", "demo") });
    assert!(agree(&cluster, "a workload that waits"));
    cluster.register("one", Some("10.1.0.0/24"));
    cluster.register("two", Some("10.2.0.0/24"));
    assert!(agree(&cluster, "nodes"));
    cluster.schedule();
    assert!(!agree(&cluster, "what was placed"));
    cluster.settle();
    let mounts = vec!["data:/data".parse().unwrap()];
    cluster.put(WorkloadSpec { mounts, ..spec("db", "demo") });
    assert!(agree(&cluster, "a volume is wanted"));
    cluster.settle();
    cluster.configure("one", r#"{"availability":"draining"}"#);
    assert!(agree(&cluster, "what users say of a node"));
    cluster.configure_placement(r#"{"policy":"binpack"}"#);
    assert!(agree(&cluster, "what the cluster says"));
    cluster.settle();
    assert!(!agree(&cluster, "what moved"));
    cluster.power("web", PowerAction::Restart);
    assert!(agree(&cluster, "a restart"));
    cluster.remove("db");
    cluster.settle();
    agree(&cluster, "a workload that is gone");
    // Another row may have its number by now.
    cluster.put(spec("new", "demo"));
    assert!(agree(&cluster, "a new one"));
    cluster.settle();
    cluster.remove("new");
    cluster.settle();
    cluster.put(spec("new", "demo"));
    agree(&cluster, "a name that is another's now");
    let (name, at_ms) = ("data".parse().unwrap(), cluster.now_ms());
    cluster.apply(Command::RemoveVolume { name, at_ms });
    agree(&cluster, "a volume that is gone");
    cluster.connection.execute("DELETE FROM node_settings", []).unwrap();
    cluster.put(WorkloadSpec { replicas: 5, ..spec("new", "demo") });
    assert!(agree(&cluster, "what was said of nodes is said no more"));
    assert!(most_named >= 4, "{most_named} instances had names");
}
