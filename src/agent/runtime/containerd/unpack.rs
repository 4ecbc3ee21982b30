//! Layers into snapshots: each layer is applied on top of the one before and committed under its chain id, so that
//! images share what they have in common.
//!
//! overlayfs keeps the files of each layer in a directory of its own, so layers are unpacked at the same time and while
//! they arrive, each in a snapshot with nothing below it; when those below are there its files are moved to where they
//! belong. With another snapshotter containerd unpacks them, one after the other.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use containerd_client::{
    services::v1::{
        AddResourceRequest, ApplyRequest, Resource,
        snapshots::{
            CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
        },
    },
    types::Mount,
};
use futures_util::{StreamExt, stream};
use tokio::{sync::oneshot, task::JoinHandle};
use uuid::Uuid;

use super::{
    client::{Client, Lease, QUICK, SLOW, UNPACK, call},
    connection::{self, Collect},
    content,
    errors::{Refusal, disk_full},
    layer::{self, Extracted, Fault, Feed, Place},
    media::Descriptor,
    resolve::{ResolvedImage, Unusable},
};
use crate::agent::runtime::RuntimeError;

const UNPACKING: &str = "unpacking a layer";
/// The snapshotter whose snapshots are plain directories, one above the other.
const OVERLAY: &str = "overlayfs";
/// Layers unpacked at once.
pub(super) const AT_ONCE: usize = 4;

/// Where snapshots are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Snapshots<'a> {
    pub(super) client: &'a Client,
    pub(super) snapshotter: &'a str,
    pub(super) lease: &'a Lease,
}

