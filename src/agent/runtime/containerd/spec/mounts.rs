//! What is mounted into every container, and what of it is hidden: the same as under Docker.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Mount;
use toft_model::workload::ProcessSpec;

use crate::agent::runtime::HostMount;

/// Paths that read as empty inside.
pub(super) const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// Paths that cannot be written to inside.
pub(super) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Destination, kind, source, options.
const DEFAULTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
];

/// Size of `/dev/shm` when nothing else is said.
const SHM_BYTES: u64 = 64 << 20;

/// The usual mounts; then the order's file systems in memory, its volumes, and its files, read-only: the outer ones first,
/// so that none hides another. Where the order mounts something itself, no file of ours is.
pub(super) fn all(process: &ProcessSpec, mounts: &[HostMount], files: &BTreeMap<PathBuf, PathBuf>) -> Vec<Mount> {
    let shm_size = format!("size={}", process.shm_size_bytes.unwrap_or(SHM_BYTES));
    let defaults = DEFAULTS.iter().map(|(inside, kind, source, options)| {
        let mut options = options.to_vec();
        if process.privileged {
            options.retain(|option| *option != "ro");
        }
        if *inside == "/dev/shm" {
            options.push(&shm_size);
        }
        mount(inside.as_ref(), kind, source.as_ref(), &options)
    });
    let memory = process.tmpfs.iter().map(|tmpfs| {
        let options = tmpfs.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        mount(tmpfs.path.as_ref(), "tmpfs", "tmpfs".as_ref(), &options)
    });
    let volumes = mounts.iter().map(|one| {
        let access = if one.read_only { "ro" } else { "rw" };
        mount(&one.target, "bind", &one.source, &["rbind", access, "rprivate"])
    });
    let options = ["rbind", "ro", "rprivate", "nosuid", "nodev"];
    let free = |inside: &Path| !mounts.iter().any(|one| one.target.components().eq(inside.components()));
    let files = files.iter().filter(|(inside, _)| free(inside));
    let files = files.map(|(inside, outside)| mount(inside, "bind", outside, &options));
    let mut further: Vec<Mount> = memory.chain(volumes).chain(files).collect();
    further.sort_by_key(|mount| mount.destination().components().count());
    defaults.chain(further).collect()
}

fn mount(inside: &Path, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(inside.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}
