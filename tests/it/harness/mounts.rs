//! What whoever was killed leaves mounted.

use std::path::Path;

use nix::mount::{MntFlags, umount2};

/// Unmounts what is mounted at a folder and below, the newest first.
pub fn unmount_below(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
    for place in places.filter(|place| Path::new(place).starts_with(folder)) {
        let _ = umount2(place, MntFlags::MNT_DETACH);
    }
}
