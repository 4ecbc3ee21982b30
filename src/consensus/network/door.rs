//! Lets machines in that are no members yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use openraft::{
    ChangeMembers,
    error::{CheckIsLeaderError, RaftError},
};
use toft_model::{ids::NodeId, name::Name};
use tonic::{Code, Request, Response, Status};

use super::{
    super::{
        edition::{Edition, common_format},
        removal::answers,
        types::{Identity, Member, MemberId, Raft, Role},
    },
    limit::Limits,
    peers::Peers,
    server::{change_members, check_protocol, elsewhere, turn},
};
use crate::wire::peer::{
    GreetAnswer, GreetRequest, JoinAnswer, JoinRequest, ProveAnswer, ProveRequest, door_server::Door,
};

/// Largest message of a stranger.
pub(super) const LARGEST: usize = 64 << 10;
/// Most labels, and longest texts of a stranger, in bytes.
const MOST_LABELS: usize = 64;
const LONGEST_TEXT: usize = 256;
const LONGEST_REQUEST: usize = 8 << 10;
/// Longest wait for the newest state.
const LATEST: Duration = Duration::from_secs(5);

/// What a joiner asks for.
pub struct Asked {
    /// Id of its token.
    pub token_id: String,
    /// The token's secret.
    pub secret: zeroize::Zeroizing<String>,
    /// Who it is.
    pub node_id: NodeId,
    /// What it wants to be called.
    pub name: Name,
    /// Labels it wants.
    pub labels: BTreeMap<String, String>,
    /// Its certificate signing request, PEM.
    pub signing_request: String,
    /// Where the call comes from.
    pub from: IpAddr,
}

/// What a token gives.
pub struct Offer {
    /// What the joiner becomes.
    pub role: Role,
    /// What it is called.
    pub name: Option<Name>,
    /// The number of who was let in before with the same key.
    pub again: Option<MemberId>,
}

/// What a joiner is given.
pub struct Admitted {
    /// Its number.
    pub member_id: MemberId,
    /// Who it is from now on.
    pub node_id: NodeId,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The authority's certificate, PEM.
    pub authority: String,
    /// The authority's key, PEM.
    pub authority_key: String,
    /// Key under which secrets are kept, hexadecimal.
    pub cluster_key: String,
}

/// What the state knows of a member that is none of those this one knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was let in.
    LetIn,
    /// It may have been let in after what this member knows.
    Newer,
    /// It was removed.
    Removed,
    /// The state cannot be asked.
    Unknown,
}

/// Decides who may join.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Checks the secret against the newest state. The text is the reason of a refusal, which tells who has a wrong secret
    /// nothing.
    async fn check(&self, asked: &Asked) -> Result<Offer, String>;

    /// Spends a use of the token and signs a certificate. Who is let in again with the same key is answered the same.
    async fn admit(&self, asked: &Asked, name: &Name, in_place_of: Option<NodeId>) -> Result<Admitted, String>;

    /// The node of that name, be it a member or not.
    async fn node_called(&self, name: &Name) -> Option<NodeId>;

    /// A joiner's first message about a PIN: gives the answer and the number of the attempt.
    fn greet(&self, message: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String>;

    /// A joiner's proof that it knows the PIN: gives the sealed token.
    fn prove(&self, attempt: &[u8], proof: &[u8]) -> Result<Vec<u8>, String>;

    /// Whether the number of a member that is not known here may be one.
    async fn standing(&self, member_id: MemberId) -> Standing;
}

pub(super) struct Entrance {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) identity: Identity,
    pub(super) admission: Arc<dyn Admission>,
    limits: Mutex<Limits>,
}

impl Entrance {
    pub(super) fn new(raft: Raft, peers: Arc<Peers>, identity: Identity, admission: Arc<dyn Admission>) -> Self {
        Self { raft, peers, identity, admission, limits: Mutex::new(Limits::new()) }
    }

