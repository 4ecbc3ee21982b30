//! What the API says of volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toft_model::{name::Name, volume::VolumeOptions};
use utoipa::ToSchema;

use super::time;
use crate::control::{
    node_access::volumes::RestoredVolume,
    ops::{VolumeInfo, VolumeMoveInfo},
};

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
    /// Its move to another node, under way or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<VolumeMoveStatus>,
}

/// Where a volume is to be moved.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMoveRequest {
    /// Name of a node.
    #[schema(value_type = String)]
    pub to: Name,
}

/// The move of a volume to another node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VolumeMoveStatus {
    /// Name of the node it is ordered to.
    pub to: String,
    /// What is being done: `copying`, `stopping` what uses it, `finishing`, `checking`, `waiting` for its node to say, or `failed`.
    pub step: String,
    /// In a few words.
    pub summary: String,
    /// How much is there, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Bytes that are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<u64>,
    /// Bytes there will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Bytes a second, lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// What keeps it from going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Whether who uses the volume is stopped for it.
    pub held: bool,
    /// Why it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// When it was ordered.
    pub ordered_at: String,
}

impl From<VolumeMoveInfo> for VolumeMoveStatus {
    fn from(info: VolumeMoveInfo) -> Self {
        let (percent, summary) = (info.percent(), info.summary());
        let VolumeMoveInfo { to, progress, held, failed, at_ms } = info;
        let step = match (&failed, &progress) {
            (Some(_), _) => "failed",
            (None, Some(progress)) => progress.step.as_str(),
            (None, None) => "waiting",
        };
        let of = |number: fn(&crate::control::node_access::volumes::MoveProgress) -> u64| progress.as_ref().map(number);
        Self {
            to: to.to_string(),
            step: step.to_owned(),
            summary,
            percent,
            done_bytes: of(|progress| progress.done_bytes),
            size_bytes: of(|progress| progress.size_bytes),
            rate: of(|progress| progress.rate),
            trouble: progress.and_then(|progress| progress.trouble),
            held,
            failed,
            ordered_at: time(at_ms),
        }
    }
}

impl From<VolumeInfo> for Volume {
    fn from(info: VolumeInfo) -> Self {
        let VolumeInfo { view, size_bytes, path, moving } = info;
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
            moving: moving.map(VolumeMoveStatus::from),
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
