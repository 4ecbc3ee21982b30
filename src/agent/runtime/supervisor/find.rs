//! Looks for a containerd: one that runs, or one that is installed.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::super::containerd;

/// Where distributions and Docker put containerd's socket.
pub(crate) const USUAL_SOCKETS: [&str; 2] =
    ["/run/containerd/containerd.sock", "/var/run/docker/containerd/containerd.sock"];

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

/// The version that a program tells when asked with `--version`: the first word that begins with a digit, perhaps after a
/// `v`. Nothing when it does not end within two seconds.
pub(crate) async fn version_of(program: &Path) -> Option<String> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(2), command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |word: &&str| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    let word = text.split_whitespace().find(number)?;
    Some(word.trim_start_matches('v').chars().take(40).collect())
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
