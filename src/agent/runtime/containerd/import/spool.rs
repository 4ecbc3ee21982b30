//! Moves the members of an archive into the content store as they arrive, in whatever order, and remembers what was
//! where. Only the few documents that name everything else are kept in memory.

use std::{
    collections::{BTreeMap, HashMap},
    io,
};

use bytes::Bytes;
use tokio::{io::AsyncReadExt, sync::mpsc, task::JoinHandle};

use super::{
    super::{
        client::{Client, Lease},
        content::{BlobWriter, Opened},
        media::MAX_DOCUMENT_BYTES,
    },
    archive::{self, Incoming, Piece},
    bad,
};
use crate::agent::runtime::{ArchiveReader, RuntimeError};

/// Bytes read from the archive at once.
const CHUNK_BYTES: usize = 128 * 1024;
/// Documents kept in memory.
const DOCUMENTS: [&str; 3] = ["index.json", "manifest.json", "oci-layout"];

/// A member in the content store.
#[derive(Debug, Clone)]
pub(super) struct Spooled {
    pub(super) digest: String,
    pub(super) size: u64,
    /// It begins like a gzip file.
    pub(super) gzip: bool,
}

/// Everything an archive held.
#[derive(Debug, Default)]
pub(super) struct Contents {
    documents: HashMap<&'static str, Vec<u8>>,
    files: BTreeMap<String, Spooled>,
    links: BTreeMap<String, String>,
}

impl Contents {
    /// One of the documents at the archive's root.
    pub(super) fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(name).map(Vec::as_slice)
    }

    /// A member by its path, through links.
    pub(super) fn file(&self, path: &str) -> Option<&Spooled> {
        let mut path = path.trim_start_matches("./");
        for _ in 0..8 {
            match self.links.get(path) {
                Some(target) => path = target,
                None => return self.files.get(path),
            }
        }
        None
    }
}

/// Reads the whole archive into the store.
pub(super) async fn spool(client: &Client, lease: &Lease, archive: ArchiveReader) -> Result<Contents, RuntimeError> {
    let (chunks, incoming) = mpsc::channel(4);
    let (sender, pieces) = mpsc::channel(4);
    let reading: JoinHandle<Result<(), String>> =
        tokio::task::spawn_blocking(move || archive::read(Incoming::new(incoming), &sender));
    let taking = take(client, lease, pieces);
    tokio::pin!(taking);
    let contents = tokio::select! {
        taken = &mut taking => taken,
        () = feed(archive, chunks) => taking.await,
    }?;
    match reading.await {
        Ok(Ok(())) => Ok(contents),
        Ok(Err(reason)) => Err(bad(reason)),
        Err(error) => Err(RuntimeError::Failed { doing: "reading the archive", reason: error.to_string() }),
    }
}

/// Hands the archive's bytes to the reading thread until either side ends.
async fn feed(mut archive: ArchiveReader, chunks: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK_BYTES);
        let read = archive.read_buf(&mut chunk).await;
        let last = !matches!(read, Ok(more) if more > 0);
        let item = match read {
            Ok(0) => return,
            Ok(_) => Ok(chunk.freeze()),
            Err(error) => Err(error),
        };
        if chunks.send(item).await.is_err() || last {
            return;
        }
    }
}

async fn take(client: &Client, lease: &Lease, mut pieces: mpsc::Receiver<Piece>) -> Result<Contents, RuntimeError> {
    let mut contents = Contents::default();
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Link { path, target } => drop(contents.links.insert(path, target)),
            Piece::File { path, size } => {
                let number = contents.files.len();
                take_file(client, lease, &mut pieces, File { path, size, number }, &mut contents).await?;
            }
            Piece::Data(_) | Piece::FileEnd { .. } => {}
        }
    }
    Ok(contents)
}

struct File {
    path: String,
    size: u64,
    number: usize,
}

/// Where the bytes of a file go.
enum Sink {
    Memory(&'static str, Vec<u8>),
    Store(Box<BlobWriter>),
    Nowhere,
}

async fn take_file(
    client: &Client,
    lease: &Lease,
    pieces: &mut mpsc::Receiver<Piece>,
    file: File,
    contents: &mut Contents,
) -> Result<(), RuntimeError> {
    let expected = expected_digest(&file.path)?;
    let mut sink = if let Some(name) = DOCUMENTS.into_iter().find(|name| *name == file.path) {
        if file.size > MAX_DOCUMENT_BYTES {
            return Err(bad(format!("its `{name}` is larger than 4 MiB")));
        }
        Sink::Memory(name, Vec::new())
    } else if wanted(&file.path) {
        let reference = format!("{}-{}-{}", lease.id, file.number, contents.links.len());
        match BlobWriter::open(client, lease, reference, file.size, expected.as_deref()).await? {
            Opened::Writer(writer) => Sink::Store(writer),
            Opened::Present => Sink::Nowhere,
        }
    } else {
        Sink::Nowhere
    };
    let mut gzip = None;
    loop {
        match pieces.recv().await {
            Some(Piece::Data(data)) => {
                gzip.get_or_insert(data.starts_with(&[0x1f, 0x8b]));
                match &mut sink {
                    Sink::Memory(_, bytes) => bytes.extend_from_slice(&data),
                    Sink::Store(writer) => writer.write(data).await?,
                    Sink::Nowhere => {}
                }
            }
            Some(Piece::FileEnd { digest }) => {
                if expected.as_ref().is_some_and(|expected| *expected != digest) {
                    return Err(bad(format!("`{}` does not hold what its name says", file.path)));
                }
                match sink {
                    Sink::Memory(name, bytes) => drop(contents.documents.insert(name, bytes)),
                    Sink::Store(writer) => writer.commit(&digest).await?,
                    Sink::Nowhere => {}
                }
                let spooled = Spooled { digest, size: file.size, gzip: gzip.unwrap_or(false) };
                contents.files.insert(file.path, spooled);
                return Ok(());
            }
            // The reading thread knows why.
            _ => return Ok(()),
        }
    }
}

/// The digest a blob's name promises; `None` for members of other names.
fn expected_digest(path: &str) -> Result<Option<String>, RuntimeError> {
    let Some(rest) = path.strip_prefix("blobs/") else { return Ok(None) };
    let digest = rest.replacen('/', ":", 1);
    if super::super::media::digest_ok(&digest) {
        Ok(Some(digest))
    } else {
        let shown: String = path.chars().take(120).collect();
        Err(bad(format!("`{shown}` is not named like a blob (`blobs/sha256/...`)")))
    }
}

/// Whether a member can be part of an image. Everything else is read over, so that a large archive of something else
/// does not go through the store.
fn wanted(path: &str) -> bool {
    let endings = [".json", ".tar", ".tar.gz", ".tgz", ".tar.zst"];
    path.starts_with("blobs/") || path.starts_with("sha256:") || endings.iter().any(|ending| path.ends_with(ending))
}
