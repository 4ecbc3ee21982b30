//! Answers the other members.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use openraft::{
    ChangeMembers,
    error::{ChangeMembershipError, CheckIsLeaderError, ClientWriteError, RaftError},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Certificate, Server, ServerTlsConfig, server::TcpIncoming},
};

use super::{
    super::{
        leader::leader,
        propose::ForwardError,
        state_machine::snapshot,
        types::{Batch, FOUNDER, Identity, Member, MemberId, Outcomes, Raft, Snapshot, SnapshotMeta, Vote},
    },
    PROTOCOL, Transport,
    peers::LARGEST,
};
use crate::{
    observe::chain,
    wire::peer::{
        AnnounceAnswer, JoinAnswer, JoinRequest, Message, ProposeRequest, ReadIndexAnswer, ReadIndexRequest,
        SnapshotPart, TakeOverAnswer, TakeOverRequest,
        peer_server::{Peer, PeerServer},
        snapshot_part::Part,
    },
};

/// Longest wait for a caller's handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls of one connection that are answered at a time.
const CALLS: usize = 256;
/// Longest wait for another change of the members, and the wait between two tries.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
const CHANGE_PAUSE: Duration = Duration::from_millis(50);
/// Largest snapshot that is taken, in bytes.
const LARGEST_SNAPSHOT: u64 = 8 << 30;

/// What a joiner is given.
pub struct Admitted {
    /// Its certificate, PEM.
    pub certificate: String,
    /// The authority's certificate, PEM.
    pub authority: String,
    /// The authority's key, PEM.
    pub authority_key: String,
    /// Key under which secrets are kept, hexadecimal.
    pub cluster_key: String,
}

/// Decides who may join.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Checks the secret and signs a certificate for `member_id`. The text is the reason of a refusal.
    async fn admit(&self, secret: &str, signing_request: &str, member_id: MemberId) -> Result<Admitted, String>;

    /// Whether a secret is one that lets others in.
    fn is_known(&self, secret: &str) -> bool;
}

struct Service {
    raft: Raft,
    identity: Identity,
    admission: Arc<dyn Admission>,
    /// One joiner at a time: each is numbered after the one before is in the log.
    joining: Arc<Mutex<()>>,
}

/// Answers until `cancel`.
pub(in super::super) async fn serve(
    listener: TcpListener,
    transport: &Transport,
    (raft, identity, joining): (Raft, Identity, Arc<Mutex<()>>),
    admission: Arc<dyn Admission>,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let tls = ServerTlsConfig::new()
        .identity(transport.identity())
        .client_ca_root(Certificate::from_pem(&transport.authority))
        .client_auth_optional(true)
        .timeout(HANDSHAKE_TIMEOUT);
    let service = Service { raft, identity, admission, joining };
    let service = PeerServer::new(service).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    Server::builder()
        .tls_config(tls)?
        .concurrency_limit_per_connection(CALLS)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), cancel.cancelled_owned())
        .await
}

fn about<'a, T>(request: &'a Request<T>, key: &str) -> &'a str {
    request.metadata().get(key).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn check_protocol<T>(request: &Request<T>) -> Result<(), Status> {
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
    Ok(Response::new(Message { json }))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(bytes).map_err(|e| Status::invalid_argument(format!("the message does not parse: {e}")))
}

