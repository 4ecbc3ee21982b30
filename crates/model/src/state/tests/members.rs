//! Tokens, who is let in with them, and who is removed.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::cluster::{Cluster, dump, inventory, node_id, spec};
use crate::{
    ids::NodeId,
    state::{AdmissionRow, Command, NodeRow, RefusalKind, Reply, TokenRow, TokenState},
    token::{Digest, MAX_TOKENS, MemberRole, NewToken, TokenId},
};

const EXPIRES: i64 = 100_000;

fn id(number: u8) -> TokenId {
    TokenId::of([number; 10])
}

fn token(number: u8, uses: u32) -> NewToken {
    NewToken {
        id: id(number),
        secret: Digest([number; 32]),
        role: MemberRole::Server,
        name: None,
        labels: BTreeMap::from([("rack".to_owned(), "one".to_owned())]),
        uses,
        expires_at_ms: EXPIRES,
    }
}

fn create(token: NewToken) -> Command {
    Command::CreateToken { token: Box::new(token), at_ms: 1_000 }
}

fn admit(token: u8, name: &str, key: u8, at_ms: i64) -> Command {
    Command::AdmitNode {
        token_id: id(token),
        node_id: node_id(name),
        name: name.parse().unwrap(),
        labels: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
        key: Digest([key; 32]),
        in_place_of: None,
        at_ms,
    }
}

fn remove(name: &str, lost: bool, force: bool) -> Command {
    Command::RemoveNode { node_id: node_id(name), name: name.parse().unwrap(), lost, force, at_ms: 5_000 }
}

fn admitted(reply: Reply) -> AdmissionRow {
    match reply {
        Reply::Admitted(row) => *row,
        other => panic!("{other:?}"),
    }
}

fn left(cluster: &Cluster, token: u8) -> u32 {
    TokenRow::by_id(&cluster.connection, &id(token)).unwrap().unwrap().uses_left
}

