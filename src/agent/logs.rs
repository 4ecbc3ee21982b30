//! Reads what a container wrote, from the files its logger keeps: `current.log`, then `current.log.1` and older.
//!
//! Records are `<RFC 3339 time> <stdout|stderr> <F|P> <text>`, `P` for a piece of a longer line (the format of the
//! Kubernetes container runtime interface).

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use toft_model::log::{LogLine, LogStream};
use tokio::{io::unix::AsyncFd, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// Longest record read; the logger's are at most 16 KiB of text.
const MAX_RECORD: u64 = 64 * 1024;
/// Lines handed over at once.
const CHUNK: usize = 512;

/// Which lines are wanted of one container.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Only the last so many.
    pub tail: Option<usize>,
    /// Only those at or after, in nanoseconds since 1970.
    pub since_ns: Option<i64>,
    /// Go on until this is cancelled, and then to the end of what is written.
    pub follow: Option<CancellationToken>,
}

/// Sends the wanted lines of the logs in `dir`, oldest first. Ends when the receiver is gone.
pub async fn read(dir: PathBuf, reading: Reading, lines: mpsc::Sender<Vec<LogLine>>) -> io::Result<()> {
    let watch = match &reading.follow {
        Some(_) => Some(Watch::of(&dir)?),
        None => None,
    };
    let (tail, since) = (reading.tail, reading.since_ns);
    let from = dir.clone();
    let sender = lines.clone();
    let mut position = blocking(move || existing(&from, tail, since, &sender)).await?;
    let (Some(ended), Some(watch)) = (reading.follow, watch) else { return Ok(()) };
    loop {
        // Looked at before reading: what was written before the end is then surely read.
        let last = ended.is_cancelled();
        let from = dir.clone();
        let sender = lines.clone();
        position = blocking(move || position.read_on(&from, &sender)).await?;
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

/// The log files, oldest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut numbered: Vec<(u32, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.strip_prefix("current.log.")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    numbered.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let mut files: Vec<PathBuf> = numbered.into_iter().map(|(_, path)| path).collect();
    files.push(dir.join("current.log"));
    files
}

/// Reads what there is; gives where `current.log` was left.
fn existing(
    dir: &Path,
    tail: Option<usize>,
    since: Option<i64>,
    lines: &mpsc::Sender<Vec<LogLine>>,
) -> io::Result<Position> {
    let mut last = VecDeque::new();
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut position = Position::default();
    for path in tail.map_or_else(|| files(dir), |tail| tail_files(dir, tail)) {
        let Some((file, inode)) = open(&path)? else { continue };
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut offset = 0;
        if let Some(tail) = tail {
            offset = seek_before_last(reader.get_mut(), tail)?;
            reader.seek(SeekFrom::Start(offset))?;
        }
        while let Some((line, length)) = record(&mut reader)? {
            offset += length;
            let Some(line) = line.filter(|line| since.is_none_or(|since| line.at_ns >= since)) else { continue };
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
        position = Position { inode, offset };
    }
    chunk.extend(last);
    for part in chunk.chunks(CHUNK) {
        if lines.blocking_send(part.to_vec()).is_err() {
            break;
        }
    }
    Ok(position)
}

/// The newest files that surely hold the last `tail` lines.
fn tail_files(dir: &Path, tail: usize) -> Vec<PathBuf> {
    let mut chosen = Vec::new();
    let mut counted = 0;
    for path in files(dir).into_iter().rev() {
        chosen.push(path.clone());
        counted +=
            open(&path).ok().flatten().map_or(0, |(file, _)| BufReader::new(file).split(b'\n').take(tail + 1).count());
        if counted > tail {
            break;
        }
    }
    chosen.reverse();
    chosen
}

/// The offset from which a file holds its last `lines` lines.
fn seek_before_last(file: &mut std::fs::File, lines: usize) -> io::Result<u64> {
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

fn open(path: &Path) -> io::Result<Option<(std::fs::File, u64)>> {
    match std::fs::File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((file, inode)))
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

/// Where reading left the newest file.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    inode: u64,
    offset: u64,
}

impl Position {
    /// Reads what came since, over any number of rotations.
    fn read_on(mut self, dir: &Path, lines: &mpsc::Sender<Vec<LogLine>>) -> io::Result<Self> {
        let all = files(dir);
        let known = all.iter().position(|path| std::fs::metadata(path).is_ok_and(|meta| meta.ino() == self.inode));
        // A file that was rotated out of existence leaves a gap; reading goes on with the oldest that is left.
        for (i, path) in all.iter().enumerate().skip(known.unwrap_or(0)) {
            let Some((file, inode)) = open(path)? else { continue };
            let offset = if known == Some(i) && inode == self.inode { self.offset } else { 0 };
            let mut reader = BufReader::with_capacity(64 * 1024, file);
            reader.seek(SeekFrom::Start(offset))?;
            self = Self { inode, offset };
            let mut chunk = Vec::new();
            while let Some((line, length)) = record(&mut reader)? {
                self.offset += length;
                chunk.extend(line);
                if chunk.len() == CHUNK && lines.blocking_send(std::mem::take(&mut chunk)).is_err() {
                    return Ok(self);
                }
            }
            if !chunk.is_empty() && lines.blocking_send(chunk).is_err() {
                return Ok(self);
            }
        }
        Ok(self)
    }
}
