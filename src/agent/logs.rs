//! Reads what a container wrote, from the files its logger keeps: `current.log`, then `current.log.1` and older.
//!
//! Records are `<RFC 3339 time> <stdout|stderr> <F|P> <text>`, `P` for a piece of a longer line (the format of the
//! Kubernetes container runtime interface).

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use regex::{Regex, RegexBuilder};
use toft_model::log::{LogLine, LogStream};
use tokio::{io::unix::AsyncFd, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// Longest record read; the logger's are at most 16 KiB of text.
const MAX_RECORD: u64 = 64 * 1024;
/// Lines handed over at once.
const CHUNK: usize = 512;

/// Longest regular expression, in bytes, and most bytes it may take once it is understood.
const LONGEST_PATTERN: usize = 1024;
const LARGEST_PATTERN: usize = 1 << 20;

/// Which lines are wanted of one container.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Only the last so many of those that `wanted` leaves.
    pub tail: Option<usize>,
    /// Which of them.
    pub wanted: Wanted,
    /// Go on until this is cancelled, and then to the end of what is written.
    pub follow: Option<CancellationToken>,
}

/// Which lines are wanted by what they are.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only those at or after, in nanoseconds since 1970.
    pub since_ns: Option<i64>,
    /// Only those before, in nanoseconds since 1970.
    pub until_ns: Option<i64>,
    /// Only those in which it finds something.
    pub grep: Option<Regex>,
}

impl Wanted {
    fn has(&self, line: &LogLine) -> bool {
        self.since_ns.is_none_or(|since| line.at_ns >= since)
            && self.until_ns.is_none_or(|until| line.at_ns < until)
            && self.grep.as_ref().is_none_or(|grep| grep.is_match(&line.text))
    }

    /// Whether the last lines that are wanted are the last lines there are.
    fn has_the_last(&self) -> bool {
        self.until_ns.is_none() && self.grep.is_none()
    }
}

/// Understands a regular expression; `Err` says in words for people why not. It takes time in proportion to what it reads,
/// whatever it is.
pub fn pattern(text: &str) -> Result<Regex, String> {
    if text.len() > LONGEST_PATTERN {
        return Err(format!("it is longer than {LONGEST_PATTERN} bytes"));
    }
    let built = RegexBuilder::new(text).size_limit(LARGEST_PATTERN).dfa_size_limit(LARGEST_PATTERN).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "it is too large once its repetitions are written out".to_owned(),
        // The last line says what, those before show where.
        other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    })
}

