//! What the HTTP API speaks. Times are RFC 3339 in UTC.

mod access;
mod backups;
mod exec;
mod gpus;
mod images;
mod members;
mod mesh;
mod people;
mod rebalance;
mod registries;
mod secrets;
mod usage;
mod versions;
mod volumes;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::control::ops::cluster::ClusterStatus;
use serde::{Deserialize, Serialize};
use toft_model::{
    image::NodeImage,
    instance::{Desired, Exit, InstanceState, NetworkOrder, PublishedPort},
    log::LogStream,
    node::{Inventory, NodeSettings},
    schedule::PlacementSettings,
    state::{AdmissionRow, EventRow, InstanceView, NodeRow, WorkloadView},
    workload::{Health, Rollout, WorkloadSpec},
};
use utoipa::ToSchema;

pub use access::{
    Access, Key, Keys, Passkey, RecoveryCodes, SecondFactor, SecondFactorOffer, SecondFactorRemoval,
    SecondFactorRequest, SignedToken, SignedTokenRequest,
};
pub use backups::{Backup, BackupStatus};
pub use exec::{ExecCommand, ExecNews};
pub use gpus::{GpuChange, Holder, NodeGpu};
pub use images::{Pull, PullLine, PullRequest};
pub use members::{JoinRequest, JoinedCluster, MadeToken, Token, TokenRequest, TokenUse};
pub use mesh::{CLOCK_APART_MS, Mesh, MeshPeer, MeshPing, MeshPingRow, MeshPings};
pub use people::{
    ApiToken, ApiTokenRequest, AuditEntry, Authority, Me, NewApiToken, PasswordChange, Session, User, UserChange,
    UserRequest,
};
pub use rebalance::{RebalancePlan, RebalanceRequest};
pub use registries::Registry;
pub use secrets::Secret;
pub use usage::{InstanceStats, NodeAway, Stats};
pub use versions::{RollbackRequest, Version};
pub use volumes::{Volume, VolumeMoveRequest, VolumeMoveStatus, VolumeRequest, VolumeRestored};

/// A failed request.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorEnvelope {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Kind for programs: `invalid`, `not_found`, `conflict`, `stale`, `too_large`, `unavailable`, `disk_full`, ...
    pub code: String,
    /// Text for people.
    pub message: String,
    /// The next step, when one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The field of the request that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// A workload as it stands.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Workload {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Counts the specifications written, from 1; the ETag.
    pub generation: u64,
    /// One word: `running`, `starting`, `pending`, `back_off`, `stopping`, `stopped`, `finished`, `unknown`,
    /// `removing`.
    pub status: String,
    /// Why instances wait for a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
    /// Instances that run now.
    pub running: u32,
    /// What was asked for.
    pub spec: WorkloadSpec,
    /// When the name was first written.
    pub created_at: String,
    /// When it was last changed by a user.
    pub updated_at: String,
    /// How far the specification has reached the instances.
    #[serde(default)]
    pub rollout: Rollout,
    /// Its instances.
    pub instances: Vec<Instance>,
}

/// An instance as it stands.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Name: the workload's and the number of the copy.
    pub name: String,
    /// Id, also of its container.
    pub id: String,
    /// Workload.
    pub workload: String,
    /// Node.
    pub node: String,
    /// Image.
    pub image: String,
    /// `assigned`, `starting`, `running`, `stopping`, `stopped`, `back_off`, `finished`.
    pub state: String,
    /// Why it is not running, when it should; while its image is pulled, how far that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it will be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<String>,
    /// Whether it works, when it runs and has a health check: `starting`, `healthy`, `unhealthy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Process id on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When the process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Automatic restarts since the last start a person asked for.
    pub restarts: u32,
    /// How the last process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<LastExit>,
    /// Address on the node's bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 address, when the node has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address6: Option<Ipv6Addr>,
    /// Ports published on the host.
    pub ports: Vec<PublishedPort>,
    /// When it was placed.
    pub created_at: String,
}

/// How a process ended.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LastExit {
    /// Exit code, 128 + signal for a signal; absent when the process vanished.
    pub code: Option<i32>,
    /// When.
    pub at: String,
    /// Whether the kernel killed it, or a process beside it, for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// Whether toft ended it because it held more memory of a GPU than its share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gpu_out_of_memory: bool,
}

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Labels: those of its configuration file, and over them those that users set.
    pub labels: BTreeMap<String, String>,
    /// Labels that are made of what it has: `toft/arch`, `toft/os`, `toft/gpus`, `toft/gpu.MODEL`.
    #[serde(default)]
    pub builtin_labels: BTreeMap<String, String>,
    /// What users say of it.
    #[serde(default)]
    pub settings: NodeSettings,
    /// What it has.
    pub inventory: Inventory,
    /// What it draws in watts: what its cards measure and `base_watts`, or the setting `watts` where they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts: Option<u32>,
    /// What an hour of it costs: its price, or its watts at the cluster's price of electricity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_per_hour: Option<f64>,
    /// When it last registered; absent while it is joining.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<String>,
    /// Where it stands: `joining` (let in, and not heard of since: what it has is not known), `ready`, `cordoned`, `draining`,
    /// `away` (toft is restarted there), `unreachable` (not heard of for a moment) or `down`.
    #[serde(default)]
    pub state: String,
    /// Since when it is heard of, or not, or was let in; absent when that never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_since: Option<String>,
    /// Milliseconds by which its clock is ahead of what most nodes' clocks say; with two nodes, of the clock of the one that is
    /// asked. Absent when it did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// Whether it runs an older toft than another member. What it does not know is not done anywhere until it is upgraded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub behind: bool,
    /// Whether the disk of its state has no room: it waits for some, and does not lead others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_full: bool,
}

