//! The complete order for one instance that a node receives. It fixes everything: a node can carry it out, and start
//! it again after a reboot, without asking anybody.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    gpu::GpuHold,
    ids::{InstanceId, NodeId, WorkloadId},
    image::ImageRef,
    name::Name,
    pull::PullPolicy,
    secret::{SealedSecret, SecretMount},
    volume::VolumeOrder,
    workload::{HealthCheck, Mount, ProcessSpec, Protocol, Resources, RestartPolicy, WorkloadSpec, is_default},
};

/// What shall become of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Its process shall run (or have run to completion).
    Running,
    /// Its process shall be down; the container and its files stay.
    Stopped,
    /// Nothing of it shall remain.
    Removed,
}

impl Desired {
    /// The word stored in SQLite and shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Removed => "removed",
        }
    }
}

/// A container port that answers on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PublishedPort {
    /// Port on the host.
    pub host: u16,
    /// Port inside the container.
    pub container: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// The network of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "mode")]
pub enum NetworkOrder {
    /// The host's network.
    Host,
    /// Loopback only.
    None,
    /// An address on the node's bridge, with ports published on the host.
    Bridge {
        /// Address inside the node's subnet.
        address: Ipv4Addr,
        /// The IPv6 address, when the node has them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address6: Option<Ipv6Addr>,
        /// Ports published on the host.
        ports: Vec<PublishedPort>,
    },
}

/// What the container is made of. Two orders that are equal need no new container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerOrder {
    /// Image to run.
    pub image: ImageRef,
    /// When it is asked of its registry.
    #[serde(default, skip_serializing_if = "PullPolicy::is_default")]
    pub pull_policy: PullPolicy,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    /// Environment, added to the image's.
    pub env: BTreeMap<String, String>,
    /// Limits.
    pub resources: Resources,
    /// What happens when the process ends.
    pub restart: RestartPolicy,
    /// Milliseconds between the stop signal and the kill.
    pub stop_grace_ms: u32,
    /// Network.
    pub network: NetworkOrder,
    /// The workloads it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<Name>,
    /// Further networks it is in.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub networks: BTreeSet<Name>,
    /// Secrets it sees as files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretMount>,
    /// What it sees of the node's disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// How the process runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub process: ProcessSpec,
    /// How it is found out whether it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// GPUs it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuHold>,
    /// Whether it may run only while its node is heard of.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exclusive: bool,
}

impl ContainerOrder {
    /// The order that `spec` asks for with the network the scheduler decided, and without GPUs.
    pub fn of(spec: &WorkloadSpec, network: NetworkOrder) -> Self {
        Self {
            image: spec.image.clone(),
            pull_policy: spec.pull_policy,
            entrypoint: spec.entrypoint.clone(),
            command: spec.command.clone(),
            env: spec.env.clone(),
            resources: spec.resources,
            restart: spec.restart_policy(),
            stop_grace_ms: spec.stop_grace_ms,
            network,
            deployment: spec.deployment.clone(),
            networks: spec.networks.clone(),
            secrets: spec.secrets.clone(),
            mounts: spec.mounts.clone(),
            process: spec.process.clone(),
            health: spec.health.clone(),
            gpus: Vec::new(),
            exclusive: spec.exclusive,
        }
    }
}

/// The complete order for one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The instance, and its container's id.
    pub instance_id: InstanceId,
    /// Workload it belongs to.
    pub workload_id: WorkloadId,
    /// The workload's name.
    pub workload: Name,
    /// Which copy, from 0.
    pub ordinal: u32,
    /// What shall become of it.
    pub desired: Desired,
    /// Counts the explicit starts and restarts a person asked for. A node that last started the process for a lower
    /// number starts it anew.
    pub epoch: u64,
    /// What the container is made of.
    pub container: ContainerOrder,
    /// The volumes that it mounts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<Name, VolumeOrder>,
}

impl Assignment {
    /// What people call the instance: `web-0`.
    pub fn instance_name(&self) -> String {
        format!("{}-{}", self.workload, self.ordinal)
    }
}

/// Everything one node shall do. A set of a lower generation than one already received is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentSet {
    /// Node it is for.
    pub node_id: NodeId,
    /// Index of the last applied command that changed this node's assignments.
    pub generation: u64,
    /// The whole set; an instance that is not in it shall not exist.
    pub assignments: Vec<Assignment>,
    /// The newest version of every secret that they name.
    pub secrets: BTreeMap<Name, SealedSecret>,
}
