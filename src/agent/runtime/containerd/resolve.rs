//! From an image's target to what a container needs of it: the manifest for this platform, its config, the chain of
//! its layers. Targets are digests, so a result never changes and is kept.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use serde::de::DeserializeOwned;

use super::{
    client::Client,
    content::{self, Unread},
    media::{self, Descriptor, ImageConfig, Index, MAX_DOCUMENT_BYTES, Manifest},
};
use crate::agent::runtime::RuntimeError;

/// Most documents read to find one manifest.
const MOST_DOCUMENTS: usize = 64;
/// Results kept; more than any node has images.
const MOST_KEPT: usize = 512;

/// An image as this machine uses it.
#[derive(Debug)]
pub(super) struct ResolvedImage {
    pub(super) manifest: Descriptor,
    pub(super) config_descriptor: Descriptor,
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<Descriptor>,
    /// Snapshot names, one for each layer.
    pub(super) chain: Vec<String>,
}

impl ResolvedImage {
    /// Compressed size of manifest, config and layers in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        layers.saturating_add(self.manifest.size).saturating_add(self.config_descriptor.size)
    }
}

/// Why an image cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// Something about the image; in words for people.
    Image(String),
    /// The runtime failed.
    Runtime(RuntimeError),
}

impl From<RuntimeError> for Unusable {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(error)
    }
}

impl Unusable {
    /// As the error of a call about the image in the store.
    pub(super) fn of_image(self, image: &str) -> RuntimeError {
        match self {
            Self::Image(reason) => RuntimeError::ImageUnusable { image: image.to_owned(), reason },
            Self::Runtime(error) => error,
        }
    }

    /// As the error of an import.
    pub(super) fn of_archive(self) -> RuntimeError {
        match self {
            Self::Image(reason) => RuntimeError::BadArchive { reason },
            Self::Runtime(error) => error,
        }
    }
}

/// What was resolved so far, by the target's digest.
#[derive(Debug, Default)]
pub(super) struct ResolvedImages(Mutex<HashMap<String, Arc<ResolvedImage>>>);

impl ResolvedImages {
    /// The image behind `target`.
    pub(super) async fn get(&self, client: &Client, target: &Descriptor) -> Result<Arc<ResolvedImage>, Unusable> {
        if let Some(known) = self.lock().get(&target.digest) {
            return Ok(known.clone());
        }
        let resolved = Arc::new(resolve(client, target).await?);
        let mut kept = self.lock();
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(target.digest.clone(), resolved.clone());
        Ok(resolved)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<ResolvedImage>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what `target` stands for from the store, whatever is known already.
pub(super) async fn resolve(client: &Client, target: &Descriptor) -> Result<ResolvedImage, Unusable> {
    let mut queue = VecDeque::from([target.clone()]);
    let mut others: Vec<String> = Vec::new();
    let mut read = 0;
    while let Some(descriptor) = queue.pop_front() {
        read += 1;
        if read > MOST_DOCUMENTS {
            return Err(Unusable::Image("its index is nested too deeply".to_owned()));
        }
        if descriptor.is_index() {
            let index: Index = document(client, &descriptor, "index").await?;
            for manifest in index.manifests.into_iter().filter(|m| !m.is_attestation()) {
                match &manifest.platform {
                    Some(platform) if !platform.runs_here() => others.push(platform.to_string()),
                    _ => queue.push_back(manifest),
                }
            }
            continue;
        }
        let manifest: Manifest = document(client, &descriptor, "manifest").await?;
        let config: ImageConfig = document(client, &manifest.config, "config").await?;
        if !config.platform.runs_here() {
            others.push(config.platform.to_string());
            continue;
        }
        return complete(descriptor, manifest, config);
    }
    others.sort();
    others.dedup();
    others.truncate(8);
    Err(Unusable::Image(if others.is_empty() {
        "it holds no manifest of an image".to_owned()
    } else {
        format!("it is made for {}, this machine is linux/{}", others.join(", "), std::env::consts::ARCH)
    }))
}

fn complete(manifest: Descriptor, document: Manifest, config: ImageConfig) -> Result<ResolvedImage, Unusable> {
    let Manifest { config: config_descriptor, layers, .. } = document;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        let counts = format!("its config names {} layers, its manifest {}", diff_ids.len(), layers.len());
        return Err(Unusable::Image(counts));
    }
    if let Some(bad) = diff_ids.iter().chain(layers.iter().map(|l| &l.digest)).find(|d| !media::digest_ok(d)) {
        return Err(Unusable::Image(format!("`{}` is no digest", bad.chars().take(80).collect::<String>())));
    }
    let chain = media::chain_ids(diff_ids);
    Ok(ResolvedImage { manifest, config_descriptor, config, layers, chain })
}

/// Reads one document of an image.
pub(super) async fn document<T: DeserializeOwned>(
    client: &Client,
    descriptor: &Descriptor,
    what: &str,
) -> Result<T, Unusable> {
    if !media::digest_ok(&descriptor.digest) {
        let shown: String = descriptor.digest.chars().take(80).collect();
        return Err(Unusable::Image(format!("`{shown}` is no digest")));
    }
    let digest = &descriptor.digest;
    let bytes = content::read_whole(client, digest, MAX_DOCUMENT_BYTES).await.map_err(|unread| match unread {
        Unread::Missing => Unusable::Image(format!("its {what} `{digest}` is missing")),
        Unread::TooLarge => Unusable::Image(format!("its {what} is larger than 4 MiB")),
        Unread::Failed(error) => Unusable::Runtime(error),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| Unusable::Image(format!("its {what} cannot be read: {error}")))
}
