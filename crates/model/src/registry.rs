//! Logins at registries of images, which every node uses. The model holds their passwords sealed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{image::registry_ok, invalid::Invalid};

/// Most logins of a cluster.
pub const MAX_LOGINS: u64 = 200;
/// Longest user name, in bytes.
pub const MAX_USERNAME_BYTES: usize = 256;
/// Longest password or token, in bytes.
pub const MAX_PASSWORD_BYTES: usize = 16 << 10;

/// A registry as image references name it: `docker.io`, `ghcr.io`, `nas.lan:5000`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryName(String);

impl RegistryName {
    /// Longest name, in bytes: that of a host and a port.
    pub const MAX_BYTES: usize = 259;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegistryName {
    type Err = Invalid;

    /// Takes addresses too, as Docker's configuration has them: `https://index.docker.io/v1/`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let host = host.split('/').next().unwrap_or_default().to_ascii_lowercase();
        let known = host.contains(['.', ':']) || host == "localhost";
        if text.len() > Self::MAX_BYTES || !known || !registry_ok(&host) {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
            return Err(Invalid::value(
                format!("`{shown}` is no registry"),
                "write its host as images do: `docker.io`, `ghcr.io`, `nas.lan:5000`",
            ));
        }
        Ok(Self(match host.as_str() {
            "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".to_owned(),
            _ => host,
        }))
    }
}

impl TryFrom<String> for RegistryName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<RegistryName> for String {
    fn from(name: RegistryName) -> Self {
        name.0
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a user name: HTTP's basic login ends it at the first colon.
pub fn check_username(username: &str) -> Result<(), Invalid> {
    let odd = username.is_empty()
        || username.len() > MAX_USERNAME_BYTES
        || username.chars().any(|c| c.is_control() || c == ':');
    if odd {
        return Err(Invalid::value(
            "the user name is empty, too long, or holds a colon or control characters",
            format!("use 1 to {MAX_USERNAME_BYTES} characters without `:`"),
        )
        .at("username"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_as_images_name_them() {
        for (text, name) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("GHCR.io", "ghcr.io"),
            ("nas.lan:5000", "nas.lan:5000"),
            ("http://nas.lan:5000/v2/", "nas.lan:5000"),
            ("localhost", "localhost"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
        ] {
            assert_eq!(text.parse::<RegistryName>().unwrap().as_str(), name);
        }
        for bad in
            ["", "nas", "nas.lan:x", "nas.lan:99999", "a..b", "-a.b", "a@b.c", "a.b\n", "https://", &"a.".repeat(200)]
        {
            let error = bad.parse::<RegistryName>().unwrap_err();
            assert!(!error.hint.is_empty() && error.message.len() < 200, "{bad}");
        }
    }

    #[test]
    fn usernames_end_at_no_colon() {
        check_username("jo@example.org").unwrap();
        for bad in ["", "a:b", "a\nb", "a\0", &"x".repeat(257)] {
            assert_eq!(check_username(bad).unwrap_err().field, "username", "{bad}");
        }
    }
}
