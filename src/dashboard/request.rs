//! What handlers read from a request beside its path.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{header::HOST, request::Parts},
};
use toft_model::name::Name;

use super::error::PageError;

/// The name the browser reached this machine by, for links to published ports; absent when it is not plainly a host
/// name or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReachedAs(pub(super) Option<String>);

impl<S: Sync> FromRequestParts<S> for ReachedAs {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let header = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = header.or(parts.uri.authority().map(|authority| authority.as_str()));
        Ok(Self(authority.and_then(host_name).map(str::to_owned)))
    }
}

/// The host of `host[:port]`.
fn host_name(authority: &str) -> Option<&str> {
    if let Some(rest) = authority.strip_prefix('[') {
        let end = rest.find(']')?;
        let inside = &rest[..end];
        let plain = !inside.is_empty() && inside.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'));
        return plain.then(|| &authority[..end + 2]);
    }
    let host = authority.split(':').next()?;
    let plain = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    plain.then_some(host)
}

/// A text as part of an address.
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

/// The workload's name in a path; what is no name names no workload.
pub(super) fn named(text: &str) -> Result<Name, PageError> {
    text.parse().map_err(|_| PageError::no_workload(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_hosts_become_links() {
        for (authority, want) in [
            ("box:7443", Some("box")),
            ("10.0.0.2", Some("10.0.0.2")),
            ("[fe80::1]:7443", Some("[fe80::1]")),
            ("\"><b>", None),
            ("[<b>]", None),
            ("[", None),
            ("", None),
        ] {
            assert_eq!(host_name(authority), want, "{authority}");
        }
    }
}
