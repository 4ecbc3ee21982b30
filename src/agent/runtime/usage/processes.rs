//! Single processes, from `/proc`.

use std::{fs, io::Read};

use toft_model::usage::Process;

/// Most bytes of a command line that are told.
const LONGEST_COMMAND: u64 = 4096;

/// What the kernel's ticks mean.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    ticks_per_second: u64,
    page_bytes: u64,
    booted_at_ms: i64,
}

impl Clock {
    pub(super) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<i64>().ok());
        Self {
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
            page_bytes: rustix::param::page_size() as u64,
            booted_at_ms: booted.unwrap_or(0) * 1_000,
        }
    }

    fn ms(self, ticks: u64) -> u64 {
        ticks.saturating_mul(1_000) / self.ticks_per_second
    }
}

/// Looks at a process; nothing when it is gone.
pub(super) fn read(pid: u32, clock: Clock) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let mut line = Vec::new();
    if let Ok(file) = fs::File::open(format!("/proc/{pid}/cmdline")) {
        // A process that ends just now has none.
        let _ = file.take(LONGEST_COMMAND).read_to_end(&mut line);
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse(pid, &String::from_utf8_lossy(&stat), &status, &line, clock)
}

fn parse(pid: u32, stat: &str, status: &str, line: &[u8], clock: Clock) -> Option<Process> {
    // The name in parentheses may hold anything, parentheses too.
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ");
    let words = words.trim_end();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())?;
    Some(Process {
        pid,
        state: fields.first()?.chars().next()?,
        parent: u32::try_from(number(1)?).ok()?,
        cpu_ms: clock.ms(number(11)?.saturating_add(number(12)?)),
        started_at_ms: clock.booted_at_ms.saturating_add_unsigned(clock.ms(number(19)?)),
        memory_bytes: number(21)?.saturating_mul(clock.page_bytes),
        uid,
        command: if words.is_empty() { format!("[{name}]") } else { words.to_owned() },
    })
}

/// Its share of memory in bytes: pages that others use too are divided among all. Nothing when it is gone.
pub(super) fn pss_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_is_called() {
        let clock = Clock { ticks_per_second: 100, page_bytes: 4096, booted_at_ms: 1_000_000 };
        let stat =
            "42 (evil) S 1 (x) S 7 1 1 0 -1 4194560 5 0 0 0 150 50 0 0 20 0 1 0 3000 999 12 18446744073709551615";
        let status = "Name:\tx\nUid:\t1000\t0\t0\t0\n";
        let process = parse(42, stat, status, b"sleep\x001000\0", clock).unwrap();
        assert_eq!((process.parent, process.state, process.uid), (7, 'S', 1000));
        assert_eq!((process.cpu_ms, process.started_at_ms, process.memory_bytes), (2_000, 1_030_000, 12 * 4096));
        assert_eq!(process.command, "sleep 1000");
        assert_eq!(parse(42, stat, status, b"", clock).unwrap().command, "[evil) S 1 (x]");
        for bad in ["", "42", "42 (x", "42 (x) S", "42 (x) S y"] {
            assert_eq!(parse(42, bad, status, b"", clock), None);
        }
    }

    #[test]
    fn this_very_process_is_there() {
        let process = read(std::process::id(), Clock::now()).unwrap();
        let age_ms = jiff::Timestamp::now().as_millisecond() - process.started_at_ms;
        assert!((-2_000..86_400_000).contains(&age_ms) && process.memory_bytes > 0, "{process:?}");
        assert!(pss_bytes(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(read(u32::MAX, Clock::now()), None);
    }
}
