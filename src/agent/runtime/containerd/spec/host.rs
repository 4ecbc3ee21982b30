//! What a specification must know about this machine. Read once.

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

/// This machine as far as containers are concerned.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Control groups of version 2 alone; else version 1, with or without a version 2 tree beside it.
    pub(crate) unified_cgroups: bool,
    /// Memory and swap can be limited together.
    pub(crate) limits_swap: bool,
    /// The settings of a network namespace that Docker changes exist.
    pub(crate) network_settings: bool,
    /// Processes can be counted and limited.
    pub(crate) limits_pids: bool,
    /// System calls can be filtered.
    pub(crate) filters_calls: bool,
    /// A bit for each capability that can be given to a container.
    pub(crate) capabilities: u64,
    /// Most open files this process may grant; without `CAP_SYS_RESOURCE` a container cannot get more.
    pub(crate) open_files: u64,
}

impl Host {
    /// Looks around.
    pub(crate) fn detect() -> Self {
        let there = |path: &str| Path::new(path).exists();
        let unified_cgroups = there("/sys/fs/cgroup/cgroup.controllers");
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let capabilities = field("CapBnd").and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        Self {
            limits_pids: controllers.split_whitespace().any(|name| name == "pids") || there("/sys/fs/cgroup/pids"),
            filters_calls: field("Seccomp").is_some(),
            capabilities: capabilities.unwrap_or(0),
            unified_cgroups,
            limits_swap: unified_cgroups || there("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
            network_settings: there("/proc/sys/net/ipv4/ip_unprivileged_port_start")
                && there("/proc/sys/net/ipv4/ping_group_range"),
            open_files: getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard),
        }
    }
}
