//! Imports an image archive: its members go into the content store as they arrive ([`spool`]), then its documents say
//! which images there are ([`layout`], [`docker`]), these are checked, labelled and unpacked, and last of all named.
//! All of it happens under a lease: until the names are there, deleting the lease undoes everything.

use std::{collections::HashMap, sync::Arc};

use containerd_client::{
    services::v1::{CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as Record, UpdateImageRequest},
    types,
};
use toft_model::image::ImageRef;

use self::spool::Contents;
use super::{
    Shared,
    client::{Lease, QUICK, call},
    connection::{self, Collect, Session},
    content, images,
    media::Descriptor,
    resolve::{self, ResolvedImage},
    unpack::Snapshots,
};
use crate::agent::runtime::{ArchiveReader, Image, RuntimeError};

mod archive;
mod docker;
mod layout;
mod spool;

const NAMING: &str = "naming an image";
/// After that containerd drops the lease of an import that never ended.
const LONGEST_HOURS: i64 = 24;

/// An image as the archive names it.
#[derive(Debug, Clone)]
struct Found {
    /// Its complete name, if it has one.
    name: Option<ImageRef>,
    /// What the archive calls it, for people.
    written: Option<String>,
    target: Descriptor,
}

/// An image that is in the store and unpacked, and lacks only its name.
struct Ready {
    name: ImageRef,
    target: Descriptor,
}

/// Imports every image of the archive.
pub(super) async fn run(
    shared: &Shared,
    archive: ArchiveReader,
    name: Option<&ImageRef>,
) -> Result<Vec<Image>, RuntimeError> {
    let session = shared.session()?;
    let lifetime = jiff::SignedDuration::from_hours(LONGEST_HOURS);
    let lease = connection::create_lease(&shared.client, "import", Some(lifetime)).await?;
    let import = Import { shared, session, lease };
    let result = import.all(archive, name).await;
    if let Err(error) = import.release(&result).await {
        // The lease expires by itself, and all goes with it.
        tracing::warn!(error = %error, "what an import had used could not be released");
    }
    result
}

struct Import<'a> {
    shared: &'a Shared,
    session: Arc<Session>,
    lease: Lease,
}

