//! What a thread writes, as parts for a task that sends them.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// Bytes of one part.
const PART: usize = 128 * 1024;

/// Writes into a channel. It waits while the channel is full, and fails when nobody receives any more.
pub(super) struct Parts {
    part: BytesMut,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Parts {
    pub(super) fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self { part: BytesMut::with_capacity(PART), sender }
    }

    /// Breaks it off; whoever receives must not take what came for everything.
    pub(super) fn fail(self, reason: String) {
        // Nobody receives: then nobody is misled either.
        let _ = self.sender.blocking_send(Err(io::Error::other(reason)));
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() == PART {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.part, BytesMut::with_capacity(PART));
        self.sender.blocking_send(Ok(part.freeze())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
