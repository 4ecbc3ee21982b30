//! The commands: everything that can change the state. Append-only: a variant, once written to a log, stays readable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::{
    changes::{
        InstanceChange, InstanceMove, MoveTurn, Placement, PowerAction, Preemption, PutMode, RolloutChange, Unmoved,
    },
    reply::{Refusal, RefusalKind, Reply},
};
use crate::{
    gpu::{GpuId, GpuPolicy},
    identity::{ExternalUser, NewApiToken, NewSession, NewUser, UserChanges, UserName},
    ids::{NodeId, WorkloadId},
    instance::InstanceReport,
    mesh::MeshNode,
    name::Name,
    node::{Inventory, NodeChanges, NodeHealth, Subnet},
    passkey::{NewPasskey, PasskeyUse},
    registry::RegistryName,
    schedule::PlacementChanges,
    second_factor::{AccessChanges, FactorProof, NewSecondFactor},
    secret::SealedSecret,
    signing::NewSigningKey,
    token::{Digest, NewToken, TokenId},
    volume::VolumeOptions,
    workload::WorkloadSpec,
};

/// A change of the state. Times are milliseconds since 1970, taken by the proposer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Command {
    /// A node tells what it is; its first telling makes it a member.
    RegisterNode {
        /// The node.
        node_id: NodeId,
        /// Its name.
        name: Name,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// What it has.
        inventory: Inventory,
        /// When.
        at_ms: i64,
    },
    /// A user writes a specification.
    PutWorkload {
        /// Id for the workload if it is new.
        workload_id: WorkloadId,
        /// The specification.
        spec: Box<WorkloadSpec>,
        /// What may exist before.
        mode: PutMode,
        /// When.
        at_ms: i64,
    },
    /// A user starts, stops or restarts a workload.
    PowerWorkload {
        /// Its name.
        name: Name,
        /// What to do.
        action: PowerAction,
        /// When.
        at_ms: i64,
    },
    /// A user removes a workload; its row goes when its last instance is gone.
    RemoveWorkload {
        /// Its name.
        name: Name,
        /// When.
        at_ms: i64,
    },
    /// The scheduler's decisions. Each is checked again; the stale are dropped.
    CommitPlan {
        /// New instances.
        placements: Vec<Placement>,
        /// Changed orders for instances that exist.
        changes: Vec<InstanceChange>,
        /// Workloads that wait, with the reason; `None` clears it.
        pending: Vec<(WorkloadId, Option<String>)>,
        /// Rollouts that ended.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        rollouts: Vec<RolloutChange>,
        /// Instances that make room for more important ones.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        preemptions: Vec<Preemption>,
        /// Orders to move that cannot be carried out any more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unmoved: Vec<Unmoved>,
        /// When.
        at_ms: i64,
    },
    /// What a node observed.
    ReportInstances {
        /// The node.
        node_id: NodeId,
        /// The newest observation of each instance that changed.
        reports: Vec<InstanceReport>,
        /// When.
        at_ms: i64,
    },
    /// A user writes a secret.
    PutSecret {
        /// Its name.
        name: Name,
        /// The value, sealed by the proposer for the version after the one that is there.
        value: SealedSecret,
        /// Size of the value before it was sealed.
        size_bytes: u64,
        /// What may exist before; a generation is a version here.
        mode: PutMode,
        /// When.
        at_ms: i64,
    },
    /// A user removes a secret that no workload uses.
    RemoveSecret {
        /// Its name.
        name: Name,
        /// When.
        at_ms: i64,
    },
    /// A user labels a workload, which changes nothing that runs.
    LabelWorkload {
        /// Its name.
        name: Name,
        /// New values; `None` removes the label.
        labels: BTreeMap<String, Option<String>>,
        /// Generation the user saw, if the workload must still have it.
        if_generation: Option<u64>,
        /// When.
        at_ms: i64,
    },
    /// A user logs in at a registry.
    PutRegistry {
        /// The registry.
        registry: RegistryName,
        /// Who logs in.
        username: String,
        /// The password, sealed by the proposer for the version after the one that is there.
        value: SealedSecret,
        /// When.
        at_ms: i64,
    },
    /// A user logs out of a registry.
    RemoveRegistry {
        /// The registry.
        registry: RegistryName,
        /// When.
        at_ms: i64,
    },
    /// A node asks for the network of its containers. It keeps the one it has, if that lies in `range`.
    ClaimSubnet {
        /// The node.
        node_id: NodeId,
        /// The addresses of the cluster.
        range: Subnet,
        /// The network it has used so far.
        used: Option<Subnet>,
        /// Networks inside the range that it cannot take.
        taken: Vec<Subnet>,
        /// Number of the network with which the search begins.
        first: u32,
    },
    /// A user makes a volume.
    CreateVolume {
        /// Its name, which must be free.
        name: Name,
        /// Where its data is to lie; decided by its first use when absent.
        node_id: Option<NodeId>,
        /// What it is.
        options: VolumeOptions,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// When.
        at_ms: i64,
    },
    /// A volume that lies nowhere yet is to lie on a node.
    BindVolume {
        /// Its name.
        name: Name,
        /// The node.
        node_id: NodeId,
        /// When.
        at_ms: i64,
    },
    /// A user removes a volume that no workload uses; its node deletes the data.
    RemoveVolume {
        /// Its name.
        name: Name,
        /// When.
        at_ms: i64,
    },
    /// A user wants a volume's data on another node, or takes that back.
    MoveVolume {
        /// Its name.
        name: Name,
        /// Where to; `None` takes back whatever was ordered.
        to: Option<NodeId>,
        /// When.
        at_ms: i64,
    },
    /// The move of a volume takes a turn. One that comes too late changes nothing.
    TurnVolume {
        /// Its name.
        name: Name,
        /// Which order to move it: [`VolumeMove::born`](super::VolumeMove::born).
        born: u64,
        /// Which turn.
        turn: MoveTurn,
        /// When.
        at_ms: i64,
    },
    /// A node tells which removed volumes' data it deleted.
    ForgetVolumes {
        /// The node.
        node_id: NodeId,
        /// Names, each with what tells it from others of the same name.
        gone: Vec<(Name, u64)>,
    },
    /// A user says how a card is given away.
    ConfigureGpu {
        /// The card's node.
        node_id: NodeId,
        /// The card.
        gpu: GpuId,
        /// How many may hold it; `None` leaves it as it is.
        policy: Option<GpuPolicy>,
        /// Whether it takes no new work; `None` leaves it as it is.
        cordoned: Option<bool>,
        /// When.
        at_ms: i64,
    },
    /// A user says something of a node.
    ConfigureNode {
        /// Its name.
        name: Name,
        /// What is new.
        changes: Box<NodeChanges>,
        /// When.
        at_ms: i64,
    },
    /// A user says something about where work goes in the whole cluster.
    ConfigurePlacement {
        /// What is new.
        changes: Box<PlacementChanges>,
        /// When.
        at_ms: i64,
    },
    /// A user wants an earlier specification of a workload again.
    RollBackWorkload {
        /// Its name.
        name: Name,
        /// Generation of that version; the newest before the present one that worked when absent.
        to: Option<u64>,
        /// Generation the user saw, if the workload must still have it.
        if_generation: Option<u64>,
        /// When.
        at_ms: i64,
    },
    /// The leader tells which nodes it hears of, or does not, where that changed.
    NoteNodes {
        /// Nodes.
        nodes: Vec<(NodeId, NodeHealth)>,
        /// When.
        at_ms: i64,
    },
    /// A user wants instances moved, in this order. Whatever orders to move there were are taken back.
    MoveInstances {
        /// Which, and where to.
        moves: Vec<InstanceMove>,
        /// When.
        at_ms: i64,
    },
    /// A node tells where and with which key the others find it.
    AnnounceMesh {
        /// The node.
        node_id: NodeId,
        /// Its end of the mesh.
        mesh: MeshNode,
        /// When.
        at_ms: i64,
    },
    /// A user makes a token that lets machines join.
    CreateToken {
        /// The token.
        token: Box<NewToken>,
        /// When.
        at_ms: i64,
    },
    /// A user takes a token back.
    RevokeToken {
        /// Its id.
        token_id: TokenId,
        /// When.
        at_ms: i64,
    },
    /// A machine that showed the secret of a token is let in: a use is spent, and it gets a number. Who is let in already
    /// with the same key is answered the same.
    AdmitNode {
        /// The token.
        token_id: TokenId,
        /// The node.
        node_id: NodeId,
        /// Its name.
        name: Name,
        /// Labels it wants beside those of the token.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
        /// SHA-256 of its public key.
        key: Digest,
        /// The node whose place it takes: one of the same name that does not answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        in_place_of: Option<NodeId>,
        /// When.
        at_ms: i64,
    },
    /// A node goes for good; everything of it is deleted.
    RemoveNode {
        /// The node.
        node_id: NodeId,
        /// Its name, for the story.
        name: Name,
        /// Whether its instances count as lost.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lost: bool,
        /// Whether its instances are ended and its volumes given up.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
        /// When.
        at_ms: i64,
    },
    /// An admin makes a user known, or the first user gets a password of their own.
    CreateUser {
        /// The user.
        user: Box<NewUser>,
        /// When.
        at_ms: i64,
    },
    /// Something about a user is new.
    ChangeUser {
        /// The user.
        name: UserName,
        /// What is new.
        changes: Box<UserChanges>,
        /// The session that stays when the others end, because it brought the new password.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep: Option<TokenId>,
        /// When.
        at_ms: i64,
    },
    /// An admin removes a user with all sessions and tokens.
    RemoveUser {
        /// The user.
        name: UserName,
        /// When.
        at_ms: i64,
    },
    /// A user has signed in.
    OpenSession {
        /// The session.
        session: Box<NewSession>,
        /// What their second factor showed; needed by who has one, and spent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<FactorProof>,
        /// The passkey that was shown in place of password and second factor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        passkey: Option<PasskeyUse>,
        /// When.
        at_ms: i64,
    },
    /// A session ends before its time. One that has ended already stays so.
    EndSession {
        /// The session.
        session_id: TokenId,
        /// When.
        at_ms: i64,
    },
    /// A user makes a token for a program.
    CreateApiToken {
        /// The token.
        token: Box<NewApiToken>,
        /// When.
        at_ms: i64,
    },
    /// A token for a program is taken back.
    RevokeApiToken {
        /// The token.
        token_id: TokenId,
        /// When.
        at_ms: i64,
    },
    /// A node tells which sessions and API tokens were used last at which time, now and then.
    NoteUses {
        /// Sessions.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sessions: Vec<(TokenId, i64)>,
        /// API tokens.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tokens: Vec<(TokenId, i64)>,
    },
    /// A user turns their second factor on.
    PutSecondFactor {
        /// The second factor.
        factor: Box<NewSecondFactor>,
        /// When.
        at_ms: i64,
    },
    /// A user turns their second factor off, or an admin does it for them.
    RemoveSecondFactor {
        /// The user.
        name: UserName,
        /// What it showed, which is spent; absent when an admin takes it away.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<FactorProof>,
        /// When.
        at_ms: i64,
    },
    /// A user adds a passkey.
    PutPasskey {
        /// The passkey.
        passkey: Box<NewPasskey>,
        /// When.
        at_ms: i64,
    },
    /// A user removes a passkey, or an admin does it for them. The sessions that it opened end.
    RemovePasskey {
        /// The user.
        name: UserName,
        /// The passkey.
        passkey_id: TokenId,
        /// When.
        at_ms: i64,
    },
    /// An admin says something about who comes in.
    ConfigureAccess {
        /// What is new.
        changes: AccessChanges,
        /// When.
        at_ms: i64,
    },
    /// The leader makes another key for short-lived tokens, or an admin does.
    PutSigningKey {
        /// The key.
        key: Box<NewSigningKey>,
        /// Whether all others go at once, and what they signed with them.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        alone: bool,
        /// When.
        at_ms: i64,
    },
    /// A provider has signed somebody in: they become a user, or have by now what their groups give.
    AcceptUser {
        /// Who.
        user: Box<ExternalUser>,
        /// When.
        at_ms: i64,
    },
    /// Somebody did something that the state does not show, for the audit trail.
    NoteAction {
        /// What: `exec`.
        action: String,
        /// To what: `instance/web-0`.
        subject: String,
        /// What else there is to tell.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
}

