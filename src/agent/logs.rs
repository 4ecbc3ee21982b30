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
/// Most lines handed over at once, and about how many bytes of them.
const CHUNK: usize = 512;
const CHUNK_BYTES: usize = 256 * 1024;
/// Most bytes of lines that were looked for and are held until the last of them is known.
const MAX_FOUND_BYTES: usize = 16 << 20;

/// Longest regular expression, in bytes, and most bytes it may take once it is understood.
const LONGEST_PATTERN: usize = 1024;
const LARGEST_PATTERN: usize = 1 << 20;

/// Which lines are wanted of one container.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Only the last so many of those that `wanted` leaves; of lines that were looked for at most 16 MiB.
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
    let mut files = files(dir)?;
    let from = match tail {
        Some(tail) if wanted.has_the_last() => keep_last(&mut files, tail)?,
        Some(tail) => return found_last(files, tail, wanted, lines),
        None => 0,
    };
    Position::default().read_files(files.into_iter(), from, wanted, lines)
}

/// Leaves the files that hold the last `tail` lines; gives where those begin in the first of them. Nothing but the ends of lines is
/// looked at, from the newest on.
fn keep_last(files: &mut Vec<LogFile>, tail: usize) -> io::Result<u64> {
    let mut left = tail;
    for (i, log) in files.iter_mut().enumerate().rev() {
        match seek_before_last(&mut log.file, left)? {
            Last::From(offset) => {
                files.drain(..i);
                return Ok(offset);
            }
            Last::Fewer(lines) => left -= lines,
        }
    }
    Ok(0)
}

/// Sends the last `tail` lines that are wanted. The newest file is looked through first: older ones only for what it lacks.
fn found_last(
    files: Vec<LogFile>,
    tail: usize,
    wanted: &Wanted,
    lines: &mpsc::Sender<Vec<LogLine>>,
) -> io::Result<Position> {
    let (mut left, mut room) = (tail, MAX_FOUND_BYTES);
    let mut position = Position::default();
    let mut found: Vec<VecDeque<LogLine>> = Vec::new();
    for mut log in files.into_iter().rev() {
        if position.newest.is_some() && (left == 0 || lines.is_closed()) {
            break;
        }
        log.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(64 * 1024, &log.file);
        let (mut offset, mut bytes, mut last) = (0, 0, VecDeque::new());
        while let Some((line, length)) = record(&mut reader)? {
            offset += length;
            let Some(line) = line.filter(|line| wanted.has(line)) else { continue };
            bytes += line.text.len();
            last.push_back(line);
            while last.len() > left || bytes > room {
                let Some(first): Option<LogLine> = last.pop_front() else { break };
                bytes -= first.text.len();
            }
        }
        (left, room) = (left - last.len(), room - bytes);
        found.push(last);
        if position.newest.is_none() {
            position = Position { newest: Some(log), offset };
        }
    }
    let mut chunk = Chunk::default();
    for line in found.into_iter().rev().flatten() {
        if !chunk.add(line, lines) {
            return Ok(position);
        }
    }
    chunk.send(lines);
    Ok(position)
}

/// Lines that are handed over together.
#[derive(Default)]
struct Chunk {
    lines: Vec<LogLine>,
    bytes: usize,
}

impl Chunk {
    /// Adds a line, and hands over what is enough; whether somebody is there to take it.
    fn add(&mut self, line: LogLine, to: &mpsc::Sender<Vec<LogLine>>) -> bool {
        self.bytes += line.text.len();
        self.lines.push(line);
        (self.lines.len() < CHUNK && self.bytes < CHUNK_BYTES) || self.send(to)
    }

    fn send(&mut self, to: &mpsc::Sender<Vec<LogLine>>) -> bool {
        self.bytes = 0;
        self.lines.is_empty() || to.blocking_send(std::mem::take(&mut self.lines)).is_ok()
    }
}

/// Where the last lines of a file begin.
enum Last {
    /// There.
    From(u64),
    /// It has only so many.
    Fewer(usize),
}