/// The members that share the state, as the node that answers sees them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// Id.
    pub id: String,
    /// Name of the member that leads; absent when none does.
    pub leader: Option<String>,
    /// How often the lead was fought for.
    pub term: u64,
    /// End of this node's log.
    pub log_end: u64,
    /// How much of it this node has applied.
    pub applied: u64,
    /// The members, by number.
    pub members: Vec<Member>,
    /// Number of the member that this node is.
    #[serde(default)]
    pub this: u64,
    /// Whether the others have said that this node was removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// A member of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// Number, never used twice.
    pub id: u64,
    /// Name of the node.
    pub name: String,
    /// Id of the node.
    pub node_id: String,
    /// Where the others reach it; empty when it listens for nobody.
    pub address: String,
    /// `server` or `witness`.
    pub role: String,
    /// Whether it votes.
    pub votes: bool,
    /// Whether it leads.
    pub leads: bool,
    /// Whether it answered lately; absent when the node that answers does not lead, for only the leader asks all.
    pub answers: Option<bool>,
    /// End of its log, if known.
    pub log_end: Option<u64>,
    /// Version of toft there; empty when it never told.
    #[serde(default)]
    pub version: String,
    /// Newest format of commands that it understands.
    #[serde(default)]
    pub format: u32,
    /// Whether that is an older toft than another member's. What it does not know is not done anywhere until it is upgraded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub behind: bool,
}

impl From<ClusterStatus> for Cluster {
    fn from(status: ClusterStatus) -> Self {
        let leads_here = status.leader == Some(status.member_id);
        let leader = status.members.iter().find(|member| Some(member.id) == status.leader);
        let leader = leader.map(|member| member.name.to_string());
        let members = status.members.into_iter().map(|member| Member {
            leads: status.leader == Some(member.id),
            answers: (leads_here || member.id == status.member_id).then_some(member.answers),
            id: member.id,
            name: member.name.to_string(),
            node_id: member.node_id.to_string(),
            address: member.address,
            role: member.role.to_owned(),
            votes: member.votes,
            log_end: member.log_end,
            version: member.version,
            format: member.format,
            behind: member.behind,
        });
        Self {
            members: members.collect(),
            id: status.cluster_id.to_string(),
            this: status.member_id,
            removed: status.removed,
            leader,
            term: status.term,
            log_end: status.log_end,
            applied: status.applied,
        }
    }
}

/// An image on the node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Reference as people write it.
    pub name: String,
    /// Digest of what the name stands for.
    pub digest: String,
    /// Compressed size.
    pub size_bytes: u64,
    /// Platform.
    pub platform: String,
    /// When it came to the node.
    pub created_at: String,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Position in the story.
    pub seq: i64,
    /// When.
    pub at: String,
    /// `info` or `warning`.
    pub level: String,
    /// What it speaks of: `workload/web`, `instance/web-0`, `node/box`.
    pub subject: String,
    /// What happened.
    pub message: String,
}

/// One line of a workload's output; streams send one JSON object a line.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogRecord {
    /// Who wrote it.
    pub instance: String,
    /// When.
    pub at: String,
    /// Which output.
    pub stream: LogStream,
    /// The line without its end.
    pub text: String,
    /// Whether the line goes on in the next record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Why an instance's output is not told, or not to its end; in a stream of output an object of its own.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogTrouble {
    /// Whose.
    pub instance: String,
    /// Why.
    pub error: ErrorBody,
}

/// One object in a stream of output.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum LogItem {
    /// A line.
    Line(LogRecord),
    /// There are no more of one instance, for a reason.
    Trouble(LogTrouble),
}

/// A page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// What to pass as `after` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The first `limit` of `items`; `key` of the last is what to go on after when there are more.
    pub fn cut(mut items: Vec<T>, limit: usize, key: impl Fn(&T) -> String) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(key);
        Self { items, next }
    }
}

/// Answer of a wait.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Waited {
    /// Whether it was reached in time.
    pub reached: bool,
    /// The workload as it then was; absent when it is gone.
    pub workload: Option<Workload>,
}

