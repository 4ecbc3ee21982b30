//! What a user asks to run.

mod port;
mod restart;
mod spec;

pub use port::{PortSpec, Protocol};
pub use restart::RestartPolicy;
pub use spec::{NetworkMode, Resources, WorkloadKind, WorkloadSpec};
