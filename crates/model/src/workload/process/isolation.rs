//! Names of container runtimes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::shown;
use crate::invalid::Invalid;

/// What separates a container from its node, by the runtime's short name: `runc`, `crun`, `kata`, `runsc`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Isolation(String);

impl Isolation {
    /// What every node with containerd is taken to have.
    pub const USUAL: &str = "runc";

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Isolation {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !text.starts_with('-');
        if !fits {
            return Err(Invalid::value(
                format!("`{}` is no runtime", shown(text)),
                "use the name of a runtime that `toft node ls` shows, such as `runc` or `runsc`",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Isolation {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Isolation> for String {
    fn from(isolation: Isolation) -> Self {
        isolation.0
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
