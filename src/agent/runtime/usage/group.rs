//! The control groups of a container, of both versions, and what their files say.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use toft_model::{ids::InstanceId, usage::Pressure};

use super::MOST_PROCESSES;

const MOUNTED: &str = "/sys/fs/cgroup";
/// Levels of groups below a container's own that are looked into.
const DEEPEST: u32 = 8;
/// From here on, version 1 means that there is no limit.
const NO_LIMIT: u64 = 1 << 62;

/// The groups of one container.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Groups {
    /// One for everything (version 2).
    Unified(PathBuf),
    /// One for each controller (version 1): paths below the controller's mount.
    Split(Vec<(String, PathBuf)>),
}

impl Groups {
    /// Those of a process, if it belongs to that container.
    pub(super) fn of(pid: u32, id: InstanceId) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Self::parse(&text, Path::new(MOUNTED), id, Path::new(MOUNTED).join("cgroup.controllers").exists())
    }

    fn parse(text: &str, mounted: &Path, id: InstanceId, unified: bool) -> Option<Self> {
        let id = id.to_string();
        let mut split = Vec::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            // Its processes may have made groups of their own below the container's.
            let Some(own) = up_to(path, &id) else { continue };
            if unified && number == "0" {
                return Some(Self::Unified(mounted.join(own)));
            }
            split.extend(controllers.split(',').map(|name| (name.to_owned(), mounted.join(name).join(&own))));
        }
        (!unified && !split.is_empty()).then_some(Self::Split(split))
    }

    fn of_controller(&self, name: &str) -> Option<&Path> {
        match self {
            Self::Unified(path) => Some(path),
            Self::Split(paths) => paths.iter().find(|(known, _)| known == name).map(|(_, path)| path.as_path()),
        }
    }

    fn read(&self, controller: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.of_controller(controller)?.join(file)).ok()
    }

    fn number<T: FromStr>(&self, controller: &str, file: &str) -> Option<T> {
        self.read(controller, file)?.trim().parse().ok()
    }

    fn is_unified(&self) -> bool {
        matches!(self, Self::Unified(_))
    }

    /// CPU time in nanoseconds; nothing when the group is gone.
    pub(super) fn cpu_ns(&self) -> Option<u64> {
        if self.is_unified() {
            field(&self.read("cpu", "cpu.stat")?, "usage_usec").map(|usec| usec.saturating_mul(1_000))
        } else {
            self.number("cpuacct", "cpuacct.usage")
        }
    }

    /// Memory in use without inactive file cache, as Docker counts it.
    pub(super) fn memory_bytes(&self) -> u64 {
        let (file, cache) = match self.is_unified() {
            true => ("memory.current", "inactive_file"),
            false => ("memory.usage_in_bytes", "total_inactive_file"),
        };
        let used: u64 = self.number("memory", file).unwrap_or(0);
        let cache = self.read("memory", "memory.stat").and_then(|text| field(&text, cache)).unwrap_or(0);
        used.checked_sub(cache).unwrap_or(used)
    }

    pub(super) fn memory_limit_bytes(&self) -> Option<u64> {
        let file = if self.is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
        // "max" is no number.
        self.number("memory", file).filter(|limit| *limit < NO_LIMIT)
    }

    /// Bytes read and written.
    pub(super) fn block(&self) -> Option<(u64, u64)> {
        if self.is_unified() {
            return Some(io_stat(&self.read("io", "io.stat")?));
        }
        let files = ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
        files.iter().find_map(|file| self.read("blkio", file)).map(|text| io_service_bytes(&text))
    }

    /// Processes and threads.
    pub(super) fn pids(&self) -> Option<u64> {
        self.number("pids", "pids.current")
    }

    pub(super) fn pressure(&self) -> Option<Pressure> {
        if !self.is_unified() {
            return None;
        }
        let read = |what: &str| some_avg10(&self.read(what, &format!("{what}.pressure"))?);
        Some(Pressure { cpu: read("cpu")?, memory: read("memory")?, io: read("io")? })
    }

    /// Every process, those of groups below included, by id.
    pub(super) fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        if let Some(top) = self.of_controller("pids").or_else(|| self.of_controller("memory")) {
            collect(top, 0, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// The path up to the part that names the container, without a slash before it.
fn up_to(path: &str, id: &str) -> Option<PathBuf> {
    let mut own = PathBuf::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
        own.push(part);
        if part == id {
            return Some(own);
        }
    }
    None
}

fn collect(group: &Path, depth: u32, pids: &mut Vec<u32>) {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).take(MOST_PROCESSES - pids.len()));
    if depth == DEEPEST || pids.len() >= MOST_PROCESSES {
        return;
    }
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), depth + 1, pids);
        }
    }
}

