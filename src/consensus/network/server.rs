//! Answers the other members.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use openraft::{
    ChangeMembers,
    error::{CheckIsLeaderError, RaftError},
    raft::AppendEntriesRequest,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming, metadata::MetadataValue, service::interceptor::InterceptedService,
    transport::Server,
};

use super::{
    super::{
        changes::{Changed, Turn},
        edition::{self, LONGEST_VERSION},
        leader::leader,
        propose::ForwardError,
        removal::{Answer, remove_here},
        state_machine::snapshot,
        types::{Batch, Identity, Member, MemberId, Outcomes, Raft, Snapshot, SnapshotMeta, Types, Vote},
    },
    Admission, PROTOCOL, Standing, Transport,
    back::{self, Pieces},
    door::{self, Entrance},
    gate::Gate,
    peers::{LARGEST, Peers, REMOVED},
    services::Services,
    tls::member_of,
};
use crate::{
    observe::chain,
    wire::peer::{
        AnnounceAnswer, Message, Piece, ProposeRequest, ReadIndexAnswer, ReadIndexRequest, RemoveAnswer, RemoveRequest,
        SnapshotPart, TakeOverAnswer, TakeOverRequest,
        door_server::DoorServer,
        peer_server::{Peer, PeerServer},
        snapshot_part::Part,
    },
};

/// Calls of one connection that are answered at a time.
const CALLS: usize = 256;
/// Largest headers of a call, in bytes.
const LARGEST_HEADERS: u32 = 16 << 10;
/// Largest snapshot that is taken, in bytes.
const LARGEST_SNAPSHOT: u64 = 8 << 30;

/// What the door stands in.
pub(in super::super) struct Doorway {
    pub(in super::super) raft: Raft,
    pub(in super::super) peers: Arc<Peers>,
    pub(in super::super) identity: Identity,
    /// What is answered where the daemon runs.
    pub(in super::super) services: Arc<Services>,
    pub(in super::super) elsewhere: tokio::runtime::Handle,
    /// Members that are let call while this one knows none.
    pub(in super::super) trusted: Vec<MemberId>,
}

struct Service {
    raft: Raft,
    identity: Identity,
    peers: Arc<Peers>,
    admission: Arc<dyn Admission>,
    trusted: Vec<MemberId>,
}

/// Why the door could not be opened.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum DoorError {
    #[error("the certificates of this member cannot be used: {0}")]
    Certificates(#[from] rustls::Error),
    #[error(transparent)]
    Server(#[from] tonic::transport::Error),
}

/// Answers until `cancel`.
pub(in super::super) async fn serve(
    listener: TcpListener,
    transport: &Transport,
    doorway: Doorway,
    admission: Arc<dyn Admission>,
    cancel: CancellationToken,
) -> Result<(), DoorError> {
    let Doorway { raft, peers, identity, services, elsewhere, trusted } = doorway;
    let guests = Gate::new(transport, services, elsewhere)?.open(listener, cancel.clone());
    let entrance = Entrance::new(raft.clone(), Arc::clone(&peers), identity.clone(), Arc::clone(&admission));
    let entrance = DoorServer::new(entrance).max_decoding_message_size(door::LARGEST);
    let service = Service { raft, identity, peers, admission, trusted };
    let service = PeerServer::new(service).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    // Nothing that a stranger sends is read for it.
    let service = InterceptedService::new(service, certified);
    Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_max_header_list_size(LARGEST_HEADERS)
        .add_service(service)
        .add_service(entrance)
        .serve_with_incoming_shutdown(ReceiverStream::new(guests), cancel.cancelled_owned())
        .await?;
    Ok(())
}

fn about<'a, T>(request: &'a Request<T>, key: &str) -> &'a str {
    request.metadata().get(key).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Lets those pass that have a certificate of the cluster.
fn certified(request: Request<()>) -> Result<Request<()>, Status> {
    match request.peer_certs() {
        Some(certificates) if !certificates.is_empty() => Ok(request),
        _ => Err(Status::unauthenticated("a certificate of the cluster is needed")),
    }
}

pub(super) fn check_protocol<T>(request: &Request<T>) -> Result<(), Status> {
    match about(request, "toft-protocol").parse() {
        Ok(PROTOCOL) => Ok(()),
        Ok(other) => Err(Status::failed_precondition(format!(
            "the caller speaks protocol {other}, this member {PROTOCOL}; run the same version of toft on both"
        ))),
        Err(_) => Err(Status::invalid_argument("metadata `toft-protocol` is missing or no number")),
    }
}

fn json<T: Serialize>(value: &T) -> Result<Response<Message>, Status> {
    let json = serde_json::to_vec(value).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Response::new(Message { json: json.into() }))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(bytes).map_err(|e| Status::invalid_argument(format!("the message does not parse: {e}")))
}

/// Where the leader is, for callers that came to another member.
pub(super) fn elsewhere(leader: Option<&Member>) -> Status {
    let mut status = Status::failed_precondition("this member does not lead");
    if let Some(address) = leader.and_then(|leader| leader.address.parse().ok()) {
        status.metadata_mut().insert("toft-leader", address);
    }
    status
}

