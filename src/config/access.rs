//! Who comes in, and for how long.

use std::time::Duration;

use serde::Deserialize;
use toft_model::{invalid::Invalid, units::parse_span_ms};

/// `[access]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AccessSection {
    session_idle: Option<String>,
    session_max: Option<String>,
}

/// Who comes in, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessConfig {
    /// How long a session lasts without being used.
    pub session_idle: Duration,
    /// How long a session lasts at most.
    pub session_max: Duration,
}

/// Shortest and longest session.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl AccessSection {
    pub(super) fn resolve(&self, note: &mut impl FnMut(&str, Invalid)) -> AccessConfig {
        let mut span = |key: &str, text: Option<&str>, usual: &str| {
            let span = parse_span_ms(text.unwrap_or(usual)).map(Duration::from_millis);
            let span = span.and_then(|span| match (SHORTEST..=LONGEST).contains(&span) {
                true => Ok(span),
                false => Err(Invalid::value("the time is out of range", "use 1s to 366d")),
            });
            span.unwrap_or_else(|invalid| {
                note(key, invalid);
                SHORTEST
            })
        };
        AccessConfig {
            session_idle: span("access.session_idle", self.session_idle.as_deref(), "7d"),
            session_max: span("access.session_max", self.session_max.as_deref(), "30d"),
        }
    }
}