    async fn let_in(&self, asked: Asked, wanted: Wanted, local: Option<SocketAddr>) -> Result<JoinAnswer, Status> {
        let denied = |why: String| Status::permission_denied(why);
        let offer = self.admission.check(&asked).await.map_err(denied)?;
        if let Some(role) = wanted.role.filter(|role| *role != offer.role) {
            let (token, role) = (offer.role.as_str(), role.as_str());
            return Err(denied(format!("the token is for a {token}, and not for a {role}")));
        }
        let name = match offer.name {
            Some(name) if wanted.name_chosen && name != asked.name => {
                return Err(denied(format!(
                    "the token is for a node called `{name}`, and this one is called `{}`",
                    asked.name
                )));
            }
            Some(name) => name,
            None => asked.name.clone(),
        };
        match tokio::time::timeout(LATEST, self.raft.get_read_log_id()).await {
            Ok(Ok(_)) => {}
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to)))) => {
                return Err(elsewhere(to.leader_node.as_ref()));
            }
            Ok(Err(_)) | Err(_) => return Err(Status::unavailable("the cluster has no leader now")),
        }
        // What is found out about names still holds when it is let in.
        let turn = turn(&self.raft, &self.peers).await?;
        let members = turn.members();
        let answers = |id: &MemberId| answers(&self.raft, &self.peers, *id);
        // Who says that it is a member which is there is not.
        let itself = members.iter().find(|(_, known)| known.node_id == asked.node_id);
        if itself.is_some_and(|(id, _)| offer.again.is_none() && answers(id)) {
            return Err(Status::already_exists("a member with this node's id is there and answers"));
        }
        // Who heard the answer has come, and what it asked with is of no use to anybody any more.
        if offer.again.is_some_and(|id| self.peers.heard(id).is_some()) {
            return Err(denied(
                "the machine with this key was let in before, and has come; join again with a new token".into(),
            ));
        }
        // What is in the log already has to be understood by whoever is to apply it.
        let common = common_format(&members);
        if wanted.edition.format < common {
            let runs = &wanted.edition.version;
            let here = Edition::own().version;
            return Err(denied(format!(
                "the machine runs toft {runs}, which is too old for what this cluster does; install toft {here} there"
            )));
        }
        let called = members.iter().find(|(_, known)| known.name == name && known.node_id != asked.node_id);
        if let Some((id, _)) = called
            && answers(id)
        {
            return Err(Status::already_exists(format!("another node is called `{name}`, and answers")));
        }
        let in_place_of = match called {
            Some((_, known)) => Some(known.node_id),
            // A node that is no member any more, as after the loss of the majority.
            None => self.admission.node_called(&name).await.filter(|id| *id != asked.node_id),
        };
        let node_id = in_place_of.unwrap_or(asked.node_id);
        let admitted = self.admission.admit(&asked, &name, in_place_of).await.map_err(denied)?;
        let member_id = admitted.member_id;
        let before: BTreeSet<MemberId> = members
            .iter()
            .filter(|(id, known)| known.node_id == node_id && **id != member_id)
            .map(|(id, _)| *id)
            .collect();
        let edition = wanted.edition;
        let member = Member { node_id, name: name.clone(), address: wanted.address, role: offer.role, edition };
        let mut added = BTreeMap::from([(member_id, member.clone())]);
        if let Some(me) = members.get(&self.identity.member_id)
            && let Some(address) = local.and_then(|local| better(&me.address, local))
        {
            let me = Member { address, ..me.clone() };
            change_members(&turn, ChangeMembers::SetNodes([(self.identity.member_id, me)].into())).await?;
        }
        if members.get(&member_id) == Some(&member) {
            added.clear();
        }
        if !added.is_empty() {
            let again = members.contains_key(&member_id);
            let add = if again { ChangeMembers::SetNodes(added) } else { ChangeMembers::AddNodes(added) };
            change_members(&turn, add).await?;
        }
        if !before.is_empty() {
            tracing::info!("`{name}` joins again; its former membership ends");
            change_members(&turn, ChangeMembers::RemoveVoters(before.clone())).await?;
            change_members(&turn, ChangeMembers::RemoveNodes(before.clone())).await?;
            self.peers.forget(&before);
        }
        tracing::info!("`{name}` at {} joined as member {member_id} with token {}", member.address, asked.token_id);
        let members = turn.members();
        let me = members.get(&self.identity.member_id);
        Ok(JoinAnswer {
            cluster_id: self.identity.cluster_id.to_string(),
            member_id,
            certificate: admitted.certificate,
            authority: admitted.authority,
            authority_key: admitted.authority_key,
            cluster_key: admitted.cluster_key,
            node_id: node_id.to_string(),
            name: name.to_string(),
            role: member.role.as_str().to_owned(),
            address: member.address,
            labels: admitted.labels.into_iter().collect(),
            members: members.keys().copied().collect(),
            through: me.map(|me| me.name.to_string()).unwrap_or_default(),
            through_id: self.identity.member_id,
        })
    }
}