/// Milliseconds since 1970 as RFC 3339.
pub fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).unwrap_or_default().to_string()
}

/// Nanoseconds since 1970 as RFC 3339.
pub fn time_ns(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(ns.into()).unwrap_or_default().to_string()
}

impl From<Exit> for LastExit {
    fn from(exit: Exit) -> Self {
        Self {
            code: exit.code,
            at: time(exit.at_ms),
            out_of_memory: exit.out_of_memory,
            gpu_out_of_memory: exit.gpu_out_of_memory,
        }
    }
}

impl From<WorkloadView> for Workload {
    fn from(view: WorkloadView) -> Self {
        Self {
            name: view.row.spec.name.to_string(),
            id: view.row.id.to_string(),
            generation: view.row.generation,
            status: view.status().into(),
            running: view.running() as u32,
            created_at: time(view.row.created_at_ms),
            updated_at: time(view.row.updated_at_ms),
            instances: view.instances.iter().map(Instance::from).collect(),
            pending: view.row.pending,
            rollout: view.row.rollout,
            spec: view.row.spec,
        }
    }
}

impl From<&InstanceView> for Instance {
    fn from(view: &InstanceView) -> Self {
        let report = view.row.report.as_ref();
        let state = view.state();
        let (mut reason, mut retry_at, mut pid, mut started_at) = (None, None, None, None);
        match &state {
            InstanceState::BackOff { until_ms, reason: why } => {
                reason = Some(why.clone());
                retry_at = Some(time(*until_ms));
            }
            InstanceState::Finished { reason: why, .. } => reason = why.clone(),
            InstanceState::Running { pid: process, since_ms } => {
                pid = Some(*process);
                started_at = Some(time(*since_ms));
            }
            InstanceState::Assigned | InstanceState::Starting => reason = view.note.clone(),
            InstanceState::Unknown => reason = Some("its node is down".into()),
            InstanceState::Stopping | InstanceState::Stopped { .. } => {}
        }
        let (address, address6, ports) = match &view.row.container.network {
            NetworkOrder::Bridge { address, address6, ports } => (Some(*address), *address6, ports.clone()),
            NetworkOrder::Host | NetworkOrder::None => (None, None, Vec::new()),
        };
        let removing =
            view.row.desired == Desired::Removed && !matches!(state, InstanceState::Stopping | InstanceState::Unknown);
        Self {
            name: view.name(),
            id: view.row.id.to_string(),
            workload: view.workload.to_string(),
            node: view.node.to_string(),
            image: view.row.container.image.familiar().to_owned(),
            state: if removing { "removing" } else { state.as_str() }.into(),
            reason,
            health: report.and_then(|report| report.health),
            retry_at,
            pid,
            started_at,
            restarts: report.map_or(0, |report| report.restarts),
            last_exit: report.and_then(|report| report.last_exit).map(LastExit::from),
            address,
            address6,
            ports,
            created_at: time(view.row.created_at_ms),
        }
    }
}

impl Node {
    /// Of a row, under what the cluster says.
    pub fn of(row: NodeRow, settings: &PlacementSettings) -> Self {
        Self {
            state: row.state().to_owned(),
            heard_since: row.health_since_ms.map(time),
            clock_ahead_ms: None,
            watts: row.watts(),
            cost_per_hour: settings.cost(&row),
            name: row.name.to_string(),
            id: row.id.to_string(),
            labels: row.given_labels(),
            builtin_labels: row.inventory.labels(),
            settings: row.settings,
            inventory: row.inventory,
            registered_at: Some(time(row.registered_at_ms)),
            behind: false,
            disk_full: false,
        }
    }

    /// Of one that was let in and has not told yet what it is.
    pub fn joining(row: AdmissionRow) -> Self {
        Self {
            state: "joining".to_owned(),
            heard_since: Some(time(row.at_ms)),
            clock_ahead_ms: None,
            watts: None,
            cost_per_hour: None,
            name: row.name.to_string(),
            id: row.node_id.to_string(),
            labels: row.labels,
            builtin_labels: BTreeMap::new(),
            settings: NodeSettings::default(),
            inventory: Inventory::default(),
            registered_at: None,
            behind: false,
            disk_full: false,
        }
    }
}

impl From<NodeImage> for Image {
    fn from(image: NodeImage) -> Self {
        let name = image.name.parse::<toft_model::image::ImageRef>();
        Self {
            name: name.map_or(image.name, |name| name.familiar().to_owned()),
            digest: image.digest,
            size_bytes: image.size_bytes,
            platform: image.platform,
            created_at: time(image.created_at_ms),
        }
    }
}

impl From<EventRow> for Event {
    fn from(row: EventRow) -> Self {
        Self {
            seq: row.seq,
            at: time(row.at_ms),
            level: row.level.as_str().into(),
            subject: row.subject,
            message: row.message,
        }
    }
}
