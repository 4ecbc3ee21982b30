//! The documents an image is made of: index, manifest, config. Only what is used here is read; unknown fields, kinds
//! and nulls are passed over, for images come from many builders.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Deserializer, Serialize};

/// Largest index, manifest or config that is read.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(super) const DOCKER_LAYER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub(super) const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// The kinds of layers there are, each with the kind that means the same to every containerd.
const LAYERS: [(&str, &str); 12] = [
    (OCI_LAYER_TAR, OCI_LAYER_TAR),
    (OCI_LAYER_GZIP, OCI_LAYER_GZIP),
    (OCI_LAYER_ZSTD, OCI_LAYER_ZSTD),
    (DOCKER_LAYER_TAR, OCI_LAYER_TAR),
    (DOCKER_LAYER_GZIP, OCI_LAYER_GZIP),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", OCI_LAYER_ZSTD),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", OCI_LAYER_TAR),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", OCI_LAYER_GZIP),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.zstd", OCI_LAYER_ZSTD),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", OCI_LAYER_TAR),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", OCI_LAYER_GZIP),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", OCI_LAYER_ZSTD),
];

/// A blob: what it is, its digest and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
}

impl Descriptor {
    /// Whether it stands for several manifests.
    pub(super) fn is_index(&self) -> bool {
        self.media_type == OCI_INDEX || self.media_type == DOCKER_LIST
    }

    /// Whether it stands for one manifest.
    pub(super) fn is_manifest(&self) -> bool {
        self.media_type == OCI_MANIFEST || self.media_type == DOCKER_MANIFEST
    }

    /// A builder's note about another manifest (provenance, list of parts), not an image.
    pub(super) fn is_attestation(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
    }

    /// Whether it is a layer of a kind that can be unpacked.
    pub(super) fn is_layer(&self) -> bool {
        LAYERS.iter().any(|(kind, _)| *kind == self.media_type)
    }

    /// Whether it is a layer that its maker asks registries not to hand out; many do all the same.
    pub(super) fn is_foreign(&self) -> bool {
        self.is_layer() && (self.media_type.contains(".foreign.") || self.media_type.contains(".nondistributable."))
    }

    /// A layer in containerd's own words, of a kind that every containerd unpacks.
    pub(super) fn to_diff(&self) -> containerd_client::types::Descriptor {
        let plain = LAYERS.iter().find(|(kind, _)| *kind == self.media_type).map(|(_, plain)| (*plain).to_owned());
        let mut diff = self.to_containerd();
        diff.media_type = plain.unwrap_or(diff.media_type);
        diff
    }

    /// The same in containerd's own words.
    pub(super) fn to_containerd(&self) -> containerd_client::types::Descriptor {
        containerd_client::types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            annotations: HashMap::new(),
        }
    }
}

/// Operating system and processor an image is made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

impl Platform {
    /// Whether this machine runs it.
    pub(super) fn runs_here(&self) -> bool {
        let (architecture, variants): (_, &[&str]) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", &["", "v1"]),
            "aarch64" => ("arm64", &["", "v8"]),
            "arm" => ("arm", &["", "v6", "v7"]),
            "x86" => ("386", &[""]),
            "powerpc64" => ("ppc64le", &[""]),
            other => (other, &[""]),
        };
        self.os == "linux"
            && self.architecture == architecture
            && variants.contains(&self.variant.as_deref().unwrap_or_default())
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// An index: one image for several platforms, or the contents of an archive.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Index {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) manifests: Vec<Descriptor>,
}

/// One image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) config: Descriptor,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) layers: Vec<Descriptor>,
}

/// What an image says of itself.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ImageConfig {
    #[serde(flatten)]
    pub(super) platform: Platform,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) config: ProcessDefaults,
    pub(super) rootfs: RootFs,
}

/// How its process is started when nobody says otherwise.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ProcessDefaults {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) user: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) stop_signal: String,
}

/// The layers by the digests of their uncompressed contents.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) diff_ids: Vec<String>,
}

/// Whether a text is a digest of the one kind in use.
pub(super) fn digest_ok(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

/// Names of the snapshots that hold the first, the first two, ... layers.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match chain.last() {
            None => diff.clone(),
            Some(parent) => digest_of(format!("{parent} {diff}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// The digest of some bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_fields_are_passed_over() {
        let text = r#"{"architecture":"amd64","os":"linux","container":"x","config":{"Cmd":null,"Env":["A=b"],"Tty":false},
            "rootfs":{"type":"layers","diff_ids":null},"history":[{}]}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.config.env, ["A=b"]);
        assert_eq!(config.platform.to_string(), "linux/amd64");
        assert!(config.rootfs.diff_ids.is_empty());
    }

    #[test]
    fn layers_of_every_kind_are_known() {
        let descriptor = |kind: &str| Descriptor {
            media_type: kind.to_owned(),
            digest: digest_of(b""),
            size: 0,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let foreign = LAYERS.iter().filter(|(kind, _)| descriptor(kind).is_foreign()).count();
        assert_eq!(foreign, 6);
        for (kind, plain) in LAYERS {
            assert!(descriptor(kind).is_layer(), "{kind}");
            assert_eq!(descriptor(kind).to_diff().media_type, plain);
            let ending = |kind: &str| kind.rsplit(['.', '+']).next().map(str::to_owned);
            assert_eq!(ending(kind), ending(plain), "{kind}");
        }
        for kind in ["", "application/vnd.docker.image.rootfs.foreign.diff.tar.xz", OCI_CONFIG, OCI_MANIFEST] {
            assert!(!descriptor(kind).is_layer() && !descriptor(kind).is_foreign(), "{kind}");
        }
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let diffs = [format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64))];
        let chain = chain_ids(&diffs);
        assert_eq!(chain[0], diffs[0]);
        assert_eq!(chain[1], digest_of(format!("{} {}", diffs[0], diffs[1]).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }
}
