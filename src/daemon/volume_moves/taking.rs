//! Carries out the orders that bring volumes to this node.

use std::{collections::HashMap, os::fd::AsFd, sync::Arc, time::Duration};

use toft_model::{
    ids::NodeId,
    name::Name,
    state::{Command, MovePhase, MoveTurn, NodeRow, VolumeMove, VolumeRow, volume_is_mounted},
    units::format_bytes,
};
use tokio::{
    runtime::Handle as Runtime,
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Giver, Progresses, Which, remote::Remote};
use crate::{
    agent::volumes::{
        Volumes,
        moving::{Carried, Incoming, MoveError, Sum, carry, empty},
    },
    consensus::Handle,
    control::node_access::volumes::MoveStep,
    observe::chain,
};

/// Volumes that arrive at a time.
const AT_ONCE: usize = 2;
/// Orders that are looked after at a time. One that waits, as for a node that is away, holds up no other.
const WAITING: usize = 256;
/// Wait before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Room that is left on the disk, in bytes.
const RESERVE: u64 = 64 << 20;
/// How often what arrived may differ from what was sent.
const MOST_DIFFERENT: u32 = 3;
/// How often something else may fail here.
const MOST_FAILED: u32 = 5;

/// What carries out orders.
#[derive(Clone)]
pub(in super::super) struct Taking {
    pub(in super::super) state: Handle,
    pub(in super::super) node_id: NodeId,
    pub(in super::super) volumes: Volumes,
    pub(in super::super) progresses: Progresses,
}

/// What came of a try.
enum Tried {
    /// The volume lies here, or is not to any more.
    Done,
    /// It goes on.
    Wait,
    /// It is to be tried again in a while.
    Again(String),
    /// It cannot come.
    Never(String),
}

/// Works until `cancel`.
pub(in super::super) async fn run(taking: Taking, cancel: CancellationToken) {
    let Taking { state, node_id, volumes, progresses } = taking.clone();
    let giver = Giver::new(state.clone(), node_id, volumes, progresses).service();
    // Until the end of this, for it holds what is to end after it.
    let _offered = state.offer(move |routes| routes.add_service(giver.clone()));
    let mut moves = taking.state.watch_schedule();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut under_way: HashMap<(Name, u64), CancellationToken> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        moves.mark_unchanged();
        let node_id = taking.node_id;
        match taking.state.read(move |connection| VolumeRow::moving_to(connection, node_id)).await {
            Ok(wanted) => {
                let key = |row: &VolumeRow| Some((row.name.clone(), row.moving.as_ref()?.born));
                let wanted: Vec<_> = wanted.iter().filter_map(key).collect();
                for (known, stop) in &under_way {
                    if !wanted.contains(known) {
                        stop.cancel();
                    }
                }
                for key in wanted {
                    if under_way.len() < WAITING && !under_way.contains_key(&key) {
                        let (taking, places, stop) = (taking.clone(), Arc::clone(&places), cancel.child_token());
                        under_way.insert(key.clone(), stop.clone());
                        tasks.spawn(async move {
                            taking.one(&key.0, key.1, &places, &stop).await;
                            taking.progresses.forget(&key.0);
                            key
                        });
                    }
                }
            }
            Err(error) => tracing::error!(error = chain(&error), "the orders for volumes could not be read"),
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            changed = moves.changed() => if changed.is_err() { break },
            Some(ended) = tasks.join_next() => match ended {
                Ok(key) => drop(under_way.remove(&key)),
                Err(error) => {
                    tracing::error!(%error, "what brings a volume here panicked");
                    under_way.clear();
                }
            },
        }
    }
    // Threads end soon after.
    under_way.values().for_each(CancellationToken::cancel);
    while tasks.join_next().await.is_some() {}
    cancel.cancelled().await;
}

