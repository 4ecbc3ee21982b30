//! Several members on loopback, over their real transport.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::{ChangeMembers, RaftMetrics};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{joining_as, name, put, token};
use crate::{
    consensus::{
        ClusterStatus, Files, Handle, Opened, ProposeError, adopt,
        changes::{Changed, Turn},
        open,
        types::{FOUNDER, Member, MemberId, Role},
    },
    enroll::{JoinError, Keys, Token, join},
};
use toft_model::{
    ids::NodeId,
    state::{Command, WorkloadRow},
};
use uuid::Uuid;

pub(crate) struct Node {
    folder: TempDir,
    pub(crate) member: Member,
    pub(crate) handle: Handle,
    authority: [u8; 32],
    tasks: Vec<JoinHandle<()>>,
    cancel: CancellationToken,
}

fn member(number: u128, address: &str, role: Role) -> Member {
    Member {
        node_id: NodeId(Uuid::from_u128(number)),
        name: name(&format!("box-{number}")),
        address: address.into(),
        role,
        ..Member::default()
    }
}

async fn start(folder: TempDir, listener: TcpListener, member: Member) -> Node {
    start_deaf(folder, listener, member, Duration::ZERO).await
}

/// Starts one that others reach only after a while, though it reaches them at once.
async fn start_deaf(folder: TempDir, listener: TcpListener, member: Member, deaf: Duration) -> Node {
    let keys = Keys::load_or_make(&folder.path().join("cluster"), FOUNDER).unwrap();
    let authority = keys.authority_hash().unwrap();
    let opened = open(&Files::under(folder.path()), member.clone(), keys.transport().clone()).await.unwrap();
    let Opened { handle, task, door } = opened;
    let cancel = CancellationToken::new();
    let serving = door.serve(listener, keys.admissions(handle.clone(), Arc::default()), vec![FOUNDER], cancel.clone());
    let door = async move {
        tokio::time::sleep(deaf).await;
        serving.await
    };
    Node { folder, member, handle, authority, tasks: vec![tokio::spawn(task), tokio::spawn(door)], cancel }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

impl Node {
    pub(crate) async fn found(number: u128) -> Self {
        let (listener, address) = listen().await;
        start(tempfile::tempdir().unwrap(), listener, member(number, &address, Role::Server)).await
    }

    pub(crate) async fn joining(number: u128, role: Role, through: &Self) -> Self {
        let (listener, address) = listen().await;
        let folder = tempfile::tempdir().unwrap();
        let member = member(number, &address, role);
        enter(folder.path(), &member, through).await.unwrap();
        start(folder, listener, member).await
    }

    /// Ends it as a crash would, but for the files, which are closed.
    pub(crate) async fn stop(self) -> (TempDir, Member) {
        self.cancel.cancel();
        drop(self.handle);
        for task in self.tasks {
            tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
        }
        (self.folder, self.member)
    }

    async fn again((folder, member): (TempDir, Member)) -> Self {
        let listener = TcpListener::bind(&member.address).await.unwrap();
        start(folder, listener, member).await
    }

    async fn put(&self, name: &str) -> Result<(), ProposeError> {
        self.handle.propose(put(name)).await.map(drop)
    }

    async fn names(&self) -> Vec<String> {
        self.handle.catch_up().await.unwrap();
        let rows = self.handle.read(WorkloadRow::all).await.unwrap();
        rows.into_iter().map(|row| row.spec.name.to_string()).collect()
    }

    pub(crate) async fn until(&self, what: &str, is: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        for _ in 0..600 {
            let status = self.handle.status();
            if is(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}: {:#?}", self.handle.status());
    }
}

async fn enter(folder: &Path, member: &Member, through: &Node) -> Result<MemberId, JoinError> {
    let token = token(&through.handle, through.authority, member.role).await;
    let joined = join(joining_as(member, &through.member.address, &token), &folder.join("cluster")).await?;
    adopt(&Files::under(folder), &joined.identity).unwrap();
    Ok(joined.identity.member_id)
}

pub(crate) fn voters(status: &ClusterStatus) -> usize {
    status.members.iter().filter(|member| member.votes).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_becomes_three_and_any_of_them_may_go() {
    let one = Node::found(1).await;
    one.put("early").await.unwrap();
    let two = Node::joining(2, Role::Server, &one).await;
    one.until("two members, one voter", |status| status.members.len() == 2 && voters(status) == 1).await;
    assert_eq!(two.names().await, ["early"]);
    two.put("through-two").await.unwrap();
    let rows = two.handle.read(WorkloadRow::all).await.unwrap();
    assert_eq!(rows.len(), 2, "whoever wrote here reads it here");
    assert_eq!(one.names().await, ["early", "through-two"]);

    // Who is not the leader sends a joiner on to it.
    let three = Node::joining(3, Role::Witness, &two).await;
    for node in [&one, &two, &three] {
        node.until("three voters", |status| voters(status) == 3).await;
    }
    three.put("through-three").await.unwrap();

    let stopped = one.stop().await;
    two.put("without-one").await.unwrap();
    assert_eq!(three.names().await, ["early", "through-three", "through-two", "without-one"]);
    let one = Node::again(stopped).await;
    assert_eq!(one.names().await, two.names().await);

    // Without a majority nothing is written, but what is there is still read.
    let (two, three) = (two.stop().await, three.stop().await);
    assert!(one.handle.catch_up().await.is_err());
    let asked = Instant::now();
    let refused = one.put("never").await;
    assert!(matches!(refused, Err(ProposeError::NoLeader)), "{refused:?}");
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    let asked = Instant::now();
    assert!(one.handle.catch_up().await.is_err());
    assert!(matches!(one.put("never").await, Err(ProposeError::NoLeader)));
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody waits for what is known: {:?}", asked.elapsed());
    assert_eq!(one.handle.read(WorkloadRow::all).await.unwrap().len(), 4);
    let two = Node::again(two).await;
    two.put("again").await.unwrap();
    assert_eq!(one.names().await.len(), 5);
    let three = Node::again(three).await;
    assert_eq!(three.names().await.len(), 5);
    for node in [one, two, three] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_and_is_reached_late_leaves_the_leader_alone() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    let three = Node::joining(3, Role::Server, &one).await;
    one.until("three voters", |status| voters(status) == 3).await;
    let term = one.handle.status().term;
    let (folder, member) = three.stop().await;
    one.put("meanwhile").await.unwrap();
    let listener = TcpListener::bind(&member.address).await.unwrap();
    let three = start_deaf(folder, listener, member, Duration::from_millis(1_700)).await;
    three
        .until("it has what was written without it", |status| status.applied_index >= one.handle.status().applied_index)
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for node in [&one, &two, &three] {
        assert_eq!(
            (node.handle.status().leader, node.handle.status().term),
            (Some(FOUNDER), term),
            "the same leader all the time"
        );
    }
    for node in [one, two, three] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_vote_and_answers_late_is_told_everything() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    one.until("two members, one voter", |status| status.members.len() == 2 && voters(status) == 1).await;
    let (folder, member) = two.stop().await;
    let listener = TcpListener::bind(&member.address).await.unwrap();
    // Its socket takes calls at once, and they are answered after several heartbeats.
    let two = start_deaf(folder, listener, member, Duration::from_millis(900)).await;
    for number in 0..12 {
        one.put(&format!("meanwhile-{number}")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let end = one.handle.status().applied_index;
    two.until("it has everything", |status| status.applied_index >= end).await;
    let rows = two.handle.read(WorkloadRow::all).await.unwrap();
    assert_eq!(rows.len(), 12);
    for node in [one, two] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_do_not_vote_miss_nothing_whoever_leads() {
    const MEMBERS: u128 = 18;
    const WRITES: usize = 150;
    let mut nodes = vec![Node::found(1).await];
    for number in 2..=MEMBERS {
        nodes.push(Node::joining(number, Role::Server, &nodes[0]).await);
    }
    nodes[0].until("five voters", |status| voters(status) == 5).await;
    // The newest do not vote. One is away for a while, and then the leader goes.
    let mut away = None;
    for number in 0..WRITES {
        match number {
            30 => away = Some(nodes.pop().unwrap().stop().await),
            60 => nodes.push(Node::again(away.take().unwrap()).await),
            100 => away = Some(nodes.remove(0).stop().await),
            _ => {}
        }
        // Some come one after another, and some together.
        let name = format!("w{number:03}");
        if number % 10 < 5 {
            nodes[0].put(&name).await.unwrap();
        } else if number % 10 == 5 {
            let names: Vec<String> = (number..number + 5).map(|number| format!("w{number:03}")).collect();
            let outcomes = futures_util::future::join_all(names.iter().map(|name| nodes[0].put(name))).await;
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        }
    }
    nodes.push(Node::again(away.unwrap()).await);
    let expected: Vec<String> = (0..WRITES).map(|number| format!("w{number:03}")).collect();
    let end = nodes[0].handle.status().applied_index;
    for node in &nodes {
        node.until("it has everything", |status| status.applied_index >= end).await;
        let rows = node.handle.read(WorkloadRow::all).await.unwrap();
        let names: Vec<String> = rows.into_iter().map(|row| row.spec.name.to_string()).collect();
        assert_eq!(names, expected, "{}", node.member.name);
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_do_not_vote_are_called_once_in_a_round() {
    const MEMBERS: u128 = 18;
    const ROUND: Duration = Duration::from_millis(18);
    let mut nodes = vec![Node::found(1).await];
    for number in 2..=MEMBERS {
        nodes.push(Node::joining(number, Role::Server, &nodes[0]).await);
    }
    nodes[0].until("five voters", |status| voters(status) == 5).await;
    let (leader, told) = (&nodes[0].handle, &nodes[17].handle);
    assert!(!leader.status().members.iter().any(|member| member.member == nodes[17].member && member.votes));
    let calls = async || {
        let end = leader.status().last_index;
        nodes[17].until("it has everything", |status| status.applied_index >= end).await;
        told.calls_of_leaders()
    };

    // A change after the other: each is told in the next round, with what came meanwhile.
    let (before, begun) = (calls().await, Instant::now());
    for number in 0..100 {
        nodes[0].put(&format!("busy-{number}")).await.unwrap();
    }
    let took = begun.elapsed();
    let made = calls().await - before;
    let most = (took.as_micros() / ROUND.as_micros()) as u64 + 5;
    assert!(made <= most, "{made} calls, not {most} at most, in {took:?}");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_before_anything_was_written_is_not_taken_for_the_founder() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    let three = Node::joining(3, Role::Server, &one).await;
    let numbers = [&one, &two, &three].map(|node| node.handle.status().identity.member_id);
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    one.until("three voters", |status| voters(status) == 3).await;
    for node in [one, two, three] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_told_why_they_stay_outside() {
    let one = Node::found(1).await;
    let other = Node::found(9).await;
    let folder = tempfile::tempdir().unwrap();
    let me = member(2, "127.0.0.1:1", Role::Server);

    let own = token(&one.handle, one.authority, Role::Server).await;
    let foreign = token(&other.handle, other.authority, Role::Server).await;
    let at = &one.member.address;
    let error = join(joining_as(&me, at, &foreign), folder.path()).await.unwrap_err();
    assert!(matches!(error, JoinError::OtherCluster { .. }), "{error}");
    let wrong = Token { secret: zeroize::Zeroizing::new("0".repeat(40)), ..own.clone() };
    let unknown = Token { id: foreign.id.clone(), ..own.clone() };
    for token in [wrong, unknown] {
        let error = join(joining_as(&me, at, &token), folder.path()).await.unwrap_err();
        assert!(matches!(&error, JoinError::Refused(why) if why == "the token is not valid"), "{error}");
    }
    let error = join(joining_as(&me, "127.0.0.1:9", &own), folder.path()).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable { .. }), "{error}");
    let namesake = Member { name: one.member.name.clone(), ..me.clone() };
    let error = join(joining_as(&namesake, at, &own), folder.path()).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused(why) if why.contains("is called `box-1`")), "{error}");
    let thief = Member { node_id: one.member.node_id, ..me.clone() };
    let error = join(joining_as(&thief, at, &own), folder.path()).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused(why) if why.contains("this node's id")), "{error}");
    let mut witness = joining_as(&me, at, &own);
    witness.role = Some(Role::Witness);
    let error = join(witness, folder.path()).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused(why) if why.contains("not for a witness")), "{error}");
    let kept = |folder: &Path| crate::enroll::Place::find(folder).unwrap();
    assert_eq!(kept(folder.path()), None, "who is refused is no member");
    let rows = one.handle.read(toft_model::state::TokenRow::all).await.unwrap();
    assert_eq!(rows[0].uses_left, 9, "nothing was spent");
    assert_eq!(one.handle.status().members.len(), 1);
    for node in [one, other] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lost_its_disk_joins_again_as_another_member() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    let first = two.handle.status().identity.member_id;
    drop(two.stop().await);
    // As long as it may be there it is not taken for another.
    let two = loop {
        let (listener, address) = listen().await;
        let (folder, member) = (tempfile::tempdir().unwrap(), member(2, &address, Role::Server));
        match enter(folder.path(), &member, &one).await {
            Ok(_) => break start(folder, listener, member).await,
            Err(error) => assert!(error.to_string().contains("this node's id"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let second = two.handle.status().identity.member_id;
    assert!(second > first);
    let status = one.until("the old member is gone", |status| status.members.len() == 2).await;
    assert!(status.members.iter().any(|member| member.id == second));
    for node in [one, two] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_removed_is_refused_at_once_and_the_others_go_on() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    let three = Node::joining(3, Role::Server, &one).await;
    one.until("three voters", |status| voters(status) == 3).await;
    // A follower asks the leader.
    two.handle.remove_member(three.member.node_id, true).await.unwrap();
    assert_eq!(one.handle.status().members.len(), 3, "it was only a question");
    let remove = Command::RemoveNode {
        node_id: three.member.node_id,
        name: three.member.name.clone(),
        lost: false,
        force: false,
        at_ms: 1,
    };
    two.handle.propose(remove).await.unwrap();
    assert!(two.handle.remove_member(three.member.node_id, false).await.unwrap(), "it answered until then");
    let status = one.until("two are left", |status| status.members.len() == 2).await;
    assert_eq!(voters(&status), 1);
    assert!(three.put("never").await.is_err());
    assert!(!one.names().await.contains(&"never".to_owned()));
    for _ in 0..400 {
        if three.handle.was_removed() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(three.handle.was_removed(), "nobody told it");
    one.put("later").await.unwrap();
    assert_eq!(two.names().await, ["later"]);
    for node in [one, two, three] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_voters_that_was_left_half_way_is_made_whole() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    let three = Node::joining(3, Role::Server, &one).await;
    let status = one.until("three voters", |status| voters(status) == 3).await;
    let joint = |now: &RaftMetrics<MemberId, Member>| now.membership_config.membership().get_joint_config().len();
    let mut now = one.handle.raft.metrics();
    // Its first half is in the log, and whoever asked for it does not go on.
    let turn = Turn::take(&one.handle.raft, &one.handle.peers).await.unwrap();
    let change = ChangeMembers::ReplaceAllVoters([status.identity.member_id].into());
    tokio::select! {
        biased;
        half = now.wait_for(|now| joint(now) == 2) => drop(half.unwrap()),
        made = one.handle.raft.change_membership(change, true) => panic!("it is whole: {made:?}"),
    }
    drop(turn);
    one.until("three voters again", |status| voters(status) == 3).await;
    assert_eq!(joint(&one.handle.raft.metrics().borrow()), 1);
    one.put("later").await.unwrap();
    for node in [one, two, three] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_changes_the_members_while_another_does() {
    let one = Node::found(1).await;
    let handle = one.handle.clone();
    let turn = Turn::take(&handle.raft, &handle.peers).await.unwrap();
    let mut joining = Box::pin(Node::joining(2, Role::Server, &one));
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut joining).await.is_err(), "it was let in meanwhile");
    assert_eq!(turn.members().len(), 1);
    let mut changed = one.member.clone();
    changed.edition.version = "another".into();
    let change = ChangeMembers::SetNodes([(handle.status().identity.member_id, changed.clone())].into());
    assert!(matches!(turn.change(change).await, Changed::Yes));
    assert_eq!(turn.members().into_values().collect::<Vec<_>>(), [changed], "who comes next sees another");
    drop(turn);
    drop(handle);
    let two = (&mut joining).await;
    drop(joining);
    one.until("both are there", |status| status.members.len() == 2).await;
    for node in [one, two] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_leaves_the_lead_to_another() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    one.put("early").await.unwrap();
    let whole = |status: &ClusterStatus| status.members.iter().all(|member| member.index == Some(status.last_index));
    one.until("both have the whole log", whole).await;
    one.handle.remove_member(one.member.node_id, false).await.unwrap();
    let status = two.until("the other leads", |status| status.leader == Some(status.identity.member_id)).await;
    assert_eq!(status.members.len(), 1, "{status:#?}");
    two.put("later").await.unwrap();
    assert_eq!(two.names().await, ["early", "later"]);
    let alone = two.handle.remove_member(two.member.node_id, false).await.unwrap_err();
    assert!(alone.to_string().contains("no other member"), "{alone}");
    for node in [one, two] {
        node.stop().await;
    }
}
