//! Imports an image archive: its members go into the content store as they arrive ([`spool`]), then its documents say
//! which images there are ([`layout`], [`docker`]), these are checked, labelled and unpacked, and last of all named.
//! All of it happens under a lease: until the names are there, deleting the lease undoes everything.

use std::sync::Arc;

use containerd_client::services::v1::{DeleteImageRequest, Image as Record};
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
        undo(self.shared, &self.session, &self.lease, disk_full(result)).await
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
                content::label_children(&self.shared.client, &self.lease, &parent.digest, parent.children.iter())
                    .await?;
            }
            return Ok(target.clone());
        }
        let children = std::iter::once(&image.config_descriptor).chain(&image.layers);
        content::label_children(&self.shared.client, &self.lease, &image.manifest.digest, children).await?;
        let mut manifest = image.manifest.clone();
        manifest.annotations.clear();
        Ok(manifest)
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
                let before = images::record(self.shared, image.name.as_str()).await?;
                let record = images::named(&image.name, &image.target);
                let record = images::write_record(self.shared, &self.lease, record, before.is_some()).await?;
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

    async fn undo(&self, name: String, before: Option<Record>) {
        let client = &self.shared.client;
        let undone = match before {
            Some(record) => images::write_record(self.shared, &self.lease, record, true).await.map(drop),
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

/// Lets go at once of everything that a lease holds, and of what was begun under it.
pub(super) async fn undo(
    shared: &Shared,
    session: &Session,
    lease: &Lease,
    disk_was_full: bool,
) -> Result<(), RuntimeError> {
    let undone = undo_all(shared, lease).await;
    if !disk_was_full && !disk_full(&undone) {
        return undone;
    }
    // A full disk keeps containerd from taking note of what it lets go of. What went has left room to do so now.
    undo_all(shared, lease).await?;
    Snapshots::sweep(&shared.client, &session.snapshotter).await
}

async fn undo_all(shared: &Shared, lease: &Lease) -> Result<(), RuntimeError> {
    let aborted = content::abort_unfinished(&shared.client, &lease.id).await;
    connection::delete_lease(&shared.client, lease, Collect::Now).await.and(aborted)
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
