//! What a container of a made-up machine says: the log of a small service, so that there is something to read.

use std::{fmt::Write as _, fs, io, path::Path};

use jiff::{SignedDuration, Timestamp};
use toft_model::ids::InstanceId;

use crate::agent::made_up::hash;

/// How many requests it has answered.
const REQUESTS: u64 = 60;
/// The time between two of them at most, in milliseconds.
const PAUSE_MS: u64 = 9_000;

/// Writes its log, in the logger's format, as if it had run for some minutes until `now`.
pub(super) fn write(dir: &Path, id: InstanceId, now: Timestamp) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("current.log"), log(&id.to_string(), now))
}

fn log(id: &str, now: Timestamp) -> String {
    let pauses: Vec<u64> = (0..REQUESTS).map(|i| 200 + hash(&format!("{id} {i}")) % PAUSE_MS).collect();
    let whole = pauses.iter().sum::<u64>();
    let mut at = now - SignedDuration::from_millis(i64::try_from(whole).unwrap_or(0));
    let mut text = String::new();
    let mut say = |at: Timestamp, stream: &str, words: &str| {
        let _ = writeln!(text, "{at:.9} {stream} F {words}");
    };
    say(at, "stdout", "listening on 0.0.0.0:8080");
    for (i, pause) in pauses.iter().enumerate() {
        at += SignedDuration::from_millis(i64::try_from(*pause).unwrap_or(0));
        let (taken, tokens) = (40 + pause % 1_900, 20 + pause % 480);
        match pause % 11 {
            0 => say(at, "stderr", &format!("warning: {} requests wait", 2 + pause % 5)),
            1 | 2 => say(at, "stdout", "GET /healthz 200 in 1 ms"),
            3 => say(at, "stdout", &format!("GET /v1/models 200 in {} ms", 1 + i % 4)),
            _ => say(at, "stdout", &format!("POST /v1/chat/completions 200 in {taken} ms, {tokens} tokens")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_for_the_same_container_and_ends_now() {
        let now: Timestamp = "2026-01-02T03:04:05.006Z".parse().unwrap();
        let said = log("one", now);
        assert_eq!(said, log("one", now));
        assert_ne!(said, log("two", now));
        assert_eq!(said.lines().count() as u64, REQUESTS + 1);
        assert!(said.lines().last().unwrap().starts_with("2026-01-02T03:04:05.006000000Z std"), "{said}");
    }
}
