//! What members ask of each other beside consensus: the rooms that know how to answer offer gRPC services here, and those
//! that ask get a channel to a node. Both ends have certificates of the cluster, and who is removed is cut off at once.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::Uri;
use futures_util::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use toft_model::ids::NodeId;
use tokio::{net::TcpStream, sync::watch, time::Instant};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, InterceptorLayer, Routes, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Server},
};

use super::{
    super::types::{Identity, MemberId, Raft},
    CallError, PROTOCOL,
    gate::Guest,
    peers::{CONNECT_TIMEOUT, Peers, endpoint},
    server::{check_protocol, members_now},
    tls::member_of,
    ways::either,
};
use crate::observe::chain;

/// What a caller names that asks a service.
pub(super) const NAME: &[u8] = b"toft-services";
/// Calls of one connection that are answered at a time; the others wait.
const CALLS: usize = 256;
/// Largest headers of a call, in bytes.
const LARGEST_HEADERS: u32 = 16 << 10;
/// Bytes of one stream that may be on their way unread: enough for a gigabit over 8 ms.
const WINDOW: u32 = 1 << 20;
/// The same of all streams of a connection: room for many that nobody reads, so that they hold up only themselves.
const CONNECTION_WINDOW: u32 = 128 << 20;
/// How often a silent connection is asked whether it lives, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long calls may go on when this member ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The member that calls a service, as an extension of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its number.
    pub member_id: MemberId,
    /// Its node.
    pub node_id: NodeId,
}

/// A connection to the services of one node.
pub type MemberChannel = InterceptedService<Channel, Speaking>;

/// Says in every request which protocol this member speaks.
#[derive(Debug, Clone, Copy)]
pub struct Speaking;

impl Interceptor for Speaking {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("toft-protocol", MetadataValue::from(PROTOCOL));
        Ok(request)
    }
}

type Add = Arc<dyn Fn(Routes) -> Routes + Send + Sync>;

/// What is offered, by number.
#[derive(Default)]
struct Offers {
    next: u64,
    all: BTreeMap<u64, Add>,
}

/// Services are offered until this is dropped. They may hold a [`super::super::Handle`], which ends nothing while it is held: keep this
/// where the daemon drops it.
#[must_use = "services are offered until this is dropped"]
pub struct Offered {
    services: Arc<Services>,
    number: u64,
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.services.offers().all.remove(&self.number);
        self.services.changed.send_replace(());
    }
}

/// The services of this member, and the channels to those of the others.
pub(in super::super) struct Services {
    raft: Raft,
    peers: Arc<Peers>,
    identity: Identity,
    offered: Mutex<Offers>,
    /// Changes when more or less is offered.
    changed: watch::Sender<()>,
    /// The newest channel to each member, with the addresses it tries.
    open: Mutex<HashMap<MemberId, (Vec<String>, Channel)>>,
}

impl Services {
    pub(in super::super) fn new(raft: Raft, peers: Arc<Peers>, identity: Identity) -> Self {
        Self {
            raft,
            peers,
            identity,
            offered: Mutex::default(),
            changed: watch::Sender::default(),
            open: Mutex::default(),
        }
    }

    fn offers(&self) -> MutexGuard<'_, Offers> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to what is offered. Callers connect anew for it; what they began goes on.
    pub(in super::super) fn offer(self: &Arc<Self>, add: impl Fn(Routes) -> Routes + Send + Sync + 'static) -> Offered {
        let mut offers = self.offers();
        let number = offers.next;
        offers.next += 1;
        offers.all.insert(number, Arc::new(add));
        drop(offers);
        self.changed.send_replace(());
        Offered { services: Arc::clone(self), number }
    }

