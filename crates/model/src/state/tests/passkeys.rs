//! Passkeys: whose they are, what they open, and what ends it.

use super::cluster::Cluster;
use crate::{
    identity::{NewSession, NewUser, Rights, Role, UserChanges, UserName},
    passkey::{Backup, MAX_PASSKEYS, NewPasskey, PasskeyUse},
    second_factor::{AccessChanges, FactorProof, NewSecondFactor, ShownCode},
    state::{Command, PasskeyRow, RefusalKind, SessionRow, access_settings, query_standing},
    token::{Digest, TokenId},
};

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA";

fn name(text: &str) -> UserName {
    text.parse().unwrap()
}

fn id(number: u8) -> TokenId {
    TokenId::of([number; 10])
}

fn cluster_with(names: &[&str]) -> Cluster {
    let mut cluster = Cluster::new();
    for one in names {
        let user = NewUser { name: name(one), rights: Rights::all(), password: Some(HASH.parse().unwrap()) };
        cluster.apply(Command::CreateUser { user: Box::new(user), at_ms: 1 });
    }
    cluster
}

fn passkey(number: u8, user: &str) -> NewPasskey {
    NewPasskey {
        id: id(number),
        user: name(user),
        label: format!("key {number}"),
        domain: "home.lan".parse().unwrap(),
        credential: vec![number; 20].into(),
        handle: vec![7; 64].into(),
        key: vec![1; 40].into(),
        transports: 0,
        counter: 5,
        backup: Backup::Possible,
    }
}

fn put(passkey: NewPasskey) -> Command {
    Command::PutPasskey { passkey: Box::new(passkey), at_ms: 2 }
}

fn remove(user: &str, number: u8) -> Command {
    Command::RemovePasskey { name: name(user), passkey_id: id(number), at_ms: 9 }
}

fn open(session: u8, user: &str, shown: Option<(u8, u32)>) -> Command {
    let session = NewSession {
        id: id(session),
        secret: Digest([session; 32]),
        user: name(user),
        expires_at_ms: 100_000,
        idle_ms: 10_000,
        came_from: None,
        agent: String::new(),
    };
    let passkey = shown.map(|(number, counter)| PasskeyUse { passkey_id: id(number), counter, backup: Backup::Done });
    Command::OpenSession { session: Box::new(session), proof: None, passkey, at_ms: 7 }
}

#[test]
fn a_passkey_belongs_to_one_user_and_there_are_few() {
    let mut cluster = cluster_with(&["ann", "bob"]);
    assert_eq!(cluster.refused(put(passkey(1, "eve"))), RefusalKind::NotFound);
    cluster.apply(put(passkey(1, "ann")));
    assert_eq!(cluster.refused(put(passkey(1, "ann"))), RefusalKind::Exists);
    let stolen = NewPasskey { id: id(2), label: "mine".into(), user: name("bob"), ..passkey(1, "ann") };
    assert_eq!(cluster.refused(put(stolen)), RefusalKind::Exists, "a credential is known once, whoever brings it");
    let same_label = NewPasskey { label: "key 1".into(), ..passkey(2, "ann") };
    assert_eq!(cluster.refused(put(same_label.clone())), RefusalKind::Exists);
    cluster.apply(put(NewPasskey { user: name("bob"), ..same_label }));
    for wrong in [
        NewPasskey { label: String::new(), ..passkey(9, "ann") },
        NewPasskey { credential: vec![1; 15].into(), ..passkey(9, "ann") },
        NewPasskey { credential: vec![1; 1_024].into(), ..passkey(9, "ann") },
        NewPasskey { handle: vec![1; 63].into(), ..passkey(9, "ann") },
        NewPasskey { key: Vec::new().into(), ..passkey(9, "ann") },
        NewPasskey { key: vec![1; 2_201].into(), ..passkey(9, "ann") },
    ] {
        assert_eq!(cluster.refused(put(wrong.clone())), RefusalKind::Invalid, "{wrong:?}");
    }
    for number in 3..2 + MAX_PASSKEYS as u8 {
        cluster.apply(put(passkey(number, "ann")));
    }
    assert_eq!(cluster.refused(put(passkey(30, "ann"))), RefusalKind::Full);
    cluster.apply(remove("ann", 3));
    cluster.apply(put(passkey(30, "ann")));
    let disabled = UserChanges { disabled: Some(true), ..Default::default() };
    cluster.apply(Command::ChangeUser { name: name("bob"), changes: Box::new(disabled), keep: None, at_ms: 3 });
    assert_eq!(cluster.refused(put(passkey(40, "bob"))), RefusalKind::Stale);
}

