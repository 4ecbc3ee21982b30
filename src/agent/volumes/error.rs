//! Why a volume or a folder of the node cannot be given to a container.

use std::{
    io,
    path::{Path, PathBuf},
};

use toft_model::name::Name;

use super::archive::ArchiveError;
use crate::seal::OpenError;

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A folder of the node that containers may not see.
    #[error(
        "node `{node}` does not let containers see `{path}`: name it, or a folder above it, in `bind_roots` under \
         `[volumes]` in the node's configuration and restart toft"
    )]
    NotAllowed {
        /// The node.
        node: Name,
        /// The folder, as asked for.
        path: PathBuf,
    },
    /// A path of the node that is not there.
    #[error("`{path}` cannot be opened on node `{node}`; a bind mount needs a file or folder that is there")]
    NoSource {
        /// The node.
        node: Name,
        /// The path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A path inside a volume that is not there, or leads out of it.
    #[error("`{path}` cannot be opened in volume `{volume}`; it must be there, and may not lead out of the volume")]
    NoSubpath {
        /// The volume.
        volume: Name,
        /// The path.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// The state does not know it.
    #[error("volume `{0}` is not there any more; create it again, or change the workload so that it does without it")]
    Missing(Name),
    /// Something else is done with it.
    #[error("volume `{0}` is busy: it is being mounted, filled, backed up or restored; it will be tried again")]
    Busy(Name),
    /// No answer came in time.
    #[error("volume `{0}` could not be mounted in time: its server does not answer")]
    Hangs(String),
    /// The kernel cannot mount it.
    #[error(
        "the kernel of node `{node}` has no {what} client: install `{package}`, or load the module with `modprobe {module}`"
    )]
    NoClient {
        /// The node.
        node: Name,
        /// What the file system is called.
        what: &'static str,
        /// Package that brings what is needed.
        package: &'static str,
        /// The kernel's module.
        module: &'static str,
    },
    /// It could not be mounted.
    #[error("volume `{volume}` could not be mounted: {reason}")]
    Mount {
        /// The volume.
        volume: Name,
        /// Why; never an option's value.
        reason: String,
    },
    /// Its password is not there, or cannot be opened.
    #[error("the password of volume `{volume}`, secret `{secret}`, is not there; create it again")]
    NoSecret {
        /// The volume.
        volume: Name,
        /// The secret.
        secret: Name,
    },
    /// Its password cannot be opened.
    #[error("the password of volume `{volume}` cannot be opened")]
    Sealed {
        /// The volume.
        volume: Name,
        /// Cause.
        source: OpenError,
    },
    /// A file could not be handled.
    #[error("{doing} `{path}` failed")]
    Files {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The image's files could not be copied into an empty volume.
    #[error("volume `{volume}` could not be filled with what the image has")]
    Fill {
        /// The volume.
        volume: Name,
        /// Cause.
        source: ArchiveError,
    },
    /// A backup could not be restored.
    #[error(transparent)]
    Archive(ArchiveError),
    /// It holds something already.
    #[error("volume `{0}` is not empty")]
    NotEmpty(Name),
    /// A fault of ours.
    #[error("a task that worked on a volume ended: {0}")]
    Task(String),
}

impl VolumeError {
    /// What makes one of an error with a file.
    pub(super) fn files<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::Files { doing, path: path.to_owned(), source }
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Files { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Fill { source, .. } | Self::Archive(source) => source.is_full(),
            _ => false,
        }
    }
}
