//! The logger of a container with input or a terminal: it reads named pipes and tells listeners what it reads.
//!
//! `toft-logger beside DIR` is a hook of the container: it starts `toft-logger pipes DIR`, which stays, and ends when that is
//! ready. The directory holds `arguments` (the pairs, each word ended by a zero byte), the pipes `stdout` and, without a
//! terminal, `stderr`; the socket `tap` is made there.

use std::ffi::{OsStr, OsString, c_int, c_uint};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use crate::config::Config;
use crate::guard::Guard;
use crate::journal::Journal;
use crate::stamp::Source;
use crate::taps::Taps;
use crate::{Pipe, ignore_signals, poll, shortest, wait};

/// How long the shim may take to open the pipes, in seconds. It gives up after 30.
const OPENING: c_uint = 60;
const READY: &[u8] = b"ready";

unsafe extern "C" {
    fn alarm(seconds: c_uint) -> c_uint;
    fn dup2(from: c_int, to: c_int) -> c_int;
}

/// The hook.
pub(crate) fn start(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(dir) = words.next() else { return failed("needs the directory of the pipes") };
    let mut command = Command::new("/proc/self/exe");
    // A group of its own: what ends the runtime's shall not end it.
    command.arg("pipes").arg(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return failed(&error.to_string()),
    };
    let mut said = Vec::new();
    match child.stdout.take().map(|mut stdout| stdout.read_to_end(&mut said)) {
        Some(Ok(_)) if said == READY => ExitCode::SUCCESS,
        _ => failed(&String::from_utf8_lossy(&said)),
    }
}

/// What stays.
pub(crate) fn run(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(dir) = words.next() else { return failed("needs the directory of the pipes") };
    let prepared = prepare(Path::new(&dir));
    let said = match &prepared {
        Ok(_) => READY.to_vec(),
        Err(why) => why.clone().into_bytes(),
    };
    let told = io::stdout().write_all(&said).and_then(|()| io::stdout().flush());
    if let (Ok((config, taps)), Ok(())) = (prepared, told) {
        ignore_signals();
        match open(Path::new(&dir)) {
            Ok((stdout, stderr)) => {
                copy(config, taps, stdout, stderr);
                return ExitCode::SUCCESS;
            }
            Err(error) => return failed(&error.to_string()),
        }
    }
    ExitCode::from(2)
}

fn failed(why: &str) -> ExitCode {
    eprintln!("toft-logger: {why}");
    ExitCode::from(2)
}

fn prepare(dir: &Path) -> Result<(Config, Taps), String> {
    let arguments = fs::read(dir.join("arguments")).map_err(|error| format!("its arguments: {error}"))?;
    let words = arguments.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned());
    let config = Config::from_pairs(words)?;
    // A path of any length: an address holds 107 bytes.
    let bound = std::env::set_current_dir(dir)
        .and_then(|()| UnixListener::bind("tap"))
        .and_then(Taps::new)
        .and_then(|taps| std::env::set_current_dir("/").map(|()| taps));
    Ok((config, bound.map_err(|error| format!("its socket: {error}"))?))
}

/// Opens the pipes as soon as the shim does; the hook must have ended for that, so it is let go first.
fn open(dir: &Path) -> io::Result<(Pipe, Option<Pipe>)> {
    let null = File::options().write(true).open("/dev/null")?;
    // SAFETY: both descriptors are open and ours; the alarm ends us, which is what it is for.
    unsafe {
        dup2(null.as_raw_fd(), 1);
        alarm(OPENING);
    }
    let stdout = Pipe::of(Source::Stdout, File::open(dir.join("stdout"))?);
    let stderr = match File::open(dir.join("stderr")) {
        Ok(file) => Some(Pipe::of(Source::Stderr, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // SAFETY: takes the alarm back.
    unsafe { alarm(0) };
    Ok((stdout, stderr))
}

/// Copies the pipes to the log and to whoever listens, until both are at their end.
fn copy(mut config: Config, mut taps: Taps, mut stdout: Pipe, mut stderr: Option<Pipe>) {
    let mut guard = config.lease.take().map(Guard::new);
    let mut journal = Journal::open(config);
    // A terminal ends its lines with a carriage return, which is none of the text.
    let terminal = stderr.is_none();
    let mut entries = Vec::new();
    while stdout.is_open() || stderr.as_ref().is_some_and(Pipe::is_open) {
        entries.clear();
        entries.extend([stdout.poll_entry(), stderr.as_ref().map_or(wait(-1), Pipe::poll_entry)]);
        if taps.hold() {
            entries.iter_mut().for_each(|entry| entry.fd = -1);
        }
        taps.poll_entries(&mut entries);
        let guarded = guard.as_ref().map_or(-1, Guard::poll_timeout_ms);
        poll(&mut entries, shortest([journal.poll_timeout_ms(), taps.poll_timeout_ms(), guarded]));
        guard.iter_mut().for_each(Guard::look);
        taps.serve(&entries[2..]);
        for (pipe, entry) in [Some(&mut stdout), stderr.as_mut()].into_iter().zip(&entries[..2]) {
            if let Some(pipe) = pipe
                && entry.revents != 0
                && !taps.hold()
            {
                let source = pipe.source();
                pipe.read_into(&mut journal, terminal, |bytes| taps.pass_on(source, bytes));
            }
        }
        journal.flush();
    }
    journal.finish();
    taps.finish();
}