#[test]
fn it_opens_sessions_until_it_is_removed_and_ends_them_with_it() {
    let mut cluster = cluster_with(&["ann", "bob"]);
    cluster.apply(put(passkey(1, "ann")));
    assert_eq!(cluster.refused(open(10, "bob", Some((1, 6)))), RefusalKind::Stale, "it is Ann's");
    assert_eq!(cluster.refused(open(10, "ann", Some((2, 6)))), RefusalKind::Stale, "there is none of that id");
    for counter in [0, 4, 5] {
        assert_eq!(cluster.refused(open(10, "ann", Some((1, counter)))), RefusalKind::Stale, "{counter}");
    }
    cluster.apply(open(10, "ann", Some((1, 6))));
    assert_eq!(
        cluster.refused(open(11, "ann", Some((1, 6)))),
        RefusalKind::Stale,
        "shown at two nodes, it counts once"
    );
    let row = PasskeyRow::by_id(&cluster.connection, &id(1)).unwrap().unwrap();
    assert_eq!((row.passkey.counter, row.passkey.backup, row.used_at_ms), (6, Backup::Done, Some(7)));
    cluster.apply(open(12, "ann", None));
    assert_eq!(cluster.refused(remove("bob", 1)), RefusalKind::NotFound);
    cluster.apply(remove("ann", 1));
    assert_eq!(cluster.refused(remove("ann", 1)), RefusalKind::NotFound);
    assert_eq!(cluster.refused(open(13, "ann", Some((1, 9)))), RefusalKind::Stale, "it was removed meanwhile");
    let left = SessionRow::of(&cluster.connection, &name("ann")).unwrap();
    assert_eq!(left.iter().map(|row| &row.session.id).collect::<Vec<_>>(), [&id(12)], "the password's session stays");
    // Nobody counts: it may say 0 for ever, and what counts once cannot stop.
    cluster.apply(put(NewPasskey { counter: 0, ..passkey(2, "ann") }));
    cluster.apply(open(20, "ann", Some((2, 0))));
    cluster.apply(open(21, "ann", Some((2, 0))));
    cluster.apply(open(22, "ann", Some((2, 3))));
    assert_eq!(cluster.refused(open(23, "ann", Some((2, 0)))), RefusalKind::Stale);
    cluster.apply(put(passkey(3, "bob")));
    cluster.apply(Command::RemoveUser { name: name("bob"), at_ms: 9 });
    assert_eq!(PasskeyRow::by_id(&cluster.connection, &id(3)).unwrap(), None, "it goes with its user");
}

#[test]
fn it_stands_for_the_second_factor_too() {
    let mut cluster = cluster_with(&["ann"]);
    let ask = AccessChanges { second_factor_for_admins: Some(true), ..Default::default() };
    cluster.apply(Command::ConfigureAccess { changes: ask, at_ms: 2 });
    cluster.apply(put(passkey(1, "ann")));
    let standing = query_standing(&cluster.connection, &name("ann")).unwrap().unwrap();
    assert_eq!(standing.row.rights.role, Role::Admin);
    assert!(standing.lacks_factor, "her password alone is not enough, whatever else she has");
    assert!(!standing.with_passkey().lacks_factor);
    let factor =
        NewSecondFactor { user: name("ann"), version: 7, sealed: vec![1; 60].into(), step: 100, recovery: Vec::new() };
    cluster.apply(Command::PutSecondFactor { factor: Box::new(factor), at_ms: 3 });
    assert_eq!(cluster.refused(open(10, "ann", None)), RefusalKind::Stale);
    cluster.apply(open(10, "ann", Some((1, 6))));
    assert_eq!(
        SessionRow::by_id(&cluster.connection, &id(10)).unwrap().unwrap().passkey,
        Some(id(1)),
        "no code is spent"
    );
    // A code does not mend a passkey that is refused.
    let Command::OpenSession { session, passkey, .. } = open(11, "ann", Some((1, 6))) else { unreachable!() };
    let proof = Some(FactorProof { version: 7, shown: ShownCode::Step { step: 101 } });
    let both = Command::OpenSession { session, proof, passkey, at_ms: 7 };
    assert_eq!(cluster.refused(both), RefusalKind::Stale);
}

#[test]
fn the_domain_is_said_and_taken_back() {
    let mut cluster = cluster_with(&[]);
    let say = |text: &str| Command::ConfigureAccess {
        changes: AccessChanges { passkey_domain: Some(text.into()), ..Default::default() },
        at_ms: 2,
    };
    cluster.apply(say("home.lan"));
    let asks = AccessChanges { second_factor_for_admins: Some(true), ..Default::default() };
    cluster.apply(Command::ConfigureAccess { changes: asks, at_ms: 2 });
    let settings = access_settings(&cluster.connection).unwrap();
    assert_eq!(settings.passkey_domain.map(|domain| domain.to_string()).as_deref(), Some("home.lan"));
    assert!(settings.second_factor_for_admins);
    for bad in ["192.0.2.1", "https://home.lan", "home.lan:7443", "Home.lan", "home.lan/"] {
        assert_eq!(cluster.refused(say(bad)), RefusalKind::Invalid, "{bad}");
    }
    cluster.apply(say(""));
    assert_eq!(access_settings(&cluster.connection).unwrap().passkey_domain, None);
}
