//! Who listens to a container's output besides the log: connections to a socket, each of which gets the bytes as they come.
//!
//! A listener's first byte says what it wants: `o` the output, `O` the output without a loss, `e` the end alone. It then gets
//! frames: one byte for the kind (1 stdout, 2 stderr, 3 the end), the length as four bytes, highest first, and as many bytes.
//! While a listener has not taken what came, nothing more is read of the container: for an `o` five seconds long, then it is
//! cut off, without the frame of the end.

use std::ffi::{c_int, c_short, c_void};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::stamp::Source;
use crate::{POLLIN, PollFd};

/// Most listeners of a container.
const MOST_TAPS: usize = 64;
/// How long a listener may hold up a container.
const PATIENCE: Duration = Duration::from_secs(5);
/// Room in the kernel for what a listener has not taken when everything ends.
const LAST_ROOM: c_int = 1 << 20;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const END: u8 = 3;

const POLLOUT: c_short = 0x4;
const POLLERR: c_short = 0x8;
const POLLHUP: c_short = 0x10;
const SOL_SOCKET: c_int = 1;
const SO_SNDBUF: c_int = 7;
const SO_SNDBUFFORCE: c_int = 32;

unsafe extern "C" {
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: u32) -> c_int;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Unsaid,
    Output,
    Lossless,
    End,
}

struct Tap {
    stream: UnixStream,
    wish: Wish,
    /// What it has yet to take, and since when.
    pending: Vec<u8>,
    since: Option<Instant>,
}

/// The listeners of one container.
pub struct Taps {
    listener: UnixListener,
    taps: Vec<Tap>,
}

impl Taps {
    /// Takes listeners on `listener`.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, taps: Vec::new() })
    }

    /// Whether the container has to wait.
    pub fn hold(&self) -> bool {
        self.taps.iter().any(|tap| !tap.pending.is_empty())
    }

    /// When the next listener is to be cut off, in milliseconds from now; negative for never.
    pub fn poll_timeout_ms(&self) -> i32 {
        let impatient = self.taps.iter().filter(|tap| tap.wish == Wish::Output);
        let first = impatient.filter_map(|tap| tap.since).min();
        first.map_or(-1, |since| {
            let left = PATIENCE.saturating_sub(since.elapsed()).as_millis() + 1;
            i32::try_from(left).unwrap_or(i32::MAX)
        })
    }

    /// Adds what to poll for: the socket and each listener.
    pub fn poll_entries(&self, entries: &mut Vec<PollFd>) {
        let entry = |fd, events| PollFd { fd, events, revents: 0 };
        entries.push(entry(self.listener.as_raw_fd(), POLLIN));
        entries.extend(self.taps.iter().map(|tap| {
            let events = match tap.wish {
                Wish::Unsaid => POLLIN,
                _ if !tap.pending.is_empty() => POLLOUT,
                _ => 0,
            };
            entry(tap.stream.as_raw_fd(), events)
        }));
    }

    /// Does what has become possible; `entries` are those of [`Taps::poll_entries`], polled.
    pub fn serve(&mut self, entries: &[PollFd]) {
        let Some((listener, polled)) = entries.split_first() else { return };
        let mut polled = polled.iter();
        self.taps.retain_mut(|tap| polled.next().is_none_or(|entry| tap.serve(entry.revents)));
        if listener.revents != 0 {
            self.accept();
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.taps.len() < MOST_TAPS && stream.set_nonblocking(true).is_ok() {
                let mut tap = Tap { stream, wish: Wish::Unsaid, pending: Vec::new(), since: None };
                // What it has said already counts for what is read next.
                if tap.serve(POLLIN) {
                    self.taps.push(tap);
                }
            }
        }
    }

    /// Passes on what was read.
    pub fn pass_on(&mut self, source: Source, bytes: &[u8]) {
        if !self.taps.iter().any(|tap| tap.listens()) {
            return;
        }
        let kind = match source {
            Source::Stdout => STDOUT,
            Source::Stderr => STDERR,
        };
        let frame = frame(kind, bytes);
        self.taps.retain_mut(|tap| !tap.listens() || tap.give(&frame));
    }

    /// Tells everybody that this was all. It stays in the kernel until they take it.
    pub fn finish(mut self) {
        self.accept();
        let end = frame(END, &[]);
        for tap in &mut self.taps {
            make_room(&tap.stream);
            tap.give(&end);
        }
    }
}

impl Tap {
    fn listens(&self) -> bool {
        matches!(self.wish, Wish::Output | Wish::Lossless)
    }

    /// Whether it stays.
    fn serve(&mut self, events: c_short) -> bool {
        if events & (POLLERR | POLLHUP) != 0 {
            return false;
        }
        if self.wish == Wish::Unsaid && events & POLLIN != 0 {
            let mut word = [0];
            self.wish = match self.stream.read(&mut word) {
                Ok(1) if word == *b"o" => Wish::Output,
                Ok(1) if word == *b"O" => Wish::Lossless,
                Ok(1) if word == *b"e" => Wish::End,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Wish::Unsaid,
                _ => return false,
            };
        }
        let expired = self.wish == Wish::Output && self.since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let there = events & POLLOUT == 0 || self.take();
        there && (!expired || self.pending.is_empty())
    }

    /// Hands over a frame, or keeps what is not taken; `false` when nobody is there.
    fn give(&mut self, frame: &[u8]) -> bool {
        self.pending.extend_from_slice(frame);
        self.take()
    }

    fn take(&mut self) -> bool {
        let mut taken = 0;
        while taken < self.pending.len() {
            match self.stream.write(&self.pending[taken..]) {
                Ok(count @ 1..) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return false,
            }
        }
        self.pending.drain(..taken);
        if self.pending.is_empty() {
            self.since = None;
        } else {
            self.since.get_or_insert_with(Instant::now);
        }
        true
    }
}

fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes.len() + 5);
    frame.push(kind);
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

fn make_room(stream: &UnixStream) {
    let room = LAST_ROOM;
    for name in [SO_SNDBUF, SO_SNDBUFFORCE] {
        // SAFETY: the value is alive and as long as we say; a refusal leaves the room as it was.
        unsafe { setsockopt(stream.as_raw_fd(), SOL_SOCKET, name, (&raw const room).cast(), 4) };
    }
}
