//! An OCI image layout: `index.json` names images, `blobs/` holds everything.

use toft_model::image::ImageRef;

use super::{
    super::{
        client::Client,
        content,
        media::{Descriptor, Index, Manifest},
        resolve::{Unusable, document},
    },
    Found, bad,
};
use crate::agent::runtime::RuntimeError;

const CONTAINERD_NAME: &str = "io.containerd.image.name";
const OCI_NAME: &str = "org.opencontainers.image.ref.name";
/// Most images of one archive.
const MOST_IMAGES: usize = 256;

/// The images that `index.json` names.
pub(super) fn images(index: &[u8]) -> Result<Vec<Found>, RuntimeError> {
    let index: Index =
        serde_json::from_slice(index).map_err(|error| bad(format!("its `index.json` cannot be read: {error}")))?;
    if index.manifests.len() > MOST_IMAGES {
        return Err(bad(format!("it names more than {MOST_IMAGES} images")));
    }
    let images = index.manifests.into_iter().filter(|target| !target.is_attestation());
    let images = images.filter(|target| target.is_index() || target.is_manifest());
    images.map(|target| Ok(Found { name: name(&target)?, written: written(&target), target })).collect()
}

/// The complete name; a bare tag is none.
fn name(target: &Descriptor) -> Result<Option<ImageRef>, RuntimeError> {
    let full = target.annotations.get(CONTAINERD_NAME);
    let short = target.annotations.get(OCI_NAME).filter(|text| text.contains(['/', ':', '@']));
    match full.or(short) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|error| bad(format!("an image in it is named wrongly: {error}"))),
    }
}

/// The tag an image without a complete name is called by in the archive.
fn written(target: &Descriptor) -> Option<String> {
    target.annotations.get(OCI_NAME).cloned()
}

/// Whether everything below an index is in the store, for all of its platforms. If so, its blobs are given with what
/// they refer to, so that all of it can be kept.
pub(super) async fn complete_index(client: &Client, target: &Descriptor) -> Result<Option<Vec<Parent>>, RuntimeError> {
    const MOST_BLOBS: usize = 4096;
    let mut parents = Vec::new();
    let mut queue = vec![target.clone()];
    let mut blobs = 0;
    while let Some(descriptor) = queue.pop() {
        let children = if descriptor.is_index() {
            match document::<Index>(client, &descriptor, "index").await {
                Ok(index) => index.manifests,
                Err(Unusable::Image(_)) => return Ok(None),
                Err(Unusable::Runtime(error)) => return Err(error),
            }
        } else {
            match document::<Manifest>(client, &descriptor, "manifest").await {
                Ok(manifest) => std::iter::once(manifest.config).chain(manifest.layers).collect(),
                Err(Unusable::Image(_)) => return Ok(None),
                Err(Unusable::Runtime(error)) => return Err(error),
            }
        };
        blobs += children.len();
        if blobs > MOST_BLOBS {
            return Ok(None);
        }
        for child in &children {
            if child.is_index() || child.is_manifest() {
                queue.push(child.clone());
            } else if content::size(client, &child.digest).await?.is_none() {
                return Ok(None);
            }
        }
        parents.push(Parent { digest: descriptor.digest, children });
    }
    Ok(Some(parents))
}

/// A blob and what it refers to.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) digest: String,
    pub(super) children: Vec<Descriptor>,
}
