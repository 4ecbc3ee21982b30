//! The joiner's side.

use std::{
    collections::BTreeMap, fs, net::SocketAddr, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration,
};

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use toft_model::{ids::NodeId, name::Name};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};
use zeroize::Zeroizing;

use super::{
    Certified, KeyError, Keys, Place, Token,
    authority::{Authority, hash, signing_request},
    file, write,
};
use crate::{
    consensus::{
        Edition,
        network::{Contact, PROTOCOL, SERVER_NAME},
        types::{Identity, Role},
    },
    observe::chain,
    seal::ClusterKey,
    wire::peer::{JoinAnswer, JoinRequest, door_client::DoorClient},
};

/// Longest wait for each step.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);
/// Members asked until the one that leads is found.
const HOPS: usize = 5;
/// Wait before a member is asked again.
const TURN: Duration = Duration::from_secs(1);
/// Longest time for that when too many ask or no answer comes, and when nobody leads.
const IN_TURN: Duration = Duration::from_secs(120);
const LEADERLESS: Duration = Duration::from_secs(20);

/// Why a machine is not let in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answers there.
    #[error("no member answers at `{address}`: {detail}")]
    Unreachable {
        /// Address.
        address: String,
        /// What happened.
        detail: String,
    },
    /// Who answers is of another cluster than the token.
    #[error("the member at `{address}` is of another cluster than the token")]
    OtherCluster {
        /// Address.
        address: String,
    },
    /// The cluster says no.
    #[error("the cluster refuses: {0}")]
    Refused(String),
    /// It took the request and said nothing.
    #[error("the member at `{address}` was asked again and again and did not answer")]
    Silent {
        /// Address.
        address: String,
    },
    /// The keys cannot be kept.
    #[error("the cluster's keys could not be kept")]
    Keys(#[from] KeyError),
    /// The answer makes no sense.
    #[error("the cluster's answer cannot be used: {0}")]
    Answer(String),
}

impl JoinError {
    /// The next step for the person who reads the error.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => {
                "check the address, and that toft on that machine listens for members: it does from its first `toft token create` on, at port 7444"
            }
            Self::OtherCluster { .. } => {
                "get a token from a member of the cluster you want to join: `toft token create`"
            }
            Self::Silent { .. } => {
                "look at the cluster with `toft node ls` on that machine, and try again when it answers"
            }
            Self::Refused(_) | Self::Keys(_) | Self::Answer(_) => {
                "nothing was changed here; mend the cause and try again"
            }
        }
    }
}

/// What a machine asks for that joins.
pub struct Joining<'a> {
    /// A member, `HOST:PORT`.
    pub address: &'a str,
    /// What lets it in.
    pub token: &'a Token,
    /// Who it is.
    pub node_id: NodeId,
    /// What it wants to be called, and whether somebody chose that.
    pub name: (Name, bool),
    /// What it is to do; what the token says when absent.
    pub role: Option<Role>,
    /// Labels beside those of the token.
    pub labels: BTreeMap<String, String>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the others reach it; when empty, where its call comes from.
    pub reach: String,
}

/// What a machine is that was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Its cluster and number.
    pub identity: Identity,
    /// Who it is from now on.
    pub node_id: NodeId,
    /// What it is called.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// Where the others reach it.
    pub address: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Name and address of the member that let it in.
    pub through: (String, String),
}

/// Where a key waits for its certificate, and for which token.
const REQUEST: &str = "request.pem";
const FOR: &str = "for-token";

