//! NVIDIA's service for sharing cards (MPS): through it, where it runs, the driver itself keeps a container to its share of memory and
//! of processors.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{EditMount, Edits};

/// Where the container finds the service's pipes and puts its logs.
const PIPES_INSIDE: &str = "/tmp/nvidia-mps";
const LOGS_INSIDE: &str = "/var/log/nvidia-mps";

/// Where the service's pipes and logs are on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MpsPlaces {
    /// Its pipes, `CUDA_MPS_PIPE_DIRECTORY`.
    pub pipes: PathBuf,
    /// Its logs, `CUDA_MPS_LOG_DIRECTORY`.
    pub logs: PathBuf,
}

impl Default for MpsPlaces {
    fn default() -> Self {
        Self { pipes: PIPES_INSIDE.into(), logs: LOGS_INSIDE.into() }
    }
}

/// What a container needs that has `share_mib` of a card's `memory_mib`; nothing where the service does not run. `root` is `/`. Its
/// clients speak to it through pipes and the memory that the machine's processes share.
pub(super) fn edits(root: &Path, places: &MpsPlaces, share_mib: u32, memory_mib: u32) -> Edits {
    let host = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let mut edits = Edits::default();
    let (pipes, logs) = (host(&places.pipes), host(&places.logs));
    if !runs(root, &pipes) {
        return edits;
    }
    let writable = |host: PathBuf, inside: &str| {
        let options = ["rw", "nosuid", "nodev", "rbind", "rprivate"].map(str::to_owned).to_vec();
        EditMount { host_path: host, container_path: inside.into(), options, kind: None }
    };
    edits.mounts.push(writable(pipes, PIPES_INSIDE));
    edits.mounts.push(writable(host(Path::new("/dev/shm")), "/dev/shm"));
    edits.set_env("CUDA_MPS_PIPE_DIRECTORY", PIPES_INSIDE);
    if logs.is_dir() {
        edits.mounts.push(writable(logs, LOGS_INSIDE));
        edits.set_env("CUDA_MPS_LOG_DIRECTORY", LOGS_INSIDE);
    }
    // A share is of one card, which is the container's first.
    edits.set_env("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", &format!("0={share_mib}M"));
    let percent = (u64::from(share_mib) * 100).div_ceil(u64::from(memory_mib.max(1))).clamp(1, 100);
    edits.set_env("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", &percent.to_string());
    edits
}

/// Whether it runs: its pipe is there, and the process that it noted beside is too, where it noted one.
fn runs(root: &Path, pipes: &Path) -> bool {
    let noted = fs::read_to_string(pipes.join("nvidia-cuda-mps-control.pid")).unwrap_or_default();
    let ended = noted.trim().parse::<u32>().is_ok_and(|pid| !root.join("proc").join(pid.to_string()).exists());
    pipes.join("control").exists() && !ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_kept_to_where_the_service_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (root, places) = (dir.path(), MpsPlaces { pipes: "/run/mps".into(), ..MpsPlaces::default() });
        let of = |share| edits(root, &places, share, 24_000);
        assert!(of(8_000).is_empty());
        for folder in ["run/mps", "proc/77"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("run/mps/control"), "").unwrap();
        fs::write(root.join("run/mps/nvidia-cuda-mps-control.pid"), "77\n").unwrap();
        let edits = of(8_000);
        let inside: Vec<_> = edits.mounts.iter().map(|mount| mount.container_path.to_str().unwrap()).collect();
        assert_eq!(inside, ["/tmp/nvidia-mps", "/dev/shm"], "it has no logs there");
        for pair in [
            "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=8000M",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=34",
        ] {
            assert!(edits.env.contains(&pair.to_owned()), "{pair}: {:?}", edits.env);
        }
        fs::create_dir_all(root.join("var/log/nvidia-mps")).unwrap();
        assert_eq!(of(1).mounts[2].host_path, root.join("var/log/nvidia-mps"));
        assert!(of(1).env.contains(&"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=1".to_owned()));
        assert!(of(48_000).env.contains(&"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=100".to_owned()));
        fs::remove_dir(root.join("proc/77")).unwrap();
        assert!(of(8_000).is_empty(), "it ended and left its pipe behind");
    }
}
