//! What other rooms see of consensus.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use openraft::{
    error::{CheckIsLeaderError, RaftError},
    metrics::RaftServerMetrics,
};
use rusqlite::Connection;
use serde_json::value::to_raw_value;
use toft_model::{
    ids::{NodeId, RequestId},
    name::Name,
    state::{Command, Refusal, Reply, Request},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tonic::service::Routes;
use uuid::Uuid;

use super::{
    copy::{CopyError, copy},
    edition,
    leader::{Leader, Leadership, SILENCE, leader},
    network::{CallError, MemberChannel, Offered, Peers, Services, members_now},
    propose::{Proposal, Stage},
    removal::{self, RemovalError},
    space::Space,
    state_machine::{Follows, ReadError, Readers, Rows, StateMachine, Written},
    types::{Fatal, Identity, Member, MemberId, Raft, Role},
};

/// Longest wait for a command to be applied.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the newest state.
const LATEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait before the leader is looked for again.
const RETRY: Duration = Duration::from_millis(50);
/// Wait for an answer after which the leader is asked after.
const USUAL: Duration = Duration::from_millis(500);
/// Largest command, as JSON.
const LARGEST: usize = 1 << 20;

/// Why a command was not applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// The state says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk is full, but for a reserve.
    #[error("no space is left on the disk that holds the state")]
    DiskFull,
    /// The command is larger than the log takes.
    #[error("the command has {bytes} bytes; at most {LARGEST} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The log or the database failed; the daemon is about to end.
    #[error("the state could not be written: {0}")]
    Storage(String),
    /// The daemon is shutting down.
    #[error("the appliance is shutting down")]
    Closed,
    /// A member runs an older toft, which would not understand the command. Nobody has been handed it.
    #[error("node `{node}` runs toft {version}, which does not know this yet")]
    NotUnderstood {
        /// The member's name.
        node: Name,
        /// What it runs.
        version: String,
    },
    /// The members that answer are no majority. Nobody has been handed the command, and nobody will be.
    #[error("the cluster has no leader now, so nothing can be changed")]
    NoLeader,
    /// No answer came; the command may have been applied, or may be applied later.
    #[error("the cluster did not answer within {} seconds; the change may have happened or may still happen", PROPOSE_TIMEOUT.as_secs())]
    Timeout,
}

impl ProposeError {
    pub(super) fn of_fatal(error: &Fatal) -> Self {
        match error {
            Fatal::Stopped => Self::Closed,
            Fatal::StorageError(_) | Fatal::Panicked => Self::Storage(error.to_string()),
        }
    }
}

/// Why it is not certain that this member has the newest state.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotCurrent {
    /// The members that answer are no majority.
    #[error("the cluster has no leader now, so this node cannot tell whether its state is the newest")]
    NoLeader,
    /// The disk of this member has no room for what the others have written.
    #[error("no space is left on the disk that holds the state, so this node does not have the newest state")]
    DiskFull,
    /// The daemon is shutting down.
    #[error("the appliance is shutting down")]
    Closed,
}

/// A member as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its number.
    pub id: MemberId,
    /// Who it is.
    pub member: Member,
    /// Whether it votes.
    pub votes: bool,
    /// How much of the log it has, if this member knows.
    pub index: Option<u64>,
    /// Whether it answered lately; only the leader asks all of them.
    pub answers: bool,
}

/// The cluster as one member sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Which cluster, and who says so.
    pub identity: Identity,
    /// The members by number.
    pub members: Vec<MemberStatus>,
    /// Who leads, if anybody does.
    pub leader: Option<MemberId>,
    /// How often the lead was fought for.
    pub term: u64,
    /// End of this member's log.
    pub last_index: u64,
    /// How much of it is applied.
    pub applied_index: u64,
}

/// What a handle is made of.
pub(super) struct HandleParts {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) services: Arc<Services>,
    pub(super) identity: Identity,
    pub(super) proposals: mpsc::Sender<Proposal>,
    pub(super) leadership: Leadership,
}

