//! Users, sessions and API tokens, and what the audit trail tells of commands.

use uuid::Uuid;

use super::cluster::{Cluster, spec};
use crate::{
    identity::{
        Author, MAX_API_TOKENS, MAX_SESSIONS, NewApiToken, NewSession, NewUser, Rights, Role, UserChanges, UserName,
    },
    ids::RequestId,
    state::{
        ApiTokenRow, AuditQuery, AuditRow, Command, PowerAction, PutMode, RefusalKind, Request, SessionRow, UserRow,
        apply_request,
    },
    token::{Digest, TokenId},
};

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA";
const OTHER: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$b3RoZXI";

fn name(text: &str) -> UserName {
    text.parse().unwrap()
}

fn rights(role: Role, grants: &[&str]) -> Rights {
    Rights { role, grants: grants.iter().map(|name| name.parse().unwrap()).collect() }
}

fn create(user: &str, rights: Rights, password: Option<&str>) -> Command {
    let user = NewUser { name: name(user), rights, password: password.map(|hash| hash.parse().unwrap()) };
    Command::CreateUser { user: Box::new(user), at_ms: 1 }
}

fn change(user: &str, changes: UserChanges, keep: Option<&TokenId>) -> Command {
    Command::ChangeUser { name: name(user), changes: Box::new(changes), keep: keep.cloned(), at_ms: 2 }
}

fn id(number: u32) -> TokenId {
    let bytes = number.to_be_bytes();
    TokenId::of([bytes[0], bytes[1], bytes[2] >> 4, bytes[2] & 15, bytes[3] >> 4, bytes[3] & 15, 0, 0, 0, 0])
}

fn session(number: u32, user: &str) -> NewSession {
    NewSession {
        id: id(number),
        secret: Digest([number as u8; 32]),
        user: name(user),
        expires_at_ms: 100_000,
        idle_ms: 10_000,
        came_from: Some("192.0.2.1".into()),
        agent: "Firefox".into(),
    }
}

fn open(number: u32, user: &str, at_ms: i64) -> Command {
    Command::OpenSession { session: Box::new(session(number, user)), proof: None, passkey: None, at_ms }
}

fn token(number: u32, user: &str, rights: Rights) -> Command {
    let token = NewApiToken {
        id: id(number),
        secret: Digest([number as u8; 32]),
        user: name(user),
        label: "ci".into(),
        rights,
        expires_at_ms: 50_000,
    };
    Command::CreateApiToken { token: Box::new(token), at_ms: 1 }
}

fn sessions(cluster: &Cluster, user: &str) -> Vec<TokenId> {
    SessionRow::of(&cluster.connection, &name(user)).unwrap().into_iter().map(|row| row.session.id).collect()
}

#[test]
fn the_last_admin_stays_and_the_first_user_too() {
    let mut cluster = Cluster::new();
    // Before the first user has a row, the first password lets one in.
    cluster.apply(create("ann", Rights::all(), Some(HASH)));
    cluster.apply(change("ann", UserChanges { role: Some(Role::Viewer), ..Default::default() }, None));
    assert_eq!(cluster.refused(create("admin", rights(Role::Viewer, &[]), Some(HASH))), RefusalKind::Invalid);
    assert_eq!(cluster.refused(create("admin", Rights::all(), None)), RefusalKind::Invalid);
    cluster.apply(create("admin", Rights::all(), Some(HASH)));
    assert_eq!(cluster.refused(create("admin", Rights::all(), Some(HASH))), RefusalKind::Exists);

    let disable = |user| change(user, UserChanges { disabled: Some(true), ..Default::default() }, None);
    let demote = |user| change(user, UserChanges { role: Some(Role::Operator), ..Default::default() }, None);
    for refused in [disable("admin"), demote("admin"), Command::RemoveUser { name: name("admin"), at_ms: 3 }] {
        assert_eq!(cluster.refused(refused), RefusalKind::InUse);
    }
    cluster.apply(change("ann", UserChanges { role: Some(Role::Admin), ..Default::default() }, None));
    cluster.apply(disable("admin"));
    for refused in [disable("ann"), demote("ann"), Command::RemoveUser { name: name("ann"), at_ms: 3 }] {
        assert_eq!(cluster.refused(refused), RefusalKind::InUse);
    }
    // A robot with the role of an admin cannot sign in, and does not count.
    cluster.apply(create("robot", Rights::all(), None));
    assert_eq!(cluster.refused(disable("ann")), RefusalKind::InUse);
    assert_eq!(cluster.refused(Command::RemoveUser { name: name("nobody"), at_ms: 3 }), RefusalKind::NotFound);
    assert_eq!(cluster.refused(disable("nobody")), RefusalKind::NotFound);
}

