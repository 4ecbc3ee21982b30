//! A private containerd, for machines on which none runs. It lives under one directory of its own, is started from the
//! installed binary, and is started again when it dies. It is no part of the daemon's life: it has its own session,
//! survives the daemon, is adopted by the next one, and ends only when [`ContainerdSupervisor::shut_down`] is called.
//! Shims and containers live on even then.
//!
//! ```text
//!  run: adopt the one still running, else start --> wait for its end --> back-off --> again
//! ```

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod files;
mod find;
mod process;

pub(crate) use find::{USUAL_SOCKETS, find_program, search_path, version_of};
pub use find::{find_binary, find_running};

use self::{files::Files, process::Running};

/// Longest path a Unix socket can have.
const LONGEST_SOCKET: usize = 107;
/// First and longest pause between two starts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A life that long makes the next pause short again.
const STEADY: Duration = Duration::from_secs(30);
/// How long an adopted containerd may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long containerd may take to end when asked.
const FAREWELL: Duration = Duration::from_secs(10);

/// Why a private containerd cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// None runs and none is installed.
    #[error("containerd is not installed, and none is running")]
    NotInstalled,
    /// containerd is there, but not what it starts containers with.
    #[error("runc is not installed, and containerd needs it")]
    RuncMissing,
    /// The socket's path does not fit.
    #[error("the socket `{path}` would have a path of {length} bytes, and {LONGEST_SOCKET} is the most")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Its directory or configuration could not be written.
    #[error("`{path}` could not be written")]
    Files {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl SupervisorError {
    /// The next step for the person who reads the error.
    pub fn hint(&self) -> String {
        match self {
            Self::NotInstalled | Self::RuncMissing => {
                "install both with `apt install containerd runc` (Debian, Ubuntu), `dnf install containerd runc` (Fedora) \
                 or `pacman -S containerd runc` (Arch)"
                    .into()
            }
            Self::PathTooLong { .. } => "use a shorter --data-dir".into(),
            Self::Files { .. } => "check that the directory is writable and its disk not full".into(),
        }
    }
}

/// Keeps one containerd alive.
#[derive(Debug)]
pub struct ContainerdSupervisor {
    binary: PathBuf,
    files: Files,
}

impl ContainerdSupervisor {
    /// Writes the configuration of a containerd under `dir`, to be started from `binary`. Nothing is started yet.
    pub fn new(dir: &Path, binary: PathBuf) -> Result<Self, SupervisorError> {
        if find::find_runc().is_none() {
            return Err(SupervisorError::RuncMissing);
        }
        let files = Files::under(dir);
        // containerd listens on a second socket of a longer name.
        let path = files.second_socket();
        let length = path.as_os_str().len();
        if length > LONGEST_SOCKET {
            return Err(SupervisorError::PathTooLong { path, length });
        }
        files.write().map_err(|(path, source)| SupervisorError::Files { path, source })?;
        Ok(Self { binary, files })
    }

    /// Where it listens.
    pub fn address(&self) -> &Path {
        &self.files.socket
    }

    /// Sees to it that containerd runs, until `stop`. Leaves it running then.
    pub async fn run(&self, stop: CancellationToken) {
        let (shortest, longest) = PAUSES;
        let mut pause = shortest;
        loop {
            let begun = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.one_life() => ended,
            };
            if begun.elapsed() >= STEADY {
                pause = shortest;
            }
            tracing::warn!(
                reason = %ended,
                log = %self.files.log.display(),
                last_words = self.files.last_words().as_deref().unwrap_or_default(),
                "containerd ended and is started again"
            );
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Stops containerd: asks first, kills after ten seconds. Containers go on.
    pub async fn shut_down(&self) {
        if let Some(running) = Running::find(&self.files) {
            running.stop(FAREWELL).await;
        }
        self.files.forget_pid();
    }

    /// From start or adoption to the end; tells why it ended.
    async fn one_life(&self) -> String {
        if let Some(running) = Running::find(&self.files) {
            if find::answers(&self.files.socket, ANSWER).await {
                tracing::info!(pid = running.pid(), "the containerd of an earlier daemon still runs and is kept");
                self.files.write_pid(running.pid());
                return running.ended().await;
            }
            tracing::warn!(pid = running.pid(), "the containerd of an earlier daemon does not answer and is ended");
            running.stop(FAREWELL).await;
        }
        match process::start(&self.binary, &self.files) {
            Ok(mut child) => {
                let pid = child.id().unwrap_or_default();
                self.files.write_pid(pid);
                tracing::info!(pid, "containerd was started");
                match child.wait().await {
                    Ok(status) => format!("it ended with {status}"),
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => format!("`{}` could not be started: {error}", self.binary.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_too_long_for_a_socket_is_told_with_its_remedy() {
        let dir = PathBuf::from("/tmp").join("x".repeat(120));
        let error = ContainerdSupervisor::new(&dir, "/usr/bin/containerd".into()).unwrap_err();
        assert!(error.hint().contains("--data-dir"), "{error}");
        assert!(!dir.exists());
    }
}
