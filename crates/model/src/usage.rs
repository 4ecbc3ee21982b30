//! What containers use, measured while somebody asks.

use serde::{Deserialize, Serialize};

/// What the processes of one instance use together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// CPU time taken since the measurement before, in percent of one core: 200 is two whole cores.
    pub cpu_percent: f64,
    /// CPU time taken since the start, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use, without the file cache that the kernel would give up first.
    pub memory_bytes: u64,
    /// Most memory it may use: its limit, or all memory of the machine.
    pub memory_limit_bytes: u64,
    /// Its share of memory, pages shared with others divided among all who use them; only if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pss_bytes: Option<u64>,
    /// Bytes received over its network interfaces; absent in the host's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// Bytes sent over its network interfaces; absent in the host's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Bytes read from block devices; absent where the kernel does not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes written to block devices; absent where the kernel does not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// How much it waits; absent where the kernel does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// The part of the last ten seconds in which at least one process waited for something, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Pressure {
    /// For a CPU.
    pub cpu: f64,
    /// For memory.
    pub memory: f64,
    /// For input or output.
    pub io: f64,
}

/// A process of an instance, as the node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Process {
    /// Process id on the node.
    pub pid: u32,
    /// Process id of its parent on the node.
    pub parent: u32,
    /// Numeric user id.
    pub uid: u32,
    /// The kernel's letter: `R` runs, `S` sleeps, `D` waits for a device, `Z` has ended, `T` is stopped.
    pub state: char,
    /// CPU time taken, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that is resident, in bytes.
    pub memory_bytes: u64,
    /// When it was started, in milliseconds since 1970.
    pub started_at_ms: i64,
    /// Command line, its words apart by blanks; the name in brackets when there is none. At most 4 KiB.
    pub command: String,
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Files there are.
    pub used_files: u64,
    /// Files that can still be made; with no files in use either, the file system does not count them.
    pub free_files: u64,
}

impl Room {
    /// How full it is in percent, as `df` tells: of bytes or of files, whichever is scarcer.
    pub fn used_percent(&self) -> u8 {
        let percent = |used: u64, free: u64| match used.saturating_add(free) {
            0 => 0,
            all => (u128::from(used) * 100).div_ceil(u128::from(all)) as u8,
        };
        percent(self.used_bytes, self.free_bytes).max(percent(self.used_files, self.free_files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_bytes_and_files_counts() {
        let room = |used_bytes, free_bytes, used_files, free_files| {
            Room { used_bytes, free_bytes, used_files, free_files }.used_percent()
        };
        assert_eq!(room(0, 0, 0, 0), 0);
        assert_eq!(room(85, 15, 0, 0), 85);
        assert_eq!(room(851, 149, 1, 99), 86, "rounded up");
        assert_eq!(room(10, 90, 99, 1), 99);
        assert_eq!(room(u64::MAX, 0, 0, 0), 100);
    }
}