/// Finds where a file's last `lines` lines begin.
fn seek_before_last(file: &mut File, lines: usize) -> io::Result<Last> {
    let mut end = file.metadata()?.len();
    let mut ends = 0;
    let mut block = vec![0; 64 * 1024];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        for (at, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if ends == lines {
                return Ok(Last::From(start + at as u64 + 1));
            }
            ends += 1;
        }
        end = start;
    }
    Ok(if ends == lines { Last::From(0) } else { Last::Fewer(ends) })
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
    fn read_on(self, dir: &Path, wanted: &Wanted, lines: &mpsc::Sender<Vec<LogLine>>) -> io::Result<Self> {
        let files = files(dir)?;
        let known = self.newest.as_ref().and_then(|newest| files.iter().position(|log| log.inode == newest.inode));
        // A file that was rotated out of existence leaves a gap; reading goes on with the oldest that is left.
        let from = if known.is_some() { self.offset } else { 0 };
        self.read_files(files.into_iter().skip(known.unwrap_or(0)), from, wanted, lines)
    }

    /// Reads files to their ends, the first of them from an offset.
    fn read_files(
        mut self,
        files: impl Iterator<Item = LogFile>,
        from: u64,
        wanted: &Wanted,
        lines: &mpsc::Sender<Vec<LogLine>>,
    ) -> io::Result<Self> {
        let mut from = Some(from);
        for mut log in files {
            self.offset = from.take().unwrap_or(0);
            log.file.seek(SeekFrom::Start(self.offset))?;
            let mut reader = BufReader::with_capacity(64 * 1024, &log.file);
            let mut chunk = Chunk::default();
            while let Some((line, length)) = record(&mut reader)? {
                self.offset += length;
                if let Some(line) = line.filter(|line| wanted.has(line))
                    && !chunk.add(line, lines)
                {
                    return Ok(self);
                }
            }
            let taken = chunk.send(lines);
            self.newest = Some(log);
            if !taken {
                return Ok(self);
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize, text: &str) -> String {
        format!("2026-01-01T00:00:{:02}Z stdout F {text}\n", number % 60)
    }

    fn texts(dir: &Path, tail: Option<usize>, grep: Option<&str>) -> Vec<String> {
        let (sender, mut lines) = mpsc::channel(10_000);
        let wanted = Wanted { grep: grep.map(|grep| pattern(grep).unwrap()), ..Wanted::default() };
        existing(dir, tail, &wanted, &sender).unwrap();
        drop(sender);
        let mut texts = Vec::new();
        while let Some(chunk) = lines.blocking_recv() {
            assert!(chunk.iter().map(|line| line.text.len()).sum::<usize>() < CHUNK_BYTES + (MAX_RECORD as usize));
            texts.extend(chunk.into_iter().map(|line| line.text));
        }
        texts
    }

    #[test]
    fn the_last_lines_are_found_over_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, numbers: std::ops::Range<usize>, unfinished: &str| {
            let all: String = numbers.map(|number| line(number, &format!("n{number}"))).collect();
            std::fs::write(dir.path().join(name), all + unfinished).unwrap();
        };
        write("current.log.2", 0..10, "");
        write("current.log.1", 10..20, "");
        write("current.log", 20..25, "2026-01-01T00:00:00Z stdout F not yet");
        let numbers = |from: usize| (from..25).map(|number| format!("n{number}")).collect::<Vec<_>>();
        for tail in [0, 1, 4, 5, 6, 15, 16, 24, 25, 26, 1_000] {
            assert_eq!(texts(dir.path(), Some(tail), None), numbers(25usize.saturating_sub(tail)), "{tail}");
            let found = texts(dir.path(), Some(tail), Some("^n[0-9]*[05]$"));
            let want = ["n0", "n5", "n10", "n15", "n20"];
            assert_eq!(found, want[want.len().saturating_sub(tail)..], "{tail}");
        }
        assert_eq!(texts(dir.path(), None, None), numbers(0));
        // Large lines: what was looked for is bounded.
        let large: String = (0..2_000).map(|number| line(number, &"x".repeat(16 << 10))).collect();
        std::fs::write(dir.path().join("current.log"), large).unwrap();
        assert_eq!(texts(dir.path(), Some(1_500), None).len(), 1_500);
        assert_eq!(texts(dir.path(), Some(1_500), Some("x")).len(), MAX_FOUND_BYTES >> 14);
    }

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