impl Command {
    /// Whether the scheduler may decide otherwise after it, or a node has other orders.
    pub fn concerns_scheduler(&self) -> bool {
        match self {
            Self::LabelWorkload { .. }
            | Self::RemoveSecret { .. }
            | Self::PutRegistry { .. }
            | Self::RemoveRegistry { .. }
            | Self::ClaimSubnet { .. }
            | Self::AnnounceMesh { .. }
            | Self::ForgetVolumes { .. }
            | Self::CreateToken { .. }
            | Self::RevokeToken { .. }
            | Self::CreateUser { .. }
            | Self::ChangeUser { .. }
            | Self::RemoveUser { .. }
            | Self::OpenSession { .. }
            | Self::EndSession { .. }
            | Self::CreateApiToken { .. }
            | Self::RevokeApiToken { .. }
            | Self::NoteUses { .. }
            | Self::PutSecondFactor { .. }
            | Self::RemoveSecondFactor { .. }
            | Self::PutPasskey { .. }
            | Self::RemovePasskey { .. }
            | Self::ConfigureAccess { .. }
            | Self::PutSigningKey { .. }
            | Self::AcceptUser { .. }
            | Self::NoteAction { .. } => false,
            Self::RegisterNode { .. }
            | Self::PutWorkload { .. }
            | Self::RollBackWorkload { .. }
            | Self::PowerWorkload { .. }
            | Self::RemoveWorkload { .. }
            | Self::CommitPlan { .. }
            | Self::ReportInstances { .. }
            | Self::PutSecret { .. }
            | Self::CreateVolume { .. }
            | Self::BindVolume { .. }
            | Self::RemoveVolume { .. }
            | Self::MoveVolume { .. }
            | Self::TurnVolume { .. }
            | Self::ConfigureGpu { .. }
            | Self::ConfigureNode { .. }
            | Self::ConfigurePlacement { .. }
            | Self::NoteNodes { .. }
            | Self::MoveInstances { .. }
            | Self::AdmitNode { .. }
            | Self::RemoveNode { .. } => true,
        }
    }
}
