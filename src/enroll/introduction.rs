//! The joiner's side of a PIN: asks a member for the token that the PIN stands for.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{Request, Status, metadata::MetadataValue, transport::Endpoint};

use super::{
    Token,
    join::trusting_anybody,
    pin::{Asking, Pin, Stranger},
};
use crate::{
    consensus::network::{PROTOCOL, SERVER_NAME},
    observe::chain,
    wire::peer::{GreetRequest, ProveRequest, door_client::DoorClient},
};

/// Longest wait for each step.
const STEP: Duration = Duration::from_secs(10);

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

/// The token that `pin` stands for at the member at `address`. Whoever answers there learns nothing of the PIN, unless it knows it.
pub async fn introduce(address: &str, pin: &Pin) -> Result<Token, IntroductionError> {
    let unreachable = |detail: String| IntroductionError::Unreachable { address: address.to_owned(), detail };
    let config = trusting_anybody().map_err(|error| unreachable(error.to_string()))?;
    let (connector, to) = (TlsConnector::from(Arc::new(config)), Arc::<str>::from(address));
    let dial = tower::service_fn(move |_| {
        let (connector, to) = (connector.clone(), Arc::clone(&to));
        async move {
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            connector.connect(name, TcpStream::connect(&*to).await?).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://member").connect_timeout(STEP).timeout(STEP);
    let channel = endpoint.connect_with_connector(dial).await.map_err(|error| unreachable(chain(&error)))?;
    let mut client = DoorClient::new(channel);
    let refused = |status: Status| IntroductionError::Refused(status.message().to_owned());
    let (asking, message) = Asking::begin(pin);
    let greeting = client.greet(about(GreetRequest { message })).await.map_err(refused)?.into_inner();
    let (proof, opening) = asking.proceed(&greeting.message)?;
    let proof = ProveRequest { attempt: greeting.attempt, proof: proof.to_vec() };
    let answer = client.prove(about(proof)).await.map_err(refused)?.into_inner();
    Ok(opening.open(&answer.sealed)?)
}

fn about<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("toft-protocol", MetadataValue::from(PROTOCOL));
    request
}
