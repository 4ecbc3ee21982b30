//! Looks for a containerd: one that runs, or one that is installed.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::super::containerd;

/// Where programs of the system are, even when `PATH` does not say so.
const PLACES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The first of `candidates` on which containerd answers within a second.
pub async fn find_running(candidates: &[PathBuf]) -> Option<PathBuf> {
    for candidate in candidates {
        if candidate.exists() && answers(candidate, Duration::from_secs(1)).await {
            return Some(candidate.clone());
        }
    }
    None
}

/// The installed containerd.
pub fn find_binary() -> Option<PathBuf> {
    find("containerd")
}

/// The installed runc.
pub(super) fn find_runc() -> Option<PathBuf> {
    find("runc")
}

/// `PATH` and the system's places, in which programs are looked for.
pub(crate) fn search_path() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    for place in PLACES {
        if !places.iter().any(|known| known == Path::new(place)) {
            places.push(place.into());
        }
    }
    places
}

/// Whether containerd answers on `socket` within `limit`.
pub(super) async fn answers(socket: &Path, limit: Duration) -> bool {
    containerd::answers(socket, limit).await
}

fn find(name: &str) -> Option<PathBuf> {
    find_program(name, &search_path())
}

/// The first executable file of that name in `places`.
pub(crate) fn find_program(name: &str, places: &[PathBuf]) -> Option<PathBuf> {
    places
        .iter()
        .filter(|place| place.is_absolute())
        .map(|place| place.join(name))
        .find(|path| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0))
}