/// Asks a cluster to let this machine in, and keeps what it gives in `folder`. The key is there before anybody is asked: who
/// asks again, because it did not hear the answer, is the same. When this returns, the folder's `place.json` says who this
/// machine is.
pub async fn join(joining: Joining<'_>, folder: &Path) -> Result<Answered, JoinError> {
    let (request, key) = request(folder, joining.token)?;
    let edition = Edition::own();
    let mut address = joining.address.to_owned();
    for _ in 0..HOPS {
        let authority = fetch_authority(&address, joining.token).await?;
        let (name, name_chosen) = joining.name.clone();
        let asked = JoinRequest {
            token_id: joining.token.id.to_string(),
            secret: joining.token.secret.to_string(),
            node_id: joining.node_id.to_string(),
            name: name.to_string(),
            name_chosen,
            role: joining.role.map(|role| role.as_str().to_owned()).unwrap_or_default(),
            labels: joining.labels.clone().into_iter().collect(),
            signing_request: request.clone(),
            address: joining.reach.clone(),
            port: u32::from(joining.listen.port()),
            version: edition.version.clone(),
            format: edition.format,
        };
        match ask_in_turn(&address, &authority, asked).await? {
            Ok(answer) => return keep(folder, answer, &key, &address, joining.listen),
            Err(status) => match status.metadata().get("toft-leader").and_then(|leader| leader.to_str().ok()) {
                Some(leader) => leader.clone_into(&mut address),
                None if no_answer(&status) => return Err(JoinError::Silent { address }),
                None => return Err(JoinError::Refused(status.message().to_owned())),
            },
        }
    }
    Err(JoinError::Refused("the cluster has no leader now".into()))
}

/// Whether nobody answered in time: tonic calls its own limit of a call `Cancelled`.
fn no_answer(status: &Status) -> bool {
    matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
}

/// How long a refusal is taken for one that passes. Who is asked again knows this machine by its key, should it have let it in.
fn patience(refusal: &Status) -> Duration {
    match refusal.code() {
        Code::ResourceExhausted => IN_TURN,
        _ if no_answer(refusal) => IN_TURN,
        Code::Unavailable => LEADERLESS,
        _ => Duration::ZERO,
    }
}

/// Asks, and waits while too many ask at a time, nobody answers or nobody leads.
async fn ask_in_turn(
    address: &str,
    authority: &str,
    asked: JoinRequest,
) -> Result<Result<JoinAnswer, Status>, JoinError> {
    let begun = Instant::now();
    loop {
        match ask(address, authority, asked.clone()).await? {
            Err(status) if begun.elapsed() < patience(&status) => tokio::time::sleep(TURN).await,
            answer => return Ok(answer),
        }
    }
}

/// The signing request for a token and its key, made now unless they are there.
fn request(folder: &Path, token: &Token) -> Result<(String, Zeroizing<String>), JoinError> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    if let (Some(id), Some(request), Some(key)) = (read(FOR), read(REQUEST), read(super::MEMBER_KEY))
        && id == token.id.as_str()
    {
        return Ok((request, key.into()));
    }
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(file("removed", folder, source).into());
        }
        _ => {}
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|source| file("made", folder, source))?;
    let (request, key) = signing_request().map_err(KeyError::from)?;
    let key = Zeroizing::new(key);
    write(&folder.join(super::MEMBER_KEY), &key)?;
    write(&folder.join(REQUEST), &request)?;
    write(&folder.join(FOR), token.id.as_str())?;
    Ok((request, key))
}

fn keep(
    folder: &Path,
    answer: JoinAnswer,
    key: &str,
    through: &str,
    listen: SocketAddr,
) -> Result<Answered, JoinError> {
    fn odd(what: &'static str) -> JoinError {
        JoinError::Answer(format!("{what} is none"))
    }
    let cluster_key = hex::decode(&answer.cluster_key).ok().and_then(|bytes| bytes.try_into().ok());
    let cluster_key = cluster_key.ok_or_else(|| odd("the cluster's key"))?;
    let authority = Authority::load(answer.authority.clone(), &answer.authority_key).map_err(KeyError::from)?;
    let member = Certified { certificate: &answer.certificate, key };
    let answered = Answered {
        identity: Identity {
            cluster_id: answer.cluster_id.parse().map_err(|_| odd("the cluster's id"))?,
            member_id: answer.member_id,
        },
        node_id: answer.node_id.parse().map_err(|_| odd("the node's id"))?,
        name: answer.name.parse().map_err(|_| odd("the node's name"))?,
        role: match answer.role.as_str() {
            "server" => Role::Server,
            "witness" => Role::Witness,
            _ => return Err(odd("the role")),
        },
        address: answer.address,
        labels: answer.labels.into_iter().collect(),
        through: (answer.through, through.to_owned()),
    };
    Keys::store(folder, &authority, member, &ClusterKey::from_bytes(cluster_key))?;
    for name in [REQUEST, FOR] {
        let path = folder.join(name);
        fs::remove_file(&path).map_err(|source| file("removed", &path, source))?;
    }
    let place = Place {
        listen: Some(listen),
        name: Some(answered.name.clone()),
        role: Some(answered.role),
        node_id: Some(answered.node_id),
        adopt: Some(answered.identity.clone()),
        members: answer.members,
        contact: (answer.through_id > 0).then(|| Contact { member_id: answer.through_id, address: through.to_owned() }),
    };
    place.save(folder)?;
    Ok(answered)
}

