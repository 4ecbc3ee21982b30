//! The log files of one container: appends, rotates by size, and survives a full disk.
//!
//! Records gather in a batch and go out in one write. A record is never split between files.
//! While the files cannot be written the journal drops records and counts them, tries again
//! about once a second, and on success first writes a notice of what was lost. It never waits.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::{Config, MIN_FILE_BYTES};
use crate::lines::{MAX_PIECE_BYTES, Piece};
use crate::stamp::{FRAME_BYTES, Source, Stamper};

const BATCH_BYTES: usize = 64 * 1024;
const NOTICE_TEXT_BYTES: usize = 160;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why nothing can be written, what that has cost, and when to try again.
struct Trouble {
    reason: String,
    lost: u64,
    retry_at: Instant,
}

/// The open log of one container.
pub struct Journal {
    config: Config,
    stamper: Stamper,
    batch: Vec<u8>,
    file: Option<File>,
    /// Bytes in `current.log`, as far as known.
    size: u64,
    trouble: Option<Trouble>,
}

impl Journal {
    /// Opens `current.log` for appending. A failure is not fatal: it is retried.
    pub fn open(config: Config) -> Self {
        let batch = Vec::with_capacity(BATCH_BYTES);
        let mut journal = Self { config, stamper: Stamper::new(), batch, file: None, size: 0, trouble: None };
        if let Err(error) = journal.ensure_open() {
            journal.fail(&error);
        }
        journal
    }

    /// Adds one record to the batch, writing out and rotating first where there is no room.
    pub fn push(&mut self, source: Source, piece: Piece<'_>, time: Duration) {
        let length = FRAME_BYTES + piece.text.len();
        let reserve = if self.trouble.is_some() { FRAME_BYTES + NOTICE_TEXT_BYTES } else { 0 };
        let planned = self.size + self.batch.len() as u64;
        if planned > 0 && planned + (length + reserve) as u64 > self.config.max_bytes {
            self.flush();
            if self.trouble.is_none()
                && let Err(error) = self.rotate()
            {
                self.fail(&error);
            }
        } else if self.batch.len() + length > BATCH_BYTES {
            self.flush();
        }
        self.stamper.write(&mut self.batch, source, piece, time);
    }

    /// Writes out the batch; after trouble also tries again, when it is time.
    pub fn flush(&mut self) {
        match &self.trouble {
            Some(trouble) if Instant::now() < trouble.retry_at => self.drop_batch(),
            Some(_) => self.attempt(),
            None if self.batch.is_empty() => {}
            None => self.attempt(),
        }
    }

