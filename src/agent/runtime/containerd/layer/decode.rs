//! From pieces as they arrive to the bytes of an archive: gzip, zstd or plain, told apart by how they begin.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

/// Pieces on their way.
const PIECES: usize = 8;
/// Largest window of zstd, as a power of two: 128 MiB, as other tools take it.
const ZSTD_WINDOW: u32 = 27;

/// A way from whoever receives a layer to the thread that unpacks it.
pub(in super::super) fn incoming() -> (Feed, Incoming) {
    let (sender, receiver) = mpsc::channel(PIECES);
    (Feed(sender), Incoming { receiver, piece: Bytes::new(), state: State::Coming })
}

/// Where pieces go in. When it goes without [`end`](Self::end), the layer was cut off.
#[derive(Debug)]
pub(in super::super) struct Feed(mpsc::Sender<Option<Bytes>>);

impl Feed {
    /// Hands on a piece; `false` when nobody takes it any more.
    pub(in super::super) async fn give(&self, piece: Bytes) -> bool {
        piece.is_empty() || self.0.send(Some(piece)).await.is_ok()
    }

    /// That was all.
    pub(in super::super) async fn end(self) {
        // Who does not listen any more has its reason.
        drop(self.0.send(None).await);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Coming,
    Ended,
    CutOff,
}

/// Where pieces come out; for a thread that may block.
#[derive(Debug)]
pub(in super::super) struct Incoming {
    receiver: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    state: State,
}

impl Incoming {
    /// Whether the layer never came to its end.
    pub(super) fn was_cut_off(&self) -> bool {
        self.state == State::CutOff
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() && self.state == State::Coming {
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.state = State::Ended,
                None => self.state = State::CutOff,
            }
        }
        if self.state == State::CutOff {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the layer was cut off"));
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount);
    }
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// The bytes of the archive, counted into their digest.
pub(super) struct Decoded<R: BufRead> {
    inner: Compression<R>,
    digest: Sha256,
}

enum Compression<R: BufRead> {
    None(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::Decoder<'static, R>>),
}

impl<R: BufRead> Decoded<R> {
    /// Looks at how the layer begins.
    pub(super) fn new(mut source: R) -> io::Result<Self> {
        // The first piece is long enough to tell, unless the layer is shorter than any archive.
        let begins = source.fill_buf()?;
        let inner = if begins.starts_with(&[0x1f, 0x8b]) {
            Compression::Gzip(Box::new(MultiGzDecoder::new(source)))
        } else if begins.len() >= 4 && (begins.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable(begins)) {
            let mut decoder = zstd::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Compression::Zstd(Box::new(decoder))
        } else {
            Compression::None(source)
        };
        Ok(Self { inner, digest: Sha256::new() })
    }

    /// Digest of all that was read.
    pub(super) fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.digest.finalize()))
    }

    /// The source.
    pub(super) fn source(&self) -> &R {
        match &self.inner {
            Compression::None(source) => source,
            Compression::Gzip(decoder) => decoder.get_ref(),
            Compression::Zstd(decoder) => decoder.get_ref(),
        }
    }
}

/// A frame of zstd that holds something else, as the lists of contents that some builders put first.
fn skippable(begins: &[u8]) -> bool {
    (0x50..=0x5f).contains(&begins[0]) && begins[1..4] == [0x2a, 0x4d, 0x18]
}

impl<R: BufRead> Read for Decoded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.inner {
            Compression::None(source) => source.read(into),
            Compression::Gzip(decoder) => decoder.read(into),
            Compression::Zstd(decoder) => decoder.read(into),
        }?;
        self.digest.update(&into[..count]);
        Ok(count)
    }
}
