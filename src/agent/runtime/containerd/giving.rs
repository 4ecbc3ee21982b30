//! Blobs of the content store for other nodes.

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use toft_model::image::ImageRef;

use super::{ContainerdRuntime, content, images};
use crate::agent::runtime::{
    RuntimeError,
    blobs::{BlobReader, BlobRuntime},
};

#[async_trait]
impl BlobRuntime for ContainerdRuntime {
    async fn named(&self, image: &ImageRef) -> Result<Option<String>, RuntimeError> {
        let Some(record) = images::record(&self.shared, image.as_str()).await? else { return Ok(None) };
        let usable = match images::resolve(&self.shared, image).await {
            Ok(_) => true,
            Err(RuntimeError::ImageUnusable { .. } | RuntimeError::ImageMissing { .. }) => false,
            Err(error) => return Err(error),
        };
        Ok(record.target.filter(|_| usable).map(|target| target.digest))
    }

    async fn blob_size(&self, digest: &str) -> Result<Option<u64>, RuntimeError> {
        content::size(&self.shared.client, digest).await
    }

    async fn read_blob(&self, digest: &str, from: u64) -> Result<BlobReader, RuntimeError> {
        let blob = content::Blob::open_at(&self.shared.client, digest, from).await?;
        Ok(stream::unfold(Some(blob), |blob| async {
            let mut blob = blob?;
            match blob.next().await {
                Ok(piece) => piece.map(|piece| (Ok(piece), Some(blob))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}