impl Taking {
    /// Brings one volume here.
    async fn one(&self, name: &Name, born: u64, places: &Semaphore, stop: &CancellationToken) {
        let mut moves = self.state.watch_schedule();
        let (mut different, mut failed) = (0, 0);
        while let Some(Ok(place)) = stop.run_until_cancelled(places.acquire()).await {
            let tried = match self.attempt(name, born, stop, &mut moves, &mut different).await {
                Err(MoveError::Stopped) => Tried::Done,
                Err(error) if error.is_full() => Tried::Never("there is no space left on its disk".to_owned()),
                Err(error @ MoveError::Source(_)) => Tried::Again(chain(&error)),
                Err(error) => {
                    failed += 1;
                    let why = chain(&error);
                    if failed >= MOST_FAILED { Tried::Never(why) } else { Tried::Again(why) }
                }
                Ok(tried) => tried,
            };
            drop(place);
            match tried {
                Tried::Done => return,
                Tried::Wait => {}
                Tried::Again(why) => {
                    tracing::warn!(volume.name = %name, reason = why, "a volume does not come here now and is waited for");
                    self.progresses.stuck(name, why);
                    if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                        return;
                    }
                }
                Tried::Never(why) => {
                    tracing::warn!(volume.name = %name, reason = why, "a volume cannot come here");
                    self.turn(name, born, MoveTurn::Fail { reason: why }, stop).await;
                }
            }
        }
    }

    /// Proposes a turn until it is taken: what nobody answered may have been taken all the same, so nothing is done to the data
    /// before that is known.
    async fn turn(&self, name: &Name, born: u64, turn: MoveTurn, stop: &CancellationToken) {
        let at_ms = jiff::Timestamp::now().as_millisecond();
        let command = Command::TurnVolume { name: name.clone(), born, turn, at_ms };
        while let Err(error) = self.state.propose(command.clone()).await {
            tracing::warn!(volume.name = %name, error = chain(&error), "what became of a volume that moves could not be noted");
            self.progresses.stuck(name, chain(&error));
            if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                return;
            }
        }
    }

    async fn attempt(
        &self,
        name: &Name,
        born: u64,
        stop: &CancellationToken,
        moves: &mut watch::Receiver<u64>,
        different: &mut u32,
    ) -> Result<Tried, MoveError> {
        let asked = name.clone();
        let read = move |connection: &rusqlite::Connection| {
            Ok((VolumeRow::named(connection, &asked)?, volume_is_mounted(connection, &asked)?))
        };
        let (row, mounted) = match self.state.read(read).await {
            Ok(read) => read,
            Err(error) => return Ok(Tried::Again(chain(&error))),
        };
        let Some((row, moving)) = row.and_then(|row| row.moving.clone().map(|moving| (row, moving))) else {
            return Ok(Tried::Done);
        };
        let VolumeMove { to, born: own, phase, .. } = moving;
        let Some(from) = row.node_id.filter(|_| (to, own) == (self.node_id, born)) else { return Ok(Tried::Done) };
        let held = match phase {
            MovePhase::Copying => false,
            MovePhase::Held => true,
            MovePhase::Failed { .. } => return Ok(Tried::Done),
        };
        if held && mounted {
            // That they take their time is no trouble.
            self.progresses.begin(name, MoveStep::Stopping, 0);
            moves.mark_unchanged();
            // A report of an instance that is gone is no news for the schedule in every case.
            let news = tokio::time::timeout(Duration::from_millis(300), moves.changed());
            let stopped = stop.run_until_cancelled(news).await.is_none();
            return Ok(if stopped { Tried::Done } else { Tried::Wait });
        }
        // Who is asked in vain for long would hold the place of another.
        let source = self.state.read(move |connection| NodeRow::by_id(connection, from)).await;
        if let Ok(Some(node)) = source
            && node.health.is_down()
        {
            return Ok(Tried::Again(format!("node {} is down", node.name)));
        }
        let channel = match self.state.channel_to(&from) {
            Ok(channel) => channel,
            Err(error) => return Ok(Tried::Again(error.to_string())),
        };
        let which = Which { name: name.clone(), born: row.born, from };
        let remote = Remote { which, channel, runtime: Runtime::current(), stop: stop.clone() };
        let taking = self.clone();
        let work = move || taking.copy(&remote, born, held);
        let copied = tokio::task::spawn_blocking(work).await;
        match copied.unwrap_or_else(|error| Err(MoveError::Source(std::io::Error::other(error.to_string()))))? {
            Copied::NoRoom { wanted, free } => {
                let (wanted, free) = (format_bytes(wanted), format_bytes(free));
                Ok(Tried::Never(format!("it needs {wanted} and {free} are free there")))
            }
            Copied::Unordered => Ok(Tried::Wait),
            Copied::Same if held => {
                self.turn(name, born, MoveTurn::Settle, stop).await;
                Ok(Tried::Wait)
            }
            Copied::Same => {
                self.turn(name, born, MoveTurn::Hold, stop).await;
                Ok(Tried::Wait)
            }
            Copied::Different { there, here } => {
                *different += 1;
                let why = format!("what arrived differs: {there} there, {here} here");
                Ok(if *different >= MOST_DIFFERENT { Tried::Never(why) } else { Tried::Again(why) })
            }
        }
    }

    /// Which data of that name is to be deleted here; `None` when the volume is not, or no longer, to come in this way.
    async fn still_comes(&self, name: &Name, born: u64, held: bool) -> Option<Vec<u64>> {
        let (asked, node_id) = (name.clone(), self.node_id);
        let read = move |connection: &rusqlite::Connection| {
            let row = VolumeRow::named(connection, &asked)?;
            let removed = VolumeRow::removed_on(connection, node_id)?.into_iter().filter(|(name, _)| *name == asked);
            Ok((row.and_then(|row| row.moving), removed.map(|(_, born)| born).collect::<Vec<_>>()))
        };
        let (moving, removed) = self.state.read(read).await.ok()?;
        let phase = if held { MovePhase::Held } else { MovePhase::Copying };
        moving.filter(|moving| (moving.to, moving.born) == (node_id, born) && moving.phase == phase)?;
        Some(removed)
    }

    /// Makes the tree here what it is there; when nobody uses it any more, proves that it is. Blocks.
    fn copy(&self, remote: &Remote, born: u64, held: bool) -> Result<Copied, MoveError> {
        let name = &remote.which.name;
        let step = if held { MoveStep::Second } else { MoveStep::First };
        let bytes = remote.bytes()?;
        self.progresses.begin(name, step, bytes);
        let here = |error: crate::agent::volumes::VolumeError| MoveError::Source(std::io::Error::other(chain(&error)));
        let has = self.volumes.measured(name).unwrap_or(0);
        let free = self.volumes.free().map_err(MoveError::Source)?;
        let wanted = bytes.saturating_sub(has).saturating_add(RESERVE);
        if wanted > free {
            return Ok(Copied::NoRoom { wanted: bytes, free });
        }
        let removed = || remote.runtime.block_on(self.still_comes(name, born, held));
        let Some(arriving) = self.volumes.incoming(name, born, removed).map_err(here)? else {
            return Ok(Copied::Unordered);
        };
        let root = arriving.folder.try_clone().map_err(MoveError::Source)?;
        let (progresses, stop) = (&self.progresses, &remote.stop);
        let told = &mut |carried: Carried| {
            progresses.went_on(name, carried.bytes, carried.came);
            !stop.is_cancelled()
        };
        carry(remote, Incoming::new(root), told)?;
        if !held {
            return Ok(Copied::Same);
        }
        self.progresses.begin(name, MoveStep::Checking, bytes);
        let sums = std::thread::scope(|scope| {
            let other = remote.clone();
            let there = scope.spawn(move || other.sum(&mut |_| !stop.is_cancelled()));
            let here = Sum::of(arriving.folder.as_fd(), &mut |bytes| {
                progresses.went_on(name, bytes, bytes);
                !stop.is_cancelled()
            });
            let panicked = |_| Err(MoveError::Source(std::io::Error::other("the checksum broke off")));
            (there.join().unwrap_or_else(panicked), here)
        });
        let (there, here) = (sums.0?, sums.1?);
        if there == here {
            tracing::info!(volume.name = %name, %here, "a volume arrived, and is the same at both ends");
            return Ok(Copied::Same);
        }
        // Whatever it was that looked the same and is not, all of it comes again.
        empty(&arriving.folder)?;
        Ok(Copied::Different { there, here })
    }
}

/// What came of a copy.
enum Copied {
    Same,
    Different {
        there: Sum,
        here: Sum,
    },
    NoRoom {
        wanted: u64,
        free: u64,
    },
    /// The order is another by now.
    Unordered,
}
