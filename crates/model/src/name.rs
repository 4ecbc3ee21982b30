//! Names people give to workloads and nodes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// A DNS label: 1 to 63 characters of `a-z`, `0-9` and `-`, starting with a letter, not ending in `-`
/// (RFC 1123, narrowed to start with a letter), because every workload gets a DNS name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Longest name accepted, in bytes.
    pub const MAX_BYTES: usize = 63;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest valid name to `text` (a host name, an image name), or `fallback` when nothing of it remains.
    pub fn nearest(text: &str, fallback: &str) -> Self {
        let mut out = String::new();
        for c in text.chars().flat_map(char::to_lowercase) {
            let c = if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
            if out.is_empty() && !c.is_ascii_lowercase() {
                continue;
            }
            if out.len() < Self::MAX_BYTES {
                out.push(c);
            }
        }
        let out = out.trim_end_matches('-');
        Self(if out.is_empty() { fallback.to_owned() } else { out.to_owned() })
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hint = "use 1 to 63 characters of a-z, 0-9 and `-`, starting with a letter and not ending in `-`";
        let shown: String = text.chars().take(80).collect();
        if text.is_empty() {
            return Err(Invalid::value("the name is empty", hint));
        }
        if text.len() > Self::MAX_BYTES {
            return Err(Invalid::value(
                format!("the name `{shown}` is longer than {} characters", Self::MAX_BYTES),
                hint,
            ));
        }
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
        let holds = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !starts || !holds || text.ends_with('-') {
            return Err(Invalid::value(format!("`{shown}` is no valid name"), hint));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web", "web-2", "a1", &"a".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "1a", "A", "a.b", "a_b", "a b", "ä", "a\0", "../x", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nearest_is_always_valid() {
        for (text, want) in [("My Box.local", "my-box-local"), ("42", "node"), ("", "node"), ("9-Gpu--", "gpu")] {
            let got = Name::nearest(text, "node");
            assert_eq!(got.as_str(), want);
            assert!(got.as_str().parse::<Name>().is_ok());
        }
    }
}
