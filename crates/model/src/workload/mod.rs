//! What a user asks to run.

mod health;
mod mount;
mod network;
mod port;
mod process;
mod restart;
mod rollout;
mod spec;
mod update;

pub use health::{Health, HealthCheck, HealthTest};
pub use mount::{AnyMount, BindMount, Mount, VolumeMount};
pub use network::NetworkName;
pub use port::{PortSpec, Protocol};
pub(crate) use process::is_default;
pub use process::{
    CapabilityName, DEFAULT_CAPABILITIES, DeviceMapping, HostAddress, HostEntry, Isolation, ProcessSpec, Seccomp,
    StopSignal, TmpfsMount, Ulimit, UlimitName, UserName,
};
pub use restart::RestartPolicy;
pub use rollout::{Rollout, VersionCause};
pub use spec::{NetworkMode, Resources, WorkloadKind, WorkloadSpec};
pub use update::{UpdateFailure, UpdateOrder, UpdateSpec};
