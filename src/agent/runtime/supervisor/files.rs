//! What a private containerd has on disk.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

/// A log larger than that is put aside before the next start.
const LARGEST_LOG_BYTES: u64 = 8 << 20;

/// Paths under the private containerd's directory.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
    pub(super) config: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) log: PathBuf,
    pid: PathBuf,
}

impl Files {
    pub(super) fn under(dir: &Path) -> Self {
        Self {
            config: dir.join("config.toml"),
            socket: dir.join("containerd.sock"),
            log: dir.join("containerd.log"),
            pid: dir.join("containerd.pid"),
            dir: dir.to_owned(),
        }
    }

    /// The socket on which shims talk to containerd.
    pub(super) fn second_socket(&self) -> PathBuf {
        self.dir.join("containerd.sock.ttrpc")
    }

    /// Makes the directory, for root alone, and writes the configuration.
    pub(super) fn write(&self) -> Result<(), (PathBuf, io::Error)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(|e| (self.dir.clone(), e))?;
        fs::write(&self.config, self.configuration().to_string()).map_err(|e| (self.config.clone(), e))
    }

    /// Version 2, which containerd 1.6, 1.7 and 2.x all read. Names of plugins a version does not have are harmless.
    fn configuration(&self) -> Table {
        let path = |path: &Path| Value::String(path.to_string_lossy().into_owned());
        let table = |entries: Vec<(&str, Value)>| -> Value {
            Value::Table(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
        };
        let unused = [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.tracing.processor.v1.otlp",
            "io.containerd.internal.v1.tracing",
        ];
        let unused = unused.iter().map(|id| Value::String((*id).to_owned())).collect();
        Table::from_iter([
            ("version".to_owned(), Value::Integer(2)),
            ("root".to_owned(), path(&self.dir.join("root"))),
            ("state".to_owned(), path(&self.dir.join("state"))),
            ("disabled_plugins".to_owned(), Value::Array(unused)),
            ("grpc".to_owned(), table(vec![("address", path(&self.socket))])),
            ("ttrpc".to_owned(), table(vec![("address", path(&self.second_socket()))])),
            ("debug".to_owned(), table(vec![("level", Value::String("warn".to_owned()))])),
            (
                "plugins".to_owned(),
                table(vec![
                    ("io.containerd.internal.v1.opt", table(vec![("path", path(&self.dir.join("opt")))])),
                    // Its collector would look for work every 50 times the length of its last run, which with few
                    // images is every 20 ms, for ever. Zero is once a second.
                    ("io.containerd.gc.v1.scheduler", table(vec![("pause_threshold", Value::Float(0.0))])),
                ]),
            ),
        ])
    }

    /// Opens the log to append to.
    pub(super) fn open_log(&self) -> io::Result<fs::File> {
        if fs::metadata(&self.log).is_ok_and(|log| log.len() > LARGEST_LOG_BYTES) {
            fs::rename(&self.log, self.dir.join("containerd.log.1"))?;
        }
        fs::OpenOptions::new().create(true).append(true).open(&self.log)
    }

    /// The last line of the log.
    pub(super) fn last_words(&self) -> Option<String> {
        use io::{Read, Seek, SeekFrom};
        const ENOUGH: u64 = 4096;
        let mut log = fs::File::open(&self.log).ok()?;
        let length = log.metadata().ok()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(ENOUGH))).ok()?;
        let mut bytes = Vec::new();
        log.take(ENOUGH).read_to_end(&mut bytes).ok()?;
        String::from_utf8_lossy(&bytes).lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned)
    }

    /// The pid noted last.
    pub(super) fn read_pid(&self) -> Option<u32> {
        fs::read_to_string(&self.pid).ok()?.trim().parse().ok()
    }

    /// Notes the pid. It only saves a search, so a failure is no trouble.
    pub(super) fn write_pid(&self, pid: u32) {
        if let Err(error) = fs::write(&self.pid, format!("{pid}\n")) {
            tracing::warn!(path = %self.pid.display(), error = %error, "the pid of containerd could not be noted");
        }
    }

    /// Forgets the pid.
    pub(super) fn forget_pid(&self) {
        let _ = fs::remove_file(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_keeps_everything_in_the_directory() {
        let files = Files::under(Path::new("/data/\"odd\"/containerd"));
        let text = files.configuration().to_string();
        let read: Table = text.parse().unwrap();
        assert_eq!(read["version"].as_integer(), Some(2));
        assert_eq!(read["root"].as_str(), Some("/data/\"odd\"/containerd/root"));
        assert_eq!(read["grpc"]["address"].as_str(), Some("/data/\"odd\"/containerd/containerd.sock"));
        assert!(read["disabled_plugins"].as_array().unwrap().iter().any(|id| id.as_str().unwrap().ends_with("cri")));
    }
}
