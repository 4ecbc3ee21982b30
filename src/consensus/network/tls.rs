//! Certificates of members, which hold their numbers, and connections to the one member that is meant.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    super::types::MemberId,
    back::Backs,
    peers::{CallError, SERVER_NAME, Transport},
};

/// The number of the member that a certificate is for.
pub(super) fn member_of(certificate: &CertificateDer<'_>) -> Option<MemberId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    name.strip_prefix("member ")?.parse().ok()
}

/// What all connections of this member have in common.
#[derive(Clone)]
pub(super) struct Dialling {
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    backs: Arc<Backs>,
}

impl Dialling {
    pub(super) fn with(transport: &Transport) -> Result<Self, CallError> {
        let failed = |error: &dyn std::fmt::Display| {
            CallError::Failed(format!("the certificates of this member cannot be used: {error}"))
        };
        let provider = provider();
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(transport.authority.as_bytes()).map_err(|e| failed(&e))?;
        roots.add(authority).map_err(|e| failed(&e))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|e| failed(&e))?;
        let chain = CertificateDer::pem_slice_iter(transport.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| failed(&e))?;
        let key = PrivateKeyDer::from_pem_slice(transport.key.as_bytes()).map_err(|e| failed(&e))?;
        Ok(Self { provider, verifier, chain, key: Arc::new(key), backs: Arc::default() })
    }

    /// The ways back that members have opened.
    pub(super) fn backs(&self) -> &Backs {
        &self.backs
    }

    /// A line to member `id` alone, whoever has its address, for what is named.
    pub(super) fn line(&self, id: MemberId, name: &[u8]) -> Result<Line, CallError> {
        let failed = |error: rustls::Error| CallError::Failed(error.to_string());
        let verifier = Arc::new(OneMember { inner: Arc::clone(&self.verifier), id });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(failed)?;
        config.alpn_protocols = vec![name.to_vec()];
        Ok(Line(TlsConnector::from(Arc::new(config))))
    }

    /// A channel to member `id` alone, for what consensus says.
    pub(super) fn channel(&self, id: MemberId, address: &str, endpoint: &Endpoint) -> Result<Channel, CallError> {
        let line = self.line(id, super::gate::MEMBERS)?;
        let (address, backs) = (Arc::<str>::from(address), Arc::clone(&self.backs));
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let (line, address, backs) = (line.clone(), Arc::clone(&address), Arc::clone(&backs));
            async move { line.over(backs.connect(id, &address).await?).await.map(TokioIo::new) }
        })))
    }
}

/// Connects to one member.
#[derive(Clone)]
pub(super) struct Line(TlsConnector);

impl Line {
    pub(super) async fn connect(&self, address: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        self.over(stream).await
    }

    /// The same over a connection that is there.
    async fn over<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> std::io::Result<TlsStream<S>> {
        let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

/// What the process encrypts with.
pub(super) fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

/// Takes the certificate of one member of the cluster.
#[derive(Debug)]
struct OneMember {
    inner: Arc<WebPkiServerVerifier>,
    id: MemberId,
}

impl ServerCertVerifier for OneMember {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(certificate, others, name, ocsp, now)?;
        match member_of(certificate) {
            Some(id) if id == self.id => Ok(verified),
            Some(other) => Err(rustls::Error::General(format!("member {other} answers there, not {}", self.id))),
            None => Err(rustls::Error::General("the certificate is of no member".into())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enroll::Keys;

    #[test]
    fn a_member_is_not_taken_for_another_nor_one_of_another_cluster() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [own, foreign] = folders.each_ref().map(|folder| Keys::load_or_make(folder.path(), 5).unwrap());
        let certificate =
            |keys: &Keys| CertificateDer::from_pem_slice(keys.transport().certificate.as_bytes()).unwrap();
        let dialling = Dialling::with(own.transport()).unwrap();
        let takes = |id: MemberId, keys: &Keys| {
            let verifier = OneMember { inner: Arc::clone(&dialling.verifier), id };
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            verifier.verify_server_cert(&certificate(keys), &[], &name, &[], UnixTime::now()).map(drop)
        };
        assert_eq!(member_of(&certificate(&own)), Some(5));
        assert_eq!(takes(5, &own), Ok(()));
        let told = takes(6, &own).unwrap_err().to_string();
        assert!(told.contains("member 5 answers there, not 6"), "{told}");
        assert!(takes(5, &foreign).is_err());
    }
}
