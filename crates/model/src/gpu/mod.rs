//! GPUs: what a node has, what users say of it, what a workload asks for, what an instance holds, and what a node tells.

mod cdi_name;
mod device;
mod facts;
mod request;
mod settings;

#[cfg(test)]
pub(crate) use device::made;

pub use cdi_name::CdiName;
pub use device::{Gpu, GpuHold, GpuId, GpuLink, GpuPolicy, GpuVendor};
pub use facts::{GpuFacts, GpuMeasured, GpuProcess, GpuXid};
pub use request::{GpuAmount, GpuMemory, GpuRequest};
pub use settings::{GpuSettings, GpuSettingsOf};
