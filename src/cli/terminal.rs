//! The terminal this command runs on, lent to a process elsewhere.

use std::io::{IsTerminal, stdin, stdout};

use nix::{
    libc,
    sys::termios::{InputFlags, LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
};
use toft_model::exec::TerminalSize;

use super::Failure;

/// What a terminal is taken for that does not tell its size.
const USUAL: TerminalSize = TerminalSize { columns: 80, rows: 24 };

/// A terminal that hands over every key, until this is dropped: at the end, on an error and in a panic.
pub(super) struct Raw(Termios);

impl Raw {
    /// Hands over everything, what ends a command too. Standard input is a terminal.
    pub(super) fn begin() -> Result<Self, Failure> {
        Self::with(cfmakeraw)
    }

    /// Hands over each key as it is pressed, and still makes signals of those that mean one.
    pub(super) fn keys() -> Result<Self, Failure> {
        Self::with(|terminal| {
            terminal.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            // control-Q is a key like others.
            terminal.input_flags.remove(InputFlags::IXON);
        })
    }

    fn with(change: impl FnOnce(&mut Termios)) -> Result<Self, Failure> {
        let failed = |error: nix::errno::Errno| Failure::of(1, format!("the terminal cannot be used: {error}"));
        let before = tcgetattr(stdin()).map_err(failed)?;
        let mut raw = before.clone();
        change(&mut raw);
        let kept = Self(before);
        tcsetattr(stdin(), SetArg::TCSADRAIN, &raw).map_err(failed)?;
        Ok(kept)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if tcsetattr(stdin(), SetArg::TCSADRAIN, &self.0).is_err() {
            eprintln!("\r\nthe terminal stays as it is; `stty sane` helps");
        }
    }
}

/// Whether keys come from a terminal.
pub(super) fn has_keys() -> bool {
    stdin().is_terminal()
}

/// Its size now.
pub(super) fn size() -> TerminalSize {
    let ask = |fd: i32| {
        // SAFETY: the call fills the structure it is given and nothing else.
        let size = unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            (libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) == 0).then_some(size)
        };
        size.filter(|size| size.ws_col > 0 && size.ws_row > 0)
    };
    let known = if stdout().is_terminal() { ask(libc::STDOUT_FILENO) } else { None };
    let known = known.or_else(|| ask(libc::STDIN_FILENO));
    known.map_or(USUAL, |size| TerminalSize { columns: size.ws_col, rows: size.ws_row })
}