/// Sends the wanted lines of the logs in `dir`, oldest first. Ends when the receiver is gone.
pub async fn read(dir: PathBuf, reading: Reading, lines: mpsc::Sender<Vec<LogLine>>) -> io::Result<()> {
    let watch = match &reading.follow {
        Some(_) => Some(Watch::of(&dir)?),
        None => None,
    };
    let (tail, wanted) = (reading.tail, reading.wanted.clone());
    let from = dir.clone();
    let sender = lines.clone();
    let mut position = blocking(move || existing(&from, tail, &wanted, &sender)).await?;
    let (Some(ended), Some(watch)) = (reading.follow, watch) else { return Ok(()) };
    loop {
        // Looked at before reading: what was written before the end is then surely read.
        let last = ended.is_cancelled();
        let from = dir.clone();
        let sender = lines.clone();
        let wanted = reading.wanted.clone();
        position = blocking(move || position.read_on(&from, &wanted, &sender)).await?;
        if last || lines.is_closed() {
            return Ok(());
        }
        tokio::select! {
            () = ended.cancelled() => {}
            () = lines.closed() => return Ok(()),
            changed = watch.changed() => changed?,
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Watches the directory for anything written.
struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    fn of(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        // SAFETY: the descriptor is owned, so it stays open and the same for as long as it is registered.
        Ok(Self(Some(unsafe { AsyncFd::register(OwnedFd::from(inotify)) }?)))
    }

    /// Returns when something was written since the last call.
    async fn changed(&self) -> io::Result<()> {
        let Some(inotify) = &self.0 else { return Ok(()) };
        let mut ready = inotify.readable().await?;
        // What happened does not matter, only that something did.
        while nix::unistd::read(ready.get_inner(), &mut [0; 4096]).is_ok_and(|length| length > 0) {}
        ready.clear_ready();
        Ok(())
    }
}

impl Drop for Watch {
    /// The kernel takes tens of milliseconds to close it, which neither a task nor who waits for the end shall spend.
    fn drop(&mut self) {
        if let (Some(inotify), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            drop(runtime.spawn_blocking(move || drop(inotify)));
        }
    }
}

/// A log file and what tells it from others while it is open.
#[derive(Debug)]
struct LogFile {
    file: File,
    inode: u64,
}

/// The log files that are there, oldest first. They are opened newest first: a rotation in between moves a file to where
/// it is still to be met, and none is passed by.
fn files(dir: &Path) -> io::Result<Vec<LogFile>> {
    let number = |entry: io::Result<std::fs::DirEntry>| -> Option<u32> {
        entry.ok()?.file_name().to_str()?.strip_prefix("current.log.")?.parse().ok()
    };
    let oldest = std::fs::read_dir(dir).into_iter().flatten().filter_map(number).max().unwrap_or(0);
    let mut files: Vec<LogFile> = Vec::new();
    for number in 0.. {
        let name = if number == 0 { "current.log".to_owned() } else { format!("current.log.{number}") };
        match open(&dir.join(name))? {
            Some(found) if files.iter().all(|file| file.inode != found.inode) => files.push(found),
            Some(_) => {}
            None if number > oldest => break,
            None => {}
        }
    }
    files.reverse();
    Ok(files)
}

/// Reads what there is; gives where the newest file was left.
fn existing(
    dir: &Path,
    tail: Option<usize>,
    wanted: &Wanted,
    lines: &mpsc::Sender<Vec<LogLine>>,
) -> io::Result<Position> {
    let mut last = VecDeque::new();
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut position = Position::default();
    let mut files = files(dir)?;
    let last_lines = tail.filter(|_| wanted.has_the_last());
    if let Some(tail) = last_lines {
        keep_tail(&mut files, tail)?;
    }
    for mut log in files {
        let mut offset = 0;
        if let Some(tail) = last_lines {
            offset = seek_before_last(&mut log.file, tail)?;
        }
        log.file.seek(SeekFrom::Start(offset))?;
        let mut reader = BufReader::with_capacity(64 * 1024, &log.file);
        while let Some((line, length)) = record(&mut reader)? {
            offset += length;
            let Some(line) = line.filter(|line| wanted.has(line)) else { continue };
            match tail {
                Some(tail) => {
                    last.push_back(line);
                    if last.len() > tail {
                        last.pop_front();
                    }
                }
                None => {
                    chunk.push(line);
                    if chunk.len() == CHUNK && lines.blocking_send(std::mem::take(&mut chunk)).is_err() {
                        return Ok(position);
                    }
                }
            }
        }
        position = Position { newest: Some(log), offset };
    }
    chunk.extend(last);
    for part in chunk.chunks(CHUNK) {
        if lines.blocking_send(part.to_vec()).is_err() {
            break;
        }
    }
    Ok(position)
}

/// Leaves the newest files that surely hold the last `tail` lines.
fn keep_tail(files: &mut Vec<LogFile>, tail: usize) -> io::Result<()> {
    let mut counted = 0;
    for (i, log) in files.iter_mut().enumerate().rev() {
        log.file.seek(SeekFrom::Start(0))?;
        counted += BufReader::new(&log.file).split(b'\n').take(tail + 1).count();
        if counted > tail {
            files.drain(..i);
            break;
        }
    }
    Ok(())
}

/// The offset from which a file holds its last `lines` lines.
fn seek_before_last(file: &mut File, lines: usize) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut wanted = lines + 1;
    let mut block = vec![0; 64 * 1024];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        for (at, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            wanted -= 1;
            if wanted == 0 {
                return Ok(start + at as u64 + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

fn open(path: &Path) -> io::Result<Option<LogFile>> {
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some(LogFile { file, inode }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// One record and its length in bytes; a record still being written is not there yet. One that is not understood gives
/// no line.
fn record(reader: &mut impl BufRead) -> io::Result<Option<(Option<LogLine>, u64)>> {
    let mut bytes = Vec::new();
    let length = reader.take(MAX_RECORD).read_until(b'\n', &mut bytes)? as u64;
    match bytes.pop() {
        Some(b'\n') => Ok(Some((parse(&bytes), length))),
        Some(_) if length == MAX_RECORD => Ok(Some((None, length))),
        _ => Ok(None),
    }
}

fn parse(record: &[u8]) -> Option<LogLine> {
    let mut parts = record.splitn(4, |byte| *byte == b' ');
    let time: jiff::Timestamp = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let partial = parts.next()? == b"P";
    let text = String::from_utf8_lossy(parts.next()?).into_owned();
    Some(LogLine { at_ns: i64::try_from(time.as_nanosecond()).ok()?, stream, text, partial })
}

/// Where reading left the newest file. It stays open, so that no younger file can be taken for it.
#[derive(Debug, Default)]
struct Position {
    newest: Option<LogFile>,
    offset: u64,
}

impl Position {
    /// Reads what came since, over any number of rotations.
    fn read_on(mut self, dir: &Path, wanted: &Wanted, lines: &mpsc::Sender<Vec<LogLine>>) -> io::Result<Self> {
        let files = files(dir)?;
        let known = self.newest.as_ref().and_then(|newest| files.iter().position(|log| log.inode == newest.inode));
        // A file that was rotated out of existence leaves a gap; reading goes on with the oldest that is left.
        for (i, mut log) in files.into_iter().enumerate().skip(known.unwrap_or(0)) {
            let offset = if known == Some(i) { self.offset } else { 0 };
            log.file.seek(SeekFrom::Start(offset))?;
            let mut reader = BufReader::with_capacity(64 * 1024, &log.file);
            self.offset = offset;
            let mut chunk = Vec::new();
            while let Some((line, length)) = record(&mut reader)? {
                self.offset += length;
                chunk.extend(line.filter(|line| wanted.has(line)));
                if chunk.len() == CHUNK && lines.blocking_send(std::mem::take(&mut chunk)).is_err() {
                    return Ok(self);
                }
            }
            self.newest = Some(log);
            if !chunk.is_empty() && lines.blocking_send(chunk).is_err() {
                return Ok(self);
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_understood_or_refused_in_plain_words() {
        assert!(pattern("(?i)error|^warn").unwrap().is_match("an ERROR"));
        for (bad, why) in [
            ("(".to_owned(), "unclosed group"),
            ("x".repeat(LONGEST_PATTERN + 1), "longer than 1024"),
            ("(((a{100}){100}){100}){100}".to_owned(), "too large"),
            ("\\w{1000}{1000}".to_owned(), "too large"),
        ] {
            let told = pattern(&bad).unwrap_err();
            assert!(told.contains(why) && told.len() < 200, "{told}");
        }
    }
}
