//! Layers into snapshots: each layer is applied on top of the one before and committed under its chain id, so that
//! images share what they have in common.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use containerd_client::{
    services::v1::{
        AddResourceRequest, ApplyRequest, Resource,
        snapshots::{
            CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
        },
    },
    types::Mount,
};
use uuid::Uuid;

use super::{
    client::{Client, Lease, QUICK, SLOW, UNPACK, call},
    connection::{self, Collect},
    content,
    errors::Refusal,
    media::Descriptor,
    resolve::{ResolvedImage, Unusable},
};
use crate::agent::runtime::RuntimeError;

const UNPACKING: &str = "unpacking a layer";

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
            for number in 0..image.layers.len() {
                self.unpack_one(image, number).await?;
            }
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

    /// Unpacks one layer if it is not yet; those below it must be.
    pub(super) async fn unpack_one(&self, image: &ResolvedImage, number: usize) -> Result<(), Unusable> {
        let (layer, chain) = (&image.layers[number], &image.chain[number]);
        let parent = number.checked_sub(1).map_or("", |below| &image.chain[below]);
        if !self.hold(chain).await? {
            self.unpack_layer(layer, parent, chain, &image.config.rootfs.diff_ids[number]).await?;
        }
        Ok(())
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

    async fn unpack_layer(&self, layer: &Descriptor, parent: &str, chain: &str, diff_id: &str) -> Result<(), Unusable> {
        let key = format!("toft-unpack-{} {chain}", Uuid::new_v4());
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
        let message =
            ApplyRequest { diff: Some(layer.to_containerd()), mounts, payloads: Default::default(), sync_fs: false };
        let applied = call(UNPACKING, UNPACK, client.diff().apply(client.leased(message, self.lease)))
            .await
            .map_err(|refusal| layer_trouble(layer, refusal))?;
        let got = applied.applied.map(|descriptor| descriptor.digest).unwrap_or_default();
        if got != diff_id {
            let reason = format!("layer `{}` holds something else than its config says", layer.digest);
            return Err(Unusable::Image(reason));
        }
        let message = CommitSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            name: chain.to_owned(),
            key: key.to_owned(),
            labels: Default::default(),
        };
        match call(UNPACKING, SLOW, client.snapshots().commit(client.leased(message, self.lease))).await {
            // Another import was faster.
            Err(refusal) if refusal.exists() => Ok(self.remove(key).await?),
            other => other.map_err(|refusal| RuntimeError::from(refusal).into()),
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
