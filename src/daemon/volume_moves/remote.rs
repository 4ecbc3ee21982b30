//! A tree on another node as the end that gives. Blocks; made for a thread that may wait.

use std::{io, time::Duration};

use tokio::runtime::Handle as Runtime;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{LARGEST, Which, of_wire};
use crate::{
    agent::volumes::moving::{Entry, MoveError, Part, Source, Sum, Want},
    consensus::network::MemberChannel,
    wire::volume_moves::{ReadRequest, SumStep, Volume, Wanted, file_part, volume_moves_client::VolumeMovesClient},
};

/// Longest wait for a sign of life.
const SILENCE: Duration = Duration::from_secs(30);
/// The same while it counts how large the volume is. Whether it lives the connection itself finds out.
const COUNTING: Duration = Duration::from_secs(600);

/// The tree of a volume on another node.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) which: Which,
    pub(super) channel: MemberChannel,
    pub(super) runtime: Runtime,
    pub(super) stop: CancellationToken,
}

fn broken(status: &Status) -> MoveError {
    MoveError::Source(io::Error::other(status.message().to_owned()))
}

fn silent() -> MoveError {
    MoveError::Source(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"))
}

impl Remote {
    fn client(&self) -> VolumeMovesClient<MemberChannel> {
        VolumeMovesClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    fn volume(&self) -> Volume {
        Volume { name: self.which.name.to_string(), born: self.which.born }
    }

    /// Waits for an answer, unless it is all to stop.
    fn wait<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, MoveError> {
        self.wait_for(SILENCE, answer)
    }

    fn wait_for<T>(&self, limit: Duration, answer: impl Future<Output = Result<T, Status>>) -> Result<T, MoveError> {
        // A clock is known only inside.
        let limited = async { tokio::time::timeout(limit, answer).await };
        match self.runtime.block_on(self.stop.run_until_cancelled(limited)) {
            None => Err(MoveError::Stopped),
            Some(Err(_)) => Err(silent()),
            Some(Ok(answer)) => answer.map_err(|status| broken(&status)),
        }
    }

    fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, MoveError> {
        self.wait(stream.message())
    }

    /// Bytes on the disk there.
    pub(super) fn bytes(&self) -> Result<u64, MoveError> {
        let mut client = self.client();
        Ok(self.wait_for(COUNTING, client.look(self.volume()))?.into_inner().bytes)
    }

    /// What the tree holds there. `told` is told the bytes that were read there.
    pub(super) fn sum(&self, told: &mut dyn FnMut(u64) -> bool) -> Result<Sum, MoveError> {
        let mut client = self.client();
        let mut steps = self.wait(client.sum(self.volume()))?.into_inner();
        while let Some(SumStep { bytes, digest, entries }) = self.next(&mut steps)? {
            if let Some(digest) = digest {
                let digest = digest.try_into().map_err(|_| broken(&Status::internal("its checksum is none")))?;
                return Ok(Sum { digest, entries, bytes });
            }
            if !told(bytes) {
                return Err(MoveError::Stopped);
            }
        }
        Err(MoveError::Source(io::ErrorKind::UnexpectedEof.into()))
    }
}

impl Source for Remote {
    fn list(&self, each: &mut dyn FnMut(Entry) -> Result<(), MoveError>) -> Result<(), MoveError> {
        let mut client = self.client();
        let mut lists = self.wait(client.list(self.volume()))?.into_inner();
        let mut begun = false;
        while let Some(list) = self.next(&mut lists)? {
            if list.entries.is_empty() {
                // Its end, which a stream that broke off does not have.
                return Ok(());
            }
            begun = true;
            for entry in list.entries {
                let entry = of_wire(entry);
                each(entry.ok_or_else(|| broken(&Status::internal("it has something of an unknown kind")))?)?;
            }
        }
        let why = if begun { "its list breaks off" } else { "its list is empty" };
        Err(broken(&Status::internal(why)))
    }

    fn read(&self, wanted: &[Want], each: &mut dyn FnMut(Part<'_>) -> Result<(), MoveError>) -> Result<(), MoveError> {
        let mut client = self.client();
        let wanted =
            wanted.iter().map(|want| Wanted { path: want.path.clone(), from: want.from, size_bytes: want.size });
        let request = ReadRequest { volume: Some(self.volume()), wanted: wanted.collect() };
        let mut parts = self.wait(client.read(request))?.into_inner();
        while let Some(part) = self.next(&mut parts)? {
            match part.part {
                Some(file_part::Part::Bytes(bytes)) => {
                    each(Part::Bytes { offset: bytes.offset, bytes: &bytes.data })?;
                }
                Some(file_part::Part::End(_)) => each(Part::End)?,
                None => {}
            }
        }
        Ok(())
    }
}
