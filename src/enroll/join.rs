//! The joiner's side.

use std::{path::Path, sync::Arc, time::Duration};

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

use super::{
    Certified, KeyError, Keys, Token,
    authority::{Authority, hash, signing_request},
};
use crate::{
    consensus::{
        network::{PROTOCOL, SERVER_NAME},
        types::{Identity, Member},
    },
    observe::chain,
    seal::ClusterKey,
    wire::peer::{JoinAnswer, JoinRequest, peer_client::PeerClient},
};

/// Longest wait for each step.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);
/// Members asked until the one that leads is found.
const HOPS: usize = 5;

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
                "check the address, and that toft on that machine listens for members: `[cluster] bind` in its configuration"
            }
            Self::OtherCluster { .. } => {
                "get a token from a member of the cluster you want to join: `toft cluster token`"
            }
            Self::Refused(_) | Self::Keys(_) | Self::Answer(_) => "nothing was changed; mend the cause and try again",
        }
    }
}

/// Asks the cluster at `address` to let `member` in, and keeps what it gives in `folder`.
pub async fn join(address: &str, token: &Token, member: &Member, folder: &Path) -> Result<Identity, JoinError> {
    let (request, key) = signing_request().map_err(KeyError::from)?;
    let mut address = address.to_owned();
    for _ in 0..HOPS {
        let authority = fetch_authority(&address, token).await?;
        let join = JoinRequest {
            secret: token.secret.clone(),
            member: serde_json::to_vec(member).map_err(|e| JoinError::Answer(e.to_string()))?,
            signing_request: request.clone(),
        };
        match ask(&address, &authority, join).await? {
            Ok(answer) => return keep(folder, &answer, &key, token),
            Err(status) => match status.metadata().get("toft-leader").and_then(|leader| leader.to_str().ok()) {
                Some(leader) => leader.clone_into(&mut address),
                None => return Err(JoinError::Refused(status.message().to_owned())),
            },
        }
    }
    Err(JoinError::Refused("the cluster has no leader now".into()))
}

fn keep(folder: &Path, answer: &JoinAnswer, key: &str, token: &Token) -> Result<Identity, JoinError> {
    let cluster_id = answer.cluster_id.parse().map_err(|_| JoinError::Answer("the cluster's id is none".into()))?;
    let cluster_key = hex::decode(&answer.cluster_key).ok().and_then(|bytes| bytes.try_into().ok());
    let cluster_key = cluster_key.ok_or_else(|| JoinError::Answer("the cluster's key is none".into()))?;
    let authority = Authority::load(answer.authority.clone(), &answer.authority_key).map_err(KeyError::from)?;
    let member = Certified { certificate: &answer.certificate, key };
    Keys::store(folder, &authority, member, &ClusterKey::from_bytes(cluster_key), &token.secret)?;
    Ok(Identity { cluster_id, member_id: answer.member_id })
}

async fn ask(address: &str, authority: &str, join: JoinRequest) -> Result<Result<JoinAnswer, Status>, JoinError> {
    let unreachable =
        |e: tonic::transport::Error| JoinError::Unreachable { address: address.to_owned(), detail: chain(&e) };
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(unreachable)?;
    let endpoint = endpoint.connect_timeout(STEP_TIMEOUT).timeout(STEP_TIMEOUT).tls_config(tls).map_err(unreachable)?;
    let mut client = PeerClient::new(endpoint.connect().await.map_err(unreachable)?);
    let mut request = Request::new(join);
    request.metadata_mut().insert("toft-protocol", MetadataValue::from(PROTOCOL));
    Ok(client.join(request).await.map(tonic::Response::into_inner))
}

/// The authority's certificate as the member at `address` shows it, if it is the token's. Nothing is said on this
/// connection: who is at the other end is not known yet.
async fn fetch_authority(address: &str, token: &Token) -> Result<String, JoinError> {
    let unreachable = |detail: String| JoinError::Unreachable { address: address.to_owned(), detail };
    let look = async {
        let stream = TcpStream::connect(address).await.map_err(|e| unreachable(e.to_string()))?;
        let provider = CryptoProvider::get_default()
            .cloned()
            .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| unreachable(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(SERVER_NAME).map_err(|e| unreachable(e.to_string()))?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.map_err(|e| unreachable(e.to_string()))?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let found = shown.iter().find(|certificate| hash(certificate) == token.authority);
        let found = found.ok_or_else(|| JoinError::OtherCluster { address: address.to_owned() })?;
        Ok(pem::encode(&pem::Pem::new("CERTIFICATE", found.as_ref())))
    };
    match tokio::time::timeout(STEP_TIMEOUT, look).await {
        Ok(found) => found,
        Err(_) => Err(unreachable("it took too long".into())),
    }
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
