//! Who comes in, and for how long.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use serde::Deserialize;
use toft_model::{invalid::Invalid, units::parse_span_ms};

use super::{
    file::ApiSection,
    oidc::{OidcConfig, OidcSection},
};

/// `[access]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AccessSection {
    session_idle: Option<String>,
    session_max: Option<String>,
    oidc: Option<OidcSection>,
}

/// Who comes in, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessConfig {
    /// How long a session lasts without being used.
    pub session_idle: Duration,
    /// How long a session lasts at most.
    pub session_max: Duration,
    /// A provider at which people sign in.
    pub oidc: Option<OidcConfig>,
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
        let session_idle = span("access.session_idle", self.session_idle.as_deref(), "7d");
        let session_max = span("access.session_max", self.session_max.as_deref(), "30d");
        let oidc = self.oidc.as_ref().map(|oidc| oidc.resolve(note));
        AccessConfig { session_idle, session_max, oidc }
    }
}

/// Fewest and most connections, and how many there may be when nobody says so: in all, and from one address.
const CONNECTIONS: RangeInclusive<usize> = 16..=100_000;
const USUAL_CONNECTIONS: (usize, usize) = (2_048, 512);

/// How many connections there may be, in all and from one address.
pub(super) fn connections(api: &ApiSection, note: &mut impl FnMut(&str, Invalid)) -> (usize, usize) {
    let mut limit = |key: &str, wanted: Option<usize>, usual: usize| match wanted {
        Some(wanted) if !CONNECTIONS.contains(&wanted) => {
            let hint = format!("use {} to {}", CONNECTIONS.start(), CONNECTIONS.end());
            note(key, Invalid::value("the number is out of range", hint));
            usual
        }
        wanted => wanted.unwrap_or(usual),
    };
    let all = limit("api.max_connections", api.max_connections, USUAL_CONNECTIONS.0);
    let usual = USUAL_CONNECTIONS.1.min(all);
    (all, limit("api.max_connections_per_address", api.max_connections_per_address, usual))
}

/// How TLS is spoken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// What this node is called beside its own name and addresses.
    pub names: Vec<String>,
    /// A certificate and its key, both PEM files; without, the cluster's authority signs one.
    pub own: Option<(PathBuf, PathBuf)>,
    /// How long browsers are to remember that this host speaks TLS alone; not at all when absent.
    pub hsts: Option<Duration>,
}

/// Most further names of a node, and the longest.
const MOST_NAMES: usize = 32;
const LONGEST_NAME: usize = 253;
/// Longest time for which browsers are to remember that a host speaks TLS alone.
const LONGEST_HSTS: Duration = Duration::from_secs(730 * 24 * 60 * 60);

impl TlsConfig {
    /// From what `[api]` says; absent when it wants plain HTTP.
    pub(super) fn resolve(
        api: &ApiSection,
        (bind, plain_http): (SocketAddr, bool),
        note: &mut impl FnMut(&str, Invalid),
    ) -> Option<Self> {
        let own = match (&api.certificate, &api.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) if certificate.is_absolute() && key.is_absolute() => {
                Some((certificate.clone(), key.clone()))
            }
            (Some(_), Some(_)) => {
                note(
                    "api.certificate",
                    Invalid::value("these are no absolute paths", "write them like `/etc/toft/box.pem`"),
                );
                None
            }
            _ => {
                note(
                    "api.certificate",
                    Invalid::value("a certificate and its key belong together", "set api.certificate and api.key"),
                );
                None
            }
        };
        let plain = |name: &str| {
            let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:*".contains(&b));
            !name.is_empty() && name.len() <= LONGEST_NAME && letters
        };
        if let Some(bad) = api.names.iter().find(|name| !plain(name)) {
            let shown: String = bad.chars().take(60).collect();
            note(
                "api.names",
                Invalid::value(
                    format!("`{shown}` is no name"),
                    "write host names and addresses, such as `box.example.org`",
                ),
            );
        }
        if api.names.len() > MOST_NAMES {
            note("api.names", Invalid::value("there are too many names", format!("use at most {MOST_NAMES}")));
        }
        let hsts = api.hsts.as_deref().map(|text| {
            let span = parse_span_ms(text).map(Duration::from_millis);
            let span = span.and_then(|span| match span <= LONGEST_HSTS {
                true => Ok(span),
                false => {
                    Err(Invalid::value("the time is out of range", "use at most 730d; `0s` makes browsers forget"))
                }
            });
            span.unwrap_or_else(|invalid| {
                note("api.hsts", invalid);
                Duration::ZERO
            })
        });
        if !plain_http {
            return Some(Self { names: api.names.clone(), own, hsts });
        }
        if hsts.is_some() {
            note("api.hsts", Invalid::value("there is no TLS here", "leave plain_http out, or hsts"));
        }
        if !bind.ip().is_loopback() {
            note(
                "api.plain_http",
                Invalid::value(
                    format!("`{bind}` is not on loopback"),
                    "passwords would be read on the way: leave plain_http out, or bind to 127.0.0.1",
                ),
            );
        }
        None
    }
}