#[test]
fn a_session_ends_with_time_with_its_user_and_with_the_password() {
    let mut cluster = Cluster::new();
    // The first user has sessions before its row.
    cluster.apply(open(1, "admin", 0));
    assert_eq!(cluster.refused(open(2, "ann", 0)), RefusalKind::NotFound);
    cluster.apply(create("ann", rights(Role::Viewer, &[]), Some(HASH)));
    cluster.apply(open(2, "ann", 0));
    cluster.apply(open(3, "ann", 5_000));
    assert_eq!(cluster.refused(open(3, "ann", 5_000)), RefusalKind::Exists);
    assert_eq!(sessions(&cluster, "ann"), [id(3), id(2)]);
    let row = SessionRow::by_id(&cluster.connection, &id(3)).unwrap().unwrap();
    assert!(!row.has_ended(14_999) && row.has_ended(15_000));

    cluster.apply(Command::NoteUses { sessions: vec![(id(3), 14_000), (id(9), 1)], tokens: vec![] });
    cluster.apply(Command::NoteUses { sessions: vec![(id(3), 13_000)], tokens: vec![] });
    let row = SessionRow::by_id(&cluster.connection, &id(3)).unwrap().unwrap();
    assert!(!row.has_ended(23_999) && row.has_ended(24_000), "a late word does not undo a newer one");
    // Who comes later sweeps what has ended.
    cluster.apply(open(4, "ann", 20_000));
    assert_eq!(sessions(&cluster, "ann"), [id(4), id(3)]);
    assert!(sessions(&cluster, "admin").is_empty());

    let password = UserChanges { password: Some(OTHER.parse().unwrap()), ..Default::default() };
    cluster.apply(change("ann", password, Some(&id(4))));
    assert_eq!(sessions(&cluster, "ann"), [id(4)]);
    cluster.apply(change("ann", UserChanges { disabled: Some(true), ..Default::default() }, Some(&id(4))));
    assert!(sessions(&cluster, "ann").is_empty());
    assert_eq!(cluster.refused(open(5, "ann", 20_000)), RefusalKind::Stale);
    cluster.apply(change("ann", UserChanges { disabled: Some(false), ..Default::default() }, None));
    cluster.apply(open(5, "ann", 20_000));
    cluster.apply(Command::EndSession { session_id: id(5), at_ms: 1 });
    assert!(sessions(&cluster, "ann").is_empty());

    let mut long = session(6, "ann");
    long.agent = "x".repeat(101);
    let long = Command::OpenSession { session: Box::new(long), proof: None, passkey: None, at_ms: 1 };
    assert_eq!(cluster.refused(long), RefusalKind::Invalid);
}

#[test]
fn sessions_of_a_user_are_bounded_and_the_unused_make_room() {
    let mut cluster = Cluster::new();
    for number in 0..MAX_SESSIONS as u32 + 5 {
        cluster.apply(open(number, "admin", i64::from(number)));
    }
    let open = sessions(&cluster, "admin");
    assert_eq!((open.len(), &open[0]), (MAX_SESSIONS, &id(MAX_SESSIONS as u32 + 4)));
    assert!(!open.contains(&id(4)) && open.contains(&id(5)));
}

