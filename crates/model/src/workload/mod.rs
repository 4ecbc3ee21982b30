//! What a user asks to run.

mod health;
mod mount;
mod named_gpus;
mod network;
mod node_loss;
mod placement;
mod port;
mod process;
mod restart;
mod rollout;
mod rule;
mod spec;
mod update;

pub use health::{Health, HealthCheck, HealthTest};
pub use mount::{AnyMount, BindMount, Mount, VolumeMount};
pub use network::NetworkName;
pub use node_loss::OnNodeLoss;
pub use placement::{Affinity, PlacementSpec, Spread};
pub use port::{PortSpec, Protocol};
pub(crate) use process::is_default;
pub use process::{
    CapabilityName, DEFAULT_CAPABILITIES, DeviceMapping, HostAddress, HostEntry, Isolation, ProcessSpec, Seccomp,
    StopSignal, TmpfsMount, Ulimit, UlimitName, UserName,
};
pub use restart::RestartPolicy;
pub use rollout::{Rollout, VersionCause, changed_fields};
pub(crate) use rule::number;
pub use rule::{Attribute, Order, Rule, Test};
pub use spec::{NetworkMode, Resources, WorkloadKind, WorkloadSpec};
pub use update::{UpdateFailure, UpdateOrder, UpdateSpec};
