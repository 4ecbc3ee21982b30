//! Keeps room on the disk of this node's images.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    control::ops::{Ops, images::RoomLimits},
    observe::chain,
};

/// Time between two looks at the disk; each costs one system call.
const PERIOD: Duration = Duration::from_secs(30);
/// Before the first look: the node's state may still be behind what runs.
const FIRST: Duration = Duration::from_secs(10);

/// Runs until `cancel`.
pub async fn run(ops: Ops, limits: RoomLimits, cancel: CancellationToken) {
    let mut wait = FIRST;
    let mut told = false;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = PERIOD;
        match ops.make_image_room(&limits).await {
            Ok(removed) => {
                told = false;
                for image in removed {
                    metrics::counter!("toft_images_removed_for_room_total").increment(1);
                    tracing::info!(image = %image.name, size_bytes = image.size_bytes, "an unused image made room on the disk");
                }
            }
            // Once for each trouble: it may last.
            Err(error) if !told => {
                told = true;
                tracing::warn!(error = chain(&error), "unused images could not be removed to make room");
            }
            Err(_) => {}
        }
    }
}
