//! Blobs in containerd's content store: written in pieces under a lease, read whole when small, labelled so that the
//! garbage collector knows what they refer to.

use std::collections::HashMap;

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ListStatusesRequest, ReadContentRequest, ReadContentResponse, UpdateRequest,
    WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    client::{Client, Lease, QUICK, SLOW, call},
    errors::Refusal,
    media::Descriptor,
};
use crate::agent::runtime::RuntimeError;

const WRITING: &str = "writing to the content store";
const READING: &str = "reading from the content store";
const ABORTING: &str = "throwing away unfinished blobs";
/// Pieces sent and not yet answered for.
const AHEAD: usize = 4;

/// One blob being written.
pub(super) struct BlobWriter {
    pieces: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    reference: String,
    total: i64,
    offset: i64,
    unanswered: usize,
    /// The store has the bytes already.
    present: bool,
}

/// How a blob begins.
pub(super) enum Opened {
    /// Its bytes are wanted.
    Writer(Box<BlobWriter>),
    /// It is in the store; the lease holds it.
    Present,
}

impl BlobWriter {
    /// Begins a blob of `total` bytes. With `expected`, its digest, a blob already there is not written again.
    /// `reference` must be unique among the blobs being written.
    pub(super) async fn open(
        client: &Client,
        lease: &Lease,
        reference: String,
        total: u64,
        expected: Option<&str>,
    ) -> Result<Opened, RuntimeError> {
        let total = i64::try_from(total)
            .map_err(|_| RuntimeError::Failed { doing: WRITING, reason: "a blob is too large".to_owned() })?;
        let (pieces, requests) = mpsc::channel(AHEAD);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total,
            expected: expected.unwrap_or_default().to_owned(),
            ..Default::default()
        };
        // The call itself is answered with the first message only, so that one goes ahead of it.
        let sent = pieces.try_send(first);
        debug_assert!(sent.is_ok(), "the channel is empty");
        let stream = client.leased(ReceiverStream::new(requests), lease);
        let mut answers = match call(WRITING, SLOW, client.content().write(stream)).await {
            Ok(answers) => answers,
            Err(refusal) if refusal.exists() => return Ok(Opened::Present),
            Err(refusal) => return Err(refusal.into()),
        };
        let offset = match answer(&mut answers).await {
            Ok(first) => first.offset,
            Err(refusal) if refusal.exists() => return Ok(Opened::Present),
            Err(refusal) => return Err(refusal.into()),
        };
        let present = total > 0 && offset == total;
        let writer = Self { pieces, answers, reference, total, offset, unanswered: 0, present };
        Ok(Opened::Writer(Box::new(writer)))
    }

    /// Bytes the store has of it already.
    pub(super) fn offset(&self) -> u64 {
        u64::try_from(self.offset).unwrap_or(0)
    }

    /// Appends a piece.
    pub(super) async fn write(&mut self, data: Bytes) -> Result<(), RuntimeError> {
        if self.present {
            return Ok(());
        }
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            r#ref: self.reference.clone(),
            total: self.total,
            offset: self.offset,
            data: data.into(),
            ..Default::default()
        };
        self.offset += length;
        self.send(request).await?;
        Ok(())
    }

    /// Waits until containerd has everything that was written.
    pub(super) async fn settle(&mut self) -> Result<(), RuntimeError> {
        while self.unanswered > 0 {
            self.unanswered -= 1;
            answer(&mut self.answers).await?;
        }
        Ok(())
    }

    /// Ends the blob; containerd checks its size and digest.
    pub(super) async fn commit(mut self, digest: &str) -> Result<(), RuntimeError> {
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: self.reference.clone(),
            total: self.total,
            expected: digest.to_owned(),
            offset: self.total,
            ..Default::default()
        };
        let mut result = self.send(request).await;
        while result.is_ok() && self.unanswered > 0 {
            self.unanswered -= 1;
            result = answer(&mut self.answers).await.map(drop);
        }
        match result {
            Err(refusal) if !refusal.exists() => Err(refusal.into()),
            _ => Ok(()),
        }
    }

    async fn send(&mut self, request: WriteContentRequest) -> Result<(), Refusal> {
        if self.unanswered >= AHEAD {
            answer(&mut self.answers).await?;
            self.unanswered -= 1;
        }
        // When the other side is gone, its last answer says why.
        if self.pieces.send(request).await.is_err() {
            answer(&mut self.answers).await?;
        }
        self.unanswered += 1;
        Ok(())
    }
}

async fn answer(answers: &mut Streaming<WriteContentResponse>) -> Result<WriteContentResponse, Refusal> {
    match tokio::time::timeout(SLOW, answers.message()).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(Refusal::new(WRITING, &tonic::Status::unavailable("the line broke"))),
        Ok(Err(status)) => Err(Refusal::new(WRITING, &status)),
        Err(_) => Err(Refusal::timed_out(WRITING, SLOW)),
    }
}

