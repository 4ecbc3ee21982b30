//! What this node knows of its cluster.

use std::collections::BTreeSet;

use toft_model::{
    ids::{ClusterId, NodeId},
    name::Name,
};

use super::Ops;

/// A member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Number.
    pub id: u64,
    /// Name of the node.
    pub name: Name,
    /// The node.
    pub node_id: NodeId,
    /// Where the others reach it.
    pub address: String,
    /// `server` or `witness`.
    pub role: &'static str,
    /// Whether it votes.
    pub votes: bool,
    /// Whether it answered lately, if this node asks it.
    pub answers: bool,
    /// End of its log, if known.
    pub log_end: Option<u64>,
    /// Version of toft there; empty when it never told.
    pub version: String,
    /// Newest format of commands that it understands.
    pub format: u32,
    /// Whether that is an older toft than another member's.
    pub behind: bool,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// Number of this node's member.
    pub member_id: u64,
    /// Number of who leads.
    pub leader: Option<u64>,
    /// How often the lead was fought for.
    pub term: u64,
    /// End of this node's log.
    pub log_end: u64,
    /// How much of it is applied.
    pub applied: u64,
    /// The members by number.
    pub members: Vec<MemberStatus>,
    /// Whether the others have said that this node was removed.
    pub removed: bool,
}

impl Ops {
    /// The cluster as this node sees it.
    pub fn cluster(&self) -> ClusterStatus {
        let status = self.state.status();
        let newest = status.members.iter().map(|seen| seen.member.edition.rank()).max();
        let members = status.members.into_iter().map(|seen| MemberStatus {
            id: seen.id,
            name: seen.member.name,
            node_id: seen.member.node_id,
            address: seen.member.address,
            role: seen.member.role.as_str(),
            votes: seen.votes,
            answers: seen.answers,
            log_end: seen.index,
            behind: Some(seen.member.edition.rank()) < newest,
            format: seen.member.edition.format,
            version: seen.member.edition.version,
        });
        ClusterStatus {
            cluster_id: status.identity.cluster_id,
            member_id: status.identity.member_id,
            leader: status.leader,
            term: status.term,
            log_end: status.last_index,
            applied: status.applied_index,
            members: members.collect(),
            removed: self.state.was_removed(),
        }
    }

    /// Nodes of members that run an older toft than another member.
    pub fn behind(&self) -> BTreeSet<NodeId> {
        let members = self.cluster().members.into_iter();
        members.filter(|member| member.behind).map(|member| member.node_id).collect()
    }
}