async fn ask(address: &str, authority: &str, join: JoinRequest) -> Result<Result<JoinAnswer, Status>, JoinError> {
    let unreachable =
        |e: tonic::transport::Error| JoinError::Unreachable { address: address.to_owned(), detail: chain(&e) };
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(unreachable)?;
    let endpoint = endpoint.connect_timeout(STEP_TIMEOUT).timeout(STEP_TIMEOUT).tls_config(tls).map_err(unreachable)?;
    let mut client = DoorClient::new(endpoint.connect().await.map_err(unreachable)?);
    let mut request = Request::new(join);
    request.metadata_mut().insert("toft-protocol", MetadataValue::from(PROTOCOL));
    Ok(client.join(request).await.map(tonic::Response::into_inner))
}

/// The authority's certificate as the member at `address` shows it, if it is the token's. Nothing is said on this
/// connection: who is at the other end is not known yet.
async fn fetch_authority(address: &str, token: &Token) -> Result<String, JoinError> {
    let shown = shown_by(address).await;
    let shown = shown.map_err(|detail| JoinError::Unreachable { address: address.to_owned(), detail })?;
    let found = shown.iter().find(|certificate| hash(certificate) == token.authority);
    let found = found.ok_or_else(|| JoinError::OtherCluster { address: address.to_owned() })?;
    Ok(pem::encode(&pem::Pem::new("CERTIFICATE", found.as_ref())))
}

/// The authority that who answers at `address` shows as its own: its certificate, PEM, and the SHA-256 of that. Whether it
/// speaks for that authority is not known yet.
pub(super) async fn authority_of(address: &str) -> Result<(String, [u8; 32]), String> {
    let shown = shown_by(address).await?;
    let last = shown.last().ok_or("it shows no certificate")?;
    Ok((pem::encode(&pem::Pem::new("CERTIFICATE", last.as_ref())), hash(last)))
}

/// The certificates that who answers at `address` shows.
async fn shown_by(address: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let look = async {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let config = trusting_anybody().map_err(|e| e.to_string())?;
        let name = ServerName::try_from(SERVER_NAME).map_err(|e| e.to_string())?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(shown.iter().map(|certificate| certificate.clone().into_owned()).collect())
    };
    tokio::time::timeout(STEP_TIMEOUT, look).await.unwrap_or_else(|_| Err("it took too long".into()))
}

/// TLS with whoever answers.
fn trusting_anybody() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider =
        CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Takes any certificate; what it is worth is seen from its hash.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tonic::TimeoutExpired;

    use super::*;

    #[test]
    fn who_hears_nothing_asks_again() {
        let silence = Status::from_error(Box::new(TimeoutExpired(())));
        assert_eq!(patience(&silence), IN_TURN, "the request may have been lost, or its answer");
        assert_eq!(patience(&Status::resource_exhausted("too many join now")), IN_TURN);
        assert_eq!(patience(&Status::unavailable("nobody leads")), LEADERLESS);
        assert_eq!(patience(&Status::permission_denied("the token is used up")), Duration::ZERO);
    }
}
