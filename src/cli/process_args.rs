//! The flags of `run` that say how the process runs, by the names that Docker's users know.

use std::collections::BTreeMap;

use clap::Args;
use toft_model::workload::{
    CapabilityName, DeviceMapping, HostEntry, Isolation, ProcessSpec, Resources, Seccomp, StopSignal, TmpfsMount,
    Ulimit, UlimitName, UserName,
};

use super::{
    Failure,
    args::{cpu, memory, parsed, told},
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub(super) struct ProcessArgs {
    /// Run as this user of the image [default: the image's own]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parsed::<UserName>)]
    user: Option<UserName>,
    /// Add a group of the image to those of the user
    #[arg(long = "group-add", value_name = "GROUP", value_parser = parsed::<UserName>)]
    groups: Vec<UserName>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP", value_parser = parsed::<CapabilityName>)]
    cap_add: Vec<CapabilityName>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAP", value_parser = parsed::<CapabilityName>)]
    cap_drop: Vec<CapabilityName>,
    /// seccomp=unconfined allows every system call, no-new-privileges=false allows programs such as sudo
    #[arg(long = "security-opt", value_name = "OPTION", value_parser = parse_security)]
    security: Vec<Security>,
    /// Give it every right and every device of the node
    #[arg(long)]
    privileged: bool,
    /// Make the image's files read-only
    #[arg(long)]
    read_only: bool,
    /// Mount an empty file system in memory: PATH[:size=64m,mode=1777,uid=N,gid=N,exec]
    #[arg(long, value_name = "TMPFS", value_parser = parsed::<TmpfsMount>)]
    tmpfs: Vec<TmpfsMount>,
    /// Limit each process: nofile=SOFT[:HARD], memlock, core, nproc, ...; -1 for no limit
    #[arg(long = "ulimit", value_name = "NAME=LIMIT", value_parser = parse_ulimit)]
    ulimits: Vec<(UlimitName, Ulimit)>,
    /// Change a kernel setting of the container's own: net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem
    #[arg(long = "sysctl", value_name = "NAME=VALUE")]
    sysctls: Vec<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    shm_size: Option<u64>,
    /// Host name inside [default: the instance's name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Add a line to /etc/hosts: NAME:ADDRESS, or NAME:host-gateway for the node
    #[arg(long = "add-host", value_name = "HOST", value_parser = parsed::<HostEntry>)]
    hosts: Vec<HostEntry>,
    /// Start the command from a small first process that passes on signals and buries orphans
    #[arg(long)]
    init: bool,
    /// Signal that asks it to end [default: the image's own, else SIGTERM]
    #[arg(long, value_name = "SIGNAL", value_parser = parsed::<StopSignal>)]
    stop_signal: Option<StopSignal>,
    /// Let it use a device of the node, or a folder of them: HOST[:INSIDE][:rwm]; or one by its CDI name, such as
    /// nvidia.com/gpu=0
    #[arg(long = "device", value_name = "DEVICE", value_parser = parsed::<DeviceMapping>)]
    devices: Vec<DeviceMapping>,
    /// Container runtime that separates it from the node, such as runc, crun, kata or runsc
    #[arg(long, visible_alias = "runtime", value_name = "RUNTIME", value_parser = parsed::<Isolation>)]
    isolation: Option<Isolation>,
}

/// What `--security-opt` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Security {
    Seccomp(Seccomp),
    NewPrivileges(bool),
}

impl ProcessArgs {
    pub(super) fn spec(self) -> Result<ProcessSpec, Failure> {
        let mut spec = ProcessSpec {
            user: self.user,
            groups: self.groups,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            privileged: self.privileged,
            read_only: self.read_only,
            tmpfs: self.tmpfs,
            ulimits: self.ulimits.into_iter().collect(),
            sysctls: BTreeMap::new(),
            shm_size_bytes: self.shm_size,
            hostname: self.hostname,
            extra_hosts: self.hosts,
            init: self.init,
            stop_signal: self.stop_signal,
            devices: self.devices,
            isolation: self.isolation,
            ..ProcessSpec::default()
        };
        for option in self.security {
            match option {
                Security::Seccomp(seccomp) => spec.seccomp = seccomp,
                Security::NewPrivileges(allowed) => spec.allow_new_privileges = allowed,
            }
        }
        for text in self.sysctls {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                Failure::of(2, format!("`{text}` is no NAME=VALUE")).hint("write it like `net.core.somaxconn=1024`")
            })?;
            spec.sysctls.insert(name.to_owned(), value.to_owned());
        }
        Ok(spec)
    }
}

/// The flags of `run` that limit what an instance takes, and that keep something for it.
#[derive(Debug, Args)]
pub(super) struct ResourceArgs {
    /// Limit of CPU time in cores
    #[arg(long, visible_alias = "cpus", value_name = "CORES", value_parser = cpu)]
    cpu: Option<u32>,
    /// Limit of memory
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
    /// Keep this many cores of a node for each instance
    #[arg(long, value_name = "CORES", value_parser = cpu)]
    cpu_reservation: Option<u32>,
    /// Keep this much memory of a node for each instance
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory_reservation: Option<u64>,
    /// Most processes and threads, -1 for no limit [default: 4096]
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true, value_parser = parse_pids)]
    pids_limit: Option<u32>,
}

impl ResourceArgs {
    pub(super) fn spec(self) -> Resources {
        Resources {
            cpu_millis: self.cpu,
            memory_bytes: self.memory,
            cpu_reserved_millis: self.cpu_reservation,
            memory_reserved_bytes: self.memory_reservation,
            pids_limit: self.pids_limit,
        }
    }
}

fn parse_pids(text: &str) -> Result<u32, String> {
    match text {
        "-1" => Ok(0),
        text => text.parse().map_err(|_| format!("`{text}` is no number of processes; use -1 for no limit")),
    }
}

fn parse_ulimit(text: &str) -> Result<(UlimitName, Ulimit), String> {
    Ulimit::parse_named(text).map_err(told)
}

fn parse_security(text: &str) -> Result<Security, String> {
    match text.replace(':', "=").as_str() {
        "seccomp=unconfined" => Ok(Security::Seccomp(Seccomp::Unconfined)),
        "seccomp=default" => Ok(Security::Seccomp(Seccomp::Default)),
        "no-new-privileges" | "no-new-privileges=true" => Ok(Security::NewPrivileges(false)),
        "no-new-privileges=false" => Ok(Security::NewPrivileges(true)),
        _ => Err("use seccomp=unconfined, seccomp=default, no-new-privileges or no-new-privileges=false".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_docker_reads_them() {
        assert_eq!(parse_security("seccomp:unconfined").unwrap(), Security::Seccomp(Seccomp::Unconfined));
        assert_eq!(parse_security("no-new-privileges").unwrap(), Security::NewPrivileges(false));
        assert!(parse_security("apparmor=x").is_err());
        assert_eq!((parse_pids("-1"), parse_pids("7")), (Ok(0), Ok(7)));
        assert!(parse_pids("-2").is_err());
    }
}
