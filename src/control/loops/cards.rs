//! Keeps what is known of other nodes' cards fresh while somebody looks at it, so that nobody has to wait for all nodes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::control::ops::Ops;

/// Time between two looks at whose cards are wanted.
const PERIOD: Duration = Duration::from_secs(1);

/// Runs until `cancel`.
pub async fn run(ops: Ops, cancel: CancellationToken) {
    while cancel.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        if cancel.run_until_cancelled(ops.look_at_cards()).await.is_none() {
            return;
        }
    }
}
