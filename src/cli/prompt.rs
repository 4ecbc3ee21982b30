//! Questions on a terminal. Without one there are none: the caller says what to give instead.

use std::{
    fs::File,
    io::{BufRead, IsTerminal, Read, Write},
    os::fd::AsFd,
};

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};

use super::Failure;

/// What ends a line besides its end: control-C, taken as a character while nothing is echoed.
const INTERRUPT: u8 = 3;

/// Whether somebody can be asked.
pub(super) fn possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a question that only `y` or `yes` answers with yes.
pub(super) fn confirm(question: &str) -> Result<bool, Failure> {
    eprint!("{question} [y/N] ");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| unreadable(&error))?;
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Asks for a line.
pub(super) fn line(question: &str) -> Result<String, Failure> {
    eprint!("{question}: ");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| unreadable(&error))?;
    Ok(line.trim().to_owned())
}

/// Asks for a secret, which is not shown.
pub(super) fn secret(question: &str) -> Result<String, Failure> {
    eprint!("{question}: ");
    drop(std::io::stderr().flush());
    let quiet = Quiet::begin()?;
    let mut line = Vec::new();
    // Not through the shared buffer: no copy of the secret stays behind in it.
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| unreadable(&error))?;
    let mut input = File::from(input);
    let mut byte = [0];
    while input.read(&mut byte).map_err(|error| unreadable(&error))? > 0 {
        match byte[0] {
            b'\n' | b'\r' => break,
            INTERRUPT => {
                drop(quiet);
                eprintln!();
                return Err(Failure::of(130, "interrupted"));
            }
            byte => line.push(byte),
        }
    }
    drop(quiet);
    eprintln!();
    String::from_utf8(line).map_err(|_| Failure::of(2, "what was typed is no text"))
}

/// Asks for a new secret, twice.
pub(super) fn new_secret(question: &str) -> Result<String, Failure> {
    let first = secret(question)?;
    if secret("once more")? == first { Ok(first) } else { Err(Failure::of(1, "the two are not the same")) }
}

fn unreadable(error: &std::io::Error) -> Failure {
    Failure::of(1, format!("the answer cannot be read: {error}"))
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> Result<Self, Failure> {
        let failed = |error: nix::errno::Errno| Failure::of(1, format!("the terminal cannot be silenced: {error}"));
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut silent = before.clone();
        // Without ISIG no signal ends the process while the terminal is silent, which it would then stay.
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
        silent.control_chars[SpecialCharacterIndices::VEOL as usize] = INTERRUPT;
        tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &silent).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &self.0).is_err() {
            eprintln!("the terminal stays silent; `stty sane` wakes it");
        }
    }
}