/// The members, as this one knows them.
pub(in super::super) fn members_now(raft: &Raft) -> BTreeMap<MemberId, Member> {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow();
    metrics.membership_config.nodes().map(|(id, member)| (*id, member.clone())).collect()
}

/// Changes the members; says where the leader is if that is not this member.
pub(super) async fn change_members(turn: &Turn<'_>, wanted: ChangeMembers<MemberId, Member>) -> Result<(), Status> {
    match turn.change(wanted).await {
        Changed::Yes => Ok(()),
        Changed::Elsewhere(leader) => Err(elsewhere(leader.as_ref().map(|(_, member)| member))),
        Changed::No(error) => Err(Status::unavailable(error)),
    }
}

/// The turn to change the members.
pub(super) async fn turn<'a>(raft: &'a Raft, peers: &'a Peers) -> Result<Turn<'a>, Status> {
    Turn::take(raft, peers).await.map_err(|occupied| Status::unavailable(occupied.to_string()))
}

/// What one is told that is a member no longer.
fn removed() -> Status {
    let mut status = Status::permission_denied("this node was removed from the cluster");
    status.metadata_mut().insert(REMOVED, MetadataValue::from_static("1"));
    status
}

impl Service {
    /// Lets only members of this cluster pass, and gives the number of the caller.
    async fn check<T>(&self, request: &Request<T>) -> Result<MemberId, Status> {
        let certificates = request.peer_certs();
        let certified = certificates.iter().flat_map(|all| all.first()).find_map(member_of);
        let Some(id) = certified else {
            return Err(Status::unauthenticated("a certificate of the cluster is needed"));
        };
        check_protocol(request)?;
        let cluster = about(request, "toft-cluster");
        if cluster != self.identity.cluster_id.to_string() {
            let own = self.identity.cluster_id;
            return Err(Status::failed_precondition(format!("the caller is of cluster {cluster}, this is {own}")));
        }
        let caller = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        if about(request, "toft-member") != id.to_string() {
            let claimed: String = about(request, "toft-member").chars().take(20).collect();
            tracing::warn!(caller, "member {id} was refused, which says that it is member {claimed}");
            return Err(Status::permission_denied("the certificate is another member's"));
        }
        if self.is_member(id) {
            self.peers.hear(id);
            return Ok(id);
        }
        match self.admission.standing(id).await {
            Standing::LetIn | Standing::Newer => Ok(id),
            Standing::Unknown => Err(Status::unavailable("the state of this member cannot be read")),
            Standing::Removed => {
                self.note_removed(id, &caller);
                Err(removed())
            }
        }
    }

