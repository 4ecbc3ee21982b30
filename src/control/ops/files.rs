//! Files of instances.

use std::sync::Arc;

use toft_model::files::{FileStat, FilesWritten};

use super::{Ops, exec::Target};
use crate::control::{
    ControlError,
    node_access::{
        ArchiveReader, NodeAccess,
        files::{ArchiveBytes, PathInside},
    },
};

impl Ops {
    /// What a path of an instance leads to.
    pub async fn file_stat(&self, instance: &str, path: String, follow: bool) -> Result<FileStat, ControlError> {
        let (node, path) = self.path_inside(instance, path, follow).await?;
        node.file_stat(path).await
    }

    /// What a path leads to as a tar archive.
    pub async fn read_files(
        &self,
        instance: &str,
        path: String,
        follow: bool,
    ) -> Result<(FileStat, ArchiveBytes), ControlError> {
        let (node, path) = self.path_inside(instance, path, follow).await?;
        node.read_files(path).await
    }

    /// Unpacks a tar archive into a directory.
    pub async fn write_files(
        &self,
        instance: &str,
        path: String,
        archive: ArchiveReader,
        keep_owner: bool,
    ) -> Result<FilesWritten, ControlError> {
        let (node, path) = self.path_inside(instance, path, true).await?;
        node.write_files(path, archive, keep_owner).await
    }

    async fn path_inside(
        &self,
        instance: &str,
        path: String,
        follow: bool,
    ) -> Result<(Arc<dyn NodeAccess>, PathInside), ControlError> {
        let Target { instance, node } = self.target(&self.instance_called(instance).await?)?;
        Ok((node, PathInside { instance, path, follow }))
    }
}
