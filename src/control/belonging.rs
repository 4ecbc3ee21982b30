//! What a node does about its own membership. The daemon answers: only it knows keys, doors and its own end.

use std::collections::BTreeMap;

use async_trait::async_trait;
use toft_model::{
    ids::ClusterId,
    name::Name,
    token::{Digest, MemberRole, TokenId},
};
use zeroize::Zeroizing;

use super::ControlError;

/// A token that is not in the state yet.
pub struct FreshToken {
    /// Its id.
    pub id: TokenId,
    /// What the state keeps of its secret.
    pub secret: Digest,
    /// The whole of it, as people hand it on.
    pub text: Zeroizing<String>,
}

/// What somebody wants of a join.
pub struct JoinWish {
    /// A member of the cluster, `HOST:PORT`.
    pub address: String,
    /// The token.
    pub token: Zeroizing<String>,
    /// Another name for this node.
    pub name: Option<Name>,
    /// What it is to do; what the token says when absent.
    pub role: Option<MemberRole>,
    /// Labels beside those of the token.
    pub labels: BTreeMap<String, String>,
    /// Whether what is here may be put aside.
    pub discard: bool,
}

/// A node that was let in, and becomes a member at its next start, which follows at once.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// Its number.
    pub member_id: u64,
    /// What it is called.
    pub name: Name,
    /// What it does.
    pub role: MemberRole,
    /// Where the others reach it.
    pub address: String,
    /// Labels it was given.
    pub labels: BTreeMap<String, String>,
    /// Name of the member that let it in.
    pub through: String,
    /// Its address.
    pub through_address: String,
}

/// The way into a cluster and out of it.
#[async_trait]
pub trait Belong: Send + Sync {
    /// A new token of this cluster.
    fn make_token(&self) -> Result<FreshToken, ControlError>;

    /// Makes a PIN that gives this token once, for five minutes; one from before is not valid any more.
    fn make_pin(&self, token: &str) -> Result<Zeroizing<String>, ControlError>;

    /// Opens the door for members if it is not open yet, and gives the addresses at which this node may be reached,
    /// `HOST:PORT`, the likeliest first.
    async fn listen(&self) -> Result<Vec<String>, ControlError>;

    /// Joins another cluster, and starts this node again as its member.
    async fn join(&self, wish: JoinWish) -> Result<Joined, ControlError>;

    /// Starts this node again as an appliance of its own, without anything of the cluster it was in.
    async fn forget_cluster(&self) -> Result<(), ControlError>;
}
