//! Builds every room and ends them: the only place that knows them all.
//!
//! Order of start: directories and lock, state, ledger, runtime, network, agent, loops, doors. Order of the end: doors,
//! loops, agent (containers go on), reports, state.

mod addresses;
mod beacon;
mod belonging;
mod dev;
mod directories;
mod doors;
mod down;
mod identity;
mod image_exchange;
mod joining;
mod lease;
mod local_node;
mod logins;
mod machine;
mod membership;
mod mesh;
mod names;
mod node;
mod registration;
mod restore;
mod runtime;
mod sampling;
mod serving;
mod shutdown;
mod tasks;
mod volume_moves;
mod volumes;
mod web;
mod witness;

use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use crate::enroll::{NoPin, NoToken, Pin};
use crate::{
    config::{Config, NodeRole},
    control::loops,
    remote::FarNodes,
};
pub use beacon::{Found, NotFound, find};
pub use dev::{DevWish, dev};
use directories::Directories;
pub use down::down;
pub use joining::{Wish, join, leave_alone};
use machine::Machine;
use membership::Membership;
pub use membership::{Account, recover};
use mesh::MeshEye;
use node::{Member, offer};
pub use restore::{Restore, Restored, restore};
use serving::Serving;
pub use shutdown::end_for_shutdown;
use witness::Witness;

/// An error with the next step for the person who reads it.
#[derive(Debug)]
pub struct Hinted {
    hint: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Hinted {
    fn new(source: impl std::error::Error + Send + Sync + 'static, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), source: Box::new(source) }
    }

    /// The next step.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.source.to_string())
    }
}

impl std::error::Error for Hinted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// For good.
    Stopped,
    /// It is to start again: it joined a cluster or left one.
    Again,
}

/// Runs the appliance until a signal ends it, or until it is to start again.
pub async fn run(mut config: Config) -> anyhow::Result<Ending> {
    // First of all: whoever asks it to end while it starts shall have it end in order.
    let mut stop_signals = StopSignals::listen().context("listening for signals")?;
    let directories = Directories::prepare(&config.paths)?;
    let mut serving = Serving::new(directories);
    let Serving { directories, tasks, cancel, offered } = &mut serving;
    let cancel = cancel.clone();

    let entered = membership::enter(&mut config, directories, tasks, cancel.clone()).await?;
    let Membership { state, cluster_key, belonging, mesh_door } = entered;
    let again = belonging.again();
    let eye = MeshEye::none();
    // Whoever leads plans, a witness too.
    let watched = eye.clone();
    let clocks = Box::new(move || watched.clocks_apart());
    tasks.spawn("schedule loop", loops::schedule::run(state.clone(), clocks, cancel.clone()));
    tasks.spawn("health of nodes", loops::node_health::run(state.clone(), cancel.clone()));
    if config.cluster.role == NodeRole::Witness {
        let place = (config.clone(), directories.clone());
        tasks.spawn("mesh", witness::mesh(place, (state.clone(), mesh_door, eye.clone()), cancel.clone()));
        let node = Arc::new(Witness(eye));
        offered.push(offer(&state, node.clone(), &cancel));
        let others = Arc::new(FarNodes::new(state.clone(), cancel.clone()));
        let api = witness::api(state, directories, &config, belonging, cluster_key, (node, others))?;
        return serving.until_the_end((api, None), &config, (&mut stop_signals, &again), None).await;
    }
    let machine = tokio::select! {
        machine = Machine::real(&config, (directories, &mut *tasks, &cancel), &state) => machine?,
        signal = stop_signals.first() => {
            tracing::info!("stopping on {signal}");
            directories.remove_traces();
            return Ok(Ending::Stopped);
        }
    };
    let supervisor = machine.supervisor.clone();
    let member = Member { state, cluster_key, belonging, mesh_door, eye };
    let (api, node_id) = node::start(&config, (directories, tasks, &cancel, offered), member, machine).await?;
    serving.until_the_end((api, Some(node_id)), &config, (&mut stop_signals, &again), supervisor).await
}

/// The signals that end the daemon, taken note of from the moment this is made.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl StopSignals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one and gives its name.
    async fn first(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => tracing::info!("SIGHUP: nothing of the configuration can change while running yet"),
            }
        }
    }
}
