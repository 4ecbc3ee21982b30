//! Keeps the data of this node's volumes as the state says: deletes what users removed, and takes away mounts that
//! nobody uses. What the state never spoke of is told once and left alone.

use std::time::Duration;

use toft_model::{
    ids::NodeId,
    instance::{AssignmentSet, Desired},
    name::Name,
    state::NodeVolumes,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    agent::volumes::Volumes,
    control::{ControlError, ops::Ops},
    observe::chain,
};

/// Wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Works until `cancel`.
pub(super) async fn keep(
    ops: Ops,
    node_id: NodeId,
    volumes: Volumes,
    assignments: watch::Receiver<Option<AssignmentSet>>,
    cancel: CancellationToken,
) {
    let mut moves = ops.state().watch_schedule();
    let mut orders = assignments.clone();
    let mut told = false;
    loop {
        moves.mark_unchanged();
        orders.mark_unchanged();
        let failed = match look(&ops, node_id, &volumes, &assignments, &mut told).await {
            Ok(failed) => failed,
            Err(error) => {
                tracing::error!(error = chain(&error), "the volumes of this node could not be compared with the state");
                true
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(AGAIN), if failed => {}
            changed = moves.changed() => if changed.is_err() { return cancel.cancelled().await },
            changed = orders.changed() => if changed.is_err() { return cancel.cancelled().await },
        }
    }
}

/// Does what is to be done now; `true` when some of it failed.
async fn look(
    ops: &Ops,
    node_id: NodeId,
    volumes: &Volumes,
    assignments: &watch::Receiver<Option<AssignmentSet>>,
    told: &mut bool,
) -> Result<bool, ControlError> {
    let removed = ops.removed_volumes(node_id).await?;
    let known = if *told { None } else { Some(ops.node_volumes(node_id).await?) };
    *told = true;
    let (here, orders) = (volumes.clone(), assignments.clone());
    let work = move || {
        if let Some(NodeVolumes { kept, removed }) = known {
            tell_unknown(&here, &[kept, removed].concat());
        }
        let mut gone = Vec::new();
        let mut failed = false;
        for (name, born) in removed {
            match here.delete(&name, born) {
                Ok(()) => gone.push((name, born)),
                Err(error) => {
                    failed = true;
                    tracing::warn!(volume.name = %name, error = chain(&error), "a removed volume's data is still there and will be deleted later");
                }
            }
        }
        // Before the first orders it is not known what is used.
        if orders.borrow().is_some()
            && let Err(error) = here.unmount_unused(|name| is_used(orders.borrow().as_ref(), name))
        {
            failed = true;
            tracing::warn!(error = chain(&error), "a volume that nobody uses could not be unmounted");
        }
        (gone, failed)
    };
    let (gone, failed) = match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    if !gone.is_empty() {
        ops.forget_volumes(node_id, gone).await?;
    }
    Ok(failed)
}

fn is_used(orders: Option<&AssignmentSet>, name: &Name) -> bool {
    let uses = |set: &AssignmentSet| {
        let running = set.assignments.iter().filter(|order| order.desired != Desired::Stopped);
        running.flat_map(|order| &order.container.mounts).filter_map(|mount| mount.volume()).any(|v| v.name == *name)
    };
    orders.is_some_and(uses)
}

fn tell_unknown(volumes: &Volumes, known: &[(Name, u64)]) {
    match volumes.unknown(known) {
        Err(error) => tracing::warn!(%error, "the folder of volumes could not be read"),
        Ok(unknown) => {
            for folder in unknown {
                tracing::warn!(
                    "`{}` holds data of a volume that the cluster does not know; it is left alone",
                    folder.display()
                );
            }
        }
    }
}
