//! How the process of a container runs: as whom, with which rights, and what of the machine it sees. Everything has
//! Docker's default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NetworkMode;
use crate::invalid::Invalid;

mod capability;
mod device;
mod host_entry;
mod isolation;
mod signal;
mod sysctl;
mod tmpfs;
mod ulimit;
mod user;

pub use capability::{CapabilityName, DEFAULT_CAPABILITIES};
pub use device::DeviceMapping;
pub use host_entry::{HostAddress, HostEntry};
pub use isolation::Isolation;
pub use signal::StopSignal;
pub use tmpfs::TmpfsMount;
pub use ulimit::{Ulimit, UlimitName};
pub use user::UserName;

/// Which system calls the process may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// Those that containers need; what only serves to attack the kernel is refused.
    #[default]
    Default,
    /// All.
    Unconfined,
}

/// How the process runs. What is absent is as Docker has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSpec {
    /// `user[:group]`, names of the image or numbers; the image's own user when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1000:1000")]
    pub user: Option<UserName>,
    /// Further groups, names of the image or numbers; at most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub groups: Vec<UserName>,
    /// Capabilities beyond Docker's default set: `NET_ADMIN`, or `ALL`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub cap_add: Vec<CapabilityName>,
    /// Capabilities taken away: `CHOWN`, or `ALL`, which leaves those in `cap_add`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub cap_drop: Vec<CapabilityName>,
    /// Which system calls it may make.
    #[serde(skip_serializing_if = "is_default")]
    pub seccomp: Seccomp,
    /// Whether programs such as `sudo` can give it rights it was not started with. Off (the programs cannot) unless
    /// said so.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_new_privileges: bool,
    /// Whether the image's files can only be read.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Empty file systems in memory; at most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<TmpfsMount>,
    /// Limits of each process, by name: `nofile`, `memlock`, ...
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Ulimit>)]
    pub ulimits: BTreeMap<UlimitName, Ulimit>,
    /// Settings of the container's own kernel namespaces: `net.*` (not in the host's network), `fs.mqueue.*` and the
    /// `kernel.*` of System V communication; at most 64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Size of `/dev/shm` in bytes; 64 MiB when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size_bytes: Option<u64>,
    /// Host name inside; the instance's name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Further lines of `/etc/hosts`; at most 256.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<HostEntry>,
    /// Whether a small first process passes signals on and buries processes whose parents died.
    #[serde(skip_serializing_if = "is_default")]
    pub init: bool,
    /// Signal that asks the process to end; the image's own, else `SIGTERM`, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "SIGQUIT")]
    pub stop_signal: Option<StopSignal>,
    /// Devices of the node that it may use; at most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceMapping>,
    /// Every right and every device of the node: it is as good as root outside.
    #[serde(skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// Whether its input stays open, so that somebody can attach and type. Without, it reads an end at once.
    #[serde(skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// Whether it has a terminal. Its output and its errors then come as one.
    #[serde(skip_serializing_if = "is_default")]
    pub tty: bool,
    /// Whether somebody runs it in front of them: it is first started when they have attached, after 10 seconds in any
    /// case, and its input ends when they end it or leave. Needs `stdin` or `tty`.
    #[serde(skip_serializing_if = "is_default")]
    pub foreground: bool,
    /// What separates it from the node: `runc` (the default), `crun`, `kata`, `runsc` or another runtime that the node
    /// has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "runsc")]
    pub isolation: Option<Isolation>,
}

