//! What a node tells of its machine when it is asked. Parts of it change from second to second, so it is no shared state.

use serde::{Deserialize, Serialize};

use crate::gpu::GpuFacts;

/// A machine as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeFacts {
    /// Logical CPUs.
    pub cpus: u32,
    /// What the CPU calls itself; empty when it does not.
    pub cpu_model: String,
    /// Processes that ran or wanted to, on average over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Memory that programs could still get, in bytes.
    pub memory_available_bytes: u64,
    /// Swap in bytes.
    pub swap_bytes: u64,
    /// Swap in use, in bytes.
    pub swap_used_bytes: u64,
    /// The file system that holds the data directory.
    pub disk: DiskFacts,
    /// What sensors measure; empty where there are none.
    pub temperatures: Vec<Temperature>,
    /// Its GPUs, in the order in which people count them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuFacts>,
    /// Distribution, as people call it.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// Name and version of the container runtime; empty while it is away.
    pub runtime: String,
    /// What `isolation` can ask for, each with its version where it tells one.
    pub isolation: Vec<String>,
    /// Version of toft.
    pub version: String,
    /// When the machine was started, in milliseconds since 1970.
    pub booted_at_ms: i64,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DiskFacts {
    /// The data directory.
    pub path: String,
    /// What is mounted there, such as `/dev/nvme0n1p2`.
    pub device: String,
    /// Kind of the file system, such as `ext4`.
    pub file_system: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What programs could still write, in bytes.
    pub free_bytes: u64,
}

/// What a sensor measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Temperature {
    /// What the driver calls it.
    pub sensor: String,
    /// Degrees Celsius.
    pub celsius: f64,
}
