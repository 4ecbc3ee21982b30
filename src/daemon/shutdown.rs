//! The containers' part in a shutdown of the machine.
//!
//! Containers belong to their shims, which no unit ends; without this a machine that shuts down waits its whole patience
//! (90 seconds) for one that ignores SIGTERM. The unit calls this whenever the daemon has ended, and it does nothing
//! unless the machine is on its way down: a restart or an upgrade of the daemon touches no container.

use std::{collections::HashMap, fs, time::Duration};

use toft_model::ids::InstanceId;

use super::{
    directories::Directories,
    down::{Fate, end_containers},
    identity::Identity,
};
use crate::{agent::ledger::Ledger, config::Config};

/// Longest grace period of a container; with the kill it fits into what the unit allows.
const LONGEST_GRACE: Duration = Duration::from_secs(20);
/// Longest wait for the service manager's answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Stops every container if the machine shuts down, and keeps their files; gives the number of containers.
pub async fn end_for_shutdown(config: Config) -> anyhow::Result<usize> {
    if !config.paths.data.exists() || !machine_shuts_down().await {
        return Ok(0);
    }
    let directories = Directories::prepare(&config.paths)?;
    let fate = Fate::Stopped(graces(&directories).unwrap_or_default());
    let ended = end_containers(&config, &directories, fate).await;
    directories.remove_traces();
    ended
}

async fn machine_shuts_down() -> bool {
    let asked = tokio::process::Command::new("systemctl").arg("is-system-running").kill_on_drop(true).output();
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(output)) => output.stdout.trim_ascii() == b"stopping",
        Ok(Err(_)) | Err(_) => false,
    }
}

/// The grace period of each container that this node was ordered to run; `None` when that cannot be read.
fn graces(directories: &Directories) -> Option<HashMap<InstanceId, Duration>> {
    let identity: Identity = serde_json::from_slice(&fs::read(directories.node_file()).ok()?).ok()?;
    let remembered = Ledger::open(&directories.ledger_file()).ok()?.load(identity.node_id).ok()?;
    let orders = remembered.set?.assignments.into_iter();
    let grace = |ms: u32| Duration::from_millis(ms.into()).min(LONGEST_GRACE);
    Some(orders.map(|order| (order.instance_id, grace(order.container.stop_grace_ms))).collect())
}
