//! Disk and memory.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{StatVfsMountFlags, statvfs};
use toft_model::units::format_bytes;

use super::{Check, Said, failure, ok, skipped, warning};

/// With less space than this nothing works for long; with less than that, not for very long.
const LITTLE: u64 = 512 << 20;
const SOME: u64 = 4 << 30;
/// The same of files that can still be made.
const FEW_FILES: u64 = 1_000;
const SOME_FILES: u64 = 20_000;
/// Every write of the cluster waits for the disk.
const SLOW: Duration = Duration::from_millis(30);
/// Writes tried; the middle one counts.
const TRIES: usize = 9;
const LITTLE_MEMORY: u64 = 512 << 20;

pub(super) fn checks(data: &Path) -> Vec<Check> {
    // Before the first start, that in which it will be made.
    let there = data.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let told = match statvfs(there) {
        Ok(told) => told,
        Err(errno) => {
            let fix = format!("ls -ld {}", there.display());
            return vec![
                failure(format!("`{}` cannot be used: {errno}", data.display()), fix).of("storage", "data directory"),
            ];
        }
    };
    let free = told.f_bavail.saturating_mul(told.f_frsize);
    let size = told.f_blocks.saturating_mul(told.f_frsize);
    let files = (told.f_files > 0).then_some(told.f_favail);
    vec![
        directory(data, there, told.f_flag).of("storage", "data directory"),
        space(data, free, size).of("storage", "free space"),
        inodes(data, files).of("storage", "free inodes"),
        latency(data).of("storage", "write latency"),
    ]
}

fn directory(data: &Path, there: &Path, flags: StatVfsMountFlags) -> Said {
    let shown = data.display();
    if flags.contains(StatVfsMountFlags::RDONLY) {
        return failure(format!("{shown} is on a file system that is mounted read-only"), remount(there, "rw"));
    }
    if flags.contains(StatVfsMountFlags::NOEXEC) {
        let message =
            format!("{shown} is on a file system that runs no programs; the logger beside each container lies there");
        return failure(message, remount(there, "exec"));
    }
    if there != data {
        return ok(format!("{shown} will be made by the first start"));
    }
    if !data.is_dir() {
        return failure(format!("{shown} is no directory"), format!("sudo mv {shown} {shown}.old"));
    }
    ok(format!("{shown} can be used"))
}

fn remount(path: &Path, option: &str) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let place = places.filter(|place| real.starts_with(place)).max_by_key(|place| place.components().count());
    format!("sudo mount -o remount,{option} {}", place.unwrap_or(real).display())
}

fn space(data: &Path, free: u64, size: u64) -> Said {
    let message = format!("{} of {} are free for {}", format_bytes(free), format_bytes(size), data.display());
    let fix = "toft image prune    (and `sudo du -xh --max-depth=2 /var | sort -h | tail` shows what is large)";
    match free {
        0..LITTLE => failure(message, fix),
        LITTLE..SOME => warning(message, fix),
        _ => ok(message),
    }
}

fn inodes(data: &Path, free: Option<u64>) -> Said {
    let Some(free) = free else { return skipped("this file system has no limit of files") };
    let message = format!("{free} more files can be made for {}", data.display());
    let fix = "toft image prune    (many small files are elsewhere: `sudo du --inodes -xd2 /var | sort -n | tail`)";
    match free {
        0..FEW_FILES => failure(message, fix),
        FEW_FILES..SOME_FILES => warning(message, fix),
        _ => ok(message),
    }
}

fn latency(data: &Path) -> Said {
    if !data.is_dir() {
        return skipped("is measured when the data directory is there");
    }
    match measure(data) {
        Ok(middle) => judge(middle),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => skipped("needs root: sudo toft doctor"),
        Err(error) => failure(
            format!("nothing can be written in {}: {error}", data.display()),
            format!("ls -ld {}; df -hi {0}", data.display()),
        ),
    }
}

fn judge(middle: Duration) -> Said {
    let ms = middle.as_secs_f64() * 1_000.0;
    let message = format!("a write is on the disk after {ms:.1} ms");
    if middle < SLOW {
        return ok(message);
    }
    warning(
        message + ", and every change waits for one",
        "move the data directory to an SSD, or other work to another disk",
    )
}

