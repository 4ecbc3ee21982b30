//! Lets in whom a token of the state lets in.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use toft_model::{
    ids::NodeId,
    name::Name,
    state::{AdmissionRow, Command, NodeRow, Reply, TokenRow, TokenState, applied_index, useless},
    token::{Digest, MemberRole, TokenId},
};

use super::{Keys, Pins, authority::request_key, token::hash};
use crate::{
    consensus::{
        Handle, ProposeError,
        network::{Admission, Admitted, Asked, Offer, Standing},
        types::{MemberId, Role},
    },
    observe::chain,
};

/// How long one that did not hear the answer can ask again, in milliseconds: an hour.
const AGAIN_MS: i64 = 60 * 60 * 1_000;
/// What everybody is told who does not have the secret.
const NOT_VALID: &str = "the token is not valid";

/// Keys, and the state that holds the tokens.
pub struct Admissions {
    keys: Keys,
    state: Handle,
    pins: Arc<Pins>,
}

impl Admissions {
    /// With the keys of this member.
    pub(super) fn new(keys: Keys, state: Handle, pins: Arc<Pins>) -> Self {
        Self { keys, state, pins }
    }

    async fn token(&self, id: TokenId) -> Result<Option<TokenRow>, String> {
        self.state.read(move |connection| TokenRow::by_id(connection, &id)).await.map_err(|error| chain(&error))
    }
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Admission for Admissions {
    async fn check(&self, asked: &Asked) -> Result<Offer, String> {
        self.state.catch_up().await.map_err(|error| error.to_string())?;
        let row = match asked.token_id.parse() {
            Ok(id) => self.token(id).await?,
            Err(_) => None,
        };
        // A secret is compared in any case, so that the time does not say which ids there are.
        let kept = row.as_ref().map_or(Digest([0; 32]), |row| row.token.secret);
        let is_right = kept.is(&hash(&asked.secret));
        let Some(row) = row.filter(|_| is_right) else { return Err(NOT_VALID.into()) };
        let key = request_key(&asked.signing_request).map_err(|error| error.to_string())?;
        let known = self.state.read(move |connection| AdmissionRow::by_key(connection, &key)).await;
        let known = known.map_err(|error| chain(&error))?;
        let now_ms = now_ms();
        if known.as_ref().is_some_and(|known| now_ms.saturating_sub(known.at_ms) > AGAIN_MS) {
            return Err("a machine with this key was let in long ago; join again with a new token".into());
        }
        match row.state(now_ms) {
            TokenState::Valid => {}
            // Who leads has the say, by its own clock.
            TokenState::Expired if !self.state.leads() => {}
            TokenState::Spent | TokenState::Expired if known.is_some() => {}
            state => return Err(useless(state).into()),
        }
        let role = match row.token.role {
            MemberRole::Server => Role::Server,
            MemberRole::Witness => Role::Witness,
        };
        Ok(Offer { role, name: row.token.name, again: known.map(|known| known.member_id) })
    }

    async fn admit(&self, asked: &Asked, name: &Name, in_place_of: Option<NodeId>) -> Result<Admitted, String> {
        let key = request_key(&asked.signing_request).map_err(|error| error.to_string())?;
        let command = Command::AdmitNode {
            token_id: asked.token_id.parse().map_err(|_| NOT_VALID.to_owned())?,
            node_id: asked.node_id,
            name: name.clone(),
            labels: asked.labels.clone(),
            key,
            in_place_of,
            at_ms: now_ms(),
        };
        let row = match self.state.propose(command).await {
            Ok(Reply::Admitted(row)) => row,
            Ok(_) => return Err("the state answered something else than an admission".into()),
            Err(ProposeError::Refused(refusal)) => return Err(format!("{}; {}", refusal.message, refusal.hint)),
            Err(error) => return Err(chain(&error)),
        };
        let certificate = self.keys.authority.certify(&asked.signing_request, row.member_id);
        let certificate = certificate.map_err(|error| format!("the signing request cannot be used: {error}"))?;
        Ok(Admitted {
            member_id: row.member_id,
            node_id: row.node_id,
            labels: row.labels,
            certificate,
            authority: self.keys.authority.certificate.clone(),
            authority_key: self.keys.authority.key_pem(),
            cluster_key: hex::encode(self.keys.cluster_key.as_bytes()),
        })
    }

    async fn node_called(&self, name: &Name) -> Option<NodeId> {
        let name = name.clone();
        // Who is not found here is looked for again by the command that lets in.
        self.state.read(move |connection| NodeRow::id_of(connection, &name)).await.ok().flatten()
    }

    fn greet(&self, message: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
        self.pins.greet(message)
    }

    fn prove(&self, attempt: &[u8], proof: &[u8]) -> Result<Vec<u8>, String> {
        self.pins.prove(attempt, proof)
    }

    async fn standing(&self, member_id: MemberId) -> Standing {
        let read = self.state.read(move |connection| {
            Ok((AdmissionRow::knows_member(connection, member_id)?, applied_index(connection)?))
        });
        match read.await {
            Ok((true, _)) => Standing::LetIn,
            // It is numbered by the command that let it in, or later.
            Ok((false, applied)) if member_id > applied + 2 => Standing::Newer,
            Ok((false, _)) => Standing::Removed,
            Err(error) => {
                tracing::warn!(error = chain(&error), "it is not known whether member {member_id} is one");
                Standing::Unknown
            }
        }
    }
}
