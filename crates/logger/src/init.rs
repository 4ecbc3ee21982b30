//! The first process of a container that asks for one: starts the command, passes on to it every signal it gets, buries
//! the processes whose parents died, and ends as the command ends.
//!
//! `toft-logger init COMMAND [ARGUMENT...]`. The kernel does for the first process what no other has to mind: it becomes
//! the parent of orphans, and signals it does not handle do not reach it.

use std::ffi::{OsString, c_int};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::ptr::null_mut;

use crate::kill;

const SIG_BLOCK: c_int = 0;
const SIG_SETMASK: c_int = 2;
const SIGCHLD: c_int = 17;
const WNOHANG: c_int = 1;
/// Signals that speak of a fault of this very process: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS.
const FAULTS: [c_int; 7] = [4, 5, 6, 7, 8, 11, 31];

/// The C library's set of signals.
#[repr(C, align(8))]
struct SignalSet([u8; 128]);

unsafe extern "C" {
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn sigdelset(set: *mut SignalSet, signal: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn sigwait(set: *const SignalSet, signal: *mut c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
}

/// Runs the command to its end and gives its exit code, 128 + signal when a signal ended it.
pub(crate) fn run(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(program) = words.next() else {
        eprintln!("toft-init: no command was given");
        return ExitCode::from(127);
    };
    let mut signals = SignalSet([0; 128]);
    // SAFETY: the set is alive and as large as the C library's.
    unsafe {
        sigfillset(&raw mut signals);
        for signal in FAULTS {
            sigdelset(&raw mut signals, signal);
        }
        // Held back until they are asked for.
        sigprocmask(SIG_BLOCK, &raw const signals, null_mut());
    }
    let mut command = Command::new(&program);
    command.args(words);
    // SAFETY: the call is allowed between fork and exec, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            let none = SignalSet([0; 128]);
            sigprocmask(SIG_SETMASK, &raw const none, null_mut());
            Ok(())
        });
    }
    let child = match command.spawn() {
        Ok(child) => c_int::try_from(child.id()).unwrap_or(c_int::MAX),
        Err(error) => {
            eprintln!("toft-init: `{}` could not be started: {error}", program.display());
            return ExitCode::from(if error.kind() == ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    loop {
        let mut signal = 0;
        // SAFETY: both live until the call returns.
        if unsafe { sigwait(&raw const signals, &raw mut signal) } != 0 {
            continue;
        }
        if signal != SIGCHLD {
            // SAFETY: plain numbers; the command is not buried yet, so its number is still its own.
            unsafe { kill(child, signal) };
        } else if let Some(status) = bury(child) {
            return ExitCode::from(code(status));
        }
    }
}

/// Buries every process that has ended; how the command ended, if it did.
fn bury(child: c_int) -> Option<c_int> {
    let mut ended = None;
    loop {
        let mut status = 0;
        // SAFETY: the number lives until the call returns.
        let pid = unsafe { waitpid(-1, &raw mut status, WNOHANG) };
        if pid <= 0 {
            return ended;
        }
        if pid == child {
            ended = Some(status);
        }
    }
}

/// A wait status as a shell tells it.
fn code(status: c_int) -> u8 {
    let signal = status & 0x7f;
    let code = if signal == 0 { (status >> 8) & 0xff } else { 128 + signal };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_a_shell_tells_them() {
        assert_eq!(code(0), 0);
        assert_eq!(code(7 << 8), 7);
        assert_eq!(code(9), 137);
        assert_eq!(code(0x80 | 11), 139);
    }
}
