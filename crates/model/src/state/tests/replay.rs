//! The same commands give the same rows, wherever and however often they are applied.

use rusqlite::Connection;

use super::{
    cluster::{Cluster, Outcome, dump, spec},
    secrets::put,
};
use crate::state::{ClusterRow, Command, PowerAction, PutMode, apply, migrate};

/// A cluster with a rich past.
fn lived() -> Cluster {
    let mut cluster = Cluster::new();
    let nodes = [cluster.register("one", Some("10.1.0.0/29")), cluster.register("two", Some("10.2.0.0/24"))];
    for (round, image) in ["demo:1", "demo:2", "demo:3"].into_iter().enumerate() {
        cluster.apply(put("db", round as u64 + 1, PutMode::Replace { if_generation: None }));
        cluster.apply(put(&format!("of-{round}"), 1, PutMode::Create));
        cluster.apply(Command::RemoveSecret { name: format!("of-{round}").parse().unwrap(), at_ms: 5 });
        for (name, replicas) in [("web", 3), ("api", 2), ("job", 1)] {
            let mut spec = spec(name, image);
            spec.replicas = replicas;
            spec.ports = vec!["8080".parse().unwrap(), "53/udp".parse().unwrap()];
            spec.env.insert("ROUND".into(), round.to_string());
            spec.secrets = vec!["db,mode=0400".parse().unwrap()];
            spec.mounts = vec![format!("{name}-data:/data").parse().unwrap()];
            cluster.put(spec);
        }
        let late = cluster.think();
        cluster.power("api", PowerAction::Restart);
        cluster.commit(late);
        for node in nodes {
            cluster.node_acts(node, Outcome::BacksOff, |i| i % 2 == round % 2);
            cluster.node_acts(node, Outcome::Finishes, |i| i % 3 == round);
        }
        cluster.power("web", PowerAction::Stop);
        cluster.settle();
        cluster.power("web", PowerAction::Start);
        cluster.remove("job");
        cluster.settle();
        cluster.apply(Command::RemoveVolume { name: "job-data".parse().unwrap(), at_ms: 5 });
    }
    cluster
}

fn replay(history: &[Command]) -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate(&mut connection).unwrap();
    for (index, command) in (1..).zip(history) {
        // As a follower gets it: through bytes.
        let bytes = serde_json::to_vec(command).unwrap();
        let command: Command = serde_json::from_slice(&bytes).unwrap();
        apply(&connection, index, &command).unwrap().unwrap();
        ClusterRow::advance(&connection, index, "here").unwrap();
    }
    connection
}

#[test]
fn a_replayed_history_gives_the_same_bytes() {
    let cluster = lived();
    assert!(cluster.history.len() > 40);
    let rows = dump(&cluster.connection);
    assert_eq!(dump(&replay(&cluster.history)), rows);
    assert_eq!(dump(&replay(&cluster.history)), rows);
}

#[test]
fn commands_refused_in_between_leave_no_trace_in_the_rows() {
    let cluster = lived();
    let mut connection = Connection::open_in_memory().unwrap();
    migrate(&mut connection).unwrap();
    let refused = Command::RemoveWorkload { name: "nothing".parse().unwrap(), at_ms: 1 };
    for (index, command) in (1..).zip(&cluster.history) {
        apply(&connection, index, &refused).unwrap().unwrap_err();
        apply(&connection, index, command).unwrap().unwrap();
        ClusterRow::advance(&connection, index, "here").unwrap();
    }
    assert_eq!(dump(&connection), dump(&cluster.connection));
}