impl Import<'_> {
    /// Lets go of everything that did not get a name; after a failure, at once.
    async fn release<T>(&self, result: &Result<T, RuntimeError>) -> Result<(), RuntimeError> {
        if result.is_ok() {
            return connection::delete_lease(&self.shared.client, &self.lease, Collect::Later).await;
        }
        let undone = self.undo_all().await;
        if !disk_full(result) && !disk_full(&undone) {
            return undone;
        }
        // A full disk keeps containerd from taking note of what it lets go of. What went has left room to do so now.
        self.undo_all().await?;
        Snapshots::sweep(&self.shared.client, &self.session.snapshotter).await
    }

    async fn undo_all(&self) -> Result<(), RuntimeError> {
        let client = &self.shared.client;
        let aborted = content::abort_unfinished(client, &self.lease.id).await;
        connection::delete_lease(client, &self.lease, Collect::Now).await.and(aborted)
    }

    async fn all(&self, archive: ArchiveReader, name: Option<&ImageRef>) -> Result<Vec<Image>, RuntimeError> {
        let contents = spool::spool(&self.shared.client, &self.lease, archive).await?;
        let found = self.find(&contents).await?;
        let named = choose_names(found, name)?;
        let mut ready = Vec::with_capacity(named.len());
        for (name, candidates) in named {
            ready.push(self.prepare(name, &candidates).await?);
        }
        self.name_all(ready).await
    }

    async fn find(&self, contents: &Contents) -> Result<Vec<Found>, RuntimeError> {
        let mut found = match contents.document("index.json") {
            Some(index) => layout::images(index)?,
            None => Vec::new(),
        };
        // Some writers leave the names to `manifest.json`.
        if found.iter().all(|image| image.name.is_none())
            && let Some(document) = contents.document("manifest.json")
        {
            let saved = docker::images(&self.shared.client, &self.lease, document, contents).await?;
            if found.is_empty() || saved.iter().any(|image| image.name.is_some()) {
                found = saved;
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        Err(bad(if contents.document("oci-layout").is_some() || contents.document("index.json").is_some() {
            "there is no image in it".to_owned()
        } else {
            "it has neither an `index.json` nor a `manifest.json`, so it is no image archive".to_owned()
        }))
    }

    /// Checks, labels and unpacks the first candidate that this machine can run.
    async fn prepare(&self, name: ImageRef, candidates: &[Descriptor]) -> Result<Ready, RuntimeError> {
        let client = &self.shared.client;
        let mut trouble = None;
        for target in candidates {
            // Not what is known from before: it may have been collected since.
            let image = match resolve::resolve(client, target).await {
                Ok(image) => image,
                Err(unusable) => {
                    trouble.get_or_insert(unusable.of_archive());
                    continue;
                }
            };
            self.check_layers(&image).await?;
            let target = self.label(target, &image).await?;
            self.snapshots().unpack(&image).await.map_err(|unusable| unusable.of_archive())?;
            return Ok(Ready { name, target });
        }
        Err(trouble.unwrap_or_else(|| bad("there is no image in it".to_owned())))
    }

    async fn check_layers(&self, image: &ResolvedImage) -> Result<(), RuntimeError> {
        for layer in &image.layers {
            match content::size(&self.shared.client, &layer.digest).await? {
                None => return Err(bad(format!("layer `{}` is missing", layer.digest))),
                Some(size) if size != layer.size => {
                    return Err(bad(format!("layer `{}` has another size than its manifest says", layer.digest)));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Tells the garbage collector what belongs together, and decides what the name will stand for: the whole index
    /// when all of it is there, else this platform's manifest.
    async fn label(&self, target: &Descriptor, image: &ResolvedImage) -> Result<Descriptor, RuntimeError> {
        if target.is_index()
            && let Some(parents) = layout::complete_index(&self.shared.client, target).await?
        {
            for parent in parents {
                self.label_children(&parent.digest, parent.children.iter()).await?;
            }
            return Ok(target.clone());
        }
        let children = std::iter::once(&image.config_descriptor).chain(&image.layers);
        self.label_children(&image.manifest.digest, children).await?;
        let mut manifest = image.manifest.clone();
        manifest.annotations.clear();
        Ok(manifest)
    }

    async fn label_children<'a>(
        &self,
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
        content::label(&self.shared.client, &self.lease, digest, labels).await
    }

    fn snapshots(&self) -> Snapshots<'_> {
        Snapshots { client: &self.shared.client, snapshotter: &self.session.snapshotter, lease: &self.lease }
    }

    /// Gives all names, or none.
    async fn name_all(&self, ready: Vec<Ready>) -> Result<Vec<Image>, RuntimeError> {
        let mut done: Vec<(String, Option<Record>)> = Vec::new();
        let mut images = Vec::new();
        for image in ready {
            let named = async {
                let before = self.record(image.name.as_str()).await?;
                let record = self.put_name(&image, before.is_some()).await?;
                done.push((image.name.as_str().to_owned(), before));
                images::describe(self.shared, record).await
            };
            match named.await {
                Ok(image) => images.push(image),
                Err(error) => {
                    for (name, before) in done.into_iter().rev() {
                        self.undo(name, before).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(images)
    }

    async fn record(&self, name: &str) -> Result<Option<Record>, RuntimeError> {
        let client = &self.shared.client;
        let request = client.request(GetImageRequest { name: name.to_owned() });
        match call(NAMING, QUICK, client.images().get(request)).await {
            Ok(answer) => Ok(answer.image),
            Err(refusal) if refusal.not_found() => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn put_name(&self, image: &Ready, known: bool) -> Result<Record, RuntimeError> {
        let record = Record {
            name: image.name.as_str().to_owned(),
            target: Some(types::Descriptor { annotations: HashMap::new(), ..image.target.to_containerd() }),
            ..Default::default()
        };
        self.write_record(record, known).await
    }

    async fn write_record(&self, record: Record, known: bool) -> Result<Record, RuntimeError> {
        let client = &self.shared.client;
        if !known {
            let message = CreateImageRequest { image: Some(record.clone()), source_date_epoch: None };
            match call(NAMING, QUICK, client.images().create(client.leased(message, &self.lease))).await {
                // Another import was faster.
                Err(refusal) if refusal.exists() => {}
                answer => return Ok(answer?.image.unwrap_or_default()),
            }
        }
        let message = UpdateImageRequest { image: Some(record), update_mask: None, source_date_epoch: None };
        let answer = call(NAMING, QUICK, client.images().update(client.leased(message, &self.lease))).await?;
        Ok(answer.image.unwrap_or_default())
    }

    async fn undo(&self, name: String, before: Option<Record>) {
        let client = &self.shared.client;
        let undone = match before {
            Some(record) => self.write_record(record, true).await.map(drop),
            None => {
                let message = DeleteImageRequest { name: name.clone(), sync: false, target: None };
                call(NAMING, QUICK, client.images().delete(client.request(message))).await.map_err(Into::into)
            }
        };
        if let Err(error) = undone {
            tracing::warn!(image = %name, error = %error, "an image of a failed import kept its name");
        }
    }
}

/// Groups what was found by name; several targets of one name are the same image for several platforms.
fn choose_names(found: Vec<Found>, name: Option<&ImageRef>) -> Result<Vec<(ImageRef, Vec<Descriptor>)>, RuntimeError> {
    let mut named: Vec<(ImageRef, Vec<Descriptor>)> = Vec::new();
    let mut unnamed: Vec<Option<String>> = Vec::new();
    for image in found {
        let Some(name) = image.name.or_else(|| name.cloned()) else {
            unnamed.push(image.written);
            continue;
        };
        match named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, targets)) => targets.push(image.target),
            None => named.push((name, vec![image.target])),
        }
    }
    match unnamed.into_iter().next() {
        None => Ok(named),
        Some(Some(tag)) => {
            let shown: String = tag.chars().take(80).collect();
            Err(bad(format!("it calls its image only `{shown}`, which is no complete name; give the image a name")))
        }
        Some(None) => Err(bad("its image has no name; give it one".to_owned())),
    }
}

fn disk_full<T>(result: &Result<T, RuntimeError>) -> bool {
    matches!(result, Err(RuntimeError::DiskFull { .. }))
}

fn bad(reason: String) -> RuntimeError {
    RuntimeError::BadArchive { reason }
}
