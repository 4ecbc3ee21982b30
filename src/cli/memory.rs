//! Gives memory that is free back to the system.
//!
//! The C library keeps what was freed for the next who asks, in several arenas, and gives back by itself only what lies at their
//! ends. After a rush (hundreds of nodes that join, a large page) more than half of the daemon's memory may be kept for nobody.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// By how much the memory in use has to grow, in bytes, before it is worth a try.
const WORTH: u64 = 24 << 20;
/// Above this nothing is given back, in bytes: who wants memory of an arena waits until it was gone through, a third of a
/// millisecond for each megabyte.
const MOST: u64 = 512 << 20;

/// Most arenas. One for each thread that asks would be quicker where threads do little else, but each keeps for itself what was
/// freed in it, and what lives on holds the pages that it shares with what is gone.
#[cfg(target_env = "gnu")]
const ARENAS: std::ffi::c_int = 4;

/// Lets threads share arenas. Before there are any threads: who has an arena keeps it.
#[cfg(target_env = "gnu")]
pub(super) fn share_arenas() {
    // SAFETY: it sets a bound for what is made later.
    unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS) };
}

/// Other C libraries have no arenas.
#[cfg(not(target_env = "gnu"))]
pub(super) fn share_arenas() {}

/// Runs for ever.
pub(super) async fn give_back() {
    let mut looks = tokio::time::interval(PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut least = u64::MAX;
    loop {
        looks.tick().await;
        let Some(resident) = resident_bytes() else { return };
        least = least.min(resident);
        if resident < least.saturating_add(WORTH) || resident > MOST {
            continue;
        }
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
        least = resident_bytes().unwrap_or(resident);
    }
}

/// What this process has in memory.
fn resident_bytes() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = told.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it may be called at any time; what is in use stays where it is.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_goes_back() {
        const PIECES: usize = 24_000;
        const MANY: u64 = 48 << 20;
        let before = resident_bytes().unwrap();
        // Small enough to lie in an arena, and the last of them holds its end.
        let mut pieces: Vec<Vec<u8>> = (0..PIECES).map(|i| vec![i as u8; 4_000]).collect();
        let last = pieces.pop();
        let full = resident_bytes().unwrap();
        assert!(full > before + MANY, "{before} {full}");
        drop(pieces);
        trim();
        let trimmed = resident_bytes().unwrap();
        assert!(trimmed + MANY < full, "{full} {trimmed}");
        drop(last);
    }
}
