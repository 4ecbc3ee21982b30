//! The named pipes of containers with input or a terminal, in a directory for each, and the logger beside them, which a
//! hook of the container starts. The directory is made for each start; its path is part of the container's specification.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{libc::O_NONBLOCK, sys::stat::Mode, unistd::mkfifo};
use oci_spec::runtime::{Hook, HookBuilder, Hooks};
use toft_model::{ids::InstanceId, workload::ProcessSpec};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::pipe::{OpenOptions, Sender},
    },
};

use super::{OWN_LABELS, Shared, containers};
use crate::agent::runtime::{LoggerCommand, RuntimeError};

/// Longest wait for the shim to open its end of the input, which it does while it prepares the process.
const OPENING: Duration = Duration::from_secs(1);
/// Longest wait for a logger to write the rest.
const WRITING: Duration = Duration::from_secs(10);

/// What a container has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) stdin: bool,
    pub(super) tty: bool,
    pub(super) foreground: bool,
}

impl Kind {
    /// Nothing for a container that nobody can attach to.
    pub(super) fn of(process: &ProcessSpec) -> Option<Self> {
        let kind = Self { stdin: process.stdin, tty: process.tty, foreground: process.foreground };
        process.is_interactive().then_some(kind)
    }

    /// As it is noted among the container's labels.
    pub(super) fn label(self) -> (String, String) {
        let words = [(self.stdin, "stdin"), (self.tty, "tty"), (self.foreground, "foreground")];
        let words: Vec<_> = words.into_iter().filter_map(|(has, word)| has.then_some(word)).collect();
        (format!("{OWN_LABELS}stdio"), words.join(","))
    }

    fn noted(label: &str) -> Self {
        let has = |word| label.split(',').any(|noted| noted == word);
        Self { stdin: has("stdin"), tty: has("tty"), foreground: has("foreground") }
    }
}

/// What the container has of its own; it must be there.
pub(super) async fn kind(shared: &Shared, id: InstanceId) -> Result<Option<Kind>, RuntimeError> {
    if let Some(known) = shared.kinds().get(&id) {
        return Ok(*known);
    }
    let record = containers::get(shared, &id.to_string()).await?.ok_or(RuntimeError::NotFound { id })?;
    let kind = record.labels.get(&format!("{OWN_LABELS}stdio")).map(|label| Kind::noted(label));
    shared.kinds().insert(id, kind);
    Ok(kind)
}

/// The directory of one container.
pub(super) struct Stdio {
    dir: PathBuf,
}

/// The paths that a shim is given; empty for what is not there.
#[derive(Debug, Default)]
pub(super) struct Paths {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Stdio {
    pub(super) fn of(parent: &Path, id: InstanceId) -> Self {
        Self { dir: parent.join(id.to_string()) }
    }

    /// The hook that starts the logger before the shim opens the pipes.
    pub(super) fn hooks(&self) -> Hooks {
        let args = ["toft-logger".to_owned(), "beside".to_owned(), self.path("")];
        let hook: Hook = HookBuilder::default()
            .path(self.dir.join("logger"))
            .args(args)
            .build()
            .expect("a hook needs nothing but a path");
        let mut hooks = Hooks::default();
        hooks.set_create_runtime(Some(vec![hook]));
        hooks
    }

    /// Makes the pipes, and what the hook needs.
    pub(super) fn make(&self, kind: Kind, logger: &LoggerCommand) -> io::Result<Paths> {
        let make = |dir: &Path, recursive| DirBuilder::new().mode(0o700).recursive(recursive).create(dir);
        self.remove();
        make(self.dir.parent().unwrap_or(&self.dir), true)?;
        make(&self.dir, false)?;
        let pipe = |name: &str, wanted: bool| -> io::Result<String> {
            if !wanted {
                return Ok(String::new());
            }
            mkfifo(&self.dir.join(name), Mode::S_IRUSR | Mode::S_IWUSR)?;
            Ok(self.path(name))
        };
        let paths = Paths {
            stdin: pipe("stdin", kind.stdin)?,
            stdout: pipe("stdout", true)?,
            stderr: pipe("stderr", !kind.tty)?,
        };
        symlink(&logger.program, self.dir.join("logger"))?;
        let arguments: String = logger.args.iter().map(|(key, value)| format!("{key}\0{value}\0")).collect();
        fs::write(self.dir.join("arguments"), arguments)?;
        Ok(paths)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().trim_end_matches('/').to_owned()
    }

