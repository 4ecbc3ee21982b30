//! Brings what this node tells of itself into the state. It may take long: without a majority nothing is written.

use std::time::Duration;

use toft_model::{
    ids::NodeId,
    mesh::MeshNode,
    state::{Command, MeshRow},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{consensus::Handle, observe::chain};

/// How often it is looked whether the state has it.
const REPEAT: Duration = Duration::from_secs(30);
/// Wait after a try that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps the state's word of `node_id` as `wanted` says, until `cancel`.
pub(super) async fn announce(
    state: Handle,
    node_id: NodeId,
    mut wanted: watch::Receiver<Option<MeshNode>>,
    cancel: CancellationToken,
) {
    let mut complained: Option<String> = None;
    loop {
        let mesh = wanted.borrow_and_update().clone();
        let mut pause = REPEAT;
        if let Some(mesh) = mesh {
            let told = cancel.run_until_cancelled(tell(&state, node_id, mesh)).await;
            match told {
                None => return,
                Some(Ok(())) => complained = None,
                Some(Err(why)) => {
                    pause = AGAIN;
                    if complained.as_ref() != Some(&why) {
                        tracing::warn!(error = why, "the cluster does not know yet where this node is in the mesh");
                        complained = Some(why);
                    }
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            changed = wanted.changed() => if changed.is_err() { return cancel.cancelled().await },
        }
    }
}

async fn tell(state: &Handle, node_id: NodeId, mesh: MeshNode) -> Result<(), String> {
    let rows = state.read(MeshRow::all).await.map_err(|error| chain(&error))?;
    if rows.into_iter().any(|row| row.node_id == node_id && row.mesh == mesh) {
        return Ok(());
    }
    let command = Command::AnnounceMesh { node_id, mesh, at_ms: jiff::Timestamp::now().as_millisecond() };
    state.propose(command).await.map(drop).map_err(|error| chain(&error))
}
