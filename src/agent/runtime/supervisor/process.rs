//! The process of a private containerd: starting it so that it outlives the daemon, and finding it again.

use std::{
    env, fs, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::Stdio,
    time::Duration,
};

use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::{Pid, setsid},
};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
};

use super::{files::Files, find};

/// Starts containerd in a session of its own, its output in its log.
pub(super) fn start(binary: &Path, files: &Files) -> io::Result<Child> {
    let log = files.open_log()?;
    let path = env::join_paths(find::search_path()).map_err(io::Error::other)?;
    let mut command = Command::new(binary);
    command
        .arg("--config")
        .arg(&files.config)
        .env("PATH", path)
        // These belong to the daemon; containerd would tell systemd about itself in its place.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(false);
    // SAFETY: `setsid` is safe to call between fork and exec, and nothing is allocated.
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
    }
    command.spawn()
}

/// A containerd of ours that runs, held so that its pid cannot come to mean another process.
pub(super) struct Running {
    pid: u32,
    handle: OwnedFd,
}

impl Running {
    /// The process that runs with our configuration: the one noted, or any.
    pub(super) fn find(files: &Files) -> Option<Self> {
        let noted = files.read_pid().and_then(|pid| Self::hold(pid, &files.config));
        noted.or_else(|| {
            let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
            pids.into_iter().find_map(|pid| Self::hold(pid, &files.config))
        })
    }

    /// Takes hold of the process, if it is containerd with our configuration.
    fn hold(pid: u32, config: &Path) -> Option<Self> {
        if !runs_with(pid, config) {
            return None;
        }
        let raw = libc::pid_t::try_from(pid).ok()?;
        // SAFETY: the call takes plain numbers and gives a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, raw, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the descriptor is new and ours alone.
        let handle = unsafe { OwnedFd::from_raw_fd(fd) };
        // Only now is it certain that the pid was not given to another process in between.
        runs_with(pid, config).then_some(Self { pid, handle })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end and tells so.
    pub(super) async fn ended(self) -> String {
        // SAFETY: the descriptor is owned, so it stays open and the same for as long as it is registered.
        match unsafe { AsyncFd::register(self.handle) } {
            Ok(handle) => match handle.readable().await {
                Ok(_) => "it ended".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        }
    }

    /// Asks it to end, and kills it after `patience`.
    pub(super) async fn stop(self, patience: Duration) {
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX));
        // One that has ended already is what is wanted.
        let _ = kill(pid, Signal::SIGTERM);
        let ended = self.ended();
        tokio::pin!(ended);
        if tokio::time::timeout(patience, &mut ended).await.is_err() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = tokio::time::timeout(patience, ended).await;
        }
    }
}

/// Whether a process has `--config <config>` among its arguments, and is no zombie.
fn runs_with(pid: u32, config: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    arguments.windows(2).any(|pair| pair[0] == b"--config" && pair[1] == config.as_os_str().as_bytes())
}
