//! Files of this node's containers, copied by threads that may block: a few at once.

use std::{
    io::{self, Read},
    os::fd::AsFd,
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::StreamExt;
use toft_model::files::{FileStat, FilesWritten};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::SyncIoBridge;

use super::{LocalNode, refused};
use crate::{
    agent::{
        files::{self, FileError, Owner, Source, Unpack},
        runtime::{RuntimeError, root::Root},
    },
    control::{
        ControlError, ErrorKind,
        node_access::{
            ArchiveReader,
            files::{ArchiveBytes, NodeFiles, PathInside},
        },
    },
    observe::chain,
};

/// Copies that may be under way at once.
const AT_ONCE: usize = 8;
/// Parts of an archive that wait to be sent.
const WAITING: usize = 4;
/// Bytes read at once.
const PART: usize = 128 * 1024;
/// Bytes of an archive that are read though it was refused.
const DRAINED: u64 = 256 << 20;

/// The places of those copies.
#[derive(Clone)]
pub(super) struct Copies(Arc<Semaphore>);

impl Default for Copies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Copies {
    fn begin(&self) -> Result<OwnedSemaphorePermit, ControlError> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            let message = format!("{AT_ONCE} copies from and to this node's containers are under way");
            ControlError::new(ErrorKind::Unavailable, message).hint("try again when one of them is done")
        })
    }
}

impl LocalNode {
    async fn root_of(&self, path: &PathInside) -> Result<Root, ControlError> {
        self.runtime.root(path.instance).await.map_err(|error| match error {
            RuntimeError::NotFound { .. } => {
                let message = "the files of this instance are not there: its container was not made yet, or is gone";
                ControlError::new(ErrorKind::NotFound, message).hint("`toft ps` shows how it is")
            }
            RuntimeError::Failed { reason, .. } => ControlError::new(ErrorKind::Unavailable, reason)
                .hint("try again in a moment; `toft ps` shows how it is"),
            other => refused(other),
        })
    }
}

#[async_trait]
impl NodeFiles for LocalNode {
    async fn file_stat(&self, path: PathInside) -> Result<FileStat, ControlError> {
        let root = self.root_of(&path).await?;
        blocking(move || files::stat(root.directory.as_fd(), &path.path, path.follow)).await
    }

    async fn read_files(&self, path: PathInside) -> Result<(FileStat, ArchiveBytes), ControlError> {
        let place = self.copies.begin()?;
        let root = self.root_of(&path).await?;
        let (stat, source, root) = blocking(move || {
            let stat = files::stat(root.directory.as_fd(), &path.path, path.follow)?;
            Ok((stat, Source::within(root.directory.as_fd(), &path.path, path.follow)?, root))
        })
        .await?;
        let (sender, parts) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = source.pack_into(sender) {
                tracing::debug!(error = chain(&error), "a copy from a container broke off");
            }
            drop((root, place));
        });
        Ok((stat, ReceiverStream::new(parts).boxed()))
    }

    async fn write_files(
        &self,
        path: PathInside,
        archive: ArchiveReader,
        keep_owner: bool,
    ) -> Result<FilesWritten, ControlError> {
        let place = self.copies.begin()?;
        let root = self.root_of(&path).await?;
        let archive = SyncIoBridge::new(archive);
        blocking(move || {
            let into = files::open_dir(root.directory.as_fd(), &path.path)?;
            let owner = if keep_owner { Owner::AsArchived } else { Owner::Root };
            let mut archive = io::BufReader::with_capacity(PART, archive);
            let written = Unpack { owner, rename: None }.run(into.as_fd(), &mut archive);
            drop((root, place));
            if written.is_err() {
                // Who still sends would rather hear of a broken connection than of what is wrong.
                let _ = io::copy(&mut archive.take(DRAINED), &mut io::sink());
            }
            written
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, ControlError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?.map_err(not_copied)
}

fn not_copied(error: FileError) -> ControlError {
    let message = chain(&error);
    match error {
        FileError::NotFound { .. } => ControlError::new(ErrorKind::NotFound, message).field("path"),
        FileError::NotADirectory { .. } => ControlError::new(ErrorKind::Conflict, message)
            .field("path")
            .hint("make the directory first, or name one that is there"),
        FileError::InTheWay { .. } => {
            ControlError::new(ErrorKind::Conflict, message).hint("remove what is there, or copy it to another name")
        }
        FileError::Special { .. } => ControlError::new(ErrorKind::Invalid, message).field("path"),
        FileError::ReadOnly { .. } => ControlError::new(ErrorKind::Conflict, message)
            .hint("write to a volume or a file system in memory, or run it without --read-only"),
        FileError::DiskFull { .. } => {
            ControlError::new(ErrorKind::DiskFull, message).hint("free some space and try again")
        }
        FileError::Refused { .. } => ControlError::new(ErrorKind::Invalid, message),
        FileError::Io { .. } => ControlError::new(ErrorKind::Internal, message),
    }
}