    /// Whether this member knows that one; while it knows none, whether it was told of it when it joined.
    fn is_member(&self, id: MemberId) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let mut known = metrics.membership_config.nodes().peekable();
        if known.peek().is_none() {
            return self.trusted.contains(&id);
        }
        known.any(|(known, _)| *known == id)
    }

    /// The same for calls that only a member may make that everybody knows.
    async fn check_known<T>(&self, request: &Request<T>) -> Result<MemberId, Status> {
        let id = self.check(request).await?;
        if self.is_member(id) {
            return Ok(id);
        }
        Err(Status::unavailable("the caller is not known here yet"))
    }

    fn note_removed(&self, id: MemberId, caller: &str) {
        if self.peers.is_news(id) {
            tracing::warn!(caller, "member {id} was refused: it was removed from the cluster");
        }
    }

    async fn receive(&self, from: MemberId, parts: &mut Streaming<SnapshotPart>) -> Result<(Vote, Snapshot), Status> {
        let Some(SnapshotPart { part: Some(Part::Head(head)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let (vote, meta): (Vote, SnapshotMeta) = parse(&head.json)?;
        if head.length > LARGEST_SNAPSHOT {
            return Err(Status::out_of_range(format!("a snapshot of {} bytes is too large", head.length)));
        }
        let failed = |e: std::io::Error| Status::internal(format!("the snapshot could not be written: {e}"));
        let place = self.raft.begin_receiving_snapshot().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let mut file = tokio::fs::File::create(&place.path).await.map_err(failed)?;
        let mut hasher = crc32fast::Hasher::new();
        let mut length = 0;
        while let Some(part) = parts.message().await? {
            let Some(Part::Content(content)) = part.part else {
                return Err(Status::invalid_argument("a snapshot has one head"));
            };
            length += content.len() as u64;
            if length > head.length {
                break;
            }
            // One that was removed meanwhile does not end what it began.
            if !self.is_member(from) && self.admission.standing(from).await == Standing::Removed {
                drop(tokio::fs::remove_file(&place.path).await);
                return Err(removed());
            }
            hasher.update(&content);
            file.write_all(&content).await.map_err(failed)?;
        }
        file.sync_all().await.map_err(failed)?;
        if length != head.length || hasher.finalize() != head.crc32 {
            drop(tokio::fs::remove_file(&place.path).await);
            return Err(Status::data_loss(format!(
                "the snapshot did not arrive whole: {length} of {} bytes, or damaged on its way",
                head.length
            )));
        }
        // Installing a snapshot that is none would end consensus here; refusing it asks the leader for another.
        let path = place.path.clone();
        let sound = tokio::task::spawn_blocking(move || snapshot::check(&path)).await;
        let why = match sound {
            Ok(Ok(found)) if found.last_log_id == meta.last_log_id => {
                return Ok((vote, Snapshot { meta, snapshot: place }));
            }
            Ok(Ok(found)) => format!("it ends at {:?}, not at {:?}", found.last_log_id, meta.last_log_id),
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        drop(tokio::fs::remove_file(&place.path).await);
        Err(Status::data_loss(format!("the snapshot cannot be used: {why}")))
    }
}

#[async_trait]
impl Peer for Service {
    type BackStream = Pieces;

    async fn back(&self, request: Request<Streaming<Piece>>) -> Result<Response<Pieces>, Status> {
        let id = self.check(&request).await?;
        let (pipe, outward) = back::pipe(request.into_inner());
        self.peers.offer_back(id, pipe)?;
        Ok(Response::new(back::answered(outward)))
    }

    async fn append(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        self.check(&request).await?;
        let request: AppendEntriesRequest<Types> = parse(&request.get_ref().json)?;
        self.peers.led(&request.vote);
        json(&self.raft.append_entries(request).await)
    }

    async fn vote(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        self.check(&request).await?;
        json(&self.raft.vote(parse(&request.get_ref().json)?).await)
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Result<Response<Message>, Status> {
        let from = self.check(&request).await?;
        let (vote, snapshot) = self.receive(from, &mut request.into_inner()).await?;
        json(&self.raft.install_full_snapshot(vote, snapshot).await)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<Message>, Status> {
        self.check_known(&request).await?;
        let raw = |text: String| RawValue::from_string(text).map_err(|e| Status::invalid_argument(e.to_string()));
        let requests = request.into_inner().requests.into_iter().map(raw).collect::<Result<Vec<_>, _>>()?;
        if leader(&self.raft.metrics().borrow(), &self.peers) != Some(self.identity.member_id) {
            return json(&Err::<(u64, Outcomes), _>(ForwardError::NotLeading));
        }
        if !edition::all_understand(&members_now(&self.raft), &requests) {
            return json(&Err::<(u64, Outcomes), _>(ForwardError::NotUnderstood));
        }
        let written = self.raft.client_write(Batch(Arc::new(requests))).await;
        json(&written.map(|written| (written.log_id.index, written.data)).map_err(|error| ForwardError::of(&error)))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexAnswer>, Status> {
        self.check_known(&request).await?;
        match self.raft.get_read_log_id().await {
            Ok((index, _)) => Ok(Response::new(ReadIndexAnswer { index: index.map_or(0, |id| id.index) })),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                Err(elsewhere(to.leader_node.as_ref()))
            }
            Err(error) => Err(Status::unavailable(chain(&error))),
        }
    }

    async fn announce(&self, request: Request<Message>) -> Result<Response<AnnounceAnswer>, Status> {
        let id = self.check_known(&request).await?;
        let member: Member = parse(&request.get_ref().json)?;
        if member.edition.version.len() > LONGEST_VERSION {
            return Err(Status::invalid_argument("the member's version is too long"));
        }
        let turn = turn(&self.raft, &self.peers).await?;
        let members = turn.members();
        match members.get(&id) {
            Some(known) if known.node_id == member.node_id => {}
            _ => {
                tracing::warn!("member {id} was refused, which says that it is node {}", member.node_id);
                return Err(Status::not_found(format!("there is no member {id} of that node")));
            }
        }
        if members.iter().any(|(other, known)| *other != id && known.name == member.name) {
            return Err(Status::already_exists(format!("another node is called `{}`", member.name)));
        }
        change_members(&turn, ChangeMembers::SetNodes(BTreeMap::from([(id, member)]))).await?;
        Ok(Response::new(AnnounceAnswer {}))
    }

    async fn take_over(&self, request: Request<TakeOverRequest>) -> Result<Response<TakeOverAnswer>, Status> {
        self.check_known(&request).await?;
        if self.peers.is_short() {
            return Err(Status::unavailable("the disk of this member has no room"));
        }
        self.raft.trigger().elect().await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Response::new(TakeOverAnswer {}))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveAnswer>, Status> {
        self.check_known(&request).await?;
        let RemoveRequest { node_id, only_ask } = request.into_inner();
        let node_id = node_id.parse().map_err(|_| Status::invalid_argument("the node's id is none"))?;
        match remove_here(&self.raft, &self.peers, node_id, only_ask).await {
            Answer::Done { answers } => Ok(Response::new(RemoveAnswer { answers })),
            Answer::Elsewhere(to) => Err(elsewhere(to.as_ref().map(|(_, member)| member))),
            Answer::Refused(error) => Err(Status::aborted(error.to_string())),
        }
    }
}
