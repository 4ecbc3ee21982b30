//! Operations on images.

use std::sync::Arc;

use toft_model::{
    image::{ImageRef, NodeImage},
    instance::InstanceState,
    name::Name,
    state::{InstanceView, WorkloadView},
};

use tokio::sync::watch;

use super::{Ops, now_ms};
use crate::control::{
    ControlError, ErrorKind,
    node_access::{ArchiveReader, ImagePull, NodeAccess, PullSteps},
};

/// How full the disk of the images may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomLimits {
    /// From that many percent on, images are removed.
    pub high_percent: u8,
    /// Until it is less full than that.
    pub low_percent: u8,
    /// An image that came less than that many milliseconds ago stays: somebody may be about to use it.
    pub min_age_ms: i64,
}

impl Ops {
    /// The node of that name, or the one that is asked.
    async fn node_or_own(&self, node: Option<&Name>) -> Result<Arc<dyn NodeAccess>, ControlError> {
        let Some(name) = node else { return Ok(Arc::clone(&self.node) as _) };
        let row = self.node(name).await.map_err(|error| error.field("node"))?;
        self.access(row.id, &row.name)
    }

    /// The images in a node's store, by name; in that of the node that is asked when none is named.
    pub async fn images(&self, node: Option<&Name>) -> Result<Vec<NodeImage>, ControlError> {
        let mut images = self.node_or_own(node).await?.images().await?;
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Imports an archive: every image in it, or none.
    pub async fn import_image(
        &self,
        node: Option<&Name>,
        archive: ArchiveReader,
        name: Option<ImageRef>,
    ) -> Result<Vec<NodeImage>, ControlError> {
        self.node_or_own(node).await?.import_image(archive, name).await
    }

    /// Pulls an image from its registry, or joins a pull under way.
    pub async fn pull_image(&self, node: Option<&Name>, image: ImageRef) -> Result<PullSteps, ControlError> {
        self.node_or_own(node).await?.pull_image(image).await
    }

    /// The pulls of a node: those under way, then those that failed a short while ago.
    pub async fn image_pulls_on(&self, node: Option<&Name>) -> Result<Vec<ImagePull>, ControlError> {
        self.node_or_own(node).await?.image_pulls().await
    }

    /// The pulls of the node that is asked: those under way, then those that failed a short while ago.
    pub fn image_pulls(&self) -> Vec<ImagePull> {
        self.node.pulls()
    }

    /// Moves when a pull begins or ends.
    pub fn image_pulls_moved(&self) -> watch::Receiver<u64> {
        self.node.pulls_moved()
    }

    /// Removes an image that nothing uses.
    pub async fn remove_image(&self, node: Option<&Name>, image: ImageRef) -> Result<(), ControlError> {
        let users: Vec<String> = users(&self.workloads().await?, &image).map(|name| format!("`{name}`")).collect();
        if !users.is_empty() {
            let message = format!("image `{image}` is used by {}", users.join(", "));
            return Err(ControlError::new(ErrorKind::Conflict, message).hint("remove those workloads first"));
        }
        if self.node_or_own(node).await?.remove_image(image.clone()).await? {
            return Ok(());
        }
        Err(ControlError::new(ErrorKind::NotFound, format!("there is no image `{image}`"))
            .hint("`toft image ls` shows the images there are"))
    }

    /// Removes every image that nothing uses, and gives them.
    pub async fn prune_images(&self, node: Option<&Name>) -> Result<Vec<NodeImage>, ControlError> {
        let images = self.images(node).await?;
        let node = self.node_or_own(node).await?;
        // After the images: one that comes now is for a workload that is only now written.
        let workloads = self.workloads().await?;
        let mut removed = Vec::new();
        for image in images {
            let Ok(name) = image.name.parse::<ImageRef>() else { continue };
            if users(&workloads, &name).next().is_none() && node.remove_image(name).await? {
                removed.push(image);
            }
        }
        Ok(removed)
    }

    /// Removes images that nothing uses, the oldest first, while the disk is fuller than `limits` allow, and gives them.
    pub async fn make_image_room(&self, limits: &RoomLimits) -> Result<Vec<NodeImage>, ControlError> {
        let mut removed = Vec::new();
        if self.node.image_room().await?.used_percent() < limits.high_percent {
            return Ok(removed);
        }
        let mut images = self.node.images().await?;
        images.sort_by_key(|image| image.created_at_ms);
        // After the images: one that comes now is for a workload that is only now written.
        let workloads = self.workloads().await?;
        let newest = now_ms() - limits.min_age_ms;
        for image in images.into_iter().filter(|image| image.created_at_ms <= newest) {
            let Ok(name) = image.name.parse::<ImageRef>() else { continue };
            if users(&workloads, &name).next().is_none() && self.node.remove_image(name).await? {
                removed.push(image);
                if self.node.image_room().await?.used_percent() < limits.low_percent {
                    break;
                }
            }
        }
        Ok(removed)
    }

    /// Adds to instances that are being started how far the pull of their image is.
    pub(super) fn noted<'a>(&self, instances: impl IntoIterator<Item = &'a mut InstanceView>) {
        for instance in instances {
            if matches!(instance.state(), InstanceState::Assigned | InstanceState::Starting) {
                let row = &instance.row;
                let progress = if self.node.node_id() == Some(row.node_id) {
                    self.node.pulling(&row.container.image)
                } else {
                    self.looked_at(instance);
                    self.far_pulls.of(row.node_id, &row.container.image)
                };
                instance.note = progress.map(|progress| progress.summary());
            }
        }
    }
}

/// The workloads that name an image, or have instances made of it still.
fn users<'a>(workloads: &'a [WorkloadView], image: &'a ImageRef) -> impl Iterator<Item = &'a Name> {
    let uses = |workload: &&WorkloadView| {
        workload.row.spec.image == *image || workload.instances.iter().any(|i| i.row.container.image == *image)
    };
    workloads.iter().filter(uses).map(|workload| &workload.row.spec.name)
}
