//! Image names and what they stand for.

use std::{collections::HashMap, sync::Arc};

use containerd_client::{
    services::v1::{
        CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as Record, ListImagesRequest, UpdateImageRequest,
    },
    types,
};
use futures_util::{StreamExt, TryStreamExt};
use rustix::fs::statvfs;
use toft_model::{image::ImageRef, usage::Room};

use super::{
    Shared,
    client::{Lease, QUICK, SLOW, call},
    events::timestamp_ms,
    media::Descriptor,
    resolve::{ResolvedImage, Unusable},
};
use crate::agent::runtime::{Image, RuntimeError};

/// Images looked at together.
const AT_ONCE: usize = 8;

/// The image of a name, as this machine uses it.
pub(super) async fn resolve(shared: &Shared, image: &ImageRef) -> Result<Arc<ResolvedImage>, RuntimeError> {
    let Some(target) = record(shared, image.as_str()).await?.and_then(|record| record.target) else {
        return Err(RuntimeError::ImageMissing { image: image.as_str().to_owned() });
    };
    shared.resolved.get(&shared.client, &descriptor(target)).await.map_err(|e| e.of_image(image.as_str()))
}

/// What containerd has under a name.
pub(super) async fn record(shared: &Shared, name: &str) -> Result<Option<Record>, RuntimeError> {
    let client = &shared.client;
    let request = client.request(GetImageRequest { name: name.to_owned() });
    match call("looking up an image", QUICK, client.images().get(request)).await {
        Ok(answer) => Ok(answer.image),
        Err(refusal) if refusal.not_found() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// A record that lets `name` stand for `target`.
pub(super) fn named(name: &ImageRef, target: &Descriptor) -> Record {
    let target = types::Descriptor { annotations: HashMap::new(), ..target.to_containerd() };
    Record { name: name.as_str().to_owned(), target: Some(target), ..Default::default() }
}

/// Writes a record; `known` when there is one of its name.
pub(super) async fn write_record(
    shared: &Shared,
    lease: &Lease,
    record: Record,
    known: bool,
) -> Result<Record, RuntimeError> {
    const NAMING: &str = "naming an image";
    let client = &shared.client;
    if !known {
        let message = CreateImageRequest { image: Some(record.clone()), source_date_epoch: None };
        match call(NAMING, QUICK, client.images().create(client.leased(message, lease))).await {
            // Another was faster.
            Err(refusal) if refusal.exists() => {}
            answer => return Ok(answer?.image.unwrap_or_default()),
        }
    }
    let message = UpdateImageRequest { image: Some(record), update_mask: None, source_date_epoch: None };
    let answer = call(NAMING, QUICK, client.images().update(client.leased(message, lease))).await?;
    Ok(answer.image.unwrap_or_default())
}

/// Every image. One that cannot be used here (another platform, parts missing) is listed with the platform `unknown`.
pub(super) async fn list(shared: &Shared) -> Result<Vec<Image>, RuntimeError> {
    let client = &shared.client;
    let request = client.request(ListImagesRequest { filters: Vec::new() });
    let records = call("listing images", QUICK, client.images().list(request)).await?.images;
    let mut images: Vec<Image> = futures_util::stream::iter(records)
        .map(|record| describe(shared, record))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

/// A record as the rest of the agent sees it.
pub(super) async fn describe(shared: &Shared, record: Record) -> Result<Image, RuntimeError> {
    let target = descriptor(record.target.unwrap_or_default());
    let (size_bytes, platform) = match shared.resolved.get(&shared.client, &target).await {
        Ok(resolved) => (resolved.size_bytes(), resolved.config.platform.to_string()),
        Err(Unusable::Image(_)) => (target.size, "unknown".to_owned()),
        Err(Unusable::Runtime(error)) => return Err(error),
    };
    Ok(Image {
        name: record.name,
        digest: target.digest,
        size_bytes,
        created_at_ms: record.created_at.map(timestamp_ms).unwrap_or_default(),
        platform,
    })
}

/// Removes a name and, before it returns, what nobody uses then.
pub(super) async fn remove(shared: &Shared, image: &ImageRef) -> Result<bool, RuntimeError> {
    let client = &shared.client;
    let message = DeleteImageRequest { name: image.as_str().to_owned(), sync: true, target: None };
    match call("removing an image", SLOW, client.images().delete(client.request(message))).await {
        Ok(()) => Ok(true),
        Err(refusal) if refusal.not_found() => Ok(false),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Room where the snapshotter keeps its files.
pub(super) fn room(shared: &Shared) -> Result<Room, RuntimeError> {
    const LOOKING: &str = "looking at the disk of the images";
    let session = shared.session()?;
    let failed = |reason: String| RuntimeError::Failed { doing: LOOKING, reason };
    let root = session.root.as_ref().ok_or_else(|| failed("containerd does not tell where it lies".to_owned()))?;
    let told = statvfs(root).map_err(|error| failed(error.to_string()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
    Ok(Room {
        used_bytes: bytes(told.f_blocks.saturating_sub(told.f_bfree)),
        free_bytes: bytes(told.f_bavail),
        used_files: told.f_files.saturating_sub(told.f_ffree),
        free_files: told.f_favail,
    })
}

/// A descriptor as containerd has it.
pub(super) fn descriptor(target: types::Descriptor) -> Descriptor {
    Descriptor {
        media_type: target.media_type,
        digest: target.digest,
        size: u64::try_from(target.size).unwrap_or(0),
        annotations: Default::default(),
        platform: None,
    }
}
