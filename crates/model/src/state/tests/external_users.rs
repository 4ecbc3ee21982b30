//! Users whom a provider signs in.

use super::cluster::Cluster;
use crate::{
    identity::{ExternalUser, NewSession, NewUser, Rights, Role, UserChanges, UserName},
    state::{Command, ExternalUserRow, RefusalKind, SessionRow, UserRow},
    token::{Digest, TokenId},
};

fn accept(subject: &str, name: Option<&str>, role: Option<Role>) -> Command {
    let name = name.map(|name| name.parse().unwrap());
    let user = ExternalUser { issuer: "https://id.lan".into(), subject: subject.into(), name, role };
    Command::AcceptUser { user: Box::new(user), at_ms: 5 }
}

fn user(cluster: &Cluster, name: &str) -> Option<UserRow> {
    UserRow::named(&cluster.connection, &name.parse::<UserName>().unwrap()).unwrap()
}

fn open(cluster: &mut Cluster, user: &str) {
    let session = NewSession {
        id: TokenId::of([1; 10]),
        secret: Digest([1; 32]),
        user: user.parse().unwrap(),
        expires_at_ms: 100_000,
        idle_ms: 10_000,
        came_from: None,
        agent: String::new(),
    };
    cluster.apply(Command::OpenSession { session: Box::new(session), proof: None, passkey: None, at_ms: 6 });
}

#[test]
fn the_role_follows_the_groups_and_the_name_stays() {
    let mut cluster = Cluster::new();
    cluster.apply(accept("1f", Some("eve"), Some(Role::Operator)));
    let eve = user(&cluster, "eve").unwrap();
    assert_eq!((eve.rights.role, eve.password, eve.disabled), (Role::Operator, None, false));
    let grants = UserChanges { grants: Some(["shop".parse().unwrap()].into()), ..Default::default() };
    cluster.apply(Command::ChangeUser { name: eve.name.clone(), changes: Box::new(grants), keep: None, at_ms: 6 });
    cluster.apply(accept("1f", Some("eva"), Some(Role::Admin)));
    let eve = user(&cluster, "eve").unwrap();
    assert_eq!((eve.rights.role, eve.rights.grants.len()), (Role::Admin, 1), "what an admin gave stays");
    assert!(user(&cluster, "eva").is_none());
    let known = ExternalUserRow::user_of(&cluster.connection, "https://id.lan", "1f").unwrap();
    assert_eq!(known.unwrap(), eve.name);
    assert_eq!(ExternalUserRow::user_of(&cluster.connection, "https://other.lan", "1f").unwrap(), None);

    // Whom the groups give nothing any more is out, and looks at most.
    open(&mut cluster, "eve");
    cluster.apply(accept("1f", None, None));
    assert_eq!(user(&cluster, "eve").unwrap().rights.role, Role::Viewer);
    assert!(SessionRow::of(&cluster.connection, &eve.name).unwrap().is_empty());
    let disable = UserChanges { disabled: Some(true), ..Default::default() };
    cluster.apply(Command::ChangeUser { name: eve.name.clone(), changes: Box::new(disable), keep: None, at_ms: 7 });
    assert_eq!(cluster.refused(accept("1f", None, Some(Role::Admin))), RefusalKind::Stale);
    cluster.apply(Command::RemoveUser { name: eve.name.clone(), at_ms: 8 });
    assert_eq!(ExternalUserRow::user_of(&cluster.connection, "https://id.lan", "1f").unwrap(), None);
}

#[test]
fn nobody_is_taken_over_by_their_name() {
    let mut cluster = Cluster::new();
    let ann = NewUser { name: "ann".parse().unwrap(), rights: Rights::all(), password: None };
    cluster.apply(Command::CreateUser { user: Box::new(ann), at_ms: 1 });
    for name in ["ann", "admin"] {
        assert_eq!(cluster.refused(accept("2f", Some(name), Some(Role::Viewer))), RefusalKind::Exists, "{name}");
    }
    assert_eq!(cluster.refused(accept("2f", None, Some(Role::Viewer))), RefusalKind::Invalid);
    assert_eq!(cluster.refused(accept("2f", Some("eve"), None)), RefusalKind::Invalid, "no group, no user");
    assert_eq!(cluster.refused(accept("", Some("eve"), Some(Role::Viewer))), RefusalKind::Invalid);
    assert_eq!(cluster.refused(accept(&"x".repeat(1_025), Some("eve"), Some(Role::Viewer))), RefusalKind::Invalid);
    cluster.apply(accept("2f", Some("eve"), Some(Role::Viewer)));
    assert_eq!(cluster.refused(accept("3f", Some("eve"), Some(Role::Admin))), RefusalKind::Exists);
}
