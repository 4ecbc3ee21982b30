//! Users and groups as they are asked for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::shown;
use crate::invalid::Invalid;

/// `user` or `user:group`, each a name that the image knows or a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn has_group(&self) -> bool {
        self.0.contains(':')
    }
}

impl FromStr for UserName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let part = |part: &str| {
            let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-$".contains(&byte);
            let number = !part.bytes().all(|byte| byte.is_ascii_digit()) || part.parse::<i32>().is_ok();
            (1..=64).contains(&part.len()) && part.bytes().all(letters) && !part.starts_with('-') && number
        };
        if text.split(':').count() > 2 || !text.split(':').all(part) {
            return Err(Invalid::value(
                format!("`{}` is no user", shown(text)),
                "write `user` or `user:group`, names of the image or numbers up to 2147483647",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for UserName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