/// Where this member is reached, as the call of a joiner shows, when nothing was known, or nothing that leads off this machine.
fn better(known: &str, local: SocketAddr) -> Option<String> {
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let loopback = known.parse::<SocketAddr>().is_ok_and(|known| known.ip().is_loopback());
    (known.is_empty() || loopback && !local.ip().is_loopback()).then(|| local.to_string())
}

/// What a joiner wants besides.
struct Wanted {
    role: Option<Role>,
    name_chosen: bool,
    address: String,
    edition: Edition,
}

impl Entrance {
    /// Where a call comes from, if it may be answered now.
    fn admit_call<T>(&self, request: &Request<T>) -> Result<SocketAddr, Status> {
        let Some(from) = request.remote_addr() else {
            return Err(Status::internal("the caller's address is not known"));
        };
        let taken = self.limits.lock().unwrap_or_else(PoisonError::into_inner).take(from.ip(), Instant::now());
        match taken {
            Ok(()) => Ok(from),
            Err(wait) => {
                tracing::debug!(caller = %from, "too many asked to join");
                let wait = wait.as_secs() + 1;
                Err(Status::resource_exhausted(format!("too many ask to join; try again in {wait} s")))
            }
        }
    }
}

#[async_trait]
impl Door for Entrance {
    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetAnswer>, Status> {
        let from = self.admit_call(&request)?;
        check_protocol(&request)?;
        match self.admission.greet(&request.get_ref().message) {
            Ok((message, attempt)) => Ok(Response::new(GreetAnswer { message, attempt })),
            Err(why) => {
                tracing::warn!(caller = %from, "a machine that came with a PIN was refused: {why}");
                Err(Status::permission_denied(why))
            }
        }
    }

