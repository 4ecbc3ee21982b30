//! What the API says of tokens, of joining and of leaving.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toft_model::{name::Name, token::MemberRole};
use utoipa::ToSchema;

use super::time;
use crate::control::{
    belonging::Joined,
    ops::{members::TokenView, now_ms},
};

/// A token that lets machines join. Its secret is told once, when it is made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// `valid`, `expired`, `spent` or `revoked`.
    pub state: String,
    /// What whoever joins with it becomes: `server` or `witness`.
    pub role: String,
    /// What the machine is called that joins with it; absent when it chooses itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels for the nodes that join with it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How many may join with it.
    pub uses: u32,
    /// How many more.
    pub uses_left: u32,
    /// When it was made.
    pub created_at: String,
    /// Until when it is valid.
    pub expires_at: String,
    /// Nodes that joined with it and are members still.
    #[serde(default)]
    pub used_by: Vec<TokenUse>,
}

/// A node that joined.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenUse {
    /// Its name when it joined.
    pub node: String,
    /// When.
    pub at: String,
}

/// A token to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenRequest {
    /// How long it is valid: `10m`, `24h`, `7d`; 24 hours when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// How many may join with it, 1 to 1000; one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// What they become: `server` (when absent) or `witness`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub role: Option<MemberRole>,
    /// What the one that joins is called; for one use only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Labels for the nodes that join with it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether a PIN of eight digits shall stand for it: for five minutes, one use and three tries, in the local network.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pin: bool,
}

/// A token that was made just now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MadeToken {
    /// What it is.
    #[serde(flatten)]
    pub about: Token,
    /// The token. Whoever has it can join; it is not told again.
    pub token: String,
    /// Addresses of this node for machines that join, `HOST:PORT`, the likeliest first.
    pub addresses: Vec<String>,
    /// The PIN that stands for it, `1234-5678`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
}

/// Which cluster to join.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// A member of it: `HOST`, `HOST:PORT` or `https://HOST:PORT`.
    pub address: String,
    /// The token.
    pub token: String,
    /// Another name for this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// What it is to do: `server` or `witness`; what the token says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub role: Option<MemberRole>,
    /// Labels beside those of the token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether workloads, volumes and secrets that are here are put aside.
    #[serde(default)]
    pub discard: bool,
}

/// A node that was let in. It starts again at once, as a member.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JoinedCluster {
    /// Id of the cluster.
    pub cluster: String,
    /// Number of the member.
    pub member: u64,
    /// What the node is called.
    pub name: String,
    /// `server` or `witness`.
    pub role: String,
    /// Where the others reach it.
    pub address: String,
    /// Labels it was given.
    pub labels: BTreeMap<String, String>,
    /// Name of the member that let it in.
    pub through: String,
    /// Its address.
    pub through_address: String,
}

impl From<TokenView> for Token {
    fn from(view: TokenView) -> Self {
        let TokenView { row, used_by } = view;
        Self {
            state: row.state(now_ms()).as_str().to_owned(),
            id: row.token.id.to_string(),
            role: row.token.role.as_str().to_owned(),
            name: row.token.name.map(|name| name.to_string()),
            labels: row.token.labels,
            uses: row.token.uses,
            uses_left: row.uses_left,
            created_at: time(row.created_at_ms),
            expires_at: time(row.token.expires_at_ms),
            used_by: used_by
                .into_iter()
                .map(|admission| TokenUse { node: admission.name.to_string(), at: time(admission.at_ms) })
                .collect(),
        }
    }
}

impl From<Joined> for JoinedCluster {
    fn from(joined: Joined) -> Self {
        Self {
            cluster: joined.cluster_id.to_string(),
            member: joined.member_id,
            name: joined.name.to_string(),
            role: joined.role.as_str().to_owned(),
            address: joined.address,
            labels: joined.labels,
            through: joined.through,
            through_address: joined.through_address,
        }
    }
}
