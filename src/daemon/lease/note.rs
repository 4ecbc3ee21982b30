//! The note of the lease: a small file that outlives the daemon, by which the logger beside each exclusive container ends it in
//! time when the daemon does not (crates/logger, `guard`).
//!
//! It holds twice the same twenty digits: until when what is exclusive may run, in milliseconds of the clock that counts since the
//! machine's start and through its sleep. It is written in its place, for which a full disk has room.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// Bytes of the note.
const LENGTH: usize = 42;

/// A time on the clock that counts since the machine's start, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct BootTime(u64);

impl BootTime {
    /// Never comes.
    pub(super) const NEVER: Self = Self(u64::MAX);

    pub(in super::super) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        Self(u64::try_from(now.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000)
    }

    /// The time since an earlier one.
    pub(super) fn since(self, earlier: Self) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(Duration::from_millis)
    }

    pub(in super::super) fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The file, open.
pub(super) struct Note(File);

impl Note {
    /// Opens it, or makes it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Self(file))
    }

    /// Until when what is exclusive may run, if that was ever said.
    pub(super) fn read(&self) -> Option<BootTime> {
        let mut text = [0; LENGTH];
        self.0.read_exact_at(&mut text, 0).ok()?;
        let (one, other) = std::str::from_utf8(&text).ok()?.strip_suffix('\n')?.split_once(' ')?;
        (one == other).then(|| one.parse().ok().map(BootTime))?
    }

    pub(super) fn write(&self, until: BootTime) -> io::Result<()> {
        self.0.write_all_at(format!("{0:020} {0:020}\n", until.0).as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_has_the_form_that_the_logger_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lease");
        let note = Note::open(&path).unwrap();
        assert_eq!(note.read(), None);
        note.write(BootTime(12_345)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "00000000000000012345 00000000000000012345\n");
        note.write(BootTime::NEVER).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "18446744073709551615 18446744073709551615\n");
        assert_eq!(Note::open(&path).unwrap().read(), Some(BootTime::NEVER));
        assert_eq!(BootTime::NEVER.plus(Duration::from_secs(1)), BootTime::NEVER);
        assert!(BootTime::now() < BootTime::now().plus(Duration::from_secs(1)));
        std::fs::write(&path, "00000000000000012345 00000000000000012355\n").unwrap();
        assert_eq!(note.read(), None, "torn");
    }
}
