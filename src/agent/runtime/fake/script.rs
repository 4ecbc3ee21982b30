//! What the fake understands of a container's command.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::ContainerSpec;
use crate::agent::runtime::HostMount;

/// The life of a fake process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    /// Ends by itself after that time with that code.
    pub(super) ends: Option<(Duration, i32)>,
    /// Ends with that code when asked to; without, the signal ends it.
    trap: Option<i32>,
}

impl Script {
    /// Reads the command. `true`, `false`, `exit N`, `sleep N`, `test -e PATH || exit N` and `echo WORD >PATH || exit N` on what
    /// is bound, and `sh -c` with
    /// these in a row mean what they say, a `trap 'exit N' ...` is obeyed, `no-such-...` is not in the image (`Err`), and everything else runs on.
    pub(super) fn of(spec: &ContainerSpec) -> Result<Self, String> {
        let words: Vec<&str> = spec.entrypoint.iter().flatten().chain(&spec.command).map(String::as_str).collect();
        if let Some(command) = words.first().filter(|word| word.starts_with("no-such-")) {
            return Err((*command).to_owned());
        }
        let text = match words.as_slice() {
            ["sh", "-c", script] | ["/bin/sh", "-c", script] => (*script).to_owned(),
            words => words.join(" "),
        };
        let mut script = Self { ends: None, trap: None };
        let mut passed = Duration::ZERO;
        for step in text.split(';').map(str::trim) {
            if let Some(code) = step.strip_prefix("trap 'exit ").and_then(|rest| rest.split('\'').next()?.parse().ok())
            {
                script.trap = Some(code);
                continue;
            }
            if let Some((path, code)) = step.strip_prefix("test -e ").and_then(|rest| rest.split_once(" || exit ")) {
                script.ends = Some((passed, 0));
                if !is_bound(spec, Path::new(path)) {
                    script.ends = Some((passed, code.parse().unwrap_or(1)));
                    return Ok(script);
                }
                continue;
            }
            if let Some((text, rest)) = step.strip_prefix("echo ").and_then(|rest| rest.split_once(" >"))
                && let Some((path, code)) = rest.split_once(" || exit ")
            {
                script.ends = Some((passed, 0));
                if !writes(spec, Path::new(path), text) {
                    script.ends = Some((passed, code.parse().unwrap_or(1)));
                    return Ok(script);
                }
                continue;
            }
            let mut words = step.split_whitespace();
            match (words.next(), words.next()) {
                (Some("exit"), code) => {
                    script.ends = Some((passed, code.and_then(|code| code.parse().ok()).unwrap_or(0)));
                    return Ok(script);
                }
                (Some("sleep"), Some(seconds)) => {
                    passed +=
                        seconds.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_default();
                    script.ends = Some((passed, 0));
                }
                (Some("true"), None) => script.ends = Some((passed, 0)),
                (Some("false"), None) => script.ends = Some((passed, 1)),
                _ => {
                    script.ends = None;
                    return Ok(script);
                }
            }
        }
        Ok(script)
    }

    /// The code a signal ends it with.
    pub(super) fn on_signal(&self, signal: i32) -> Option<i32> {
        Some(self.trap.unwrap_or(128 + signal))
    }
}

/// Whether the container sees a file that lies on the host.
fn is_bound(spec: &ContainerSpec, path: &Path) -> bool {
    let outside = |(inside, outside): (&PathBuf, &PathBuf)| Some(outside.join(path.strip_prefix(inside).ok()?));
    let mounts = spec.mounts.iter().map(|mount| (&mount.target, &mount.source));
    spec.files.iter().chain(mounts).filter_map(outside).any(|outside| outside.exists())
}

/// Writes a line into a file of what is mounted; `false` when it cannot.
fn writes(spec: &ContainerSpec, path: &Path, text: &str) -> bool {
    let place = |mount: &HostMount| Some((mount.source.join(path.strip_prefix(&mount.target).ok()?), mount.read_only));
    let outside = spec.mounts.iter().find_map(place);
    outside.is_some_and(|(outside, read_only)| !read_only && std::fs::write(outside, format!("{text}\n")).is_ok())
}
