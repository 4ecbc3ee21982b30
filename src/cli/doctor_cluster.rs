//! What `doctor` asks the running appliance about its cluster.

use std::collections::BTreeMap;

use super::{client::Client, context::Target, mesh::apart};
use crate::{
    api::types::{CLOCK_APART_MS, Cluster, Node, Page},
    config::Config,
    doctor::{Check, Verdict},
};

/// Whether this node is a member still; nothing where no appliance answers.
pub(super) async fn membership(config: &Config) -> Option<Check> {
    let client = Client::new(Target::Unix(config.paths.run.join("toft.sock")));
    Some(judge(&client.get::<Cluster>("/api/v1/cluster").await.ok()?))
}

/// Whether the nodes agree on the time and run one version of toft; nothing where no appliance answers or this node stands alone.
pub(super) async fn agreement(config: &Config) -> Vec<Check> {
    let client = Client::new(Target::Unix(config.paths.run.join("toft.sock")));
    match client.get::<Page<Node>>("/api/v1/nodes?consistency=local").await {
        Ok(nodes) if nodes.items.len() > 1 => vec![clocks(&nodes.items), versions(&nodes.items)],
        Ok(_) | Err(_) => Vec::new(),
    }
}

fn clocks(nodes: &[Node]) -> Check {
    let off = |node: &Node| {
        let ms = node.clock_ahead_ms.filter(|ms| ms.abs() > CLOCK_APART_MS)?;
        Some(format!("`{}` {}", node.name, apart(ms)))
    };
    let off: Vec<String> = nodes.iter().filter_map(off).collect();
    let (verdict, message) = if off.is_empty() {
        (Verdict::Ok, "the nodes agree on the time".to_owned())
    } else {
        (Verdict::Warning, format!("not all nodes agree on the time: {}", off.join(", ")))
    };
    let fix = "sudo timedatectl set-ntp true   on those nodes (or install chrony there)";
    let fix = (verdict == Verdict::Warning).then(|| fix.to_owned());
    Check { area: "network", name: "clocks", verdict, message, fix }
}

fn versions(nodes: &[Node]) -> Check {
    let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    // Of one that is joining nobody knows it yet.
    for node in nodes.iter().filter(|node| node.registered_at.is_some()) {
        of.entry(&node.inventory.version).or_default().push(&node.name);
    }
    let (verdict, message, fix) = match of.keys().copied().collect::<Vec<_>>()[..] {
        [one] => (Verdict::Ok, format!("all nodes run toft {one}"), None),
        _ => {
            let told: Vec<String> =
                of.iter().map(|(version, nodes)| format!("{version} on {}", nodes.join(", "))).collect();
            let message = format!("the nodes run several versions of toft: {}", told.join("; "));
            (Verdict::Warning, message, Some("update the others too: all are to run the newest".to_owned()))
        }
    };
    Check { area: "network", name: "versions", verdict, message, fix }
}

fn judge(cluster: &Cluster) -> Check {
    let check = |verdict, message: String, fix: Option<&str>| Check {
        area: "network",
        name: "cluster",
        verdict,
        message,
        fix: fix.map(str::to_owned),
    };
    let count = cluster.members.len();
    match (&cluster.leader, cluster.removed) {
        (_, true) => check(
            Verdict::Failure,
            "this node was removed from its cluster; its containers go on, and nothing can be changed".into(),
            Some("toft leave --force   ends its containers and makes it an appliance of its own, which can join again"),
        ),
        (None, false) => check(
            Verdict::Failure,
            format!("no member leads: of {count} too few answer"),
            Some("toft cluster status   shows who does"),
        ),
        (Some(_), false) if count < 2 => check(Verdict::Ok, "this node stands alone".into(), None),
        (Some(leader), false) => check(Verdict::Ok, format!("{count} members, `{leader}` leads"), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_removed_is_told_what_to_do() {
        let cluster = |leader: Option<&str>, removed| Cluster {
            id: "x".into(),
            leader: leader.map(str::to_owned),
            term: 1,
            log_end: 1,
            applied: 1,
            members: Vec::new(),
            this: 1,
            removed,
        };
        let told = judge(&cluster(None, true));
        assert_eq!(told.verdict, Verdict::Failure);
        assert!(told.fix.unwrap().starts_with("toft leave --force"));
        assert_eq!(judge(&cluster(None, false)).verdict, Verdict::Failure);
        assert_eq!(judge(&cluster(Some("a"), false)).verdict, Verdict::Ok);
    }

    #[test]
    fn clocks_and_versions_that_differ_are_told_with_what_mends_it() {
        let node = |name: &str, clock: Option<i64>, version: &str| -> Node {
            let told = serde_json::json!({
                "name": name, "id": "x", "labels": {}, "registered_at": "", "clock_ahead_ms": clock,
                "inventory": {
                    "cpus": 1, "memory_bytes": 1, "os": "", "kernel": "", "arch": "", "runtime": "", "version": version,
                    "gpus": [],
                },
            });
            serde_json::from_value(told).unwrap()
        };
        let told = clocks(&[node("a", Some(0), "1"), node("b", Some(-301_000), "1"), node("c", None, "1")]);
        assert_eq!(
            (told.verdict, told.message.as_str()),
            (Verdict::Warning, "not all nodes agree on the time: `b` -301.0 s")
        );
        assert!(told.fix.unwrap().contains("set-ntp"));
        assert_eq!(clocks(&[node("a", Some(900), "1"), node("b", None, "1")]).verdict, Verdict::Ok);
        assert_eq!(versions(&[node("a", None, "1"), node("b", None, "1")]).verdict, Verdict::Ok);
        let told = versions(&[node("a", None, "1"), node("b", None, "2"), node("c", None, "2")]);
        assert_eq!(told.message, "the nodes run several versions of toft: 1 on a; 2 on b, c");
        assert_eq!(told.verdict, Verdict::Warning);
    }
}