    /// Answers what comes over a connection until it is closed, its member is removed, or `cancel`.
    pub(super) fn take(self: &Arc<Self>, stream: TlsStream<TcpStream>, cancel: CancellationToken) {
        let certified = stream.get_ref().1.peer_certificates().and_then(|all| all.first()).and_then(member_of);
        let Some(member_id) = certified else { return };
        let mut metrics = self.raft.server_metrics();
        let known = members_now(&self.raft).get(&member_id).map(|member| member.node_id);
        let Some(node_id) = known.filter(|_| member_id != self.identity.member_id) else {
            tracing::debug!("member {member_id} asks for services and is not known here");
            return;
        };
        let caller = Caller { member_id, node_id };
        let gone = async move {
            let removed = metrics.wait_for(|now| now.membership_config.nodes().all(|(id, _)| *id != member_id));
            drop(removed.await);
        };
        // Whoever has left is waited for no longer; whoever stays when the door is closed is not waited for.
        let left = cancel.child_token();
        let guard = left.clone().drop_guard();
        let guest = Guest::until(stream, async move {
            let _left = guard;
            tokio::select! {
                () = gone => {}
                () = async { cancel.cancelled().await; tokio::time::sleep(LAST_WORDS).await } => {}
            }
        });
        let about = InterceptorLayer::new(move |mut request: Request<()>| {
            check_protocol(&request)?;
            request.extensions_mut().insert(caller);
            Ok(request)
        });
        let mut changed = self.changed.subscribe();
        let offered = self.offers().all.values().fold(Routes::default(), |routes, add| add(routes));
        let answering = Server::builder()
            .concurrency_limit_per_connection(CALLS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .http2_max_header_list_size(LARGEST_HEADERS)
            .layer(about)
            .add_routes(offered)
            // The connection goes on until the guest has left.
            .serve_with_incoming_shutdown(
                stream::once(async { Ok::<_, std::io::Error>(guest) }).chain(stream::pending()),
                async move {
                    tokio::select! {
                        () = left.cancelled_owned() => {}
                        _ = changed.changed() => {}
                    }
                },
            );
        tokio::spawn(async move {
            if let Err(error) = answering.await {
                tracing::debug!(%error, "a member's connection has ended");
            }
        });
    }

    /// A channel to the services of a node, through the mesh first. It connects when it is used, and again when it broke.
    pub(in super::super) fn channel_to(&self, node_id: &NodeId) -> Result<MemberChannel, CallError> {
        let members = members_now(&self.raft);
        let Some((id, member)) = members.iter().find(|(_, member)| member.node_id == *node_id) else {
            return Err(CallError::NotConnected("it is no member of the cluster".into()));
        };
        let mesh = self.peers.ways().through_mesh(*id, member, Instant::now());
        let addresses: Vec<String> = match (mesh, member.address.is_empty()) {
            (None, true) => return Err(CallError::NoAddress),
            (None, false) => vec![member.address.clone()],
            (Some((mesh, _)), true) => vec![mesh],
            (Some((mesh, true)), false) => vec![mesh, member.address.clone()],
            (Some((mesh, false)), false) => vec![member.address.clone(), mesh],
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let present: HashSet<MemberId> = members.keys().copied().collect();
        open.retain(|id, _| present.contains(id));
        let channel = match open.get(id) {
            Some((known, channel)) if *known == addresses => channel.clone(),
            _ => {
                let channel = self.dial(*id, addresses.clone())?;
                open.insert(*id, (addresses, channel.clone()));
                channel
            }
        };
        Ok(InterceptedService::new(channel, Speaking))
    }

    /// A new connection to the services of a node at `address`, past the mesh; it ends when it breaks.
    pub(in super::super) async fn connect_to(&self, node: &NodeId, address: &str) -> Result<MemberChannel, CallError> {
        let members = members_now(&self.raft);
        let found = members.iter().find(|(_, member)| member.node_id == *node);
        let (id, _) = found.ok_or_else(|| CallError::NotConnected("it is no member of the cluster".into()))?;
        let line = self.peers.dialling()?.line(*id, NAME)?;
        let at: Arc<str> = address.into();
        let endpoint = windows(endpoint(address)?);
        let connected = endpoint.connect_with_connector(tower::service_fn(move |_: Uri| {
            let (line, at) = (line.clone(), Arc::clone(&at));
            async move { line.connect(&at).await.map(TokioIo::new) }
        }));
        let channel = connected.await.map_err(|error| CallError::NotConnected(chain(&error)))?;
        Ok(InterceptedService::new(channel, Speaking))
    }

    fn dial(&self, id: MemberId, addresses: Vec<String>) -> Result<Channel, CallError> {
        let line = self.peers.dialling()?.line(id, NAME)?;
        let endpoint = windows(endpoint(&addresses[0])?);
        let addresses: Arc<[String]> = addresses.into();
        let peers = Arc::clone(&self.peers);
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (line, addresses, peers) = (line.clone(), Arc::clone(&addresses), Arc::clone(&peers));
            async move {
                let at = async |address: &str| {
                    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, line.connect(address)).await;
                    let failed = |error: std::io::Error| CallError::NotConnected(error.to_string());
                    connecting.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(failed)
                };
                let beside = async {
                    let mut outcome = Err(CallError::NoAddress);
                    for address in peers.dialling()?.backs().beside(id) {
                        outcome = at(&address).await;
                        if outcome.is_ok() {
                            break;
                        }
                    }
                    outcome
                };
                let stream = match &*addresses {
                    [one, other, ..] => either(at(one), async { either(at(other), beside).await.0 }).await.0,
                    [one] => either(at(one), beside).await.0,
                    [] => Err(CallError::NoAddress),
                };
                stream.map(TokioIo::new).map_err(std::io::Error::other)
            }
        })))
    }
}

fn windows(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
}