    async fn prove(&self, request: Request<ProveRequest>) -> Result<Response<ProveAnswer>, Status> {
        let from = self.admit_call(&request)?;
        check_protocol(&request)?;
        let ProveRequest { attempt, proof } = request.get_ref();
        match self.admission.prove(attempt, proof) {
            Ok(sealed) => {
                tracing::info!(caller = %from, "a machine knows the PIN, and was given its token");
                Ok(Response::new(ProveAnswer { sealed }))
            }
            Err(why) => {
                tracing::warn!(caller = %from, "a machine that came with a PIN was refused: {why}");
                Err(Status::permission_denied(why))
            }
        }
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinAnswer>, Status> {
        let from = self.admit_call(&request)?;
        let refused = |status: Status| {
            // Who is sent on is not refused.
            if status.code() != Code::FailedPrecondition {
                tracing::warn!(caller = %from, "a machine that asked to join was refused: {}", status.message());
            }
            status
        };
        check_protocol(&request).map_err(refused)?;
        let local = request.local_addr();
        let (asked, wanted) = read(request.into_inner(), from).map_err(refused)?;
        Ok(Response::new(self.let_in(asked, wanted, local).await.map_err(refused)?))
    }
}

/// Reads what a stranger wrote.
fn read(request: JoinRequest, from: SocketAddr) -> Result<(Asked, Wanted), Status> {
    let JoinRequest { token_id, secret, node_id, name, name_chosen, role, labels, signing_request, .. } = request;
    let JoinRequest { address, port, version, format, .. } = request;
    let bad = |what: &str| Status::invalid_argument(format!("the request to join has {what}"));
    if [&token_id, &secret, &address, &role, &version].into_iter().any(|text| text.len() > LONGEST_TEXT)
        || labels.len() > MOST_LABELS
        || labels.iter().any(|(key, value)| key.len() > LONGEST_TEXT || value.len() > LONGEST_TEXT)
        || signing_request.len() > LONGEST_REQUEST
    {
        return Err(bad("a text that is too long"));
    }
    let node_id = node_id.parse().map_err(|_| bad("no node id"))?;
    let name: Name = name.parse().map_err(|_| bad("a name that is none"))?;
    let role = match role.as_str() {
        "" => None,
        "server" => Some(Role::Server),
        "witness" => Some(Role::Witness),
        _ => return Err(bad("a role that is none")),
    };
    let address = match (address.as_str(), u16::try_from(port)) {
        ("", Ok(port)) if port > 0 => SocketAddr::new(from.ip().to_canonical(), port).to_string(),
        ("", _) => return Err(bad("no port")),
        (text, _) => {
            let host = text.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-[]_%".contains(&b));
            if host.is_none() || !plain {
                return Err(bad("an address that is none"));
            }
            address
        }
    };
    let asked = Asked {
        token_id,
        secret: secret.into(),
        node_id,
        name,
        labels: labels.into_iter().collect(),
        signing_request,
        from: from.ip().to_canonical(),
    };
    let edition = Edition::told(&version, format);
    Ok((asked, Wanted { role, name_chosen, address, edition }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn request() -> JoinRequest {
        JoinRequest {
            token_id: "k7mqzt3wpa".into(),
            secret: "5".repeat(40),
            node_id: "0199c0de-0000-7000-8000-000000000001".into(),
            name: "attic".into(),
            port: 7444,
            ..JoinRequest::default()
        }
    }

    fn from() -> SocketAddr {
        "[::ffff:192.0.2.7]:50000".parse().unwrap()
    }

    #[test]
    fn who_names_no_address_is_known_by_the_one_it_calls_from() {
        let (asked, wanted) = read(request(), from()).unwrap();
        assert_eq!((wanted.address.as_str(), asked.from.to_string().as_str()), ("192.0.2.7:7444", "192.0.2.7"));
        let named = JoinRequest { address: "attic.lan:7444".into(), ..request() };
        assert_eq!(read(named, from()).unwrap().1.address, "attic.lan:7444");
    }

    #[test]
    fn a_member_is_known_by_the_address_that_leads_to_it() {
        let local = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(better("", local("[::ffff:10.0.0.1]:7444")).unwrap(), "10.0.0.1:7444");
        assert_eq!(better("127.0.0.1:7444", local("10.0.0.1:7444")).unwrap(), "10.0.0.1:7444");
        assert_eq!(better("127.0.0.1:7444", local("127.0.0.1:7444")), None);
        assert_eq!(better("10.0.0.9:7444", local("10.0.0.1:7444")), None);
        assert_eq!(better("box.lan:7444", local("10.0.0.1:7444")), None);
    }

    #[test]
    fn hostile_requests_are_refused() {
        let bad: [fn(&mut JoinRequest); 11] = [
            |asked| asked.node_id = "1".into(),
            |asked| asked.name = "A B".into(),
            |asked| asked.name = String::new(),
            |asked| asked.role = "king".into(),
            |asked| asked.port = 0,
            |asked| asked.port = 70_000,
            |asked| asked.address = "no port".into(),
            |asked| asked.address = "a\nb:1".into(),
            |asked| asked.secret = "x".repeat(300),
            |asked| asked.signing_request = "x".repeat(9_000),
            |asked| asked.labels = (0..65).map(|i| (i.to_string(), String::new())).collect(),
        ];
        for change in bad {
            let mut asked = request();
            change(&mut asked);
            assert!(read(asked.clone(), from()).is_err(), "{asked:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_bytes_come_nothing_breaks(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            if let Ok(asked) = JoinRequest::decode(bytes.as_slice()) {
                drop(read(asked, from()));
            }
        }

        #[test]
        fn a_message_with_flipped_bits_is_refused_or_means_something(at in 0usize..200, bit in 0u8..8) {
            let mut bytes = request().encode_to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(asked) = JoinRequest::decode(bytes.as_slice())
                && let Ok((asked, wanted)) = read(asked, from())
            {
                prop_assert!(asked.secret.len() <= LONGEST_TEXT && wanted.address.contains(':'));
            }
        }
    }
}
