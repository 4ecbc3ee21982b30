//! What openraft is told of toft: what stands in the log, what it answers, and who the members are.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use toft_model::{
    ids::{ClusterId, NodeId},
    name::Name,
    state::Applied,
};

use super::{edition::Edition, state_machine::SnapshotFile};

openraft::declare_raft_types!(
    /// openraft, made of these types.
    pub Types:
        D = Batch,
        R = Outcomes,
        NodeId = MemberId,
        Node = Member,
        Entry = openraft::Entry<Types>,
        SnapshotData = SnapshotFile,
);

/// Number of a member, never used twice in a cluster: a machine that lost its disk and comes back is another member,
/// because it may have promised things it forgot.
pub type MemberId = u64;
/// The first member's number.
pub const FOUNDER: MemberId = 1;
/// An entry of the log.
pub type Entry = openraft::Entry<Types>;
/// A position in the log.
pub type LogId = openraft::LogId<MemberId>;
/// Whom a member takes for the leader.
pub type Vote = openraft::Vote<MemberId>;
/// The members, and where the log says so.
pub type StoredMembership = openraft::StoredMembership<MemberId, Member>;
/// What a snapshot holds.
pub type SnapshotMeta = openraft::SnapshotMeta<MemberId, Member>;
/// A snapshot.
pub type Snapshot = openraft::Snapshot<Types>;
/// A failure of log or state.
pub type StorageError = openraft::StorageError<MemberId>;
/// A running openraft.
pub type Raft = openraft::Raft<Types>;
/// Why openraft has stopped.
pub type Fatal = openraft::error::Fatal<MemberId>;

/// Requests that share one log entry: one write to the disk, one transaction. Each is the JSON of a
/// [`toft_model::state::Request`], written once by whoever proposes it and read once by each member that applies it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Batch(pub Arc<Vec<Box<RawValue>>>);

impl fmt::Debug for Batch {
    // Requests may hold what is nobody's business, such as environments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch of {}", self.0.len())
    }
}

/// What each request of a batch was answered; empty for entries that are no batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Outcomes(pub Vec<Applied>);

/// What a member does for the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs workloads and votes when it is its turn.
    #[default]
    Server,
    /// Runs nothing; it votes, so that two servers have a majority.
    Witness,
}

impl Role {
    /// The word for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Witness => "witness",
        }
    }
}

/// A member as the membership in the log describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The machine.
    pub node_id: NodeId,
    /// Its name.
    pub name: Name,
    /// Where it listens for the others: `HOST:PORT`; empty while it stands alone and listens for nobody.
    pub address: String,
    /// What it does.
    pub role: Role,
    /// Which toft it runs.
    #[serde(default, skip_serializing_if = "Edition::is_unknown")]
    pub edition: Edition,
}

impl Default for Member {
    // openraft asks for one where it knows no member; it is never dialled.
    fn default() -> Self {
        Self {
            node_id: NodeId(uuid::Uuid::nil()),
            name: "nobody".parse().expect("a valid name"),
            address: String::new(),
            role: Role::Server,
            edition: Edition::default(),
        }
    }
}

/// Which cluster a member belongs to, and as what. It lies in the log's file: whoever has the log is that member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The member.
    pub member_id: MemberId,
}