#[test]
fn a_token_may_at_most_what_its_owner_may_and_goes_with_them() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(token(1, "ann", Rights::default())), RefusalKind::NotFound);
    cluster.apply(create("ann", rights(Role::Viewer, &["shop"]), None));
    assert_eq!(cluster.refused(token(1, "ann", rights(Role::Operator, &[]))), RefusalKind::Invalid);
    assert_eq!(cluster.refused(token(1, "ann", rights(Role::Viewer, &["blog"]))), RefusalKind::Invalid);
    cluster.apply(token(1, "ann", rights(Role::Viewer, &["shop"])));
    assert_eq!(cluster.refused(token(1, "ann", Rights::default())), RefusalKind::Exists);
    cluster.apply(Command::NoteUses { sessions: vec![], tokens: vec![(id(1), 7)] });
    let row = ApiTokenRow::by_id(&cluster.connection, &id(1)).unwrap().unwrap();
    assert_eq!((row.used_at_ms, row.has_expired(49_999), row.has_expired(50_000)), (Some(7), false, true));
    cluster.apply(Command::RevokeApiToken { token_id: id(1), at_ms: 2 });
    assert_eq!(cluster.refused(Command::RevokeApiToken { token_id: id(1), at_ms: 2 }), RefusalKind::NotFound);

    for number in 0..MAX_API_TOKENS as u32 {
        cluster.apply(token(100 + number, "ann", Rights::default()));
    }
    assert_eq!(cluster.refused(token(1, "ann", Rights::default())), RefusalKind::Full);
    cluster.apply(Command::RemoveUser { name: name("ann"), at_ms: 3 });
    assert!(ApiTokenRow::all(&cluster.connection).unwrap().is_empty());
    assert!(UserRow::all(&cluster.connection).unwrap().is_empty());
}

/// Applies commands as somebody asks for them, and gives the trail, the oldest first.
struct Trail(Cluster, u128);

impl Trail {
    fn ask(&mut self, who: &str, command: Command) -> bool {
        self.1 += 1;
        let author = Author {
            name: who.into(),
            way: "session s7mqzt3wpa".into(),
            came_from: Some("192.0.2.1".into()),
            at_ms: self.1 as i64,
        };
        let request = Request::new(RequestId(Uuid::from_u128(self.1)), command).with_author(Some(author));
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        apply_request(&self.0.connection, self.1 as u64, &request).unwrap().is_ok()
    }

    fn rows(&self, query: AuditQuery) -> Vec<AuditRow> {
        let mut rows = AuditRow::query(&self.0.connection, &AuditQuery { limit: 100, ..query }).unwrap();
        rows.reverse();
        rows
    }

    fn last(&self) -> AuditRow {
        self.rows(AuditQuery::default()).pop().unwrap()
    }
}