impl Service {
    /// Lets only members of this cluster pass.
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if request.peer_certs().is_none_or(|certificates| certificates.is_empty()) {
            return Err(Status::unauthenticated("a certificate of the cluster is needed"));
        }
        check_protocol(request)?;
        let cluster = about(request, "toft-cluster");
        if cluster != self.identity.cluster_id.to_string() {
            let own = self.identity.cluster_id;
            return Err(Status::failed_precondition(format!("the caller is of cluster {cluster}, this is {own}")));
        }
        Ok(())
    }

    fn members(&self) -> BTreeMap<MemberId, Member> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.nodes().map(|(id, member)| (*id, member.clone())).collect()
    }

    /// Where the leader is, for callers that came to another member.
    fn elsewhere(&self, leader: Option<&Member>) -> Status {
        let mut status = Status::failed_precondition("this member does not lead");
        if let Some(address) = leader.and_then(|leader| leader.address.parse().ok()) {
            status.metadata_mut().insert("toft-leader", address);
        }
        status
    }

    async fn change(&self, change: ChangeMembers<MemberId, Member>) -> Result<(), Status> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        loop {
            match self.raft.change_membership(change.clone(), true).await {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                    return Err(self.elsewhere(to.leader_node.as_ref()));
                }
                // Another change of the members, such as a new voter, is on its way.
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_),
                ))) if Instant::now() < deadline => tokio::time::sleep(CHANGE_PAUSE).await,
                Err(error) => return Err(Status::unavailable(chain(&error))),
            }
        }
    }

    async fn receive(&self, parts: &mut Streaming<SnapshotPart>) -> Result<(Vote, Snapshot), Status> {
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
    async fn append(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        self.check(&request)?;
        json(&self.raft.append_entries(parse(&request.get_ref().json)?).await)
    }

    async fn vote(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        self.check(&request)?;
        json(&self.raft.vote(parse(&request.get_ref().json)?).await)
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Result<Response<Message>, Status> {
        self.check(&request)?;
        let (vote, snapshot) = self.receive(&mut request.into_inner()).await?;
        json(&self.raft.install_full_snapshot(vote, snapshot).await)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<Message>, Status> {
        self.check(&request)?;
        let raw = |text: String| RawValue::from_string(text).map_err(|e| Status::invalid_argument(e.to_string()));
        let requests = request.into_inner().requests.into_iter().map(raw).collect::<Result<Vec<_>, _>>()?;
        if leader(&self.raft.metrics().borrow()) != Some(self.identity.member_id) {
            return json(&Err::<(u64, Outcomes), _>(ForwardError::NotLeading));
        }
        let written = self.raft.client_write(Batch(Arc::new(requests))).await;
        json(&written.map(|written| (written.log_id.index, written.data)).map_err(|error| ForwardError::of(&error)))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexAnswer>, Status> {
        self.check(&request)?;
        match self.raft.get_read_log_id().await {
            Ok((index, _)) => Ok(Response::new(ReadIndexAnswer { index: index.map_or(0, |id| id.index) })),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                Err(self.elsewhere(to.leader_node.as_ref()))
            }
            Err(error) => Err(Status::unavailable(chain(&error))),
        }
    }

    async fn announce(&self, request: Request<Message>) -> Result<Response<AnnounceAnswer>, Status> {
        self.check(&request)?;
        let id =
            about(&request, "toft-member").parse::<MemberId>().map_err(|e| Status::invalid_argument(e.to_string()))?;
        let member: Member = parse(&request.get_ref().json)?;
        match self.members().get(&id) {
            Some(known) if known.node_id == member.node_id => {}
            _ => return Err(Status::not_found(format!("there is no member {id} of that node"))),
        }
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, member)]))).await?;
        Ok(Response::new(AnnounceAnswer {}))
    }

    async fn take_over(&self, request: Request<TakeOverRequest>) -> Result<Response<TakeOverAnswer>, Status> {
        self.check(&request)?;
        self.raft.trigger().elect().await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Response::new(TakeOverAnswer {}))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinAnswer>, Status> {
        check_protocol(&request)?;
        let JoinRequest { secret, member, signing_request } = request.into_inner();
        if !self.admission.is_known(&secret) {
            tracing::warn!("a machine with a wrong token asked to join");
            return Err(Status::permission_denied("the token is wrong or no longer valid"));
        }
        let member: Member = parse(&member)?;
        let _one = self.joining.lock().await;
        if let Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) = self.raft.get_read_log_id().await {
            return Err(self.elsewhere(to.leader_node.as_ref()));
        }
        let members = self.members();
        let stranger = |(_, known): &(&MemberId, &Member)| known.name == member.name && known.node_id != member.node_id;
        if let Some((_, known)) = members.iter().find(stranger) {
            let name = &known.name;
            return Err(Status::already_exists(format!("another node is called `{name}`; choose another name")));
        }
        // The log never gives an index twice, so no member gets the number of another, nor that of who founded the cluster
        // with the log's first entry.
        let last = self.raft.metrics().borrow().last_log_index.unwrap_or(0);
        let member_id = last + 1 + FOUNDER;
        let admitted = self.admission.admit(&secret, &signing_request, member_id).await;
        let admitted = admitted.map_err(Status::permission_denied)?;
        let name = member.name.clone();
        let before: Vec<_> = members.iter().filter(|(_, known)| known.node_id == member.node_id).collect();
        let replaced = before.iter().map(|(id, _)| **id).collect();
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(member_id, member)]))).await?;
        if !before.is_empty() {
            tracing::info!("`{name}` joins again; its former membership ends");
            self.change(ChangeMembers::RemoveVoters(std::collections::BTreeSet::clone(&replaced))).await?;
            self.change(ChangeMembers::RemoveNodes(replaced)).await?;
        }
        tracing::info!("`{name}` joined as member {member_id}");
        Ok(Response::new(JoinAnswer {
            cluster_id: self.identity.cluster_id.to_string(),
            member_id,
            certificate: admitted.certificate,
            authority: admitted.authority,
            authority_key: admitted.authority_key,
            cluster_key: admitted.cluster_key,
        }))
    }
}
