//! Where everything lies on disk, and the lock that keeps a second toft away.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::{Hinted, down::running, joining, restore::backup_failed};
use crate::{backup::restore, config::Paths, consensus, files::write_whole};

/// Longest wait for the lock of a daemon that was killed: a program it was just about to start holds it for a moment.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

/// The directories of one appliance, locked for as long as this or a copy lives.
#[derive(Clone)]
pub(super) struct Directories {
    data: PathBuf,
    run: PathBuf,
    suffix: Option<String>,
    _lock: Arc<Flock<File>>,
}

/// Names of the kernel's objects.
pub(super) struct NetworkNames {
    pub(super) bridge: String,
    pub(super) table: String,
    pub(super) mesh: String,
}

#[derive(Debug, thiserror::Error)]
#[error("another toft{0} is using the data directory `{1}`")]
struct InUse(String, PathBuf);

impl Directories {
    /// Makes what is missing, takes the lock and writes the pid file.
    pub(super) fn prepare(paths: &Paths) -> anyhow::Result<Self> {
        let directories = Self::locked(paths)?;
        if restore::finish(&directories.data).map_err(backup_failed)? {
            tracing::warn!("a restore that was interrupted is finished now");
        }
        joining::finish(&directories.data)?;
        for dir in [directories.logs(), directories.instances(), directories.programs()] {
            make(&dir, 0o700).with_context(|| format!("making the directory `{}`", dir.display()))?;
        }
        write_whole(&directories.pid_file(), 0o644, format!("{}\n", std::process::id()).as_bytes())
            .context("writing the pid file")?;
        Ok(directories)
    }

    /// Makes the two directories and takes the lock.
    pub(super) fn locked(paths: &Paths) -> anyhow::Result<Self> {
        for (dir, mode) in [(&paths.data, 0o700), (&paths.run, 0o755)] {
            make(dir, mode).with_context(|| format!("making the directory `{}`", dir.display()))?;
        }
        let data = fs::canonicalize(&paths.data).with_context(|| format!("opening `{}`", paths.data.display()))?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))
            .context("keeping others out of the data directory")?;
        let run = fs::canonicalize(&paths.run).with_context(|| format!("opening `{}`", paths.run.display()))?;
        let lock = lock(&data, &run)?;
        let suffix = paths.private.then(|| hex::encode(&Sha256::digest(data.as_os_str().as_encoded_bytes())[..4]));
        Ok(Self { data, run, suffix, _lock: Arc::new(lock) })
    }

    /// The data directory.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn consensus(&self) -> consensus::Files {
        consensus::Files::under(&self.data)
    }

    /// The cluster's keys.
    pub(super) fn cluster(&self) -> PathBuf {
        self.data.join("cluster")
    }

    pub(super) fn ledger_file(&self) -> PathBuf {
        self.data.join("ledger.redb")
    }

    pub(super) fn series_file(&self) -> PathBuf {
        self.data.join("series.redb")
    }

    pub(super) fn node_file(&self) -> PathBuf {
        self.data.join("node.json")
    }

    pub(super) fn password_file(&self) -> PathBuf {
        self.data.join("admin-password")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    pub(super) fn instances(&self) -> PathBuf {
        self.data.join("instances")
    }

    /// Where the secrets of containers are in memory while they run.
    pub(super) fn secrets(&self) -> PathBuf {
        self.run.join("secrets")
    }

    /// The data of volumes.
    pub(super) fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    /// Where what containers are to see is held fast while they are made.
    pub(super) fn mounts(&self) -> PathBuf {
        self.run.join("mounts")
    }

    /// Where the pipes of processes run inside containers are.
    pub(super) fn execs(&self) -> PathBuf {
        self.run.join("execs")
    }

    /// Where the pipes of containers with input or a terminal are.
    pub(super) fn attach(&self) -> PathBuf {
        self.run.join("attach")
    }

    /// Until when what is exclusive may run here.
    pub(super) fn lease_file(&self) -> PathBuf {
        self.run.join("lease")
    }

    pub(super) fn programs(&self) -> PathBuf {
        self.data.join("programs")
    }

    pub(super) fn containerd(&self) -> PathBuf {
        self.data.join("containerd")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.run.join("toft.sock")
    }

    pub(super) fn url_file(&self) -> PathBuf {
        self.run.join("toft.url")
    }

    fn pid_file(&self) -> PathBuf {
        self.run.join("toft.pid")
    }

    /// Private keys for the mesh.
    pub(super) fn mesh_keys(&self) -> PathBuf {
        self.data.join("mesh")
    }

    /// Names for bridge, nftables table and mesh interface; an appliance with a data directory of its own has its own.
    pub(super) fn network_names(&self) -> NetworkNames {
        match &self.suffix {
            None => {
                NetworkNames { bridge: "toft0".into(), table: "toft".into(), mesh: toft_mesh::DEFAULT_INTERFACE.into() }
            }
            Some(suffix) => NetworkNames {
                bridge: format!("toft-{suffix}"),
                table: format!("toft_{suffix}"),
                mesh: format!("toftwg-{suffix}"),
            },
        }
    }

    /// Number of the network with which the search for a free one begins: 0 for the machine's own appliance, another for
    /// each with a data directory of its own.
    pub(super) fn first_subnet(&self) -> u32 {
        self.suffix.as_ref().and_then(|suffix| u32::from_str_radix(suffix, 16).ok()).unwrap_or(0)
    }

    /// Control group of all containers.
    pub(super) fn cgroup_parent(&self) -> String {
        self.suffix.as_ref().map_or_else(|| "toft".to_owned(), |suffix| format!("toft-{suffix}"))
    }

    /// Removes what says that a daemon runs.
    pub(super) fn remove_traces(&self) {
        for path in [self.socket(), self.url_file(), self.pid_file()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "`{}` could not be removed", path.display());
                }
                _ => {}
            }
        }
    }
}

fn make(dir: &Path, mode: u32) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(dir)
}

fn lock(data: &Path, run: &Path) -> anyhow::Result<Flock<File>> {
    let path = data.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("opening `{}`", path.display()))?;
    let deadline = Instant::now() + LEFT_BEHIND;
    let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    while let Err((file, nix::errno::Errno::EWOULDBLOCK)) = locked {
        if Instant::now() > deadline || running(&run.join("toft.pid")).is_some() {
            locked = Err((file, nix::errno::Errno::EWOULDBLOCK));
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    }
    locked.map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => {
            let pid = fs::read_to_string(run.join("toft.pid")).unwrap_or_default();
            let who = if pid.trim().is_empty() { String::new() } else { format!(" (process {})", pid.trim()) };
            let hint = "stop it first, or give this one a directory of its own with --data-dir";
            Hinted::new(InUse(who, data.to_owned()), hint).into()
        }
        errno => anyhow::Error::new(errno).context(format!("locking `{}`", path.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_a_daemon_that_is_gone_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path(), dir.path()).unwrap();
        fs::write(dir.path().join("toft.pid"), "4194304").unwrap();
        let heir = std::thread::spawn({
            let dir = dir.path().to_owned();
            move || lock(&dir, &dir).map(drop)
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!heir.is_finished());
        drop(held);
        heir.join().unwrap().unwrap();
    }

    #[test]
    fn a_lock_that_stays_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _held = lock(dir.path(), dir.path()).unwrap();
        let refusal = lock(dir.path(), dir.path()).map(drop).unwrap_err();
        assert!(refusal.to_string().contains("another toft"), "{refusal}");
    }
}
