//! The joiner's side of a PIN: asks a member for the token that the PIN stands for.

use std::time::Duration;

use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

use super::{
    Token,
    join::authority_of,
    pin::{Asking, Pin, Stranger},
};
use crate::{
    consensus::network::{PROTOCOL, SERVER_NAME},
    observe::chain,
    wire::peer::{GreetRequest, ProveRequest, door_client::DoorClient},
};

/// Longest wait for each step.
const STEP: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const LARGEST: usize = 4 << 10;
/// Longest reason of a refusal, in characters.
const LONGEST: usize = 200;

/// Why a PIN gives no token.
#[derive(Debug, thiserror::Error)]
pub enum IntroductionError {
    /// Nobody answers there.
    #[error("no member answers at `{address}`: {detail}")]
    Unreachable {
        /// Address.
        address: String,
        /// What happened.
        detail: String,
    },
    /// The member says no.
    #[error("the member refuses: {0}")]
    Refused(String),
    /// Somebody else answers.
    #[error(transparent)]
    Stranger(#[from] Stranger),
}

/// The token that `pin` stands for at the member at `address`. Whoever answers there learns nothing of the PIN, unless it knows
/// it or guesses it at once. It must speak for the authority that it shows, and the exchange holds for that authority alone:
/// nobody hands it on between this machine and a member.
pub async fn introduce(address: &str, pin: &Pin) -> Result<Token, IntroductionError> {
    let unreachable = |detail: String| IntroductionError::Unreachable { address: address.to_owned(), detail };
    let (certificate, authority) = authority_of(address).await.map_err(unreachable)?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certificate)).domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(|error| unreachable(chain(&error)))?;
    let endpoint = endpoint.connect_timeout(STEP).timeout(STEP).tls_config(tls);
    let endpoint = endpoint.map_err(|error| unreachable(chain(&error)))?;
    let channel = endpoint.connect().await.map_err(|error| unreachable(chain(&error)))?;
    let mut client = DoorClient::new(channel).max_decoding_message_size(LARGEST);
    let refused = |status: Status| IntroductionError::Refused(harmless(status.message()));
    let (asking, message) = Asking::begin(pin, authority);
    let greeting = client.greet(about(GreetRequest { message })).await.map_err(refused)?.into_inner();
    let (proof, opening) = asking.proceed(&greeting.message)?;
    let proof = ProveRequest { attempt: greeting.attempt, proof: proof.to_vec() };
    let answer = client.prove(about(proof)).await.map_err(refused)?.into_inner();
    Ok(opening.open(&answer.sealed)?)
}

/// What somebody says of whom nothing is known yet, as a terminal may show it.
fn harmless(text: &str) -> String {
    text.chars().filter(|c| matches!(c, ' '..='~')).take(LONGEST).collect()
}

fn about<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("toft-protocol", MetadataValue::from(PROTOCOL));
    request
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::enroll::authority::Authority;

    /// Answers with a certificate of `signer` beside that of `shown`; gives how often it was spoken with.
    async fn answer(signer: &Authority, shown: &Authority) -> (IntroductionError, usize) {
        let (certificate, key) = signer.certify_new(7).unwrap();
        let read = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        let chain = vec![read(&certificate), read(&shown.certificate)];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth();
        let mut config =
            config.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let spoken = async {
            let mut spoken = 0;
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                spoken += usize::from(acceptor.accept(stream).await.is_ok());
            }
            spoken
        };
        let pin: Pin = "12345678".parse().unwrap();
        let (introduced, spoken) = tokio::join!(introduce(&address, &pin), spoken);
        (introduced.err().unwrap(), spoken)
    }

    #[tokio::test]
    async fn who_shows_an_authority_that_it_does_not_speak_for_is_asked_nothing() {
        let (cluster, other) = (Authority::make().unwrap(), Authority::make().unwrap());
        let (error, spoken) = answer(&other, &cluster).await;
        assert!(matches!(error, IntroductionError::Unreachable { .. }), "{error}");
        assert_eq!(spoken, 1, "only what it shows is looked at");
        let (_, spoken) = answer(&cluster, &cluster).await;
        assert_eq!(spoken, 2, "who speaks for it is asked");
    }

    #[test]
    fn what_a_stranger_says_does_nothing_to_a_terminal() {
        assert_eq!(harmless("no\x1b[2J\r\n \u{202e}PIN\u{9b}"), "no[2J PIN");
        assert_eq!(harmless(&"x".repeat(10_000)).len(), LONGEST);
    }
}
