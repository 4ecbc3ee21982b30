//! From what containerd and runc say to what people read.

use std::{error::Error, time::Duration};

use tonic::{Code, Status};

use crate::agent::runtime::RuntimeError;

/// A call that containerd refused, or that never reached it.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    doing: &'static str,
    code: Code,
    text: String,
    /// The line broke: containerd itself did not speak.
    unreached: bool,
}

impl Refusal {
    /// Reads a status.
    pub(super) fn new(doing: &'static str, status: &Status) -> Self {
        let unreached = status.source().is_some() || status.code() == Code::Unavailable;
        let text = if unreached { innermost(status) } else { status.message().to_owned() };
        Self { doing, code: status.code(), text, unreached }
    }

    /// containerd did not answer in time.
    pub(super) fn timed_out(doing: &'static str, limit: Duration) -> Self {
        let text = format!("no answer within {} s while {doing}", limit.as_secs());
        Self { doing, code: Code::DeadlineExceeded, text, unreached: true }
    }

    /// What the call was about is not there.
    pub(super) fn not_found(&self) -> bool {
        !self.unreached && self.code == Code::NotFound
    }

    /// What the call would make is there already.
    pub(super) fn exists(&self) -> bool {
        !self.unreached && self.code == Code::AlreadyExists
    }

    /// Whether containerd did not answer at all.
    pub(super) fn unreached(&self) -> bool {
        self.unreached
    }

    /// containerd's words.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a process could not be started, in words for people; `None` when it is another kind of failure.
    pub(super) fn as_start_failure(&self) -> Option<RuntimeError> {
        if self.unreached || disk_full(&self.text) {
            return None;
        }
        start_failure(&self.text).map(|(reason, exit_code)| RuntimeError::StartFailed { reason, exit_code })
    }
}

impl From<Refusal> for RuntimeError {
    fn from(refusal: Refusal) -> Self {
        if disk_full(&refusal.text) {
            Self::DiskFull { doing: refusal.doing }
        } else if refusal.unreached {
            Self::Unavailable { reason: refusal.text }
        } else {
            Self::Failed { doing: refusal.doing, reason: first_line(&refusal.text) }
        }
    }
}

/// The deepest cause of a status, which is the one that names the socket's trouble.
fn innermost(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// Whether a text tells of a full disk or a used-up quota.
pub(super) fn disk_full(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("no space left on device") || text.contains("disk quota exceeded")
}

fn first_line(text: &str) -> String {
    const LONGEST: usize = 400;
    let line = text.trim().lines().next().unwrap_or_default();
    let line = line.strip_suffix(": unknown").unwrap_or(line);
    if line.len() <= LONGEST {
        line.to_owned()
    } else {
        format!("{}...", line.chars().take(LONGEST).collect::<String>())
    }
}

/// What a shell exits with when a command is there but cannot be executed.
const NOT_EXECUTABLE: i32 = 126;
/// What a shell exits with when there is no such command.
const NOT_FOUND: i32 = 127;

/// Reads the long texts of runc and crun: why, and what a shell would exit with. `None` when the text is not about
/// starting a process.
fn start_failure(text: &str) -> Option<(String, i32)> {
    // Left by a start that was cut short, and about to be cleaned up: no fault of the program.
    if text.contains("container with given ID already exists") {
        return None;
    }
    if let Some(command) = quoted_after(text, "exec: ").or_else(|| backticked_after(text, "executable file ")) {
        let lower = text.to_ascii_lowercase();
        return Some(if lower.contains("permission denied") {
            (format!("the command `{command}` is not executable"), NOT_EXECUTABLE)
        } else if lower.contains("is a directory") {
            (format!("the command `{command}` is a directory"), NOT_EXECUTABLE)
        } else if lower.contains("exec format error") {
            (format!("the command `{command}` is made for another kind of processor"), NOT_EXECUTABLE)
        } else if lower.contains("not found") || lower.contains("no such file") {
            (format!("the command `{command}` is not in the image"), NOT_FOUND)
        } else {
            (format!("the command `{command}` cannot be executed: {}", tail(text)), NOT_EXECUTABLE)
        });
    }
    if text.contains("exec format error") {
        let reason = "the command is made for another kind of processor, or a script without `#!` line";
        return Some((reason.to_owned(), NOT_EXECUTABLE));
    }
    let starting = ["OCI runtime create failed", "OCI runtime start failed", "unable to start container process"];
    starting.iter().any(|words| text.contains(words)).then(|| (tail(text), NOT_FOUND))
}

/// What follows the last of runc's own introductions.
fn tail(text: &str) -> String {
    let line = first_line(text);
    let introductions = ["unable to start container process: ", "runc create failed: ", "OCI runtime create failed: "];
    for introduction in introductions {
        if let Some((_, rest)) = line.rsplit_once(introduction) {
            return rest.to_owned();
        }
    }
    line
}

fn quoted_after(text: &str, introduction: &str) -> Option<String> {
    let (_, rest) = text.split_once(introduction)?;
    let rest = rest.trim_start_matches('\\').strip_prefix('"')?;
    let end = rest.find(['"', '\\'])?;
    Some(rest[..end].to_owned())
}

fn backticked_after(text: &str, introduction: &str) -> Option<String> {
    let (_, rest) = text.split_once(introduction)?;
    let (command, _) = rest.strip_prefix('`')?.split_once('`')?;
    Some(command.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: &str) {
        let (reason, exit_code) = start_failure(text).unwrap();
        assert_eq!(reason, want, "{text}");
        assert_eq!(exit_code == NOT_EXECUTABLE, want.contains("not executable"), "{text}");
    }

    #[test]
    fn the_runtimes_texts_become_readable() {
        let runc = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
                    container process: exec: \"nope\": executable file not found in $PATH: unknown";
        check(runc, "the command `nope` is not in the image");
        check(
            "OCI runtime create failed: runc create failed: unable to start container process: exec: \"/etc\": \
             permission denied: unknown",
            "the command `/etc` is not executable",
        );
        check(
            "OCI runtime create failed: crun: executable file `nope` not found in $PATH: No such file or directory: \
             unknown",
            "the command `nope` is not in the image",
        );
        check(
            "OCI runtime create failed: runc create failed: unable to start container process: error during container \
             init: error mounting \"x\" to rootfs: no such file or directory: unknown",
            "error during container init: error mounting \"x\" to rootfs: no such file or directory",
        );
    }

    #[test]
    fn a_full_disk_is_told_as_such() {
        let status = Status::unknown("write /x/y: no space left on device");
        let error = RuntimeError::from(Refusal::new("writing a layer", &status));
        assert!(matches!(error, RuntimeError::DiskFull { doing: "writing a layer" }), "{error}");
    }

    #[test]
    fn other_texts_are_no_start_failures() {
        assert_eq!(start_failure("container \"x\": not found"), None);
        let left = "OCI runtime create failed: runc create failed: container with given ID already exists: unknown";
        assert_eq!(start_failure(left), None);
    }
}
