//! Files of a node's containers.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use toft_model::{
    files::{FileStat, FilesWritten},
    ids::InstanceId,
};

use super::ArchiveReader;
use crate::control::ControlError;

/// A tar archive as it is made. An error breaks it off.
pub type ArchiveBytes = BoxStream<'static, std::io::Result<Bytes>>;

/// A path in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInside {
    /// The container.
    pub instance: InstanceId,
    /// The path, from the container's root.
    pub path: String,
    /// Whether a link at its end is followed.
    pub follow: bool,
}

/// The part of a node that copies files out of and into its containers.
#[async_trait]
pub trait NodeFiles {
    /// What a path leads to.
    async fn file_stat(&self, path: PathInside) -> Result<FileStat, ControlError>;

    /// What a path leads to as a tar archive, and what it is. The archive's first entry has its name.
    async fn read_files(&self, path: PathInside) -> Result<(FileStat, ArchiveBytes), ControlError>;

    /// Unpacks a tar archive into a directory. With `keep_owner`, files belong to whom the archive says, else to root.
    async fn write_files(
        &self,
        path: PathInside,
        archive: ArchiveReader,
        keep_owner: bool,
    ) -> Result<FilesWritten, ControlError>;
}
