//! Image references, normalised the way Docker does it: `web` means `docker.io/library/web:latest`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// A complete image reference, `registry/repository:tag` or `registry/repository@sha256:...`.
/// The grammar is that of the distribution project's `reference` package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef(String);

impl ImageRef {
    /// Longest reference accepted, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// The complete reference, as the runtime stores it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The reference as people write it: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> &str {
        let short = self.0.strip_prefix("docker.io/").unwrap_or(&self.0);
        short.strip_prefix("library/").unwrap_or(short)
    }

    /// The registry it comes from: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        self.0.split_once('/').map_or("docker.io", |(registry, _)| registry)
    }

    /// The repository within the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        let path = self.0.split_once('/').map_or(self.0.as_str(), |(_, path)| path);
        let path = path.split('@').next().unwrap_or(path);
        path.split(':').next().unwrap_or(path)
    }

    /// The tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        let path = self.0.split_once('/').map_or(self.0.as_str(), |(_, path)| path);
        path.split('@').next().unwrap_or(path).split_once(':').map(|(_, tag)| tag)
    }

    /// The digest it is pinned to, if it is.
    pub fn digest(&self) -> Option<&str> {
        self.0.split_once('@').map(|(_, digest)| digest)
    }

    /// The last path component, without tag and digest: what a workload is called when nobody named it.
    pub fn base_name(&self) -> &str {
        let path = self.0.split('@').next().unwrap_or(&self.0);
        let last = path.rsplit('/').next().unwrap_or(path);
        last.split(':').next().unwrap_or(last)
    }
}

/// An image on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeImage {
    /// Complete reference.
    pub name: String,
    /// Digest of what the name stands for.
    pub digest: String,
    /// Compressed size in bytes.
    pub size_bytes: u64,
    /// When it came to the node, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// Platform, such as `linux/amd64`.
    pub platform: String,
}

fn component_ok(part: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    edge(part.chars().next())
        && edge(part.chars().last())
        && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))
}

pub(crate) fn registry_ok(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "80"));
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let label_ok = |label: &str| {
        edge(label.chars().next())
            && edge(label.chars().last())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    name.split('.').all(label_ok) && port.parse::<u16>().is_ok()
}

fn tag_ok(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn digest_ok(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.chars().all(|c| c.is_ascii_digit() || matches!(c, 'a'..='f')))
}

impl FromStr for ImageRef {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shown: String = text.chars().take(80).collect();
        let bad = |why: &str| {
            Invalid::value(
                format!("`{shown}` is no valid image reference: {why}"),
                "write it like `nginx`, `toft/demo:latest` or `ghcr.io/owner/app@sha256:...`, in lower case",
            )
        };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > Self::MAX_BYTES {
            return Err(bad("it is longer than 512 characters"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            Some(_) => ("docker.io", rest.to_owned()),
            None => ("docker.io", format!("library/{rest}")),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path.as_str(), None),
        };
        if !registry_ok(host) {
            return Err(bad("the registry's host name is malformed"));
        }
        if !repository.split('/').all(component_ok) {
            return Err(bad("the repository is malformed"));
        }
        if tag.is_some_and(|tag| !tag_ok(tag)) {
            return Err(bad("the tag is malformed"));
        }
        if digest.is_some_and(|digest| !digest_ok(digest)) {
            return Err(bad("the digest is not `sha256:` and 64 hexadecimal digits"));
        }
        let mut full = format!("{host}/{repository}");
        match (tag, digest) {
            (Some(tag), _) => full.extend([":", tag]),
            (None, None) => full.push_str(":latest"),
            (None, Some(_)) => {}
        }
        if let Some(digest) = digest {
            full.extend(["@", digest]);
        }
        Ok(Self(full))
    }
}

impl TryFrom<String> for ImageRef {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.0
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.familiar())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_normalise_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, full, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("toft/demo", "docker.io/toft/demo:latest", "toft/demo:latest"),
            ("toft/demo:v1", "docker.io/toft/demo:v1", "toft/demo:v1"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
        ] {
            let image: ImageRef = text.parse().unwrap();
            assert_eq!((image.as_str(), image.familiar()), (full, familiar));
            assert_eq!(image.as_str().parse::<ImageRef>().unwrap(), image, "normalising twice changes nothing");
        }
        let pinned: ImageRef = format!("ghcr.io/o/app@{digest}").parse().unwrap();
        assert_eq!(pinned.as_str(), format!("ghcr.io/o/app@{digest}"));
        assert_eq!(pinned.base_name(), "app");
    }

    #[test]
    fn references_come_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let both = format!("127.0.0.1:5000/a/b:c@{digest}");
        for (text, registry, repository, tag, pinned) in [
            ("nginx", "docker.io", "library/nginx", Some("latest"), None),
            ("localhost:5000/a", "localhost:5000", "a", Some("latest"), None),
            (both.as_str(), "127.0.0.1:5000", "a/b", Some("c"), Some(digest.as_str())),
        ] {
            let image: ImageRef = text.parse().unwrap();
            assert_eq!((image.registry(), image.repository()), (registry, repository));
            assert_eq!((image.tag(), image.digest()), (tag, pinned));
        }
    }

    #[test]
    fn malformed_references_are_refused() {
        for bad in [
            "",
            "A",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:b:c",
            "a b",
            "a@sha256:12",
            "a:-x",
            "ä",
            "x/../y",
            "-a",
            "h:99999/a",
            "../a",
            "-h.example/a",
            "h..example/a",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
