//! Sees to it that there is a key that signs tokens, and another after a day. Every node looks; the leader acts.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::control::ops::Ops;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(10);

/// Looks until `cancel`.
pub async fn run(ops: Ops, cancel: CancellationToken) {
    loop {
        if let Err(error) = ops.keep_signing_keys().await {
            tracing::debug!(%error, "no key that signs tokens could be made; it is tried again");
        }
        if cancel.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_none() {
            return;
        }
    }
}
