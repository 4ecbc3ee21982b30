//! What the API says of volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toft_model::{name::Name, volume::VolumeOptions};
use utoipa::ToSchema;

use super::time;
use crate::control::{node_access::volumes::RestoredVolume, ops::VolumeInfo};

/// A volume.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// The node its data lies on; none while nobody used it, and for data on a server.
    pub node: Option<String>,
    /// What it is.
    pub options: VolumeOptions,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Bytes on disk, measured not long ago; absent on other nodes than its own, and when measuring takes long.
    pub size_bytes: Option<u64>,
    /// Where its data is on its node; absent on others.
    pub path: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// Workloads that use it, by name.
    pub used_by: Vec<String>,
    /// Those of them that run, or may.
    pub running: Vec<String>,
}

impl From<VolumeInfo> for Volume {
    fn from(info: VolumeInfo) -> Self {
        let VolumeInfo { view, size_bytes, path } = info;
        let names = |names: Vec<Name>| names.into_iter().map(String::from).collect();
        Self {
            name: view.row.name.to_string(),
            node: view.node.map(String::from),
            options: view.row.options,
            labels: view.row.labels,
            size_bytes,
            path,
            created_at: time(view.row.created_at_ms),
            used_by: names(view.users),
            running: names(view.running),
        }
    }
}

/// A volume to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// A DNS label, unique among volumes.
    #[schema(value_type = String, example = "db-data")]
    pub name: Name,
    /// The node its data is to lie on; decided by its first use when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub node: Option<Name>,
    /// What it is; a folder on its node when absent.
    #[serde(default)]
    pub options: VolumeOptions,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What was restored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VolumeRestored {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

impl From<RestoredVolume> for VolumeRestored {
    fn from(restored: RestoredVolume) -> Self {
        Self { entries: restored.entries, bytes: restored.bytes }
    }
}
