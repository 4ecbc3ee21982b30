//! Files of instances.

use toft_model::files::{FileStat, FilesWritten};

use super::Ops;
use crate::control::{
    ControlError,
    node_access::{
        ArchiveReader,
        files::{ArchiveBytes, PathInside},
    },
};

impl Ops {
    /// What a path of an instance of this node leads to.
    pub async fn file_stat(&self, instance: &str, path: String, follow: bool) -> Result<FileStat, ControlError> {
        self.node.file_stat(self.path_inside(instance, path, follow).await?).await
    }

    /// What a path leads to as a tar archive.
    pub async fn read_files(
        &self,
        instance: &str,
        path: String,
        follow: bool,
    ) -> Result<(FileStat, ArchiveBytes), ControlError> {
        self.node.read_files(self.path_inside(instance, path, follow).await?).await
    }

    /// Unpacks a tar archive into a directory.
    pub async fn write_files(
        &self,
        instance: &str,
        path: String,
        archive: ArchiveReader,
        keep_owner: bool,
    ) -> Result<FilesWritten, ControlError> {
        self.node.write_files(self.path_inside(instance, path, true).await?, archive, keep_owner).await
    }

    async fn path_inside(&self, instance: &str, path: String, follow: bool) -> Result<PathInside, ControlError> {
        let instance = self.instance_here(instance).await?.row.id;
        Ok(PathInside { instance, path, follow })
    }
}
