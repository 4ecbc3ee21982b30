//! What `doctor` asks the running appliance about its cluster.

use super::{client::Client, context::Target};
use crate::{
    api::types::Cluster,
    config::Config,
    doctor::{Check, Verdict},
};

/// Whether this node is a member still; nothing where no appliance answers.
pub(super) async fn membership(config: &Config) -> Option<Check> {
    let client = Client::new(Target::Unix(config.paths.run.join("toft.sock")));
    Some(judge(&client.get::<Cluster>("/api/v1/cluster").await.ok()?))
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
}
