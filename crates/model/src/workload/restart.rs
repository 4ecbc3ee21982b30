//! What happens when a container's process ends.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// Written `always`, `no`, `on-failure` or `on-failure:N`, as Docker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Start it again whatever its exit code.
    Always,
    /// Start it again when the exit code is not 0, at most `max_restarts` times in a row (`None`: for ever).
    OnFailure {
        /// Restarts allowed before the instance stays down.
        max_restarts: Option<u32>,
    },
    /// Leave it down.
    No,
}

impl RestartPolicy {
    /// Whether a process that ended with `code` (`None`: it vanished without telling) after `restarts` restarts
    /// shall be started again.
    pub fn wants_restart(self, code: Option<i32>, restarts: u32) -> bool {
        match self {
            Self::Always => true,
            Self::No => false,
            Self::OnFailure { max_restarts } => code != Some(0) && max_restarts.is_none_or(|max| restarts < max),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || {
            Invalid::value(
                format!("`{}` is no restart policy", text.chars().take(40).collect::<String>()),
                "use `always`, `on-failure`, `on-failure:N` with N from 1 to 1000, or `no`",
            )
        };
        match text {
            // `unless-stopped` differs from `always` in Docker only after a daemon restart, and there a stopped
            // workload stays stopped here in any case.
            "always" | "unless-stopped" => Ok(Self::Always),
            "no" => Ok(Self::No),
            "on-failure" => Ok(Self::OnFailure { max_restarts: None }),
            other => match other.strip_prefix("on-failure:").map(str::parse::<u32>) {
                Some(Ok(max @ 1..=1000)) => Ok(Self::OnFailure { max_restarts: Some(max) }),
                _ => Err(bad()),
            },
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::No => f.write_str("no"),
            Self::OnFailure { max_restarts: None } => f.write_str("on-failure"),
            Self::OnFailure { max_restarts: Some(max) } => write!(f, "on-failure:{max}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_round_trip() {
        for text in ["always", "no", "on-failure", "on-failure:3"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for bad in ["", "yes", "on-failure:", "on-failure:0", "on-failure:x", "on-failure:1001"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn on_failure_counts_its_restarts() {
        let policy = RestartPolicy::OnFailure { max_restarts: Some(2) };
        assert!(!policy.wants_restart(Some(0), 0));
        assert!(policy.wants_restart(Some(1), 1));
        assert!(!policy.wants_restart(Some(1), 2));
        assert!(policy.wants_restart(None, 0), "a process that vanished did not succeed");
    }
}
