//! Tells the cluster now and then which sessions and API tokens are used here, on every node.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::control::ops::Ops;

/// Time between two tellings.
const PERIOD: Duration = Duration::from_secs(10);

/// Tells until `cancel`. What cannot be told is told when it is used again.
pub async fn run(ops: Ops, cancel: CancellationToken) {
    loop {
        match ops.tell_uses().await {
            // There may be more.
            Ok(true) => {}
            Ok(false) => {
                if cancel.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_none() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "which sessions are used could not be told");
                if cancel.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_none() {
                    return;
                }
            }
        }
    }
}
