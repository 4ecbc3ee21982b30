//! The operations users can ask for, one file a resource.
//!
//! Each validates, mints ids and time, and proposes. Nothing has run yet when it returns.

mod api_tokens;
mod attach;
mod audit;
mod authority;
pub mod backups;
pub mod cluster;
pub mod exec;
pub mod far;
mod files;
pub mod gpus;
mod identify;
pub mod images;
mod logging;
pub mod logs;
pub mod members;
pub mod mesh;
mod nodes;
mod passkeys;
mod placement;
mod providers;
mod rebalance;
pub mod registries;
mod second_factors;
mod secrets;
mod seen;
mod series;
mod sessions;
mod signed_tokens;
pub mod usage;
mod users;
mod versions;
mod volume_moves;
mod volumes;
pub mod wait;
mod workloads;

pub use api_tokens::{ApiTokenWish, MadeApiToken};
pub use audit::Noted;
pub use authority::TrustRoot;
pub use identify::{SignIn, SignedIn};
pub use providers::{CameBack, FromProvider, Provider, ToProvider};
pub use rebalance::RebalancePlan;
pub use second_factors::{FactorOffer, FactorView};
pub use seen::Seen;
pub use sessions::SessionView;
pub use signed_tokens::{SignedToken, SignedTokenWish};
pub use users::{UserView, UserWish};
pub use volume_moves::VolumeMoveInfo;
pub use volumes::{NewVolume, VolumeInfo};

use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest, Sha256};
use toft_model::{
    identity::Author,
    ids::{NodeId, RequestId},
    state::{Command, Reply, Request},
};
use uuid::Uuid;

use super::{
    ControlError, ErrorKind, actor,
    belonging::Belong,
    node_access::{OtherNodes, OwnNode},
};
use far::{FarCards, FarPulls};

pub use crate::identity::Jwk;
use crate::{
    backup::Backups,
    consensus::{Handle, ProposeError},
    identity::Gate,
    seal::ClusterKey,
};

/// The operations.
#[derive(Clone)]
pub struct Ops {
    state: Handle,
    node: Arc<dyn OwnNode>,
    others: Option<Arc<dyn OtherNodes>>,
    far_pulls: FarPulls,
    far_cards: FarCards,
    kept: seen::Kept,
    backups: Option<Backups>,
    belonging: Option<Arc<dyn Belong>>,
    key: Option<RequestId>,
    cluster_key: Option<Arc<ClusterKey>>,
    gate: Option<Arc<Gate>>,
    trust_root: Option<Arc<TrustRoot>>,
    provider: Option<Arc<Provider>>,
}

impl Ops {
    /// Operations on `state`.
    pub fn new(state: Handle, node: Arc<dyn OwnNode>) -> Self {
        Self {
            state,
            node,
            others: None,
            far_pulls: FarPulls::default(),
            far_cards: FarCards::default(),
            kept: seen::Kept::default(),
            backups: None,
            belonging: None,
            key: None,
            cluster_key: None,
            gate: None,
            trust_root: None,
            provider: None,
        }
    }

    /// The same with the way to the other nodes.
    pub fn with_others(mut self, others: Arc<dyn OtherNodes>) -> Self {
        self.others = Some(others);
        self
    }

    /// The same with the backups of this node.
    pub fn with_backups(mut self, backups: Backups) -> Self {
        self.backups = Some(backups);
        self
    }

    /// The same for one change that has a key: repeated with the same key, it is applied once.
    pub fn with_key(mut self, key: Option<RequestId>) -> Self {
        self.key = key;
        self
    }

    /// Waits until what is read here holds everything that was acknowledged on any node before.
    pub async fn catch_up(&self) -> Result<(), ControlError> {
        Ok(self.state.catch_up().await?)
    }

    /// Who asks for a change: the key, and a digest of `asked`, which is all that has to be the same when the key is used
    /// again. Nothing without a key.
    fn asked(&self, asked: &impl Serialize) -> Result<Option<(RequestId, String)>, ControlError> {
        let Some(key) = self.key else { return Ok(None) };
        let text = serde_json::to_vec(asked).map_err(|e| ControlError::new(ErrorKind::Internal, e.to_string()))?;
        Ok(Some((key, hex::encode(&Sha256::digest(text)[..16]))))
    }

    /// Applies a command, once for each key.
    async fn propose(&self, command: Command, asked: Option<(RequestId, String)>) -> Result<Reply, ControlError> {
        match asked {
            None => Ok(self.submit(command).await?),
            Some((key, fingerprint)) => {
                let request = Request::new(key, command).with_fingerprint(fingerprint);
                Ok(self.state.propose_request(request.with_author(author())).await?)
            }
        }
    }

    /// Applies a command that somebody asks for, who is in the audit trail then.
    async fn submit(&self, command: Command) -> Result<Reply, ProposeError> {
        let request = Request::new(RequestId(Uuid::now_v7()), command);
        self.state.propose_request(request.with_author(author())).await
    }

    /// The same with what is known of who comes in.
    pub fn with_gate(mut self, gate: Arc<Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// The same with a provider to sign in at.
    pub fn with_provider(mut self, provider: Provider) -> Self {
        self.provider = Some(Arc::new(provider));
        self
    }

    /// The same with the key that seals secrets.
    pub fn with_cluster_key(mut self, key: ClusterKey) -> Self {
        self.cluster_key = Some(Arc::new(key));
        self
    }

    /// The state's handle, for watching.
    pub fn state(&self) -> &Handle {
        &self.state
    }
}

impl Ops {
    /// Why no container can be started now, if that is so.
    pub fn runtime_trouble(&self) -> Option<String> {
        self.node.runtime_trouble()
    }

    /// The node that is asked; none on a witness.
    pub fn node_id(&self) -> Option<NodeId> {
        self.node.node_id()
    }
}

/// Who asks, as the audit trail tells it.
fn author() -> Option<Author> {
    actor::current().map(|actor| actor.author())
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