#[test]
fn the_trail_tells_who_did_what_and_what_became_of_it() {
    let mut trail = Trail(Cluster::new(), 0);
    let put = |trail: &mut Trail, image: &str, value: &str| {
        let mut spec = spec("web", image);
        spec.env.insert("PASSWORD".into(), value.into());
        let mode = PutMode::Replace { if_generation: None };
        let command = trail.0.put_command(spec, mode);
        assert!(trail.ask("ann", command));
    };
    put(&mut trail, "demo:1", "hunter2");
    let row = trail.last();
    assert_eq!((row.action.as_str(), row.subject.as_str(), row.before), ("put_workload", "workload/web", None));
    assert_eq!((row.author.name.as_str(), row.author.came_from.as_deref()), ("ann", Some("192.0.2.1")));
    assert!(row.after.unwrap().contains("demo:1"));
    put(&mut trail, "demo:2", "hunter3");
    let row = trail.last();
    assert_eq!(row.before.as_deref(), Some(r#"{"env":{"PASSWORD":"***"},"image":"docker.io/library/demo:1"}"#));
    assert_eq!(row.after.as_deref(), Some(r#"{"env":{"PASSWORD":"***"},"image":"docker.io/library/demo:2"}"#));
    let stop = Command::PowerWorkload { name: "web".parse().unwrap(), action: PowerAction::Stop, at_ms: 3 };
    assert!(trail.ask("bob", stop));
    let row = trail.last();
    assert_eq!((row.action.as_str(), row.before.as_deref()), ("stop_workload", Some(r#"{"desired":"running"}"#)));
    let none = Command::RemoveWorkload { name: "none".parse().unwrap(), at_ms: 4 };
    assert!(!trail.ask("bob", none), "a refusal is no change");
    assert!(trail.ask("bob", create("carl", rights(Role::Viewer, &[]), Some(HASH))));
    assert!(trail.ask(
        "bob",
        change("carl", UserChanges { password: Some(OTHER.parse().unwrap()), ..Default::default() }, None)
    ));
    assert_eq!(trail.last().action, "change_password");
    let note = Command::NoteAction { action: "exec".into(), subject: "instance/web-0".into(), detail: "sh".into() };
    assert!(trail.ask("ann", note));
    assert_eq!(trail.last().after.as_deref(), Some(r#"{"detail":"sh"}"#));

    let all = trail.rows(AuditQuery::default());
    let text = format!("{all:?}");
    assert!(!text.contains("hunter") && !text.contains("argon2"), "{text}");
    let actions: Vec<&str> = all.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["put_workload", "put_workload", "stop_workload", "create_user", "change_password", "exec"]);
    let of = |query| trail.rows(query).len();
    assert_eq!(of(AuditQuery { user: Some("ann".into()), ..Default::default() }), 3);
    assert_eq!(of(AuditQuery { grep: Some("DEMO:1".into()), ..Default::default() }), 2);
    assert_eq!(of(AuditQuery { grep: Some("%".into()), ..Default::default() }), 0, "it is a text, no pattern");
    assert_eq!(of(AuditQuery { since_ms: Some(4), ..Default::default() }), 3);
    assert_eq!(of(AuditQuery { before: Some(all[1].seq), ..Default::default() }), 1);
}

#[test]
fn what_the_trail_holds_is_bounded() {
    let mut trail = Trail(Cluster::new(), 0);
    let mut spec = spec("web", "demo");
    spec.command = vec!["\"x\u{e4}".repeat(5_000)];
    let command = trail.0.put_command(spec, PutMode::Create);
    assert!(trail.ask("ann", command));
    let after = trail.last().after.unwrap();
    assert!(after.len() < 4_000 && serde_json::from_str::<serde_json::Value>(&after).is_ok());
    trail.0.connection.execute("UPDATE audit SET seq = 19999", []).unwrap();
    trail.0.connection.execute("UPDATE sqlite_sequence SET seq = 20030 WHERE name = 'audit'", []).unwrap();
    let note = || Command::NoteAction { action: "a".into(), subject: "b".into(), detail: String::new() };
    for _ in 0..10 {
        assert!(trail.ask("ann", note()));
    }
    assert_eq!(trail.rows(AuditQuery::default()).len(), 11, "only what is too old goes");
    trail.0.connection.execute("UPDATE audit SET seq = 7 WHERE seq = 19999", []).unwrap();
    for _ in 0..64 {
        assert!(trail.ask("ann", note()));
    }
    assert!(trail.rows(AuditQuery::default()).iter().all(|row| row.seq > 10_000));
}

#[test]
fn what_nobody_asked_for_is_not_in_the_trail() {
    let mut cluster = Cluster::new();
    let command = cluster.put_command(spec("web", "demo"), PutMode::Create);
    let request = Request::new(RequestId(Uuid::from_u128(1)), command);
    apply_request(&cluster.connection, 1, &request).unwrap().unwrap();
    assert!(AuditRow::query(&cluster.connection, &AuditQuery { limit: 9, ..Default::default() }).unwrap().is_empty());
}
