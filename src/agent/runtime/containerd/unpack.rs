//! Layers into snapshots: each layer is applied on top of the one before and committed under its chain id, so that
//! images share what they have in common.

use containerd_client::{
    services::v1::{
        AddResourceRequest, ApplyRequest, Resource,
        snapshots::{CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest},
    },
    types::Mount,
};
use uuid::Uuid;

use super::{
    client::{Client, Lease, QUICK, SLOW, UNPACK, call},
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
        let Some(top) = image.chain.last() else { return Ok(()) };
        if !self.hold(top).await? {
            let mut parent = "";
            for ((layer, chain), diff_id) in image.layers.iter().zip(&image.chain).zip(&image.config.rootfs.diff_ids) {
                if !self.hold(chain).await? {
                    self.unpack_layer(layer, parent, chain, diff_id).await?;
                }
                parent = chain;
            }
        }
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        let labels = [(label, top.clone())].into();
        content::label(self.client, self.lease, &image.config_descriptor.digest, labels).await?;
        Ok(())
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
        let done = self.apply_and_commit(layer, mounts, &key, chain, diff_id).await;
        if done.is_err() {
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

    /// Removes a snapshot; one that is not there is no error.
    pub(super) async fn remove(&self, key: &str) -> Result<(), RuntimeError> {
        let message = RemoveSnapshotRequest { snapshotter: self.snapshotter.to_owned(), key: key.to_owned() };
        let request = self.client.leased(message, self.lease);
        found(call("removing a snapshot", SLOW, self.client.snapshots().remove(request)).await).map(drop)
    }
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
