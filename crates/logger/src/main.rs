//! The per-container logger: turns what a container writes into a rotated log on disk.
//!
//! containerd's shim starts one of these for each container whose logging URI is
//! `binary:///.../toft-logger?dir=...&max_bytes=...&max_files=...`. The query arrives as argv
//! pairs in any order; file descriptors 3 and 4 are the container's stdout and stderr, and
//! closing 5 says that the container may start. Nothing slow happens before that.
//!
//! It is one thread with fixed buffers, because there is one for every running container. It
//! outlives the daemon, never blocks the container on a full disk (it drops lines and says how
//! many), and leaves only when both pipes are at their end: the shim's SIGTERM is ignored, or
//! the container's last words would be lost.
//!
//! Beside an exclusive instance it also watches that instance's lease ([`guard`]).
//!
//! The same program is the first process of containers that ask for one ([`init`]), and the logger of those with input or
//! a terminal, which it reads through named pipes and passes on to whoever listens ([`beside`]).

mod beside;
mod config;
mod guard;
mod init;
mod journal;
mod lines;
mod stamp;
mod taps;

use std::ffi::{c_int, c_short, c_ulong};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::Config;
use guard::Guard;
use journal::Journal;
use lines::Lines;
use stamp::Source;

const STDOUT_FD: c_int = 3;
const STDERR_FD: c_int = 4;
const READY_FD: c_int = 5;

const POLLIN: c_short = 0x1;
const SIG_IGN: usize = 1;
const SIGHUP: c_int = 1;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGXFSZ: c_int = 25;

#[repr(C)]
#[derive(Clone, Copy)]
struct PollFd {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

unsafe extern "C" {
    #[link_name = "poll"]
    fn poll_raw(fds: *mut PollFd, count: c_ulong, timeout_ms: c_int) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
    fn close(fd: c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
}

/// Waits until one of them is ready, or for so long; negative for ever.
fn poll(entries: &mut [PollFd], timeout_ms: c_int) {
    // SAFETY: the slice is alive and as long as we say.
    unsafe { poll_raw(entries.as_mut_ptr(), entries.len() as c_ulong, timeout_ms) };
}

/// The shortest of what poll may sleep; negative for ever.
fn shortest(timeouts_ms: impl IntoIterator<Item = i32>) -> i32 {
    timeouts_ms.into_iter().filter(|timeout| *timeout >= 0).min().unwrap_or(-1)
}

/// Something to read, to be polled for; a negative descriptor is passed over.
fn wait(fd: c_int) -> PollFd {
    PollFd { fd, events: POLLIN, revents: 0 }
}

/// One of the container's two output pipes.
struct Pipe {
    source: Source,
    file: Option<File>,
    lines: Lines,
}

impl Pipe {
    /// Takes over an inherited descriptor.
    fn new(source: Source, fd: c_int) -> Self {
        // SAFETY: by containerd's contract the descriptor is ours alone, and nothing else here opens it.
        Self::of(source, unsafe { File::from_raw_fd(fd) })
    }

    fn of(source: Source, file: File) -> Self {
        Self { source, file: Some(file), lines: Lines::new() }
    }

    fn is_open(&self) -> bool {
        self.file.is_some()
    }

    fn source(&self) -> Source {
        self.source
    }

    /// Reads once, shows the bytes to `see`, and hands every finished piece to `journal`. At the end of the pipe the
    /// unfinished last line goes too, and the pipe closes.
    fn read_into(&mut self, journal: &mut Journal, terminal: bool, see: impl FnOnce(&[u8])) {
        let Some(file) = self.file.as_mut() else { return };
        let space = self.lines.free();
        let outcome = file.read(space);
        if let Ok(count @ 1..) = outcome {
            see(&space[..count]);
        }
        // Records of one read are one nanosecond apart, so no two of one logger share a time.
        let mut time = since_epoch();
        let mut push = |piece: lines::Piece<'_>| {
            let bare = piece.text.strip_suffix(b"\r").filter(|_| terminal && piece.last);
            journal.push(self.source, lines::Piece { text: bare.unwrap_or(piece.text), ..piece }, time);
            time += Duration::from_nanos(1);
        };
        match outcome {
            Ok(0) => {
                self.lines.finish(&mut push);
                self.file = None;
            }
            Ok(count) => self.lines.advance(count, &mut push),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.lines.finish(&mut push);
                self.file = None;
            }
        }
    }

    fn poll_entry(&self) -> PollFd {
        wait(self.file.as_ref().map_or(-1, File::as_raw_fd))
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "init").is_some() {
        return init::run(arguments);
    }
    if arguments.next_if(|first| first == "beside").is_some() {
        return beside::start(arguments);
    }
    if arguments.next_if(|first| first == "pipes").is_some() {
        return beside::run(arguments);
    }
    let mut config = match Config::from_pairs(arguments) {
        Ok(config) => config,
        Err(message) => {
            eprintln!("toft-logger: {message}");
            return ExitCode::from(2);
        }
    };
    ignore_signals();
    // SAFETY: closing a descriptor number; one that is not open is an error we do not mind.
    unsafe { close(READY_FD) };
    let guard = config.lease.take().map(Guard::new);
    let mut journal = Journal::open(config);
    drain(&mut journal, guard);
    ExitCode::SUCCESS
}

/// Copies both pipes to `journal` until both are at their end.
fn drain(journal: &mut Journal, mut guard: Option<Guard>) {
    let mut stdout = Pipe::new(Source::Stdout, STDOUT_FD);
    let mut stderr = Pipe::new(Source::Stderr, STDERR_FD);
    while stdout.is_open() || stderr.is_open() {
        let mut entries = [stdout.poll_entry(), stderr.poll_entry()];
        let timeouts = [journal.poll_timeout_ms(), guard.as_ref().map_or(-1, Guard::poll_timeout_ms)];
        poll(&mut entries, shortest(timeouts));
        guard.iter_mut().for_each(Guard::look);
        for (pipe, entry) in [&mut stdout, &mut stderr].into_iter().zip(entries) {
            if entry.revents != 0 {
                pipe.read_into(journal, false, |_| {});
            }
        }
        journal.flush();
    }
    journal.finish();
}

/// Signals that ask for an end are ignored, because the end of the pipes is the only one; a
/// file size limit shall be a failed write, not a death.
fn ignore_signals() {
    for number in [SIGHUP, SIGINT, SIGTERM, SIGXFSZ] {
        // SAFETY: SIG_IGN installs no code of ours.
        unsafe { signal(number, SIG_IGN) };
    }
}

/// The time of day, as the span since 1970 in UTC.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
