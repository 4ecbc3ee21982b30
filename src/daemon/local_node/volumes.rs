//! The data of this node's volumes, as control asks for it.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use toft_model::{ids::NodeId, name::Name};
use tokio::{io::AsyncReadExt, runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::LocalNode;
use crate::{
    agent::volumes::{Known, VolumeError, archive::ArchiveError},
    control::{
        ControlError, ErrorKind,
        node_access::{
            ArchiveReader,
            volumes::{BackupStream, MoveProgress, NodeVolumes, RestoredVolume, VolumeFacts, VolumeHere},
        },
    },
    daemon::volume_moves,
    observe::chain,
};

/// Bytes of a backup that are sent at once.
const CHUNK: usize = 128 << 10;
/// Longest time for which a refused backup is read on.
const PASSING_BY: Duration = Duration::from_secs(5);

/// Passes on what is written, as it is asked for.
struct Sender {
    ways: mpsc::Sender<io::Result<Bytes>>,
    chunk: Vec<u8>,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.ways.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads what comes in, on a thread that may wait.
struct Receiver {
    bytes: ArchiveReader,
    runtime: Handle,
}

impl Receiver {
    /// Reads on for a while, so that the other side gets to hear why it is refused.
    fn pass_by(mut self) {
        let Self { bytes, runtime } = &mut self;
        let rest = async { tokio::io::copy(bytes, &mut tokio::io::sink()).await };
        drop(runtime.block_on(async { tokio::time::timeout(PASSING_BY, rest).await }));
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.runtime.block_on(self.bytes.read(buffer))
    }
}

#[async_trait]
impl NodeVolumes for LocalNode {
    async fn volume_facts(&self, names: Vec<Name>) -> Result<BTreeMap<Name, VolumeFacts>, ControlError> {
        let facts = names.into_iter().map(async |name| {
            let size_bytes = self.volumes.size(&name).await;
            let path = Some(self.volumes.path(&name).display().to_string());
            (name, VolumeFacts { size_bytes, path })
        });
        Ok(join_all(facts).await.into_iter().collect())
    }

    async fn volume_move_progress(&self, to: NodeId, name: &Name) -> Option<MoveProgress> {
        let (progresses, state) = self.moves.as_ref()?;
        if to == self.node_id { progresses.of(name) } else { volume_moves::asked(state, to, name).await }
    }

    async fn back_up_volume(&self, volume: VolumeHere) -> Result<BackupStream, ControlError> {
        let (sender, mut receiver) = mpsc::channel(4);
        let volumes = self.volumes.clone();
        let VolumeHere { name, order, secrets } = volume;
        let work = move || {
            let out = Sender { ways: sender.clone(), chunk: Vec::with_capacity(CHUNK) };
            let known = Known { name: &name, order: &order, secrets: &secrets };
            if let Err(error) = volumes.back_up(&known, out) {
                let error = chain(&error);
                tracing::warn!(volume.name = %name, error, "the backup of a volume was cut short");
                // Whoever no longer reads does not want to know.
                drop(sender.blocking_send(Err(io::Error::other(error))));
            }
        };
        drop(tokio::task::spawn_blocking(work));
        // The first bytes show that it can be done; until then an error is an answer of its own.
        match receiver.recv().await {
            Some(Ok(first)) => {
                let first = futures_util::stream::once(async { Ok(first) });
                Ok(first.chain(ReceiverStream::new(receiver)).boxed())
            }
            Some(Err(error)) => Err(ControlError::new(ErrorKind::Unavailable, error.to_string())),
            None => Err(ControlError::new(ErrorKind::Internal, "the backup ended before it began")),
        }
    }

    async fn restore_volume(
        &self,
        volume: VolumeHere,
        backup: ArchiveReader,
        replace: bool,
    ) -> Result<RestoredVolume, ControlError> {
        let volumes = self.volumes.clone();
        let backup = Receiver { bytes: backup, runtime: Handle::current() };
        let work = move || {
            let VolumeHere { name, order, secrets } = volume;
            let known = Known { name: &name, order: &order, secrets: &secrets };
            let mut backup = backup;
            let restored = volumes.restore(&known, &mut backup, replace);
            if restored.is_err() {
                backup.pass_by();
            }
            restored
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        done.map(|summary| RestoredVolume { entries: summary.entries, bytes: summary.bytes }).map_err(refused)
    }
}

fn refused(error: VolumeError) -> ControlError {
    let message = chain(&error);
    let (kind, hint) = match &error {
        _ if error.is_full() => (ErrorKind::DiskFull, Some("the volume is as it was; free some space and try again")),
        VolumeError::NotEmpty(_) => (
            ErrorKind::Conflict,
            Some("with `--replace` what it holds is deleted; `toft volume backup` keeps it first"),
        ),
        VolumeError::Busy(_) => (ErrorKind::Conflict, Some("try again in a moment")),
        VolumeError::Archive(ArchiveError::Write { .. }) => (ErrorKind::Internal, None),
        VolumeError::Archive(_) => {
            (ErrorKind::Invalid, Some("the volume is as it was; use a file that `toft volume backup` wrote"))
        }
        VolumeError::Hangs(_) | VolumeError::Mount { .. } | VolumeError::NoClient { .. } => {
            (ErrorKind::Unavailable, None)
        }
        VolumeError::NotAllowed { .. } | VolumeError::NoSource { .. } => (ErrorKind::Invalid, None),
        _ => (ErrorKind::Internal, None),
    };
    let refused = ControlError::new(kind, message);
    match hint {
        Some(hint) => refused.hint(hint),
        None => refused,
    }
}
