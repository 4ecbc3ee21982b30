//! The operations users can ask for, one file a resource.
//!
//! Each validates, mints ids and time, and proposes. Nothing has run yet when it returns.

pub mod backups;
pub mod cluster;
mod images;
pub mod logs;
mod nodes;
mod secrets;
pub mod wait;
mod workloads;

use std::sync::Arc;

use super::node_access::NodeAccess;
use crate::{backup::Backups, consensus::Handle, seal::ClusterKey};

/// The operations.
#[derive(Clone)]
pub struct Ops {
    state: Handle,
    node: Arc<dyn NodeAccess>,
    backups: Option<Backups>,
    join_token: Option<Arc<str>>,
    cluster_key: Option<Arc<ClusterKey>>,
}

impl Ops {
    /// Operations on `state`.
    pub fn new(state: Handle, node: Arc<dyn NodeAccess>) -> Self {
        Self { state, node, backups: None, join_token: None, cluster_key: None }
    }

    /// The same with the backups of this node.
    pub fn with_backups(mut self, backups: Backups) -> Self {
        self.backups = Some(backups);
        self
    }

    /// The same with the token that lets machines join.
    pub fn with_join_token(mut self, token: Option<String>) -> Self {
        self.join_token = token.map(Arc::from);
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
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
