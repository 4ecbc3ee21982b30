//! Blobs of the fake runtime.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use toft_model::image::ImageRef;

use super::{Call, FakeRuntime};
use crate::agent::runtime::{
    RuntimeError,
    blobs::{BlobReader, BlobRuntime},
};

/// Bytes given at once.
const PIECE: usize = 64 << 10;

impl FakeRuntime {
    /// Puts a blob into the store and gives its digest.
    pub fn put_blob(&self, bytes: &[u8]) -> String {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        self.state().blobs.insert(digest.clone(), Bytes::copy_from_slice(bytes));
        digest
    }
}

#[async_trait]
impl BlobRuntime for FakeRuntime {
    async fn named(&self, image: &ImageRef) -> Result<Option<String>, RuntimeError> {
        Ok(self.begin(Call::Named)?.images.get(image.as_str()).map(|(image, _)| image.digest.clone()))
    }

    async fn blob_size(&self, digest: &str) -> Result<Option<u64>, RuntimeError> {
        Ok(self.begin(Call::BlobSize)?.blobs.get(digest).map(|bytes| bytes.len() as u64))
    }

    async fn read_blob(&self, digest: &str, from: u64) -> Result<BlobReader, RuntimeError> {
        let bytes = self.begin(Call::ReadBlob)?.blobs.get(digest).cloned();
        let missing = || RuntimeError::Failed {
            doing: "reading a blob",
            reason: format!("there is no `{digest}` with a byte {from}"),
        };
        let from = usize::try_from(from).map_err(|_| missing())?;
        let bytes = bytes.filter(|bytes| from < bytes.len()).ok_or_else(missing)?.slice(from..);
        let pieces: Vec<_> = (0..bytes.len().div_ceil(PIECE))
            .map(|i| Ok(bytes.slice(i * PIECE..bytes.len().min((i + 1) * PIECE))))
            .collect();
        Ok(stream::iter(pieces).boxed())
    }
}
