//! What a runtime's images are made of, for other nodes.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use toft_model::image::ImageRef;

use super::RuntimeError;

/// A blob as it is read.
pub type BlobReader = BoxStream<'static, Result<Bytes, RuntimeError>>;

/// The part of a runtime that hands out blobs by digest. What is only half there is not there.
#[async_trait]
pub trait BlobRuntime {
    /// Digest of the manifest or index that a name stands for; `None` when there is no such name, or its image cannot be used
    /// here.
    async fn named(&self, image: &ImageRef) -> Result<Option<String>, RuntimeError>;

    /// Size of a blob in bytes; `None` when it is not there.
    async fn blob_size(&self, digest: &str) -> Result<Option<u64>, RuntimeError>;

    /// A blob from the byte `from` on, which must be below its size.
    async fn read_blob(&self, digest: &str, from: u64) -> Result<BlobReader, RuntimeError>;
}
