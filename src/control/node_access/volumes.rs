//! What operations ask of a node about the data of volumes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use toft_model::{name::Name, secret::SealedSecret, volume::VolumeOrder};

use super::ArchiveReader;
use crate::control::ControlError;

/// Bytes of a backup as they are made.
pub type BackupStream = BoxStream<'static, std::io::Result<Bytes>>;

/// A volume as a node has to know it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeHere {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub order: VolumeOrder,
    /// The secrets that it names.
    pub secrets: BTreeMap<Name, SealedSecret>,
}

/// How much a restored volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredVolume {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// What a node knows of a volume that lies there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFacts {
    /// Bytes on disk; absent when that is not known soon.
    pub size_bytes: Option<u64>,
    /// Where its data is.
    pub path: Option<String>,
}

/// The volumes of a node.
#[async_trait]
pub trait NodeVolumes {
    /// What is known of volumes that lie here. Of one that is not here nothing is told.
    async fn volume_facts(&self, names: Vec<Name>) -> Result<BTreeMap<Name, VolumeFacts>, ControlError>;

    /// Makes a backup, as it is read.
    async fn back_up_volume(&self, volume: VolumeHere) -> Result<BackupStream, ControlError>;

    /// Puts a backup into a volume that nothing uses; with `replace` instead of what it holds.
    async fn restore_volume(
        &self,
        volume: VolumeHere,
        backup: ArchiveReader,
        replace: bool,
    ) -> Result<RestoredVolume, ControlError>;
}
