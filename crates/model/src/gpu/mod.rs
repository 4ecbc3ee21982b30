//! GPUs: what a node has, what users say of it, what a workload asks for, what an instance holds, and what a node tells.

mod device;
mod facts;
mod request;
mod settings;

pub use device::{Gpu, GpuHold, GpuId, GpuPolicy, GpuVendor};
pub use facts::{GpuFacts, GpuLink, GpuMeasured, GpuProcess, GpuXid};
pub use request::{GpuAmount, GpuMemory, GpuRequest};
pub use settings::{GpuSettings, GpuSettingsOf};