/// Propose, read, watch.
#[derive(Clone)]
pub struct Handle {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    services: Arc<Services>,
    identity: Identity,
    readers: Arc<Readers>,
    applied: watch::Receiver<u64>,
    schedule: watch::Receiver<u64>,
    written: Written,
    proposals: mpsc::Sender<Proposal>,
    leadership: Leadership,
    space: Arc<Space>,
}

impl Handle {
    pub(super) fn new(parts: HandleParts, state: &StateMachine, space: Space) -> Self {
        let HandleParts { raft, peers, services, identity, proposals, leadership } = parts;
        let (readers, applied, schedule) = (Arc::clone(state.readers()), state.applied(), state.schedule());
        let written = state.written().clone();
        Self {
            raft,
            peers,
            services,
            identity,
            readers,
            applied,
            schedule,
            written,
            proposals,
            leadership,
            space: Arc::new(space),
        }
    }

    /// Applies a command. When this returns `Ok`, a majority of the members has it on disk and reads here see it.
    pub async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        self.propose_request(Request::new(RequestId(Uuid::now_v7()), command)).await
    }

    /// The same for a request that has an id already: when it was applied before, it is answered and not applied again.
    pub async fn propose_request(&self, request: Request) -> Result<Reply, ProposeError> {
        if !self.space.takes(&request.command) {
            return Err(ProposeError::DiskFull);
        }
        let format = edition::format_of(&request.command);
        let request = Request { format, ..request };
        let request = to_raw_value(&request).map_err(|e| ProposeError::Storage(e.to_string()))?;
        let bytes = request.get().len();
        if bytes > LARGEST {
            return Err(ProposeError::TooLarge { bytes });
        }
        if self.leadership.is_given_up().await {
            return Err(ProposeError::NoLeader);
        }
        let stage = Stage::default();
        let (answer, reply) = oneshot::channel();
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let exchange = async {
            let proposal = Proposal { request, format, deadline, stage: stage.clone(), answer };
            self.proposals.send(proposal).await.map_err(|_| ProposeError::Closed)?;
            reply.await.map_err(|_| ProposeError::Closed)?
        };
        let mut exchange = std::pin::pin!(exchange);
        if let Ok(applied) = tokio::time::timeout(USUAL, &mut exchange).await {
            return Ok(applied??);
        }
        loop {
            tokio::select! {
                biased;
                applied = &mut exchange => return Ok(applied??),
                () = tokio::time::sleep_until(deadline) => {
                    return Err(if stage.take_back() { ProposeError::NoLeader } else { ProposeError::Timeout });
                }
                () = self.leadership.given_up() => {
                    if stage.take_back() {
                        return Err(ProposeError::NoLeader);
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Runs `question` on a read-only connection. It sees every command this member has applied: all that were
    /// acknowledged through this handle, and those of others a moment later.
    pub async fn read<T, F>(&self, question: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.readers.read(question).await
    }

    /// Copies the whole state into a new database at `path`: one file, one moment, which holds every command this member
    /// has applied before the call. Commands go on being applied meanwhile. `progress` is told the pages done and all
    /// pages. What a failure leaves at `path` is for the caller to remove.
    pub async fn copy_to<F>(&self, path: &Path, progress: F) -> Result<(), CopyError>
    where
        F: FnMut(u64, u64) + Send + 'static,
    {
        let (readers, path) = (Arc::clone(&self.readers), path.to_owned());
        let work = move || {
            let unopened = |source| CopyError::Read { path: readers.path().to_owned(), source };
            readers.with(unopened, |source| copy(source, &path, progress))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(copied) => copied,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Waits until reads here see everything that was acknowledged anywhere before the call.
    pub async fn catch_up(&self) -> Result<(), NotCurrent> {
        if self.stands_alone() {
            return Ok(());
        }
        if self.leadership.is_given_up().await {
            return Err(NotCurrent::NoLeader);
        }
        if self.peers.is_short() {
            return self.catch_up_without_room().await;
        }
        let caught_up = async {
            while !self.try_catch_up().await? {
                tokio::time::sleep(RETRY).await;
            }
            Ok(())
        };
        tokio::time::timeout(LATEST_TIMEOUT, caught_up).await.unwrap_or(Err(NotCurrent::NoLeader))
    }

    /// One try; `false` when the leader is not known or does not answer.
    async fn try_catch_up(&self) -> Result<bool, NotCurrent> {
        let leader = match self.raft.ensure_linearizable().await {
            Ok(_) => return Ok(true),
            Err(RaftError::Fatal(_)) => return Err(NotCurrent::Closed),
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => return Ok(false),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => to.leader_id.zip(to.leader_node),
        };
        let Some((id, leader)) = leader else { return Ok(false) };
        let Ok(index) = self.peers.read_index(id, &leader).await else { return Ok(false) };
        let mut applied = self.applied.clone();
        applied.wait_for(|applied| *applied >= index).await.map_err(|_| NotCurrent::Closed)?;
        Ok(true)
    }

    /// What a member without room has is the newest only if nothing was written since.
    async fn catch_up_without_room(&self) -> Result<(), NotCurrent> {
        let newest = self.ask_leader().await.ok_or(NotCurrent::NoLeader)?;
        if *self.applied.borrow() >= newest { Ok(()) } else { Err(NotCurrent::DiskFull) }
    }

    /// The index up to which one has to apply to have the newest state, by the word of another who leads.
    async fn ask_leader(&self) -> Option<u64> {
        let Leader::Other(id, leader) = self.leadership.now()? else { return None };
        self.peers.read_index(id, &leader).await.ok()
    }

    /// Asks the leader whether it hears of this member, and leads.
    pub async fn is_heard(&self) -> bool {
        if self.peers.is_short() {
            return self.ask_leader().await.is_some();
        }
        matches!(self.try_catch_up().await, Ok(true))
    }

    /// Whether this member leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.leader() == Some(self.identity.member_id)
    }

    /// Whether the disk of this member's state has no room: it waits for some, and does not lead others.
    pub fn is_short(&self) -> bool {
        self.peers.is_short()
    }

    /// When this member heard of another last. Only the leader asks all of them.
    pub fn heard(&self, id: MemberId) -> Option<Instant> {
        self.peers.heard(id)
    }

    /// How often leaders have called this member since it was started, to tell it of entries or that they are there.
    pub fn calls_of_leaders(&self) -> u64 {
        self.peers.calls_of_leaders()
    }

    /// Notes that a node said that it is there.
    pub fn note_beat(&self, node: NodeId) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let mut members = metrics.membership_config.nodes();
        if let Some((id, _)) = members.find(|(_, member)| member.node_id == node) {
            self.peers.beat(*id);
        }
    }

    /// The members that this one knows, by number.
    pub fn members(&self) -> BTreeMap<MemberId, Member> {
        members_now(&self.raft)
    }

    /// Who leads, as far as this member knows.
    pub fn leader(&self) -> Option<MemberId> {
        leader(&self.raft.metrics().borrow(), &self.peers)
    }

    /// The node that leads, as far as this member knows.
    pub fn leader_node(&self) -> Option<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = leader(&metrics, &self.peers)?;
        metrics.membership_config.membership().get_node(&id).map(|member| member.node_id)
    }

    /// The nodes of the one that leads, also where this member does not know yet that it votes, and of those that may lead next.
    pub fn leading_nodes(&self) -> Vec<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let members = metrics.membership_config.membership();
        let may: BTreeSet<MemberId> = members.voter_ids().chain(metrics.current_leader).collect();
        may.iter().filter_map(|id| Some(members.get_node(id)?.node_id)).collect()
    }

    /// When this member heard of the leader last, or of one who wanted to be it.
    pub async fn leader_heard(&self) -> Option<Instant> {
        self.raft.with_raft_state(|state| state.vote_last_modified()).await.ok().flatten()
    }

    /// Whether there are other members.
    pub fn has_others(&self) -> bool {
        let members = self.raft.metrics().borrow().membership_config.clone();
        members.nodes().nth(1).is_some()
    }

    /// The members that run workloads, their nodes, and whether each is this one; cheap enough to be asked all the time.
    pub fn nodes(&self) -> Vec<(MemberId, NodeId, bool)> {
        let members = self.raft.metrics().borrow().membership_config.clone();
        let nodes = members.nodes().filter(|(_, member)| member.role == Role::Server);
        nodes.map(|(id, member)| (*id, member.node_id, *id == self.identity.member_id)).collect()
    }

    /// What this member knows of the cluster, as of one moment.
    pub fn status(&self) -> ClusterStatus {
        let metrics = self.raft.metrics().borrow().clone();
        // While the voters change, both the old and the new ones have a say, and only who is among both can be relied on.
        let voters = metrics.membership_config.membership().get_joint_config().clone();
        let votes = |id| !voters.is_empty() && voters.iter().all(|voters| voters.contains(id));
        let me = self.identity.member_id;
        let leader = leader(&metrics, &self.peers);
        let progress = metrics.replication.unwrap_or_default();
        let members = metrics.membership_config.nodes().map(|(id, member)| MemberStatus {
            id: *id,
            member: member.clone(),
            votes: votes(id),
            index: match progress.get(id) {
                Some(at) => at.map(|at| at.index),
                None => (*id == me).then_some(metrics.last_log_index).flatten(),
            },
            answers: *id == me || self.peers.heard_within(*id, SILENCE),
        });
        ClusterStatus {
            identity: self.identity.clone(),
            members: members.collect(),
            leader,
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            applied_index: *self.applied.borrow(),
        }
    }

    /// Takes a node out of the membership, or only says whether that is possible; gives whether the node answered lately.
    pub async fn remove_member(&self, node_id: NodeId, only_ask: bool) -> Result<bool, RemovalError> {
        removal::remove(&self.raft, &self.peers, node_id, only_ask).await
    }

    /// Whether the others have said that this member was removed.
    pub fn was_removed(&self) -> bool {
        self.peers.is_removed()
    }

    /// A leader that is the only voter: what it has applied is all there is.
    pub fn stands_alone(&self) -> bool {
        leads_alone(&self.raft.server_metrics().borrow())
    }

    /// Ends when this member is not the only voter, or does not lead.
    pub async fn stands_alone_no_longer(&self) {
        let mut metrics = self.raft.server_metrics();
        if metrics.wait_for(|metrics| !leads_alone(metrics)).await.is_err() {
            // Consensus ends, and says so itself.
            std::future::pending().await
        }
    }

    /// The index of the last applied entry; changes with each.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// The rows the scheduler depends on that were written since `who` last asked; reads from now on see them. There is one
    /// who follows them.
    pub fn take_written(&self, who: Follows) -> Rows {
        self.written.take(who)
    }

    /// Says which nodes answer in the mesh, with their address there: calls to them go there first.
    pub fn prefer(&self, mesh: BTreeMap<NodeId, IpAddr>) {
        self.peers.prefer(mesh);
    }

    /// Says where nodes answer beside the address that the cluster knows, each `HOST:PORT`: they are called there, too.
    pub fn also_at(&self, nodes: &BTreeMap<NodeId, Vec<String>>) {
        let members = members_now(&self.raft).into_iter();
        self.peers.also_at(members.filter_map(|(id, member)| Some((id, nodes.get(&member.node_id)?.clone()))));
    }

    /// Offers gRPC services to the other members, until what is given is dropped. Requests have a
    /// [`Caller`](super::network::Caller) among their extensions.
    pub fn offer(&self, add: impl Fn(Routes) -> Routes + Send + Sync + 'static) -> Offered {
        self.services.offer(add)
    }

    /// A channel to what another node offers. It connects when it is used, through the mesh first.
    pub fn channel_to(&self, node: &NodeId) -> Result<MemberChannel, CallError> {
        self.services.channel_to(node)
    }

    /// A new connection to what another node offers, at `address` and past the mesh.
    pub async fn connect_to(&self, node: &NodeId, address: &str) -> Result<MemberChannel, CallError> {
        self.services.connect_to(node, address).await
    }

    /// The index of the last applied entry after which the scheduler may decide otherwise; changes with each.
    pub fn watch_schedule(&self) -> watch::Receiver<u64> {
        self.schedule.clone()
    }
}

fn leads_alone(metrics: &RaftServerMetrics<MemberId, Member>) -> bool {
    metrics.current_leader == Some(metrics.id) && metrics.membership_config.voter_ids().eq([metrics.id])
}