/// Writes a small blob whose bytes are at hand.
pub(super) async fn write_whole(
    client: &Client,
    lease: &Lease,
    digest: &str,
    bytes: Vec<u8>,
) -> Result<(), RuntimeError> {
    let reference = format!("{}-{digest}", lease.id);
    match BlobWriter::open(client, lease, reference, bytes.len() as u64, Some(digest)).await? {
        Opened::Present => Ok(()),
        Opened::Writer(mut writer) => {
            writer.write(bytes.into()).await?;
            writer.commit(digest).await
        }
    }
}

/// Throws away what was begun under references that begin with `prefix` and never ended.
pub(super) async fn abort_unfinished(client: &Client, prefix: &str) -> Result<(), RuntimeError> {
    let request = client.request(ListStatusesRequest { filters: Vec::new() });
    let statuses = call(ABORTING, QUICK, client.content().list_statuses(request)).await?.statuses;
    for status in statuses.into_iter().filter(|status| status.r#ref.starts_with(prefix)) {
        abort(client, &status.r#ref).await?;
    }
    Ok(())
}

/// Throws away an unfinished blob; one that is not there is no error.
pub(super) async fn abort(client: &Client, reference: &str) -> Result<(), RuntimeError> {
    let request = client.request(AbortRequest { r#ref: reference.to_owned() });
    match call(ABORTING, QUICK, client.content().abort(request)).await {
        Err(refusal) if !refusal.not_found() => Err(refusal.into()),
        _ => Ok(()),
    }
}

/// Size of a blob; `None` when it is not there.
pub(super) async fn size(client: &Client, digest: &str) -> Result<Option<u64>, RuntimeError> {
    let request = client.request(InfoRequest { digest: digest.to_owned() });
    match call("looking at a blob", QUICK, client.content().info(request)).await {
        Ok(answer) => Ok(answer.info.map(|info| u64::try_from(info.size).unwrap_or(0))),
        Err(refusal) if refusal.not_found() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Why a document could not be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is not in the store.
    Missing,
    /// It is larger than a document may be.
    TooLarge,
    /// The runtime failed.
    Failed(RuntimeError),
}

/// Reads a blob of at most `most` bytes.
pub(super) async fn read_whole(client: &Client, digest: &str, most: u64) -> Result<Vec<u8>, Unread> {
    let refused = |refusal: Refusal| if refusal.not_found() { Unread::Missing } else { Unread::Failed(refusal.into()) };
    let limit = i64::try_from(most).unwrap_or(i64::MAX - 1) + 1;
    let request = client.request(ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 });
    let mut stream = call(READING, QUICK, client.content().read(request)).await.map_err(refused)?;
    let mut bytes = Vec::new();
    loop {
        let next = tokio::time::timeout(QUICK, stream.message()).await;
        let piece = match next {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => return Ok(bytes),
            Ok(Err(status)) => return Err(refused(Refusal::new(READING, &status))),
            Err(_) => return Err(refused(Refusal::timed_out(READING, QUICK))),
        };
        bytes.extend_from_slice(&piece.data);
        if bytes.len() as i64 >= limit {
            return Err(Unread::TooLarge);
        }
    }
}

/// A blob in the store, read piece by piece.
pub(super) struct Blob(Streaming<ReadContentResponse>);

impl Blob {
    pub(super) async fn open(client: &Client, digest: &str) -> Result<Self, RuntimeError> {
        Self::open_at(client, digest, 0).await
    }

    /// From the byte `from` on, which must be below its size.
    pub(super) async fn open_at(client: &Client, digest: &str, from: u64) -> Result<Self, RuntimeError> {
        let offset = i64::try_from(from).unwrap_or(i64::MAX);
        let request = client.request(ReadContentRequest { digest: digest.to_owned(), offset, size: 0 });
        Ok(Self(call(READING, QUICK, client.content().read(request)).await?))
    }

    /// `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RuntimeError> {
        match tokio::time::timeout(SLOW, self.0.message()).await {
            Ok(Ok(piece)) => Ok(piece.map(|piece| piece.data.into())),
            Ok(Err(status)) => Err(Refusal::new(READING, &status).into()),
            Err(_) => Err(Refusal::timed_out(READING, SLOW).into()),
        }
    }
}

/// Tells the garbage collector that a document needs its `children`.
pub(super) async fn label_children<'a>(
    client: &Client,
    lease: &Lease,
    digest: &str,
    children: impl Iterator<Item = &'a Descriptor>,
) -> Result<(), RuntimeError> {
    let labels: HashMap<String, String> = children
        .enumerate()
        .map(|(i, child)| {
            let kind = if child.is_index() || child.is_manifest() { "m" } else { "l" };
            (format!("containerd.io/gc.ref.content.{kind}.{i}"), child.digest.clone())
        })
        .collect();
    label(client, lease, digest, labels).await
}

/// Adds labels to a blob, leaving its others alone.
pub(super) async fn label(
    client: &Client,
    lease: &Lease,
    digest: &str,
    labels: HashMap<String, String>,
) -> Result<(), RuntimeError> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Info { digest: digest.to_owned(), labels, ..Default::default() };
    let message = UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
    call("labelling a blob", QUICK, client.content().update(client.leased(message, lease))).await?;
    Ok(())
}
