//! What operations ask of a node about the data of volumes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use toft_model::{name::Name, secret::SealedSecret, volume::VolumeOrder};

use super::ArchiveReader;
use crate::control::ControlError;

/// Bytes of a backup as they are made.
pub type BackupStream = BoxStream<'static, std::io::Result<Bytes>>;

/// A volume as a node has to know it.
#[derive(Debug, Clone)]
pub struct VolumeHere {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub order: VolumeOrder,
    /// The secrets that it names.
    pub secrets: BTreeMap<Name, SealedSecret>,
}

/// How much a restored volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredVolume {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// The volumes of a node.
#[async_trait]
pub trait NodeVolumes {
    /// Bytes on disk of a volume that lies here; `None` when that is not known soon.
    async fn volume_size(&self, name: &Name) -> Option<u64>;

    /// Where the data of a volume that lies here is.
    fn volume_path(&self, name: &Name) -> Option<String>;

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