#[test]
fn a_use_is_spent_once_for_each_key_whoever_asks_how_often() {
    let mut cluster = Cluster::new();
    cluster.apply(create(token(1, 1)));
    let first = admitted(cluster.apply(admit(1, "attic", 7, 2_000)));
    assert_eq!((left(&cluster, 1), first.role), (0, MemberRole::Server));
    assert_eq!(cluster.refused(admit(1, "barn", 8, 2_000)), RefusalKind::Stale, "two race for the last use");
    let rows = |cluster: &Cluster| {
        // But for the row that counts the commands.
        let all = dump(&cluster.connection);
        all.lines().filter(|line| !line.contains("| NULL | here |")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rows(&cluster);
    // Whoever did not hear the answer asks again, and be it late.
    assert_eq!(admitted(cluster.apply(admit(1, "attic", 7, EXPIRES + 1))), first);
    assert_eq!(rows(&cluster), before, "nothing is spent twice");
    assert_eq!(cluster.refused(admit(1, "barn", 7, 2_000)), RefusalKind::Exists, "the key is another's");
    cluster.apply(Command::RevokeToken { token_id: id(1), at_ms: 3_000 });
    assert_eq!(cluster.refused(admit(1, "attic", 7, 3_000)), RefusalKind::Exists);
}

#[test]
fn expired_revoked_and_unknown_tokens_let_nobody_in() {
    let mut cluster = Cluster::new();
    cluster.apply(create(token(1, 2)));
    assert_eq!(cluster.refused(admit(2, "attic", 7, 2_000)), RefusalKind::NotFound);
    assert_eq!(cluster.refused(admit(1, "attic", 7, EXPIRES)), RefusalKind::Stale);
    cluster.apply(Command::RevokeToken { token_id: id(1), at_ms: 3_000 });
    assert_eq!(cluster.refused(admit(1, "attic", 7, 3_000)), RefusalKind::Stale);
    assert_eq!(cluster.refused(Command::RevokeToken { token_id: id(9), at_ms: 1 }), RefusalKind::NotFound);
    let row = TokenRow::by_id(&cluster.connection, &id(1)).unwrap().unwrap();
    assert_eq!((row.state(3_000), row.uses_left), (TokenState::Revoked, 2));
    assert!(AdmissionRow::all(&cluster.connection).unwrap().is_empty());
}

#[test]
fn members_get_numbers_that_no_other_had() {
    let mut cluster = Cluster::new();
    cluster.apply(create(token(1, 9)));
    let one = admitted(cluster.apply(admit(1, "attic", 1, 2_000))).member_id;
    cluster.apply(remove("attic", false, false));
    let two = admitted(cluster.apply(admit(1, "barn", 2, 2_000))).member_id;
    // In the same entry of the log.
    let at = cluster.history.len() as u64;
    let three = AdmissionRow::next_number(&cluster.connection, at).unwrap();
    assert!(one > cluster.history.len() as u64 - 3 && two > one && three > two, "{one} {two} {three}");
    assert!(!AdmissionRow::knows_member(&cluster.connection, one).unwrap());
    assert!(AdmissionRow::knows_member(&cluster.connection, two).unwrap());
}

#[test]
fn the_labels_of_token_and_command_are_on_the_node() {
    let mut cluster = Cluster::new();
    cluster.apply(create(token(1, 1)));
    cluster.apply(admit(1, "attic", 1, 2_000));
    cluster.register("attic", Some("10.210.0.0/24"));
    let row = NodeRow::by_id(&cluster.connection, node_id("attic")).unwrap().unwrap();
    let labels: Vec<_> = row.settings.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["disk=ssd", "rack=one"]);
    cluster.configure("attic", r#"{"labels":{"rack":null}}"#);
    cluster.register_with("attic", inventory(None));
    let row = NodeRow::by_id(&cluster.connection, node_id("attic")).unwrap().unwrap();
    assert!(!row.settings.labels.contains_key("rack"), "what users say later goes before");
}

#[test]
fn a_name_that_is_taken_is_refused_unless_its_place_is_taken() {
    let mut cluster = Cluster::new();
    cluster.apply(create(token(1, 5)));
    cluster.register("attic", None);
    let stranger = |in_place_of| match admit(1, "attic", 1, 2_000) {
        Command::AdmitNode { token_id, name, labels, key, at_ms, .. } => {
            let node_id = NodeId(Uuid::from_u128(77));
            Command::AdmitNode { token_id, node_id, name, labels, key, in_place_of, at_ms }
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(cluster.refused(stranger(None)), RefusalKind::Exists);
    let row = admitted(cluster.apply(stranger(Some(node_id("attic")))));
    assert_eq!(row.node_id, node_id("attic"), "it is that node from now on");
    let node = NodeRow::by_id(&cluster.connection, row.node_id).unwrap().unwrap();
    assert_eq!(node.settings.labels["disk"], "ssd");
    let named = NewToken { name: Some("barn".parse().unwrap()), ..token(2, 1) };
    cluster.apply(create(named));
    assert_eq!(cluster.refused(admit(2, "shed", 3, 2_000)), RefusalKind::Invalid);
    cluster.apply(admit(2, "barn", 3, 2_000));
}

#[test]
fn a_node_that_runs_something_stays_unless_it_is_lost_or_forced() {
    for (lost, force) in [(true, false), (false, true)] {
        let mut cluster = Cluster::new();
        let node = cluster.register("attic", Some("10.210.0.0/24"));
        cluster.put(spec("web", "demo"));
        cluster.settle();
        assert_eq!(cluster.refused(remove("attic", false, false)), RefusalKind::InUse);
        cluster.apply(remove("attic", lost, force));
        assert!(cluster.instances().is_empty() && cluster.workload("web").is_some());
        let again = Command::RegisterNode {
            node_id: node,
            name: "attic".parse().unwrap(),
            labels: BTreeMap::new(),
            inventory: inventory(None),
            at_ms: 9_000,
        };
        assert_eq!(cluster.refused(again), RefusalKind::NotFound, "it is no node any more");
        cluster.register("barn", Some("10.210.1.0/24"));
        cluster.settle();
        assert_eq!(cluster.only_instance().node_id, node_id("barn"));
    }
}

#[test]
fn a_workload_that_waits_for_a_removed_node_to_end_it_is_gone_with_it() {
    let mut cluster = Cluster::new();
    cluster.register("attic", Some("10.210.0.0/24"));
    cluster.put(spec("web", "demo"));
    cluster.settle();
    cluster.remove("web");
    cluster.apply(remove("attic", true, false));
    assert!(cluster.workload("web").is_none());
}

#[test]
fn volumes_keep_a_node_unless_they_are_given_up_and_those_in_use_always() {
    let mut cluster = Cluster::new();
    cluster.register("attic", Some("10.210.0.0/24"));
    let mut db = spec("db", "demo");
    db.mounts = vec!["data:/data".parse().unwrap()];
    cluster.put(db);
    cluster.settle();
    assert_eq!(cluster.refused(remove("attic", true, true)), RefusalKind::InUse);
    cluster.remove("db");
    cluster.settle();
    assert_eq!(cluster.refused(remove("attic", true, false)), RefusalKind::InUse);
    cluster.apply(remove("attic", true, true));
    assert!(crate::state::VolumeRow::all(&cluster.connection).unwrap().is_empty());
    assert!(cluster.story().iter().any(|line| line.contains("given up: data")), "{:#?}", cluster.story());
}

#[test]
fn tokens_have_a_limit_and_those_of_no_use_make_room() {
    let mut cluster = Cluster::new();
    let many = |number: usize| {
        let mut random = [0; 10];
        (random[0], random[1]) = ((number % 32) as u8, (number / 32) as u8);
        NewToken { id: TokenId::of(random), ..token(1, 1) }
    };
    for number in 0..MAX_TOKENS {
        cluster.apply(create(many(number)));
    }
    assert_eq!(cluster.refused(create(many(MAX_TOKENS))), RefusalKind::Full);
    assert_eq!(cluster.refused(create(many(0))), RefusalKind::Exists);
    cluster.apply(Command::RevokeToken { token_id: many(3).id, at_ms: 2_000 });
    cluster.apply(create(many(MAX_TOKENS)));
    assert_eq!(TokenRow::all(&cluster.connection).unwrap().len(), MAX_TOKENS);
    assert_eq!(cluster.refused(create(NewToken { uses: 0, ..token(9, 1) })), RefusalKind::Invalid);
}

#[test]
fn a_server_is_joining_from_when_it_was_let_in_until_it_has_told_what_it_is() {
    let mut cluster = Cluster::new();
    let joining = |cluster: &Cluster| {
        let rows = AdmissionRow::joining(&cluster.connection).unwrap();
        rows.iter().map(|row| row.name.to_string()).collect::<Vec<_>>().join(" ")
    };
    cluster.apply(create(token(1, 3)));
    cluster.apply(create(NewToken { role: MemberRole::Witness, ..token(2, 1) }));
    assert_eq!(joining(&cluster), "");
    for (name, key) in [("barn", 7), ("attic", 8), ("cellar", 9)] {
        cluster.apply(admit(1, name, key, 2_000));
    }
    cluster.apply(admit(2, "watch", 10, 2_000));
    assert_eq!(joining(&cluster), "attic barn cellar", "a witness runs nothing, and tells nothing");
    assert_eq!(cluster.register("barn", Some("10.210.0.0/24")), node_id("barn"));
    assert_eq!(joining(&cluster), "attic cellar");
    cluster.apply(remove("attic", true, false));
    assert_eq!(joining(&cluster), "cellar");
}
