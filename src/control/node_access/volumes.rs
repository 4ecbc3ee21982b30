//! What operations ask of a node about the data of volumes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use toft_model::{ids::NodeId, name::Name, secret::SealedSecret, volume::VolumeOrder};

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

/// What is being done with a volume that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveStep {
    /// It is copied while it is used.
    First,
    /// Who uses it stops.
    Stopping,
    /// What changed since is copied.
    Second,
    /// Both ends are compared.
    Checking,
}

impl MoveStep {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "copying",
            Self::Stopping => "stopping",
            Self::Second => "finishing",
            Self::Checking => "checking",
        }
    }

    /// The step of that word.
    pub fn named(word: &str) -> Option<Self> {
        [Self::First, Self::Stopping, Self::Second, Self::Checking].into_iter().find(|step| step.as_str() == word)
    }
}

/// How far a volume is that moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveProgress {
    /// What is being done.
    pub step: MoveStep,
    /// Bytes that are there.
    pub done_bytes: u64,
    /// Bytes there will be.
    pub size_bytes: u64,
    /// Bytes a second, lately.
    pub rate: u64,
    /// What keeps it from going on.
    pub trouble: Option<String>,
}

/// The volumes of a node.
#[async_trait]
pub trait NodeVolumes {
    /// What is known of volumes that lie here. Of one that is not here nothing is told.
    async fn volume_facts(&self, names: Vec<Name>) -> Result<BTreeMap<Name, VolumeFacts>, ControlError>;

    /// How far a volume is that moves to the node `to`; `None` when that is not known soon.
    async fn volume_move_progress(&self, _to: NodeId, _name: &Name) -> Option<MoveProgress> {
        None
    }

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