    /// The last chance: writes what is left, whenever the next try was due.
    pub fn finish(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.retry_at = Instant::now();
        }
        self.flush();
    }

    /// How long poll may sleep: for ever, or until the next try while something is lost.
    pub fn poll_timeout_ms(&self) -> i32 {
        if self.trouble.is_some() { RETRY_AFTER.as_millis() as i32 } else { -1 }
    }

    fn attempt(&mut self) {
        if let Err(error) = self.deliver() {
            self.fail(&error);
        }
    }

    /// Writes the notice of earlier losses, if any, and then the batch.
    fn deliver(&mut self) -> io::Result<()> {
        self.ensure_open()?;
        let notice = self.notice();
        let planned = (notice.len() + self.batch.len()) as u64;
        if self.size > 0 && self.size + planned > self.config.max_bytes {
            self.rotate()?;
        }
        self.append(&notice)?;
        self.trouble = None;
        let batch = std::mem::take(&mut self.batch);
        let outcome = self.append(&batch);
        self.batch = batch;
        match outcome {
            Ok(()) => {
                self.batch.clear();
                Ok(())
            }
            Err(Unwritten { from, error }) => {
                self.batch.drain(..from);
                Err(error)
            }
        }
    }

    /// A record that tells of the lost lines; empty when there are none.
    fn notice(&mut self) -> Vec<u8> {
        let mut record = Vec::new();
        if let Some(trouble) = self.trouble.as_ref().filter(|trouble| trouble.lost > 0) {
            let mut text = format!("toft-logger: {} lines lost: {}", trouble.lost, trouble.reason).into_bytes();
            text.truncate(NOTICE_TEXT_BYTES);
            let piece = Piece { text: &text, last: true };
            self.stamper.write(&mut record, Source::Stderr, piece, crate::since_epoch());
        }
        record
    }

    /// Appends whole records to the open file. On failure the file keeps only the records that
    /// fitted, and the error says where the others begin.
    fn append(&mut self, records: &[u8]) -> Result<(), Unwritten> {
        let Some(file) = self.file.as_mut() else {
            return Err(Unwritten { from: 0, error: io::ErrorKind::NotFound.into() });
        };
        let mut written = 0;
        while written < records.len() {
            let error = match file.write(&records[written..]) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(count) => {
                    written += count;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let whole = records[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |index| index + 1);
            let kept = cut_tail(file, (written - whole) as u64);
            // A torn record that could not be cut off gets its newline when the file is next opened.
            self.size += if kept { whole } else { written } as u64;
            return Err(Unwritten { from: whole, error });
        }
        self.size += records.len() as u64;
        Ok(())
    }

    /// Opens `current.log` unless it is open, closing a record that an earlier logger left torn.
    fn ensure_open(&mut self) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o750).create(&self.config.dir)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(self.path(0))?;
        let mut size = file.metadata()?.len();
        if size > 0 {
            let mut last = [0];
            file.read_exact_at(&mut last, size - 1)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        self.size = size;
        self.file = Some(file);
        Ok(())
    }

    /// Moves every file one number up, dropping those beyond the limit, and starts a new one.
    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        for number in (1..self.config.max_files).rev() {
            ignore_missing(fs::rename(self.path(number - 1), self.path(number)))?;
        }
        if self.config.max_files == 1 {
            ignore_missing(fs::remove_file(self.path(0)))?;
        }
        let mut surplus = self.config.max_files;
        while fs::remove_file(self.path(surplus)).is_ok() {
            surplus += 1;
        }
        self.ensure_open()
    }

    /// `current.log` is number 0, the one before it `current.log.1`, and so on.
    fn path(&self, number: u32) -> PathBuf {
        match number {
            0 => self.config.dir.join("current.log"),
            number => self.config.dir.join(format!("current.log.{number}")),
        }
    }

    /// Notes the trouble and drops what is in the batch.
    fn fail(&mut self, error: &io::Error) {
        self.file = None;
        let lost = self.trouble.as_ref().map_or(0, |trouble| trouble.lost);
        let reason = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk full".to_owned(),
            _ => error.to_string(),
        };
        self.trouble = Some(Trouble { reason, lost, retry_at: Instant::now() + RETRY_AFTER });
        self.drop_batch();
    }

    fn drop_batch(&mut self) {
        let dropped = self.batch.iter().filter(|&&byte| byte == b'\n').count() as u64;
        if let Some(trouble) = &mut self.trouble {
            trouble.lost += dropped;
        }
        self.batch.clear();
    }
}

/// Some records could not be written: those from byte `from` on.
struct Unwritten {
    from: usize,
    error: io::Error,
}

impl From<Unwritten> for io::Error {
    fn from(unwritten: Unwritten) -> Self {
        unwritten.error
    }
}

/// Takes the last `count` bytes we wrote off the file again, unless somebody else wrote since.
/// Says whether they are gone.
fn cut_tail(file: &mut File, count: u64) -> bool {
    let Ok(position) = file.stream_position() else { return false };
    let ours = file.metadata().is_ok_and(|metadata| metadata.len() == position && count <= position);
    count == 0 || ours && file.set_len(position - count).is_ok()
}

fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

// The smallest file holds a notice and the longest record, so no file ever exceeds its limit.
const _: () = assert!(2 * FRAME_BYTES + NOTICE_TEXT_BYTES + MAX_PIECE_BYTES < MIN_FILE_BYTES as usize);
