//! Second factors: a code counts once, on whichever node it is shown.

use super::cluster::Cluster;
use crate::{
    identity::{NewSession, NewUser, Rights, UserChanges, UserName},
    second_factor::{AccessChanges, FactorProof, NewSecondFactor, RECOVERY_CODES, ShownCode},
    state::{Command, RefusalKind, SecondFactorRow, query_standing},
    token::{Digest, TokenId},
};

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA";

fn ann() -> UserName {
    "ann".parse().unwrap()
}

fn cluster_with_ann() -> Cluster {
    let mut cluster = Cluster::new();
    let user = NewUser { name: ann(), rights: Rights::all(), password: Some(HASH.parse().unwrap()) };
    cluster.apply(Command::CreateUser { user: Box::new(user), at_ms: 1 });
    cluster
}

fn factor(version: u64) -> NewSecondFactor {
    let recovery = (0..RECOVERY_CODES as u8).map(|code| Digest([code; 32])).collect();
    NewSecondFactor { user: ann(), version, sealed: vec![1; 60].into(), step: 100, recovery }
}

fn turn_on(factor: NewSecondFactor) -> Command {
    Command::PutSecondFactor { factor: Box::new(factor), at_ms: 2 }
}

fn turn_off(proof: Option<FactorProof>) -> Command {
    Command::RemoveSecondFactor { name: ann(), proof, at_ms: 3 }
}

fn step(version: u64, step: u64) -> Option<FactorProof> {
    Some(FactorProof { version, shown: ShownCode::Step { step } })
}

fn recovery(version: u64, code: u8) -> Option<FactorProof> {
    Some(FactorProof { version, shown: ShownCode::Recovery { code: Digest([code; 32]) } })
}

fn open(number: u8, proof: Option<FactorProof>) -> Command {
    let session = NewSession {
        id: TokenId::of([number; 10]),
        secret: Digest([number; 32]),
        user: ann(),
        expires_at_ms: 100_000,
        idle_ms: 10_000,
        came_from: None,
        agent: String::new(),
    };
    Command::OpenSession { session: Box::new(session), proof, passkey: None, at_ms: 5 }
}

#[test]
fn a_code_opens_one_session_and_none_opens_without() {
    let mut cluster = cluster_with_ann();
    cluster.apply(open(1, None));
    cluster.apply(turn_on(factor(7)));
    assert_eq!(cluster.refused(turn_on(factor(8))), RefusalKind::Exists);
    assert_eq!(cluster.refused(open(2, None)), RefusalKind::Stale, "a node that knew of none yet is refused");
    for spent in [step(7, 100), step(7, 99), step(6, 200), recovery(6, 1), recovery(7, 77)] {
        assert_eq!(cluster.refused(open(2, spent.clone())), RefusalKind::Stale, "{spent:?}");
    }
    cluster.apply(open(2, step(7, 101)));
    assert_eq!(
        cluster.refused(open(3, step(7, 101))),
        RefusalKind::Stale,
        "shown at two nodes at once, it counts once"
    );
    cluster.apply(open(3, recovery(7, 4)));
    assert_eq!(cluster.refused(open(4, recovery(7, 4))), RefusalKind::Stale);
    cluster.apply(open(4, step(7, 102)));
    let row = SecondFactorRow::of(&cluster.connection, &ann()).unwrap().unwrap().0;
    assert_eq!((row.step, row.recovery.len()), (102, RECOVERY_CODES - 1));
    // A refused sign-in spends nothing.
    assert_eq!(cluster.refused(open(4, recovery(7, 5))), RefusalKind::Exists);
}

#[test]
fn it_is_turned_off_by_a_code_by_an_admin_and_with_its_user() {
    let mut cluster = cluster_with_ann();
    assert_eq!(cluster.refused(turn_off(None)), RefusalKind::NotFound);
    cluster.apply(turn_on(factor(7)));
    assert_eq!(cluster.refused(turn_off(step(7, 100))), RefusalKind::Stale);
    cluster.apply(turn_off(step(7, 101)));
    cluster.apply(turn_on(factor(8)));
    assert_eq!(cluster.refused(open(1, step(7, 101))), RefusalKind::Stale, "codes of the one before are of no use");
    cluster.apply(turn_off(None));
    cluster.apply(turn_on(factor(9)));
    cluster.apply(Command::RemoveUser { name: ann(), at_ms: 9 });
    assert_eq!(SecondFactorRow::of(&cluster.connection, &ann()).unwrap(), None);
    assert_eq!(cluster.refused(turn_on(factor(10))), RefusalKind::NotFound);
    let mut large = factor(1);
    large.sealed = vec![0; 257].into();
    assert_eq!(cluster.refused(turn_on(large)), RefusalKind::Invalid);
    let mut many = factor(1);
    many.recovery.push(Digest([99; 32]));
    assert_eq!(cluster.refused(turn_on(many)), RefusalKind::Invalid);
}

#[test]
fn only_admins_with_a_password_are_asked_for_one() {
    let mut cluster = cluster_with_ann();
    let lacks = |cluster: &Cluster, name: &str| {
        query_standing(&cluster.connection, &name.parse().unwrap()).unwrap().unwrap().lacks_factor
    };
    let user = NewUser { name: "robot".parse().unwrap(), rights: Rights::all(), password: None };
    cluster.apply(Command::CreateUser { user: Box::new(user), at_ms: 1 });
    assert!(!lacks(&cluster, "ann"));
    let ask = |wanted| Command::ConfigureAccess {
        changes: AccessChanges { second_factor_for_admins: Some(wanted), ..Default::default() },
        at_ms: 2,
    };
    cluster.apply(ask(true));
    assert!(lacks(&cluster, "ann") && !lacks(&cluster, "robot"));
    cluster.apply(Command::ConfigureAccess { changes: AccessChanges::default(), at_ms: 2 });
    cluster.apply(turn_on(factor(7)));
    assert!(!lacks(&cluster, "ann"));
    cluster.apply(turn_off(None));
    let viewer = UserChanges { role: Some(crate::identity::Role::Viewer), ..Default::default() };
    assert!(lacks(&cluster, "ann"));
    cluster.apply(Command::ChangeUser { name: ann(), changes: Box::new(viewer), keep: None, at_ms: 4 });
    assert!(!lacks(&cluster, "ann"));
    cluster.apply(ask(false));
}
