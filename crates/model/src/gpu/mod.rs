//! GPUs: what a node has, what a workload asks for, what an instance holds.

mod device;
mod request;

pub use device::{Gpu, GpuHold, GpuId, GpuPolicy, GpuVendor};
pub use request::{GpuAmount, GpuMemory, GpuRequest};
