//! Limits of single processes: `name=soft[:hard]`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::shown;
use crate::invalid::Invalid;

const NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Name of a limit, without the `RLIMIT_`, lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct UlimitName(&'static str);

impl UlimitName {
    /// The name.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl FromStr for UlimitName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        NAMES.into_iter().find(|name| *name == text).map(Self).ok_or_else(|| {
            Invalid::value(format!("`{}` is no limit", shown(text)), format!("use one of {}", NAMES.join(", ")))
        })
    }
}

impl<'de> Deserialize<'de> for UlimitName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl From<UlimitName> for String {
    fn from(name: UlimitName) -> Self {
        name.0.to_owned()
    }
}

impl fmt::Display for UlimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A limit and how far the process itself may raise it. -1 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// In force at the start.
    #[schema(minimum = -1)]
    pub soft: i64,
    /// The most it may raise it to.
    #[schema(minimum = -1)]
    pub hard: i64,
}

impl Ulimit {
    pub(super) fn validate(self) -> Result<(), Invalid> {
        for (field, value) in [("soft", self.soft), ("hard", self.hard)] {
            if value < -1 {
                return Err(Invalid::value(format!("{value} is below -1"), "use -1 for no limit").at(field));
            }
        }
        // As unsigned numbers, no limit is the largest.
        if self.soft as u64 > self.hard as u64 {
            return Err(Invalid::value(
                format!("{} is more than the hard limit {}", self.soft, self.hard),
                "raise the hard limit too: `SOFT:HARD`",
            )
            .at("soft"));
        }
        Ok(())
    }

    /// Reads `nofile=1024:2048`, or `nofile=1024` for both.
    pub fn parse_named(text: &str) -> Result<(UlimitName, Self), Invalid> {
        let bad = || {
            Invalid::value(format!("`{}` is no limit", shown(text)), "write `name=soft[:hard]`, such as `nofile=4096`")
        };
        let (name, values) = text.split_once('=').ok_or_else(bad)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let number = |text: &str| match text {
            "unlimited" => Ok(-1),
            text => text.parse::<i64>().map_err(|_| bad()),
        };
        let limit = Self { soft: number(soft)?, hard: number(hard)? };
        limit.validate()?;
        Ok((name.parse()?, limit))
    }
}
