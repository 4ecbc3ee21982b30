//! Connections to the other members and the calls over them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openraft::{
    error::RaftError,
    raft::{AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use serde::{Serialize, de::DeserializeOwned};
use toft_model::ids::NodeId;
use tokio::{
    io::AsyncReadExt,
    sync::{MutexGuard, oneshot, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, ConnectError, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{
    super::{
        propose::ForwardError,
        types::{Batch, Fatal, Identity, Member, MemberId, Outcomes, Snapshot, Vote},
    },
    PROTOCOL,
    back::{Pipe, pipe},
    connections::Connections,
    tls::Dialling,
    ways::{Ways, Went, either},
};
use crate::{
    observe::chain,
    wire::peer::{
        Message, Piece, ProposeRequest, ReadIndexRequest, RemoveRequest, SnapshotHead, SnapshotPart, TakeOverRequest,
        peer_client::PeerClient, snapshot_part::Part,
    },
};

/// Longest wait for a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a silent connection is asked whether it lives, and how long it may take to answer. Between two that vote also while
/// nothing is awaited: whoever is to vote finds no connection that died long ago.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Longest wait for an answer to a proposal that was forwarded.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for short answers.
const SHORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Silence after which a member is worth a line in the log.
const SILENCE: Duration = Duration::from_secs(2);
/// Bytes of a snapshot in one message.
const PART: usize = 256 << 10;
/// Largest message.
pub(super) const LARGEST: usize = 32 << 20;
/// Metadata of a refusal that says that the caller was removed.
pub(super) const REMOVED: &str = "toft-removed";
/// Name in every certificate of a member.
pub const SERVER_NAME: &str = "member.toft.internal";

/// Certificates of one member.
#[derive(Clone)]
pub struct Transport {
    /// The cluster's authority, PEM.
    pub authority: String,
    /// The member's certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

/// Why another member gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It listens for nobody.
    #[error("the member has no address")]
    NoAddress,
    /// There is no connection; nothing was sent.
    #[error("the member cannot be reached: {0}")]
    NotConnected(String),
    /// The connection broke, or no answer came.
    #[error("the member does not answer: {0}")]
    Unreachable(String),
    /// It does not speak with this one.
    #[error("the member refuses: {0}")]
    Refused(String),
    /// It answered something that is no answer.
    #[error("the call failed: {0}")]
    Failed(String),
}

impl CallError {
    fn of(status: &Status) -> Self {
        let mut causes = std::iter::successors(status.source(), |cause: &&(dyn Error + 'static)| (*cause).source());
        if causes.any(|cause| cause.is::<ConnectError>()) {
            return Self::NotConnected(chain(status));
        }
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Self::Unreachable(chain(status))
            }
            Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated => {
                Self::Refused(status.message().to_owned())
            }
            _ => Self::Failed(status.message().to_owned()),
        }
    }
}

/// What was heard of a member.
struct Heard {
    /// When it was asked first.
    since: Instant,
    /// When it answered or called last.
    answered: Option<Instant>,
    /// When it said last that it is there.
    beat: Option<Instant>,
    /// Whether it was told to be silent.
    silent: bool,
}

impl Heard {
    /// It is asked for the first time.
    fn now() -> Self {
        Self { since: Instant::now(), answered: None, beat: None, silent: false }
    }

    /// When it answered last, or was asked first.
    fn last(&self) -> Instant {
        self.answered.unwrap_or(self.since)
    }
}

/// The connections of one member.
pub(in super::super) struct Peers {
    dialling: Result<Dialling, String>,
    cluster: MetadataValue<Ascii>,
    me: MetadataValue<Ascii>,
    open: Connections,
    ways: Ways,
    heard: Mutex<HashMap<MemberId, Heard>>,
    began: Instant,
    removed: AtomicBool,
    going: AtomicBool,
    /// Whether this member's disk has had no room for a while.
    short: watch::Sender<bool>,
    /// The newest vote by which another called this member as its leader, and when it called last.
    led: watch::Sender<Option<(Vote, Instant)>>,
    /// How often leaders called this member.
    calls: AtomicU64,
    /// Members whose refusal was told already.
    told: Mutex<BTreeSet<MemberId>>,
    /// Held by whoever changes the members.
    changing: tokio::sync::Mutex<()>,
}

fn ascii(text: &str) -> MetadataValue<Ascii> {
    MetadataValue::try_from(text).unwrap_or_else(|_| MetadataValue::from_static("?"))
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<Bytes, CallError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| CallError::Failed(e.to_string()))
}

fn parse<T: DeserializeOwned>(message: &Message) -> Result<T, CallError> {
    serde_json::from_slice(&message.json).map_err(|e| CallError::Failed(e.to_string()))
}

impl Peers {
    pub(in super::super) fn new(identity: &Identity, transport: &Transport) -> Self {
        Self {
            dialling: Dialling::with(transport).map_err(|error| error.to_string()),
            cluster: ascii(&identity.cluster_id.to_string()),
            me: MetadataValue::from(identity.member_id),
            open: Connections::of(identity.member_id),
            ways: Ways::default(),
            heard: Mutex::new(HashMap::new()),
            began: Instant::now(),
            removed: AtomicBool::new(false),
            going: AtomicBool::new(false),
            short: watch::Sender::new(false),
            led: watch::Sender::new(None),
            calls: AtomicU64::new(0),
            told: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// Waits until nobody else changes the members; see [`super::super::changes::Turn`].
    pub(in super::super) async fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Whether another member has said that this one was removed.
    pub(in super::super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// Whether this member takes itself out of the membership now.
    pub(in super::super) fn is_going(&self) -> bool {
        self.going.load(Ordering::Relaxed)
    }

    pub(in super::super) fn go(&self) {
        self.going.store(true, Ordering::Relaxed);
    }

    pub(in super::super) fn stay(&self) {
        self.going.store(false, Ordering::Relaxed);
    }

    /// Whether this member's disk has no room. Where others vote as well it then does not lead: what it writes down nobody would
    /// hear of.
    pub(in super::super) fn is_short(&self) -> bool {
        *self.short.borrow()
    }

    pub(in super::super) fn set_short(&self, short: bool) {
        self.short.send_replace(short);
    }

    /// Ends when it has none.
    pub(in super::super) async fn until_short(&self) {
        let mut short = self.short.subscribe();
        if short.wait_for(|short| *short).await.is_err() {
            std::future::pending().await
        }
    }

    /// Notes that another member calls as the leader. Unlike consensus itself this needs no disk.
    pub(super) fn led(&self, vote: &Vote) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.led.send_if_modified(|led| {
            let counts = vote.committed && led.as_ref().is_none_or(|(known, _)| vote >= known);
            if counts {
                *led = Some((*vote, Instant::now()));
            }
            counts
        });
    }

    /// How often leaders have called this member since it was started.
    pub(in super::super) fn calls_of_leaders(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Waits until another member has called as the leader.
    pub(in super::super) async fn until_led(&self) {
        // The sender is this one's own and does not end meanwhile.
        drop(self.led.subscribe().wait_for(Option::is_some).await);
    }

    /// Who called this member as its leader last, if that was within the time before now.
    pub(in super::super) fn leader_heard(&self, within: Duration) -> Option<MemberId> {
        let led = self.led.borrow();
        led.as_ref().filter(|(_, at)| at.elapsed() < within)?.0.leader_id().voted_for()
    }

    /// Closes the connections to members that were removed.
    pub(in super::super) fn forget(&self, gone: &BTreeSet<MemberId>) {
        self.open.forget(gone);
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| !gone.contains(id));
        if let Ok(dialling) = &self.dialling {
            dialling.backs().forget(gone);
        }
    }

    /// Takes note that a member can be spoken with through its own call.
    pub(super) fn offer_back(&self, id: MemberId, pipe: Pipe) -> Result<(), Status> {
        let dialling = self.dialling.as_ref().map_err(|error| Status::internal(error.as_str()))?;
        dialling.backs().offer(id, pipe);
        Ok(())
    }

    /// Calls a member so that it can speak with this one through that call.
    pub(super) async fn call_back(&self, id: MemberId, address: &str) -> Result<Pipe, CallError> {
        let (own, told) = oneshot::channel();
        let outward = stream::once(told).filter_map(async |outward: Result<ReceiverStream<Piece>, _>| outward.ok());
        let mut request = self.request(outward.flatten(), SHORT_TIMEOUT);
        request.metadata_mut().remove("grpc-timeout");
        let called = tokio::time::timeout(SHORT_TIMEOUT, self.client(id, address)?.back(request)).await;
        let answer = called.map_err(|_| CallError::Unreachable("no answer came in time".into()))?;
        let (pipe, outward) = pipe(answer.map_err(|status| self.refused(&status))?.into_inner());
        drop(own.send(outward));
        Ok(pipe)
    }

    /// Whether a refusal of that member is told for the first time. What is remembered is bounded.
    pub(super) fn is_news(&self, id: MemberId) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() > 1_000 {
            told.clear();
        }
        told.insert(id)
    }

    /// What a refusal says, and whether it says that this member was removed.
    fn refused(&self, status: &Status) -> CallError {
        if status.metadata().get(REMOVED).is_some() && !self.removed.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "this node was removed from its cluster; its containers go on, and nothing can be changed here. `toft leave --force` ends them and makes it an appliance of its own"
            );
        }
        CallError::of(status)
    }

    /// Whether a member answered in the time before now; all did when this began.
    pub(in super::super) fn heard_within(&self, id: MemberId, time: Duration) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&id).map_or(self.began, Heard::last).elapsed() < time
    }

    /// When a member was heard of last, by an answer, a call or its beat; `None`: never since this began.
    pub(in super::super) fn heard(&self, id: MemberId) -> Option<Instant> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&id).and_then(|heard| heard.answered.max(heard.beat))
    }

    /// Whether a member said by itself that it is there, in the time before now.
    pub(super) fn beats(&self, id: MemberId, time: Duration) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&id).and_then(|heard| heard.beat).is_some_and(|at| at.elapsed() < time)
    }

    /// Notes that a member called.
    pub(super) fn hear(&self, id: MemberId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.entry(id).or_insert_with(Heard::now).answered = Some(Instant::now());
    }

    /// Notes that a member said that it is there. Whether it answers, nobody knows.
    pub(in super::super) fn beat(&self, id: MemberId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.entry(id).or_insert_with(Heard::now).beat = Some(Instant::now());
    }

    /// Notes what came of a call, and tells when a member falls silent or answers again.
    fn note<T>(&self, id: MemberId, member: &Member, outcome: Result<T, CallError>) -> Result<T, CallError> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is new has time to come up.
        let heard = heard.entry(id).or_insert_with(Heard::now);
        match &outcome {
            Ok(_) => {
                heard.answered = Some(Instant::now());
                if std::mem::replace(&mut heard.silent, false) {
                    tracing::info!("member `{}` answers again", member.name);
                }
            }
            Err(error) => {
                if heard.last().elapsed() > SILENCE && !std::mem::replace(&mut heard.silent, true) {
                    tracing::warn!(%error, "member `{}` at `{}` is silent", member.name, member.address);
                }
            }
        }
        outcome
    }

    /// Says which nodes answer in the mesh, and at which address.
    pub(in super::super) fn prefer(&self, mesh: BTreeMap<NodeId, IpAddr>) {
        self.ways.set(mesh);
    }

    /// Says where members answer beside the address that they told.
    pub(in super::super) fn also_at(&self, all: impl IntoIterator<Item = (MemberId, Vec<String>)>) {
        if let Ok(dialling) = &self.dialling {
            dialling.backs().set_beside(all);
        }
    }

    /// Says who votes.
    pub(in super::super) fn set_voters(&self, voters: BTreeSet<MemberId>) {
        self.open.set_voters(voters);
    }

    /// The ways to the others.
    pub(super) fn ways(&self) -> &Ways {
        &self.ways
    }

    /// What connections to the others begin with.
    pub(super) fn dialling(&self) -> Result<&Dialling, CallError> {
        self.dialling.as_ref().map_err(|error| CallError::Failed(error.clone()))
    }

    fn client(&self, id: MemberId, address: &str) -> Result<PeerClient<Channel>, CallError> {
        if address.is_empty() {
            return Err(CallError::NoAddress);
        }
        self.open
            .to(id, address, |is_watched| {
                let endpoint = endpoint(address)?.keep_alive_while_idle(is_watched);
                self.dialling()?.channel(id, address, &endpoint)
            })
            .map(client)
    }

    /// Calls a member on whichever way answers.
    async fn call<T, Sent>(
        &self,
        (id, member): (MemberId, &Member),
        send: impl Fn(PeerClient<Channel>) -> Sent,
    ) -> Result<T, CallError>
    where
        Sent: Future<Output = Result<Response<T>, Status>>,
    {
        let at = async |address: &str| {
            let answer = send(self.client(id, address)?).await;
            answer.map(Response::into_inner).map_err(|status| self.refused(&status))
        };
        match self.ways.through_mesh(id, member, Instant::now()) {
            None => at(&member.address).await,
            Some((mesh, true)) => {
                let (answer, went) = either(at(&mesh), at(&member.address)).await;
                if went == Went::Second {
                    self.ways.doubt(id);
                }
                answer
            }
            Some((mesh, false)) => either(at(&member.address), at(&mesh)).await.0,
        }
    }

    fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = Request::new(message);
        let about = request.metadata_mut();
        about.insert("toft-protocol", MetadataValue::from(PROTOCOL));
        about.insert("toft-cluster", self.cluster.clone());
        about.insert("toft-member", self.me.clone());
        request.set_timeout(timeout);
        request
    }

    /// Sends a request to append entries, as JSON.
    pub(super) async fn append(
        &self,
        id: MemberId,
        member: &Member,
        request: Bytes,
    ) -> Result<Result<AppendEntriesResponse<MemberId>, RaftError<MemberId>>, CallError> {
        let message = Message { json: request };
        let call = async {
            let send = |mut client: PeerClient<Channel>| {
                let request = self.request(message.clone(), FORWARD_TIMEOUT);
                async move { client.append(request).await }
            };
            parse(&self.call((id, member), send).await?)
        };
        self.note(id, member, call.await)
    }

    pub(super) async fn vote(
        &self,
        id: MemberId,
        member: &Member,
        request: &VoteRequest<MemberId>,
    ) -> Result<Result<VoteResponse<MemberId>, RaftError<MemberId>>, CallError> {
        let message = Message { json: json(request)? };
        let send = |mut client: PeerClient<Channel>| {
            let request = self.request(message.clone(), SHORT_TIMEOUT);
            async move { client.vote(request).await }
        };
        parse(&self.call((id, member), send).await?)
    }

    pub(super) async fn snapshot(
        &self,
        id: MemberId,
        member: &Member,
        vote: Vote,
        snapshot: &Snapshot,
    ) -> Result<Result<SnapshotResponse<MemberId>, Fatal>, CallError> {
        let read = |error: std::io::Error| CallError::Failed(format!("the snapshot could not be read: {error}"));
        let path = snapshot.snapshot.path.clone();
        let (length, crc32) = tokio::task::spawn_blocking({
            let path = path.clone();
            move || super::calls::checksum(&path)
        })
        .await
        .map_err(|e| CallError::Failed(e.to_string()))?
        .map_err(read)?;
        let head = SnapshotHead { json: json(&(vote, &snapshot.meta))?.into(), length, crc32 };
        let file = tokio::fs::File::open(&path).await.map_err(read)?;
        let parts = stream::unfold((Some(head), file), async |(head, mut file)| {
            if let Some(head) = head {
                return Some((SnapshotPart { part: Some(Part::Head(head)) }, (None, file)));
            }
            let mut content = Vec::with_capacity(PART);
            // What cannot be read is missing at the other end, which notices by the length.
            let count = (&mut file).take(PART as u64).read_to_end(&mut content).await.unwrap_or(0);
            (count > 0).then_some((SnapshotPart { part: Some(Part::Content(content)) }, (None, file)))
        });
        let mut request = self.request(parts, Duration::from_secs(600));
        request.metadata_mut().remove("grpc-timeout");
        // It is begun again when it breaks off, and then goes the other way.
        let through = self.ways.through_mesh(id, member, Instant::now()).filter(|(_, first)| *first);
        let address = through.as_ref().map_or(&member.address, |(mesh, _)| mesh);
        let answer = self.client(id, address)?.snapshot(request).await;
        if answer.is_err() && through.is_some() {
            self.ways.doubt(id);
        }
        parse(answer.map_err(|status| self.refused(&status))?.get_ref())
    }

    /// Hands requests to the leader; gives the index of their entry and what they were answered.
    pub(in super::super) async fn propose(
        &self,
        id: MemberId,
        member: &Member,
        batch: &Batch,
    ) -> Result<Result<(u64, Outcomes), ForwardError>, CallError> {
        let requests: Vec<String> = batch.0.iter().map(|request| request.get().to_owned()).collect();
        let send = |mut client: PeerClient<Channel>| {
            let request = self.request(ProposeRequest { requests: requests.clone() }, FORWARD_TIMEOUT);
            async move { client.propose(request).await }
        };
        parse(&self.call((id, member), send).await?)
    }

    /// The index up to which one has to apply to have the newest state.
    pub(in super::super) async fn read_index(&self, id: MemberId, member: &Member) -> Result<u64, CallError> {
        let send = |mut client: PeerClient<Channel>| {
            let request = self.request(ReadIndexRequest {}, SHORT_TIMEOUT);
            async move { client.read_index(request).await }
        };
        Ok(self.call((id, member), send).await?.index)
    }

    /// Tells the leader where this member is now.
    pub(in super::super) async fn announce(&self, id: MemberId, leader: &Member, me: &Member) -> Result<(), CallError> {
        let message = Message { json: json(me)? };
        let send = |mut client: PeerClient<Channel>| {
            let request = self.request(message.clone(), SHORT_TIMEOUT);
            async move { client.announce(request).await }
        };
        self.call((id, leader), send).await.map(drop)
    }

    /// Asks the leader to take a node out of the membership.
    pub(in super::super) async fn remove(
        &self,
        id: MemberId,
        leader: &Member,
        node_id: NodeId,
        only_ask: bool,
    ) -> Result<bool, CallError> {
        let send = |mut client: PeerClient<Channel>| {
            let request = self.request(RemoveRequest { node_id: node_id.to_string(), only_ask }, FORWARD_TIMEOUT);
            async move { client.remove(request).await }
        };
        Ok(self.call((id, leader), send).await?.answers)
    }

    /// Asks a member to become the leader.
    pub(in super::super) async fn take_over(&self, id: MemberId, member: &Member) -> Result<(), CallError> {
        let send = |mut client: PeerClient<Channel>| {
            let request = self.request(TakeOverRequest {}, SHORT_TIMEOUT);
            async move { client.take_over(request).await }
        };
        self.call((id, member), send).await.map(drop)
    }
}

fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST)
}

pub(super) fn endpoint(address: &str) -> Result<Endpoint, CallError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| CallError::Failed(format!("`{address}` is no address: {e}")))?;
    // Without TLS of its own: the connector speaks it, with the one member that is meant.
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE))
}