/// Whether a field need not be written.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ProcessSpec {
    /// Most entries of each list.
    pub const MOST_ENTRIES: usize = 64;
    /// Most lines added to `/etc/hosts`.
    pub const MOST_HOSTS: usize = 256;
    /// Least and largest `/dev/shm` in bytes.
    pub const SHM_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 44;

    /// Whether somebody can attach to the process itself.
    pub fn is_interactive(&self) -> bool {
        self.stdin || self.tty
    }

    /// Checks every rule that the types alone cannot hold. The first breach is told with its field.
    pub fn validate(&self, network: NetworkMode) -> Result<(), Invalid> {
        for (field, count, most) in [
            ("groups", self.groups.len(), Self::MOST_ENTRIES),
            ("cap_add", self.cap_add.len(), Self::MOST_ENTRIES),
            ("cap_drop", self.cap_drop.len(), Self::MOST_ENTRIES),
            ("tmpfs", self.tmpfs.len(), Self::MOST_ENTRIES),
            ("sysctls", self.sysctls.len(), Self::MOST_ENTRIES),
            ("devices", self.devices.len(), Self::MOST_ENTRIES),
            ("extra_hosts", self.extra_hosts.len(), Self::MOST_HOSTS),
        ] {
            if count > most {
                let message = format!("{count} entries are more than {most}");
                return Err(Invalid::value(message, format!("use at most {most}")).at(field));
            }
        }
        if let Some(group) = self.groups.iter().position(|group| group.has_group()) {
            return Err(
                Invalid::value("a group holds no `:`", "name one group an entry").at(&format!("groups[{group}]"))
            );
        }
        if let Some(bytes) = self.shm_size_bytes.filter(|bytes| !Self::SHM_BYTES.contains(bytes)) {
            return Err(Invalid::value(format!("{bytes} is out of range"), "use at least 4096").at("shm_size_bytes"));
        }
        if let Some(name) = &self.hostname {
            validate_hostname(name).map_err(|e| e.at("hostname"))?;
        }
        for (i, entry) in self.extra_hosts.iter().enumerate() {
            validate_hostname(&entry.name).map_err(|e| e.at(&format!("extra_hosts[{i}].name")))?;
        }
        for (name, value) in &self.sysctls {
            sysctl::validate(name, value, network).map_err(|e| e.at("sysctls"))?;
        }
        for (name, limit) in &self.ulimits {
            limit.validate().map_err(|e| e.at(&format!("ulimits.{name}")))?;
        }
        if self.foreground && !self.is_interactive() {
            let message = "only what has input or a terminal runs in the foreground";
            return Err(Invalid::value(message, "set `stdin` or `tty` too").at("foreground"));
        }
        TmpfsMount::validate_all(&self.tmpfs)?;
        DeviceMapping::validate_all(&self.devices)
    }
}

/// A host name as RFC 1123 has it.
fn validate_hostname(name: &str) -> Result<(), Invalid> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 64 && !name.contains('.') || name.len() > 253 || !name.split('.').all(label) {
        return Err(Invalid::value(
            format!("`{}` is no host name", shown(name)),
            "use letters, digits and `-`, at most 63 between dots",
        ));
    }
    Ok(())
}

/// A path inside a container: absolute, without `.`, `..`, and what mount options could trip over.
pub(in crate::workload) fn validate_path(path: &str) -> Result<(), Invalid> {
    let bad = |why: &str| {
        Err(Invalid::value(format!("`{}` {why}", shown(path)), "write an absolute path without `.` and `..`"))
    };
    if !path.starts_with('/') {
        return bad("is no absolute path");
    }
    if path.len() > 4096 {
        return bad("is longer than 4096 bytes");
    }
    if path.chars().any(char::is_control) {
        return bad("holds a control character");
    }
    if path.split('/').any(|part| part == "." || part == "..") {
        return bad("leads elsewhere");
    }
    Ok(())
}

/// A path inside a container that something can be mounted on.
pub(in crate::workload) fn validate_target(path: &str) -> Result<(), Invalid> {
    validate_path(path)?;
    let top = path.split('/').find(|part| !part.is_empty());
    if top.is_none_or(|top| ["proc", "sys", "dev"].contains(&top)) && !path.starts_with("/dev/shm/") {
        return Err(Invalid::value(
            format!("`{}` cannot be covered", shown(path)),
            "use a folder outside `/proc`, `/sys` and `/dev`; `shm_size_bytes` sets the size of `/dev/shm`",
        ));
    }
    Ok(())
}

/// A path with one `/` before each part and none at its end.
pub(in crate::workload) fn plain(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty()).fold(String::new(), |all, part| all + "/" + part)
}

/// The beginning of a text from outside, to be shown in an error.
pub(in crate::workload) fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests;