    /// Lets go of a logger whose pipes the shim did not open, and removes them.
    pub(super) fn abandon(&self) {
        // Who waits for a writer gets one, and then the end. It opens one after the other and may not have begun, so both
        // are held until their names are gone. There may be no pipe.
        let open = |name| File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(self.dir.join(name));
        let held = ["stdout", "stderr"].map(open);
        self.remove();
        drop(held);
    }

    /// Connects to the logger; `wish` is what it is asked for.
    pub(super) async fn listen(&self, wish: u8) -> io::Result<UnixStream> {
        // By a descriptor: the address of a socket holds 107 bytes.
        let here = File::open(&self.dir)?;
        let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/tap", here.as_raw_fd())).await?;
        stream.write_all(&[wish]).await?;
        Ok(stream)
    }

    /// Waits until the logger of a process that has ended has written everything.
    pub(super) async fn written(&self, id: InstanceId) {
        let Ok(mut logger) = self.listen(b'e').await else { return };
        let ended = async { while logger.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {} };
        if tokio::time::timeout(WRITING, ended).await.is_err() {
            tracing::warn!(instance.id = %id, "the logger of a container goes on after its end");
        }
    }

    /// Opens the input. Nothing when nobody reads it any more.
    pub(super) async fn open_input(&self) -> io::Result<Option<Sender>> {
        let begun = tokio::time::Instant::now();
        loop {
            match OpenOptions::new().open_sender(self.dir.join("stdin")) {
                Ok(sender) => return Ok(Some(sender)),
                Err(error) if error.raw_os_error() != Some(nix::libc::ENXIO) => return Err(error),
                Err(_) if begun.elapsed() > OPENING => return Ok(None),
                // The kernel tells nobody when a pipe is opened without making a thread wait for it.
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Removes the directory.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the pipes in `{}` could not be removed", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_has_is_noted_and_found_again() {
        for (stdin, tty, foreground) in [(true, false, false), (true, true, true), (false, true, false)] {
            let kind = Kind { stdin, tty, foreground };
            assert_eq!(Kind::noted(&kind.label().1), kind);
        }
        assert_eq!(Kind::of(&ProcessSpec::default()), None);
    }

    #[test]
    fn pipes_are_made_anew_for_each_start_and_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio::of(&dir.path().join("attach"), "0192f0c0-0000-7000-8000-000000000001".parse().unwrap());
        let logger = LoggerCommand { program: "/opt/logger".into(), args: vec![("dir".into(), "/var/log/a b".into())] };
        for tty in [false, true] {
            let paths = stdio.make(Kind { stdin: true, tty, foreground: false }, &logger).unwrap();
            assert!(Path::new(&paths.stdin).exists() && Path::new(&paths.stdout).exists());
            assert_eq!(paths.stderr.is_empty(), tty);
            assert_eq!(stdio.dir.join("stderr").exists(), !tty);
        }
        assert_eq!(fs::read(stdio.dir.join("arguments")).unwrap(), b"dir\0/var/log/a b\0");
        let hook = serde_json::to_value(stdio.hooks()).unwrap();
        let args = hook["createRuntime"][0]["args"].clone();
        assert_eq!(args, serde_json::json!(["toft-logger", "beside", stdio.dir.to_str().unwrap()]));
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&stdio.dir).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700);
        stdio.abandon();
        assert!(!stdio.dir.exists());
    }
}
