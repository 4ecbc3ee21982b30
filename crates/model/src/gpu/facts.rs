//! What a node tells of its GPUs when it is asked. It changes from second to second, so it is no shared state.

use serde::{Deserialize, Serialize};

use super::Gpu;
use crate::ids::InstanceId;

/// A GPU as it is now. What its driver does not tell is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuFacts {
    /// What matters for placement, as the node sees it now.
    #[serde(flatten)]
    pub gpu: Gpu,
    /// Its place among the node's cards, from 0.
    pub place: u32,
    /// Its address on the PCI bus: `0000:01:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    /// Version of its driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Newest CUDA that the driver can serve: `12.8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    /// What it measures.
    pub measured: GpuMeasured,
    /// Processes that hold memory of it, the largest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<GpuProcess>,
}

/// What a card measures of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuMeasured {
    /// Memory in use, in MiB, without what the driver keeps to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used_mib: Option<u32>,
    /// Memory that the driver keeps to itself, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_reserved_mib: Option<u32>,
    /// Part of the last moment in which it computed, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_percent: Option<u32>,
    /// Part of the last moment in which memory was read or written, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_busy_percent: Option<u32>,
    /// Degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// Degrees Celsius from which on it slows itself down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowdown_celsius: Option<u32>,
    /// Power it takes, in watts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<f64>,
    /// Power it may take, in watts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_watts: Option<f64>,
    /// Clock of its processors, in MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u32>,
    /// Clock of its memory, in MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Speed of its fan, 0 to 100, or above where it is driven harder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fan_percent: Option<u32>,
    /// Memory errors since the driver was loaded that were corrected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_corrected: Option<u64>,
    /// Memory errors since the driver was loaded that were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected: Option<u64>,
    /// The newest fault that the driver told by a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid: Option<GpuXid>,
}

/// A fault as NVIDIA's driver numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuXid {
    /// Its number; NVIDIA's list of Xid errors says what it means.
    pub code: u64,
    /// When it was told, in milliseconds since 1970.
    pub at_ms: i64,
}

/// A process that holds memory of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuProcess {
    /// Process id on the node.
    pub pid: u32,
    /// What it calls itself.
    pub name: String,
    /// Memory in MiB; absent when the driver does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// The instance it belongs to; absent when it is none of toft's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub instance_id: Option<InstanceId>,
}