/// The number after a name at the begin of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `8:0 rbytes=1 wbytes=2 ...`, a line a device.
fn io_stat(text: &str) -> (u64, u64) {
    let sum = |name: &str| -> u64 {
        text.split_whitespace().filter_map(|word| word.strip_prefix(name)?.parse::<u64>().ok()).sum()
    };
    (sum("rbytes="), sum("wbytes="))
}

/// `8:0 Read 1`, a line a device and kind.
fn io_service_bytes(text: &str) -> (u64, u64) {
    let sum = |kind: &str| -> u64 {
        let of_kind = |line: &str| {
            let mut words = line.split_whitespace().skip(1);
            (words.next()? == kind).then(|| words.next()?.parse::<u64>().ok())?
        };
        text.lines().filter_map(of_kind).sum()
    };
    (sum("Read"), sum("Write"))
}

/// `some avg10=1.23 ...`
fn some_avg10(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const ID: &str = "0192f0c0-0000-7000-8000-000000000001";

    fn id() -> InstanceId {
        InstanceId(Uuid::parse_str(ID).unwrap())
    }

    #[test]
    fn groups_of_both_versions_are_found_and_those_of_strangers_are_not() {
        let mounted = Path::new("/m");
        let unified = Groups::parse(&format!("0::/toft/{ID}/init.scope\n"), mounted, id(), true);
        assert_eq!(unified, Some(Groups::Unified(format!("/m/toft/{ID}").into())));
        let text = format!("5:memory:/toft/{ID}\n4:cpu,cpuacct:/toft/{ID}/sub\n1:name=systemd:/toft\n0::/\n");
        let split = Groups::parse(&text, mounted, id(), false).unwrap();
        assert_eq!(split.of_controller("memory"), Some(Path::new(&format!("/m/memory/toft/{ID}"))));
        assert_eq!(split.of_controller("cpuacct"), Some(Path::new(&format!("/m/cpuacct/toft/{ID}"))));
        assert_eq!(split.of_controller("pids"), None);
        for foreign in ["0::/toft/0192f0c0-0000-7000-8000-000000000002\n", "0::/\n", "", "nonsense"] {
            assert_eq!(Groups::parse(foreign, mounted, id(), true), None);
            assert_eq!(Groups::parse(foreign, mounted, id(), false), None);
        }
    }

    #[test]
    fn version_2_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 1500\nuser_usec 1000\n");
        write("memory.current", "5000\n");
        write("memory.stat", "anon 1\ninactive_file 1000\nactive_file 7\n");
        write("memory.max", "max\n");
        write("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n259:0 rbytes=1 wbytes=2\n");
        write("pids.current", "3\n");
        for (name, avg) in [("cpu", "1.50"), ("memory", "0.00"), ("io", "12.25")] {
            write(&format!("{name}.pressure"), &format!("some avg10={avg} avg60=0.00\nfull avg10=9.00 avg60=0.00\n"));
        }
        write("cgroup.procs", "7\n5\n");
        fs::create_dir(dir.path().join("sub")).unwrap();
        write("sub/cgroup.procs", "6\n");
        let groups = Groups::Unified(dir.path().to_owned());
        assert_eq!((groups.cpu_ns(), groups.memory_bytes()), (Some(1_500_000), 4_000));
        assert_eq!((groups.memory_limit_bytes(), groups.block(), groups.pids()), (None, Some((11, 22)), Some(3)));
        assert_eq!(groups.pressure(), Some(Pressure { cpu: 1.5, memory: 0.0, io: 12.25 }));
        assert_eq!(groups.processes(), [5, 6, 7]);
        write("memory.max", "4096\n");
        assert_eq!(groups.memory_limit_bytes(), Some(4096));
        fs::remove_file(dir.path().join("io.pressure")).unwrap();
        assert_eq!(groups.pressure(), None, "where the kernel does not tell");
        write("memory.stat", "inactive_file 9000\n");
        assert_eq!(groups.memory_bytes(), 5_000, "the two files are not of one moment");
    }

    #[test]
    fn version_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("cpuacct.usage", "77\n");
        write("memory.usage_in_bytes", "5000\n");
        write("memory.stat", "inactive_file 9\ntotal_inactive_file 1000\n");
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n9:0 Read 1\nTotal 31\n");
        let names = ["cpuacct", "memory", "blkio", "pids"];
        let groups = Groups::Split(names.iter().map(|name| ((*name).to_owned(), dir.path().to_owned())).collect());
        assert_eq!((groups.cpu_ns(), groups.memory_bytes()), (Some(77), 4_000));
        assert_eq!((groups.memory_limit_bytes(), groups.block(), groups.pids()), (None, Some((11, 20)), None));
        assert_eq!(groups.pressure(), None);
        assert_eq!(Groups::Split(Vec::new()).cpu_ns(), None);
    }
}
