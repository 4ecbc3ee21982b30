//! Decompressing and hashing on a thread of its own, a few pieces ahead of the one that writes the files: each takes about half
//! of the time that a layer needs.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use super::decode::{Decoded, Incoming};

/// Bytes handed over at once.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait to be written.
const PIECES: usize = 4;

/// Some bytes of the archive; what is behind the count is old.
type Piece = (Vec<u8>, usize);

/// The bytes of an archive as they come out of a layer.
pub(super) struct Ahead {
    pieces: Receiver<Piece>,
    /// Pieces that were written, to be filled again.
    spent: SyncSender<Vec<u8>>,
    piece: Piece,
    at: usize,
    thread: Option<JoinHandle<End>>,
    digest: Option<String>,
    cut_off: bool,
}

/// How the thread ended.
enum End {
    /// All was handed over; the digest of all.
    Whole(String),
    /// The layer was cut off.
    CutOff,
    /// It cannot be read.
    Damaged(io::Error),
    /// Nobody wanted the rest.
    Unwanted,
}

impl Ahead {
    /// Begins at once.
    pub(super) fn start(blob: Incoming) -> io::Result<Self> {
        let (sender, pieces) = sync_channel(PIECES);
        let (spent, again) = sync_channel(PIECES);
        let work = move || decode(blob, &sender, &again);
        let thread = Some(std::thread::Builder::new().name("layer".to_owned()).spawn(work)?);
        Ok(Self { pieces, spent, piece: (Vec::new(), 0), at: 0, thread, digest: None, cut_off: false })
    }

    /// Whether the layer never came to its end; known once a read failed.
    pub(super) fn was_cut_off(&self) -> bool {
        self.cut_off
    }

    /// Digest of the archive, `sha256:...`, once all was read.
    pub(super) fn digest(self) -> Option<String> {
        self.digest
    }

    /// Takes the next piece; `false` at the end.
    fn next(&mut self) -> io::Result<bool> {
        if let Ok(piece) = self.pieces.recv() {
            let (spent, _) = std::mem::replace(&mut self.piece, piece);
            self.at = 0;
            if !spent.is_empty() {
                // Who has enough of them drops it.
                drop(self.spent.try_send(spent));
            }
            return Ok(true);
        }
        let Some(thread) = self.thread.take() else { return Ok(false) };
        match thread.join() {
            Ok(End::Whole(digest)) => {
                self.digest = Some(digest);
                Ok(false)
            }
            Ok(End::CutOff) => {
                self.cut_off = true;
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the layer was cut off"))
            }
            Ok(End::Damaged(error)) => Err(error),
            Ok(End::Unwanted) => Ok(false),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.1 {
            if !self.next()? {
                return Ok(0);
            }
        }
        let from = &self.piece.0[self.at..self.piece.1];
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        self.at += count;
        Ok(count)
    }
}

fn decode(blob: Incoming, pieces: &SyncSender<Piece>, again: &Receiver<Vec<u8>>) -> End {
    let Ok(mut decoded) = Decoded::new(blob) else { return End::CutOff };
    loop {
        let mut piece = again.try_recv().unwrap_or_else(|_| vec![0; PIECE_BYTES]);
        let mut filled = 0;
        while filled < piece.len() {
            match decoded.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if decoded.source().was_cut_off() => return End::CutOff,
                Err(error) => {
                    // What came before is still worth reading: the fault may be there already.
                    let wanted = filled == 0 || pieces.send((piece, filled)).is_ok();
                    return if wanted { End::Damaged(error) } else { End::Unwanted };
                }
            }
        }
        if filled == 0 {
            return End::Whole(decoded.digest());
        }
        if pieces.send((piece, filled)).is_err() {
            return End::Unwanted;
        }
    }
}
