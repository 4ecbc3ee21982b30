//! The named pipes between a shim and us.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use toft_model::{exec::ExecOrder, ids::InstanceId};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

/// Longest wait for the shim to open its end of the input.
const OPENING: Duration = Duration::from_secs(10);

/// A directory with the pipes of one process.
pub(super) struct Pipes {
    dir: PathBuf,
    input: bool,
    errors: bool,
}

impl Pipes {
    /// The pipes of a process, wherever they came from.
    pub(super) fn of(parent: &Path, id: InstanceId, exec_id: &str) -> Self {
        Self { dir: parent.join(format!("{id}.{exec_id}")), input: false, errors: false }
    }

    /// Makes those that `order` needs.
    pub(super) fn make(parent: &Path, id: InstanceId, exec_id: &str, order: &ExecOrder) -> io::Result<Self> {
        let private = || {
            let mut builder = DirBuilder::new();
            builder.mode(0o700);
            builder
        };
        private().recursive(true).create(parent)?;
        let pipes = Self { input: order.stdin, errors: order.terminal.is_none(), ..Self::of(parent, id, exec_id) };
        private().create(&pipes.dir)?;
        let names = [("stdin", pipes.input), ("stdout", true), ("stderr", pipes.errors)];
        let made = names
            .into_iter()
            .filter(|(_, wanted)| *wanted)
            .try_for_each(|(name, _)| mkfifo(&pipes.dir.join(name), Mode::S_IRUSR | Mode::S_IWUSR));
        if let Err(error) = made {
            pipes.remove();
            return Err(error.into());
        }
        Ok(pipes)
    }

    fn path(&self, name: &str, wanted: bool) -> String {
        if wanted { self.dir.join(name).to_string_lossy().into_owned() } else { String::new() }
    }

    /// Path of the input, empty without one.
    pub(super) fn input_path(&self) -> String {
        self.path("stdin", self.input)
    }

    /// Path of the output.
    pub(super) fn output_path(&self) -> String {
        self.path("stdout", true)
    }

    /// Path of the errors, empty without them.
    pub(super) fn errors_path(&self) -> String {
        self.path("stderr", self.errors)
    }

    /// Opens the outputs, so that the shim does not wait for a reader. Held open for writing too: they must not end before
    /// the shim has begun.
    pub(super) fn open_outputs(&self) -> io::Result<Opened> {
        let open = |name| OpenOptions::new().read_write(true).open_receiver(self.dir.join(name));
        let errors = if self.errors { Some(open("stderr")?) } else { None };
        Ok(Opened { output: open("stdout")?, errors })
    }

    /// Opens the input once the shim reads it, which it begins to do a moment after the start.
    pub(super) async fn open_input(&self) -> io::Result<Option<Sender>> {
        if !self.input {
            return Ok(None);
        }
        let begun = Instant::now();
        loop {
            match OpenOptions::new().open_sender(self.dir.join("stdin")) {
                Ok(sender) => return Ok(Some(sender)),
                Err(error) if error.raw_os_error() != Some(nix::libc::ENXIO) || begun.elapsed() > OPENING => {
                    return Err(error);
                }
                // The kernel tells nobody when a pipe is opened without making a thread wait for it.
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Removes them.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the pipes in `{}` could not be removed", self.dir.display());
        }
    }
}

/// Outputs that cannot end yet.
pub(super) struct Opened {
    output: Receiver,
    errors: Option<Receiver>,
}

impl Opened {
    /// Gives the outputs as they end with the last of their writers; to be called when the shim has them.
    pub(super) fn settle(self, pipes: &Pipes) -> io::Result<(Receiver, Option<Receiver>)> {
        let open = |name| OpenOptions::new().open_receiver(pipes.dir.join(name));
        // Opened before the others are closed: what was written meanwhile stays.
        let output = open("stdout")?;
        let errors = self.errors.as_ref().map(|_| open("stderr")).transpose()?;
        drop((self.output, self.errors));
        Ok((output, errors))
    }
}
