//! Operations on images.

use toft_model::image::{ImageRef, NodeImage};

use super::Ops;
use crate::control::{ControlError, ErrorKind, node_access::ArchiveReader};

impl Ops {
    /// The images in the node's store, by name.
    pub async fn images(&self) -> Result<Vec<NodeImage>, ControlError> {
        let mut images = self.node.images().await?;
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Imports an archive: every image in it, or none.
    pub async fn import_image(
        &self,
        archive: ArchiveReader,
        name: Option<ImageRef>,
    ) -> Result<Vec<NodeImage>, ControlError> {
        self.node.import_image(archive, name).await
    }

    /// Removes an image that no workload names.
    pub async fn remove_image(&self, image: ImageRef) -> Result<(), ControlError> {
        let users: Vec<String> = self
            .workloads()
            .await?
            .iter()
            .filter(|workload| workload.row.spec.image == image)
            .map(|workload| format!("`{}`", workload.row.spec.name))
            .collect();
        if !users.is_empty() {
            let message = format!("image `{image}` is used by {}", users.join(", "));
            return Err(ControlError::new(ErrorKind::Conflict, message).hint("remove those workloads first"));
        }
        if self.node.remove_image(image.clone()).await? {
            return Ok(());
        }
        Err(ControlError::new(ErrorKind::NotFound, format!("there is no image `{image}`"))
            .hint("`toft image ls` shows the images there are"))
    }
}