impl Snapshots<'_> {
    /// Unpacks every layer that is not yet, and notes in the config which snapshot belongs to it. What is made or
    /// found belongs to the lease.
    pub(super) async fn unpack(&self, image: &ResolvedImage) -> Result<(), Unusable> {
        if !self.holds_all(image).await? {
            let unpacker = Unpacker::new(*self);
            let unpacked = unpacker.all_from_store(image).await;
            unpacker.clean_up().await;
            unpacked?;
        }
        Ok(self.note_top(image).await?)
    }

    /// Whether every layer of an image is unpacked; then they belong to the lease.
    pub(super) async fn holds_all(&self, image: &ResolvedImage) -> Result<bool, RuntimeError> {
        match image.chain.last() {
            Some(top) => self.hold(top).await,
            None => Ok(true),
        }
    }

    /// Notes in the config which snapshot holds all layers.
    pub(super) async fn note_top(&self, image: &ResolvedImage) -> Result<(), RuntimeError> {
        let Some(top) = image.chain.last() else { return Ok(()) };
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        let labels = [(label, top.clone())].into();
        content::label(self.client, self.lease, &image.config_descriptor.digest, labels).await
    }

    /// Adds a committed snapshot to the lease; `false` when there is none of that name.
    async fn hold(&self, name: &str) -> Result<bool, RuntimeError> {
        let resource = Resource { id: name.to_owned(), r#type: format!("snapshots/{}", self.snapshotter) };
        let message = AddResourceRequest { id: self.lease.id.clone(), resource: Some(resource) };
        // The lease first: what is there after that stays there.
        call("holding a snapshot", QUICK, self.client.leases().add_resource(self.client.request(message))).await?;
        let message = StatSnapshotRequest { snapshotter: self.snapshotter.to_owned(), key: name.to_owned() };
        let stat = self.client.snapshots();
        found(call("looking at a snapshot", QUICK, { stat }.stat(self.client.request(message))).await)
    }

    /// Has containerd unpack a layer.
    async fn apply(&self, layer: &Descriptor, parent: &str, chain: &str, diff_id: &str) -> Result<(), Unusable> {
        let key = new_key(chain);
        let mounts = self.prepare(&key, parent, UNPACKING).await.map_err(RuntimeError::from)?;
        let files = writable(&mounts);
        let done = self.apply_and_commit(layer, mounts, &key, chain, diff_id).await;
        if done.is_err() {
            // containerd takes note of a removal on what may be the same full disk, so there must be room first.
            if let (Err(Unusable::Runtime(RuntimeError::DiskFull { .. })), Some(files)) = (&done, files) {
                empty(files).await;
            }
            self.remove(&key).await?;
        }
        done
    }

    async fn apply_and_commit(
        &self,
        layer: &Descriptor,
        mounts: Vec<Mount>,
        key: &str,
        chain: &str,
        diff_id: &str,
    ) -> Result<(), Unusable> {
        let client = self.client;
        let message = ApplyRequest { diff: Some(layer.to_diff()), mounts, payloads: Default::default(), sync_fs: true };
        let applied = call(UNPACKING, UNPACK, client.diff().apply(client.leased(message, self.lease)))
            .await
            .map_err(|refusal| layer_trouble(layer, refusal))?;
        let got = applied.applied.map(|descriptor| descriptor.digest).unwrap_or_default();
        check_diff_id(layer, &got, diff_id)?;
        Ok(self.commit(key, chain).await?)
    }

    /// Makes a snapshot's files those of the layers that `chain` stands for.
    async fn commit(&self, key: &str, chain: &str) -> Result<(), RuntimeError> {
        let message = CommitSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            name: chain.to_owned(),
            key: key.to_owned(),
            labels: Default::default(),
        };
        let request = self.client.leased(message, self.lease);
        match call(UNPACKING, SLOW, self.client.snapshots().commit(request)).await {
            // Another import was faster.
            Err(refusal) if refusal.exists() => self.remove(key).await,
            other => Ok(other?),
        }
    }

    /// Makes a writable snapshot on top of `parent`.
    pub(super) async fn prepare(&self, key: &str, parent: &str, doing: &'static str) -> Result<Vec<Mount>, Refusal> {
        let message = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: Default::default(),
        };
        let request = self.client.leased(message, self.lease);
        Ok(call(doing, SLOW, self.client.snapshots().prepare(request)).await?.mounts)
    }

    /// Has containerd remove the files of all snapshots that it dropped before. It tries that when it drops one and
    /// does not come back to those where it failed, as it does when the disk is too full to take note of a removal;
    /// dropping another makes it try them all again.
    pub(super) async fn sweep(client: &Client, snapshotter: &str) -> Result<(), RuntimeError> {
        let lifetime = jiff::SignedDuration::from_hours(1);
        let lease = connection::create_lease(client, "sweep", Some(lifetime)).await?;
        let key = format!("toft-sweep-{}", Uuid::new_v4());
        let prepared = Snapshots { client, snapshotter, lease: &lease }.prepare(&key, "", "making room").await;
        connection::delete_lease(client, &lease, Collect::Now).await?;
        Ok(prepared.map(drop)?)
    }

    /// Empties a writable snapshot that nobody uses any more; for when there is no room to take note of its removal.
    pub(super) async fn empty(&self, key: &str) -> Result<(), RuntimeError> {
        let message = MountsRequest { snapshotter: self.snapshotter.to_owned(), key: key.to_owned() };
        let request = self.client.request(message);
        match call("looking at a snapshot", QUICK, self.client.snapshots().mounts(request)).await {
            Ok(answer) => {
                if let Some(files) = writable(&answer.mounts) {
                    empty(files).await;
                }
                Ok(())
            }
            Err(refusal) if refusal.not_found() => Ok(()),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Removes a snapshot; one that is not there is no error.
    pub(super) async fn remove(&self, key: &str) -> Result<(), RuntimeError> {
        let message = RemoveSnapshotRequest { snapshotter: self.snapshotter.to_owned(), key: key.to_owned() };
        let request = self.client.leased(message, self.lease);
        found(call("removing a snapshot", SLOW, self.client.snapshots().remove(request)).await).map(drop)
    }
}

/// What is known of a layer before those below it are unpacked.
pub(super) enum Prepared {
    /// It is unpacked, with all below it.
    Unpacked,
    /// containerd has to unpack it.
    Packed,
    /// Its files are there, with nothing below them.
    Alone(Alone),
}

/// A layer's files in the snapshot `key`, below `root`.
pub(super) struct Alone {
    key: String,
    root: PathBuf,
    extracted: Extracted,
}

/// How a layer begins to be unpacked.
pub(super) enum Begun {
    /// Nothing is to be done before its turn.
    Waits(Prepared),
    /// Its bytes are wanted.
    Unpacking(Unpacking),
}

/// A layer that is becoming files.
pub(super) struct Unpacking {
    feed: Feed,
    key: String,
    root: PathBuf,
    outcome: oneshot::Receiver<Result<Extracted, Fault>>,
}

impl Unpacking {
    /// Hands on the next piece; `false` when no more are wanted, which [`end`](Self::end) explains.
    pub(super) async fn give(&self, piece: Bytes) -> bool {
        self.feed.give(piece).await
    }

    /// Waits until all that was given has become files.
    pub(super) async fn end(self, layer: &Descriptor, diff_id: &str) -> Result<Prepared, Unusable> {
        self.feed.end().await;
        let extracted = self.outcome.await.unwrap_or(Err(Fault::CutOff)).map_err(|fault| trouble(layer, fault))?;
        check_diff_id(layer, &extracted.diff_id, diff_id)?;
        Ok(Prepared::Alone(Alone { key: self.key, root: self.root, extracted }))
    }
}

/// Unpacks the layers of an image. After trouble [`clean_up`](Self::clean_up) removes what it left.
pub(super) struct Unpacker<'a> {
    snapshots: Snapshots<'a>,
    /// Layers that lie alone, with the threads that may still write them.
    alone: Mutex<Vec<(String, PathBuf, JoinHandle<()>)>>,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(snapshots: Snapshots<'a>) -> Self {
        Self { snapshots, alone: Mutex::default() }
    }

    /// Begins with a layer; those below it may come later.
    pub(super) async fn begin(&self, image: &ResolvedImage, number: usize) -> Result<Begun, RuntimeError> {
        let (snapshots, chain) = (self.snapshots, &image.chain[number]);
        if snapshots.hold(chain).await? {
            return Ok(Begun::Waits(Prepared::Unpacked));
        }
        if snapshots.snapshotter != OVERLAY {
            return Ok(Begun::Waits(Prepared::Packed));
        }
        let key = new_key(chain);
        let mounts = snapshots.prepare(&key, "", UNPACKING).await?;
        // A containerd that keeps its files where they cannot be seen from here, or where their names say more.
        let Some(root) = writable(&mounts).filter(|root| root.is_dir() && plain(root)) else {
            snapshots.remove(&key).await?;
            return Ok(Begun::Waits(Prepared::Packed));
        };
        let (feed, incoming) = layer::incoming();
        let (told, outcome) = oneshot::channel();
        let (below, place) = (root.clone(), if number == 0 { Place::Lowest } else { Place::Above });
        let thread = tokio::task::spawn_blocking(move || {
            // Who does not wait any more has its reason.
            drop(told.send(layer::extract(incoming, &below, place)));
        });
        self.alone().push((key.clone(), root.clone(), thread));
        Ok(Begun::Unpacking(Unpacking { feed, key, root, outcome }))
    }

    /// Puts a layer on top of those below it, which must be unpacked.
    pub(super) async fn settle(&self, image: &ResolvedImage, number: usize, layer: Prepared) -> Result<(), Unusable> {
        let (snapshots, chain) = (self.snapshots, &image.chain[number]);
        let parent = number.checked_sub(1).map_or("", |below| &image.chain[below]);
        let alone = match layer {
            Prepared::Unpacked => return Ok(()),
            Prepared::Packed => {
                return snapshots
                    .apply(&image.layers[number], parent, chain, &image.config.rootfs.diff_ids[number])
                    .await;
            }
            Prepared::Alone(alone) => alone,
        };
        if number == 0 {
            snapshots.commit(&alone.key, chain).await?;
        } else {
            let key = new_key(chain);
            let mounts = snapshots.prepare(&key, parent, UNPACKING).await.map_err(RuntimeError::from)?;
            let moved = put_on_top(&alone, &mounts).await;
            let done = match moved.map_err(|fault| trouble(&image.layers[number], fault)) {
                Ok(()) => snapshots.commit(&key, chain).await.map_err(Unusable::from),
                Err(error) => Err(error),
            };
            if done.is_err() {
                if let Some(files) = writable(&mounts) {
                    empty(files).await;
                }
                snapshots.remove(&key).await?;
            }
            done?;
            snapshots.remove(&alone.key).await?;
        }
        self.alone().retain(|(key, ..)| *key != alone.key);
        Ok(())
    }

    async fn all_from_store(&self, image: &ResolvedImage) -> Result<(), Unusable> {
        let layers = (0..image.layers.len()).map(|number| self.read_from_store(image, number));
        let mut layers = stream::iter(layers.collect::<Vec<_>>()).buffered(AT_ONCE).enumerate();
        while let Some((number, layer)) = layers.next().await {
            self.settle(image, number, layer?).await?;
        }
        Ok(())
    }

    async fn read_from_store(&self, image: &ResolvedImage, number: usize) -> Result<Prepared, Unusable> {
        match self.begin(image, number).await? {
            Begun::Waits(prepared) => Ok(prepared),
            Begun::Unpacking(unpacking) => self.give_from_store(image, number, unpacking).await,
        }
    }

    /// Unpacks a layer that lies in the content store.
    pub(super) async fn give_from_store(
        &self,
        image: &ResolvedImage,
        number: usize,
        unpacking: Unpacking,
    ) -> Result<Prepared, Unusable> {
        let layer = &image.layers[number];
        let mut blob = content::Blob::open(self.snapshots.client, &layer.digest).await?;
        while let Some(piece) = blob.next().await? {
            if !unpacking.give(piece).await {
                break;
            }
        }
        unpacking.end(layer, &image.config.rootfs.diff_ids[number]).await
    }

    /// Removes the layers that still lie alone. What cannot be removed goes with the lease.
    pub(super) async fn clean_up(&self) {
        let alone = std::mem::take(&mut *self.alone());
        for (key, root, thread) in alone {
            // Nobody gives it anything any more, so it comes to its end.
            drop(thread.await);
            // containerd takes note of a removal on what may be a full disk, so there must be room first.
            empty(root).await;
            if let Err(error) = self.snapshots.remove(&key).await {
                tracing::debug!(snapshot = %key, error = %error, "half a layer was not removed at once");
            }
        }
    }

    fn alone(&self) -> std::sync::MutexGuard<'_, Vec<(String, PathBuf, JoinHandle<()>)>> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name for a snapshot that is being made.
fn new_key(chain: &str) -> String {
    format!("toft-unpack-{} {chain}", Uuid::new_v4())
}

/// Whether overlayfs takes a path as it is written.
fn plain(path: &Path) -> bool {
    path.to_str().is_some_and(|path| !path.contains([':', ',', '\\']))
}

async fn put_on_top(alone: &Alone, mounts: &[Mount]) -> Result<(), Fault> {
    let failed = |reason: &str| Fault::Disk(io::Error::other(reason.to_owned()));
    let Some(to) = writable(mounts) else { return Err(failed("a snapshot has no directory of its own")) };
    let lower = mounts.iter().flat_map(|mount| &mount.options).find_map(|option| option.strip_prefix("lowerdir="));
    let lower: Vec<PathBuf> = lower.unwrap_or_default().split(':').map(PathBuf::from).collect();
    let (extracted, from) = (alone.extracted.clone(), alone.root.clone());
    let merged = tokio::task::spawn_blocking(move || layer::merge(&extracted, &from, &to, &lower)).await;
    merged.unwrap_or_else(|_| Err(failed("moving a layer broke off")))
}

fn check_diff_id(layer: &Descriptor, got: &str, expected: &str) -> Result<(), Unusable> {
    if got == expected {
        return Ok(());
    }
    let reason = format!("layer `{}` holds something else than its config says", layer.digest);
    Err(Unusable::Image(reason))
}

fn trouble(layer: &Descriptor, fault: Fault) -> Unusable {
    let failed = |reason: String| Unusable::Runtime(RuntimeError::Failed { doing: UNPACKING, reason });
    match fault {
        Fault::Layer(reason) => Unusable::Image(format!("layer `{}` cannot be unpacked: {reason}", layer.digest)),
        Fault::Disk(error) if disk_full(&error.to_string()) => {
            Unusable::Runtime(RuntimeError::DiskFull { doing: UNPACKING })
        }
        Fault::Disk(error) => failed(error.to_string()),
        Fault::CutOff => failed(format!("layer `{}` was cut off", layer.digest)),
    }
}

/// Where the files go that are written into a snapshot mounted so.
fn writable(mounts: &[Mount]) -> Option<PathBuf> {
    let [mount] = mounts else { return None };
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let bound = (mount.r#type == "bind" && mount.options.iter().any(|option| option == "rw")).then_some(&*mount.source);
    upper.or(bound).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Removes what is in a directory. What cannot be removed is left to containerd.
async fn empty(directory: PathBuf) {
    let emptied = tokio::task::spawn_blocking(move || (remove_within(&directory), directory)).await;
    if let Ok((Err(error), directory)) = emptied {
        tracing::debug!(path = %directory.display(), error = %error, "a layer that did not fit was not removed at once");
    }
}

fn remove_within(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A layer that containerd cannot apply is the image's fault, unless the disk or the line is.
fn layer_trouble(layer: &Descriptor, refusal: Refusal) -> Unusable {
    let text = refusal.text().to_owned();
    match RuntimeError::from(refusal) {
        RuntimeError::Failed { .. } => {
            let reason = text.rsplit(": ").next().unwrap_or(&text);
            Unusable::Image(format!("layer `{}` cannot be unpacked: {reason}", layer.digest))
        }
        other => Unusable::Runtime(other),
    }
}

fn found<T>(answer: Result<T, Refusal>) -> Result<bool, RuntimeError> {
    match answer {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.not_found() => Ok(false),
        Err(refusal) => Err(refusal.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { r#type: kind.to_owned(), source: source.to_owned(), options, ..Default::default() }
    }

    #[test]
    fn only_what_is_written_is_emptied() {
        let check = |mounts: &[Mount], expected: Option<&str>| {
            assert_eq!(writable(mounts).as_deref(), expected.map(Path::new), "{mounts:?}");
        };
        check(&[mount("bind", "/s/1/fs", &["rw", "rbind"])], Some("/s/1/fs"));
        check(&[mount("bind", "/s/1/fs", &["ro", "rbind"])], None);
        let options = ["index=off", "workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs"];
        check(&[mount("overlay", "overlay", &options)], Some("/s/2/fs"));
        check(&[mount("overlay", "overlay", &["lowerdir=/s/2/fs:/s/1/fs"])], None);
        check(&[mount("bind", "", &["rw"])], None);
        check(&[], None);
    }

    #[test]
    fn emptying_keeps_the_directory_and_follows_no_link() {
        let dir = std::env::temp_dir().join(format!("toft-empty-{}", Uuid::new_v4()));
        let (kept, emptied) = (dir.join("kept"), dir.join("emptied"));
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        fs::create_dir_all(emptied.join("a/b")).unwrap();
        fs::write(emptied.join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink(&kept, emptied.join("link")).unwrap();
        std::os::unix::fs::symlink(&kept, emptied.join("a/link")).unwrap();
        remove_within(&emptied).unwrap();
        assert_eq!(fs::read_dir(&emptied).unwrap().count(), 0);
        assert!(kept.join("file").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
