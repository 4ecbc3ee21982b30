//! What this machine is and has.

use std::path::Path;

use toft_model::{
    gpu::Gpu,
    node::{Inventory, Subnet, Subnet6},
};

/// Looks at the machine. `runtime` is the container runtime's name and version, empty while it is away; `isolation`
/// names what containers can be run with, `gpus` are as their drivers show them.
pub fn inventory(
    runtime: String,
    (subnet, subnet6): (Option<Subnet>, Option<Subnet6>),
    isolation: Vec<String>,
    gpus: Vec<Gpu>,
) -> Inventory {
    Inventory {
        cpus: cpus(),
        memory_bytes: memory_bytes(),
        kernel: sysinfo::System::kernel_version().unwrap_or_default(),
        os: os_name(Path::new("/etc/os-release")),
        arch: std::env::consts::ARCH.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime,
        subnet,
        subnet6,
        isolation,
        gpus,
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
