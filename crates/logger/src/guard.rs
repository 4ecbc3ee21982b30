//! Ends the container of an exclusive instance when its lease is over and nobody else ends it: the daemon may be dead or hang
//! on a node that is cut off, while another node starts the same.
//!
//! The daemon writes into the file of the lease until when what is exclusive may run, by the clock that counts since the
//! machine's start and through its sleep (`CLOCK_BOOTTIME`), in milliseconds: twice the same twenty digits. The logger is the
//! one process of ours beside every container that lives as long as it does, so it looks after that.
//!
//! ```text
//! may run --over for a second--> asked to end (SIGTERM) --five seconds later--> killed
//!    ^------------------- renewed --------|
//! ```

use std::ffi::{c_int, c_long};
use std::fs;
use std::path::{Path, PathBuf};

use crate::kill;

/// Time between two looks, in milliseconds.
const PERIOD_MS: u64 = 500;
/// How long after the end of the lease the daemon has to stop the container itself.
const DAEMONS_TIME_MS: u64 = 1_000;
/// Time between the signal that asks and the one that kills.
const GRACE_MS: u64 = 5_000;
/// How long a container may run whose lease was never read.
const UNREAD_MS: u64 = 10_000;

const SIGKILL: c_int = 9;
const SIGTERM: c_int = 15;
const CLOCK_BOOTTIME: c_int = 7;

#[repr(C)]
struct Timespec {
    seconds: c_long,
    nanoseconds: c_long,
}

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn getppid() -> c_int;
}

/// Looks after the lease of one container.
pub struct Guard {
    file: PathBuf,
    watch: Watch,
}

impl Guard {
    /// By the lease in `file`.
    pub fn new(file: PathBuf) -> Self {
        Self { file, watch: Watch { until_ms: now_ms() + UNREAD_MS, asked_ms: None } }
    }

    /// How long poll may sleep.
    pub fn poll_timeout_ms(&self) -> i32 {
        PERIOD_MS as i32
    }

    /// Looks once.
    pub fn look(&mut self) {
        if let Some(until_ms) = fs::read(&self.file).ok().and_then(|text| parse(&text)) {
            self.watch.until_ms = until_ms;
        }
        let Some(signal) = self.watch.signal(now_ms()) else { return };
        // SAFETY: takes nothing and cannot fail.
        let shim = unsafe { getppid() };
        // Whose shim has died has another parent, and other children with it.
        if !is_shim(Path::new("/proc"), shim) {
            // Nobody was asked: who is not asked is not killed.
            self.watch.asked_ms = None;
            return;
        }
        for process in first_processes(Path::new("/proc"), shim) {
            // SAFETY: plain numbers. The process is the shim's child and not buried before the shim has told the daemon.
            unsafe { kill(process, signal) };
        }
    }
}

/// Until when the container may run, and since when it was asked to end.
struct Watch {
    until_ms: u64,
    asked_ms: Option<u64>,
}

impl Watch {
    /// The signal that the container is to get now.
    fn signal(&mut self, now_ms: u64) -> Option<c_int> {
        if now_ms < self.until_ms.saturating_add(DAEMONS_TIME_MS) {
            self.asked_ms = None;
            return None;
        }
        let Some(asked_ms) = self.asked_ms else {
            self.asked_ms = Some(now_ms);
            return Some(SIGTERM);
        };
        (now_ms >= asked_ms + GRACE_MS).then_some(SIGKILL)
    }
}

/// What the file says, unless it is being written right now.
fn parse(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let (one, other) = text.strip_suffix('\n')?.split_once(' ')?;
    (one.len() == 20 && one == other).then(|| one.parse().ok())?
}

fn is_shim(proc: &Path, parent: c_int) -> bool {
    fs::read_to_string(proc.join(format!("{parent}/comm"))).is_ok_and(|name| name.starts_with("containerd-shim"))
}

/// Children of the shim that are the first process of a process namespace of their own: the container's, whose end ends all
/// others in it.
fn first_processes(proc: &Path, shim: c_int) -> Vec<c_int> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_first = |id: &c_int| {
        fs::read_to_string(proc.join(format!("{id}/status"))).is_ok_and(|status| is_first_child_of(&status, shim))
    };
    numbers.filter(is_first).collect()
}

fn is_first_child_of(status: &str, parent: c_int) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let numbers = field("NSpid:").split_whitespace().skip(1);
    field("PPid:").trim().parse() == Ok(parent) && numbers.last() == Some("1")
}

/// Milliseconds since the machine's start.
fn now_ms() -> u64 {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the place is alive, and the clock is one that every kernel has.
    unsafe { clock_gettime(CLOCK_BOOTTIME, &raw mut time) };
    u64::try_from(time.seconds).unwrap_or(0) * 1_000 + u64::try_from(time.nanoseconds).unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_asked_after_the_daemons_time_and_killed_after_its_own() {
        let mut watch = Watch { until_ms: 10_000, asked_ms: None };
        let mut check = |now_ms, expected| assert_eq!(watch.signal(now_ms), expected, "at {now_ms}");
        check(9_000, None);
        check(10_999, None);
        check(11_000, Some(SIGTERM));
        check(11_500, None);
        check(15_999, None);
        check(16_000, Some(SIGKILL));
        check(16_500, Some(SIGKILL));
    }

    #[test]
    fn a_lease_that_is_renewed_takes_the_end_back() {
        let mut watch = Watch { until_ms: 10_000, asked_ms: None };
        assert_eq!(watch.signal(11_000), Some(SIGTERM));
        watch.until_ms = 21_000;
        assert_eq!(watch.signal(16_500), None);
        assert_eq!(watch.signal(22_000), Some(SIGTERM), "it is asked first again");
        watch.until_ms = u64::MAX;
        assert_eq!(watch.signal(u64::MAX - 1), None);
    }

    #[test]
    fn a_lease_is_twenty_digits_twice_and_nothing_else() {
        assert_eq!(parse(b"00000000000000012345 00000000000000012345\n"), Some(12_345));
        assert_eq!(parse(b"18446744073709551615 18446744073709551615\n"), Some(u64::MAX));
        for torn in [
            &b""[..],
            b"00000000000000012345 00000000000000012355\n",
            b"00000000000000012345 00000000000000012345",
            b"12345 12345\n",
            b"99999999999999999999 99999999999999999999\n",
            b"0000000000000001234x 0000000000000001234x\n",
            b"\xff",
        ] {
            assert_eq!(parse(torn), None, "{torn:?}");
        }
    }

    #[test]
    fn only_the_first_process_of_a_container_of_this_shim_is_meant() {
        let status =
            |parent: &str, numbers: &str| format!("Name:\tx\nPPid:\t{parent}\nNSpid:\t{numbers}\nThreads:\t1\n");
        assert!(is_first_child_of(&status("7", "812\t1"), 7));
        assert!(is_first_child_of(&status("7", "812\t55\t1"), 7), "the machine itself is a container");
        for (parent, numbers) in [("8", "812\t1"), ("7", "812"), ("7", "812\t9"), ("7", "1"), ("7", "")] {
            assert!(!is_first_child_of(&status(parent, numbers), 7), "{parent}, {numbers}");
        }
        assert!(!is_first_child_of("", 7));
    }
}
