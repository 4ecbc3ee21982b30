//! What this machine is and has now. Read when somebody asks, and never else.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use rustix::fs::statvfs;
use sysinfo::{Components, CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use toft_model::{
    gpu::GpuFacts,
    node::{DiskFacts, NodeFacts, Temperature},
};

use super::{
    host,
    runtime::{containerd::isolation, supervisor::version_of},
};

/// Sensors told.
const MOST_SENSORS: usize = 64;

/// What programs said of their version, and when the file that said so was changed: asking takes a process of some
/// milliseconds, and pages ask again and again. There are as many as there are container runtimes.
static VERSIONS: Mutex<Option<HashMap<PathBuf, (SystemTime, String)>>> = Mutex::new(None);

/// Looks at the machine. `runtime` is the container runtime's name and version, empty while it is away; `data` is the data
/// directory, `gpus` what was seen of the GPUs last.
pub async fn look(runtime: String, data: &Path, gpus: Vec<GpuFacts>) -> io::Result<NodeFacts> {
    let data = data.to_owned();
    let mut facts = tokio::task::spawn_blocking(move || read(runtime, &data, gpus)).await.map_err(io::Error::other)?;
    for (name, program) in isolation::programs() {
        let version = match program {
            Some(program) => known_version(program).await,
            None => None,
        };
        facts.isolation.push(version.map_or_else(|| name.clone(), |version| format!("{name} {version}")));
    }
    Ok(facts)
}

/// What a program says of its version; asked once for as long as its file is the same.
async fn known_version(program: PathBuf) -> Option<String> {
    let changed = fs::metadata(&program).and_then(|file| file.modified()).ok()?;
    let versions = || VERSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = versions().get_or_insert_default().get(&program).filter(|(at, _)| *at == changed).cloned();
    if let Some((_, version)) = known {
        return Some(version);
    }
    let version = version_of(&program).await?;
    versions().get_or_insert_default().insert(program, (changed, version.clone()));
    Some(version)
}

/// What needs no program; blocks for some milliseconds.
fn read(runtime: String, data: &Path, gpus: Vec<GpuFacts>) -> NodeFacts {
    let wanted =
        RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()).with_cpu(CpuRefreshKind::nothing());
    let system = System::new_with_specifics(wanted).ok();
    let memory = |read: fn(&System) -> u64| system.as_ref().map_or(0, read);
    let load = System::load_average().map_or([0.0; 3], |load| [load.one, load.five, load.fifteen]);
    NodeFacts {
        cpus: host::cpus(),
        cpu_model: system
            .as_ref()
            .and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned()))
            .unwrap_or_default(),
        load,
        memory_bytes: memory(System::total_memory),
        memory_available_bytes: memory(System::available_memory),
        swap_bytes: memory(System::total_swap),
        swap_used_bytes: memory(System::used_swap),
        disk: disk(data),
        temperatures: temperatures(),
        gpus,
        os: host::os_name(Path::new("/etc/os-release")),
        kernel: System::kernel_version().unwrap_or_default(),
        arch: std::env::consts::ARCH.to_owned(),
        runtime,
        isolation: Vec::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        booted_at_ms: System::boot_time()
            .map_or(0, |seconds| i64::try_from(seconds).unwrap_or(0).saturating_mul(1_000)),
    }
}

/// The file system that holds a directory.
pub fn disk(path: &Path) -> DiskFacts {
    let (size_bytes, free_bytes) = statvfs(path).map_or((0, 0), |told| {
        (told.f_blocks.saturating_mul(told.f_frsize), told.f_bavail.saturating_mul(told.f_frsize))
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (device, file_system) = mounted_at(&mounts, &real).unwrap_or_default();
    DiskFacts { path: path.display().to_string(), device, file_system, size_bytes, free_bytes }
}

/// Device and kind of the mount that a path lies on.
fn mounted_at(mountinfo: &str, path: &Path) -> Option<(String, String)> {
    let parse = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let place = unescape(before.split(' ').nth(4)?);
        let mut after = after.split(' ');
        let (kind, device) = (after.next()?.to_owned(), unescape(after.next()?));
        path.starts_with(&place).then_some((Path::new(&place).components().count(), device, kind))
    };
    // Of two at one place the later hides the earlier.
    let innermost = mountinfo.lines().filter_map(parse).max_by_key(|(depth, ..)| *depth);
    innermost.map(|(_, device, kind)| (device, kind))
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (written, meant)| text.replace(written, meant))
}

fn temperatures() -> Vec<Temperature> {
    let Ok(components) = Components::new_with_refreshed_list() else { return Vec::new() };
    let told = components.iter().filter_map(|component| {
        let celsius = f64::from(component.temperature().filter(|celsius| celsius.is_finite())?);
        Some(Temperature { sensor: component.label().to_owned(), celsius: (celsius * 10.0).round() / 10.0 })
    });
    let mut told: Vec<Temperature> = told.take(MOST_SENSORS).collect();
    told.sort_by(|a, b| a.sensor.cmp(&b.sensor));
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_holds_a_path() {
        let text = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n2 1 8:2 / /var/lib rw - xfs /dev/sdb rw\n3 1 0:5 / /var/lib/a\\040b rw - tmpfs none rw\n4 1 8:9 / /var/library rw - ext4 /dev/sdz rw\n";
        let at = |path: &str| mounted_at(text, Path::new(path)).unwrap();
        assert_eq!(at("/etc"), ("/dev/sda1".into(), "ext4".into()));
        assert_eq!(at("/var/lib/toft"), ("/dev/sdb".into(), "xfs".into()));
        assert_eq!(at("/var/lib/a b/c"), ("none".into(), "tmpfs".into()));
        assert_eq!(mounted_at("nonsense\n - \n", Path::new("/")), None);
    }

    #[tokio::test]
    async fn a_program_is_asked_for_its_version_again_when_it_was_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (program, asked) = (folder.path().join("runner"), folder.path().join("asked"));
        let put = |version: &str, at: u64| {
            let script = format!("#!/bin/sh\necho asked >>{}\necho runner version {version}\n", asked.display());
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let changed = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at);
            fs::File::options().append(true).open(&program).unwrap().set_modified(changed).unwrap();
        };
        let times = || fs::read_to_string(&asked).unwrap().lines().count();
        // What another thread has just begun may hold the file open for writing for a moment.
        let told = async || {
            for _ in 0..100 {
                if let Some(version) = known_version(program.clone()).await {
                    return version;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            panic!("the program does not run")
        };
        put("1.2.3", 1_000);
        let first = told().await;
        assert_eq!((known_version(program.clone()).await, times()), (Some(first.clone()), 1));
        put("1.2.4", 2_000);
        let second = told().await;
        assert_eq!((second != first, times()), (true, 2));
        fs::remove_file(&program).unwrap();
        assert_eq!(known_version(program).await, None);
    }

    #[tokio::test]
    async fn this_machine_is_told() {
        let facts = look("containerd 1.0".into(), &std::env::temp_dir(), Vec::new()).await.unwrap();
        assert!(facts.cpus > 0 && facts.memory_bytes > facts.memory_available_bytes, "{facts:?}");
        assert!(facts.disk.size_bytes > facts.disk.free_bytes && !facts.disk.file_system.is_empty(), "{facts:?}");
        assert!(facts.booted_at_ms > 0 && facts.booted_at_ms <= jiff::Timestamp::now().as_millisecond(), "{facts:?}");
    }
}