/// The time until a small write is on the disk, in the middle of several.
fn measure(data: &Path) -> io::Result<Duration> {
    let path = data.join(format!(".doctor-{}", std::process::id()));
    let mut file = File::create_new(&path)?;
    let mut times = Vec::with_capacity(TRIES);
    let measured = (|| {
        for _ in 0..TRIES {
            let begun = Instant::now();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            times.push(begun.elapsed());
        }
        Ok(())
    })();
    // Gone whatever happened.
    let removed = fs::remove_file(&path);
    measured.and(removed)?;
    times.sort_unstable();
    Ok(times[TRIES / 2])
}

/// Memory and swap.
pub(super) fn memory() -> Vec<Check> {
    judge_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn judge_memory(text: &str) -> Vec<Check> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map(|kib| kib * 1_024)
    };
    let (Some(total), Some(available)) = (bytes("MemTotal"), bytes("MemAvailable")) else {
        return vec![skipped("cannot be told").of("system", "memory")];
    };
    let message = format!("{} of {} are available", format_bytes(available), format_bytes(total));
    let memory = if total < LITTLE_MEMORY {
        warning(
            message + "; that is little for containers",
            "run few, and give each a limit: `toft run --memory 128MiB`",
        )
    } else if available < total / 20 {
        warning(message, "toft stats --no-stream    (shows what uses it), then stop something or give it a limit")
    } else {
        ok(message)
    };
    let swap = match (bytes("SwapTotal").unwrap_or(0), bytes("SwapFree").unwrap_or(0)) {
        (0, _) => ok("there is none; limits of memory are hard then"),
        (total, free) if free < total / 10 => {
            let message = format!("{} of {} are used", format_bytes(total - free), format_bytes(total));
            warning(message, "toft stats --no-stream    (shows what uses memory)")
        }
        (total, free) => ok(format!("{} of {} are used", format_bytes(total - free), format_bytes(total))),
    };
    vec![memory.of("system", "memory"), swap.of("system", "swap")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn space_and_inodes_are_judged_by_what_is_left() {
        let data = Path::new("/d");
        let verdicts = [100 << 20, 1 << 30, 100 << 30].map(|free| space(data, free, 200 << 30).verdict);
        assert_eq!(verdicts, [Verdict::Failure, Verdict::Warning, Verdict::Ok]);
        let verdicts = [Some(5), Some(5_000), Some(1 << 20), None].map(|free| inodes(data, free).verdict);
        assert_eq!(verdicts, [Verdict::Failure, Verdict::Warning, Verdict::Ok, Verdict::NotApplicable]);
        assert_eq!(judge(Duration::from_millis(200)).verdict, Verdict::Warning);
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let judged = |text: &str| judge_memory(text).into_iter().map(|check| check.verdict).collect::<Vec<_>>();
        let plenty = "MemTotal:  8000000 kB\nMemAvailable: 4000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n";
        assert_eq!(judged(plenty), [Verdict::Ok, Verdict::Ok]);
        let little = "MemTotal:  400000 kB\nMemAvailable: 300000 kB\nSwapTotal: 1000 kB\nSwapFree: 10 kB\n";
        assert_eq!(judged(little), [Verdict::Warning, Verdict::Warning]);
        assert_eq!(judged("MemTotal: 8000000 kB\nMemAvailable: 10 kB\n")[0], Verdict::Warning);
        assert_eq!(judged(""), [Verdict::NotApplicable]);
    }

    #[test]
    fn nothing_is_left_of_what_was_tried() {
        let dir = tempfile::tempdir().unwrap();
        let checks = checks(dir.path());
        assert!(checks.iter().all(|check| check.verdict != Verdict::Failure), "{checks:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let before = super::checks(&dir.path().join("to/be/made"));
        assert!(before[0].message.contains("will be made"), "{before:?}");
        fs::write(dir.path().join("file"), "").unwrap();
        let blocked = super::checks(&dir.path().join("file"));
        assert!(blocked[0].verdict == Verdict::Failure && blocked[0].fix.as_ref().unwrap().contains("mv"));
    }
}
