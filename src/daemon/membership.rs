//! This node as a member of its cluster: joining, answering the others, going on alone.

use std::{fs, sync::Arc};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Hinted, directories::Directories, identity::Identity, tasks::Tasks};
use crate::{
    config::{Config, NodeRole},
    consensus::{
        self, Door, Handle, Opened,
        types::{FOUNDER, Member, Role},
    },
    enroll::{self, Keys, Token},
    seal::ClusterKey,
};

pub use crate::consensus::Account;

fn myself(config: &Config, directories: &Directories) -> anyhow::Result<Member> {
    let node_id = Identity::load_or_make(directories)?.node_id;
    let cluster = &config.cluster;
    let listens = cluster.bind.map(|address| address.to_string()).unwrap_or_default();
    let role = match cluster.role {
        NodeRole::Server => Role::Server,
        NodeRole::Witness => Role::Witness,
    };
    let address = cluster.address.clone().unwrap_or(listens);
    Ok(Member { node_id, name: config.node.name.clone(), address, role })
}

/// A member that is open.
pub(super) struct Membership {
    pub(super) state: Handle,
    /// The token that lets others in; absent when nobody is let in.
    pub(super) join_token: Option<String>,
    /// What seals and opens secrets.
    pub(super) cluster_key: ClusterKey,
}

/// Opens the state, having joined a cluster first if that was asked for, and lets the other members in.
pub(super) async fn enter(
    config: &Config,
    directories: &Directories,
    tasks: &mut Tasks,
    cancel: CancellationToken,
) -> anyhow::Result<Membership> {
    let me = myself(config, directories)?;
    let files = directories.consensus();
    // Bound before anything is changed: an address that is taken shall leave no half of a join behind.
    let listener = match config.cluster.bind {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!("binding {address} for the other members; choose another address with --cluster-bind")
        })?),
        None => None,
    };
    if let Some(join) = &config.cluster.join {
        if files.log.exists() {
            tracing::info!("this node is a member already; --join is passed over");
        } else {
            let text = fs::read_to_string(&join.token_file)
                .with_context(|| format!("reading the token in `{}`", join.token_file.display()))?;
            let token: Token = text.parse().context("reading the token")?;
            tracing::info!("joining the cluster at {}", join.address);
            let joined = enroll::join(&join.address, &token, &me, &directories.cluster()).await;
            let identity = joined.map_err(|error| {
                let hint = error.hint();
                Hinted::new(error, hint)
            })?;
            consensus::adopt(&files, &identity).map_err(hinted)?;
            tracing::info!("joined cluster {} as member {}", identity.cluster_id, identity.member_id);
        }
    }
    let keys = Keys::load_or_make(&directories.cluster(), FOUNDER).context("reading the cluster's keys")?;
    let opened = consensus::open(&files, me, keys.transport().clone()).await;
    let Opened { handle, task, door } = opened.map_err(hinted)?;
    tasks.spawn("consensus", task);
    let cluster_key = keys.cluster_key().clone();
    let join_token = listener.is_some().then(|| keys.token().to_string());
    if let Some(listener) = listener {
        tasks.spawn("member door", answer(door, listener, keys, cancel));
    }
    Ok(Membership { state: handle, join_token, cluster_key })
}

async fn answer(door: Door, listener: TcpListener, keys: Keys, cancel: CancellationToken) {
    door.serve(listener, Arc::new(keys), cancel).await;
}

/// Makes this node a cluster of its own with what it has, if `agree` says so after it saw what that means.
pub fn recover(config: &Config, agree: &mut dyn FnMut(&Account) -> bool) -> anyhow::Result<Option<Account>> {
    let directories = Directories::locked(&config.paths)?;
    let me = myself(config, &directories)?;
    let files = directories.consensus();
    if !agree(&consensus::survey(&files, &me).map_err(hinted)?) {
        return Ok(None);
    }
    Ok(Some(consensus::recover(&files, &me).map_err(hinted)?))
}

fn hinted(error: consensus::OpenError) -> Hinted {
    let hint = error.hint();
    Hinted::new(error, hint)
}
