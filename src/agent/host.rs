//! What this machine is and has.

use std::path::Path;

use super::runtime::containerd::isolation;
use toft_model::{
    gpu::Gpu,
    node::{Inventory, Subnet, Subnet6},
};

/// A machine, as far as it stays the same.
#[derive(Debug, Clone)]
pub struct Host {
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory in bytes; 0 when it cannot be told.
    pub memory_bytes: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// What the distribution calls itself.
    pub os: String,
    /// Names what containers can be run with; asked whenever it is told.
    pub isolation: fn() -> Vec<String>,
}

impl Host {
    /// This machine.
    pub fn look() -> Self {
        Self {
            cpus: cpus(),
            memory_bytes: memory_bytes(),
            kernel: sysinfo::System::kernel_version().unwrap_or_default(),
            os: os_name(Path::new("/etc/os-release")),
            isolation: isolation::names,
        }
    }

    /// What is told of it. `runtime` is the container runtime's name and version, empty while it is away; `gpus` are as
    /// their drivers show them.
    pub fn inventory(
        &self,
        runtime: String,
        (subnet, subnet6): (Option<Subnet>, Option<Subnet6>),
        gpus: Vec<Gpu>,
    ) -> Inventory {
        Inventory {
            cpus: self.cpus,
            memory_bytes: self.memory_bytes,
            kernel: self.kernel.clone(),
            os: self.os.clone(),
            arch: std::env::consts::ARCH.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime,
            subnet,
            subnet6,
            isolation: (self.isolation)(),
            gpus,
        }
    }
}

/// Logical CPUs.
pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32)
}

/// Physical memory in bytes; 0 when it cannot be told.
pub fn memory_bytes() -> u64 {
    let only_memory = sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram());
    sysinfo::System::new_with_specifics(only_memory).map_or(0, |system| system.total_memory())
}

/// The host's name, or an empty text.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// What the distribution calls itself in `/etc/os-release`.
pub(super) fn os_name(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.map_or_else(|| "Linux".to_owned(), |value| value.trim_matches('"').to_owned())
}
