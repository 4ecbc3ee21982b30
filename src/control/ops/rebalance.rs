//! Rebalancing: a plan of moves, which is then ordered as it was shown, or not at all.

use serde::Serialize;
use sha2::{Digest, Sha256};
use toft_model::{
    schedule::{Rebalance, Remaining, rebalance, still_to_move},
    state::{Command, InstanceMove, InstanceRow, MOST_MOVES, applied_index, query_snapshot, was_applied},
};

use super::{Ops, now_ms};
use crate::control::{ControlError, ErrorKind};

/// Moves when nothing is said.
pub const USUAL_MOVES: u32 = 20;

/// A plan of moves for one state.
#[derive(Debug, Clone, PartialEq)]
pub struct RebalancePlan {
    /// What tells it from other plans.
    pub id: String,
    /// The last command that the state held.
    pub index: u64,
    /// The plan.
    pub rebalance: Rebalance,
    moves: Vec<InstanceMove>,
}

impl Ops {
    /// Which instances would be better off elsewhere: at most so many, [`USUAL_MOVES`] when nothing is said.
    pub async fn plan_rebalance(&self, most: Option<u32>) -> Result<RebalancePlan, ControlError> {
        let most = most.unwrap_or(USUAL_MOVES) as usize;
        if !(1..=MOST_MOVES).contains(&most) {
            return Err(ControlError::new(ErrorKind::Invalid, format!("{most} is out of range"))
                .field("max_moves")
                .hint(format!("use 1 to {MOST_MOVES}")));
        }
        let read = |connection: &rusqlite::Connection| Ok((query_snapshot(connection)?, applied_index(connection)?));
        let (snapshot, index) = self.state.read(read).await?;
        let planned = tokio::task::spawn_blocking(move || rebalance(&snapshot, most)).await;
        let (rebalance, moves) = planned.map_err(|e| ControlError::new(ErrorKind::Internal, e.to_string()))?;
        Ok(RebalancePlan { id: id(&moves)?, index, rebalance, moves })
    }

    /// Orders the moves of the plan with that id, if it is still the plan that is made, and gives what is to be moved.
    pub async fn rebalance(&self, plan: &str, most: Option<u32>) -> Result<Vec<Remaining>, ControlError> {
        // The plan may have been made elsewhere, by what is not here yet.
        self.catch_up().await?;
        let asked = self.asked(&("rebalance", plan, most))?;
        if let Some((key, fingerprint)) = asked.clone() {
            let known = self.state.read(move |connection| was_applied(connection, key, &fingerprint)).await?;
            // The plan is another by now, because it was carried out.
            if known {
                return self.still_to_move().await;
            }
        }
        let under_way = self.state.read(InstanceRow::ordered_to_move).await?.len();
        if under_way > 0 {
            let message = format!("{under_way} instances are still being moved");
            return Err(ControlError::new(ErrorKind::Conflict, message)
                .hint("wait until they are where they shall be, or stop that with `toft rebalance --stop`"));
        }
        let now = self.plan_rebalance(most).await?;
        if now.id != plan {
            let message = format!("the cluster changed, and `{}` is not its plan any more", short(plan));
            return Err(ControlError::new(ErrorKind::Conflict, message)
                .field("plan")
                .hint("look at the plan as it is now, and order that"));
        }
        let command = Command::MoveInstances { moves: now.moves, at_ms: now_ms() };
        self.propose(command, asked).await.map_err(|error| match error.kind {
            ErrorKind::Stale => ControlError { kind: ErrorKind::Conflict, ..error },
            _ => error,
        })?;
        self.still_to_move().await
    }

    /// What is still to be moved, in its turn.
    pub async fn still_to_move(&self) -> Result<Vec<Remaining>, ControlError> {
        Ok(self.state.read(|connection| Ok(still_to_move(&query_snapshot(connection)?))).await?)
    }

    /// Takes back what was ordered and is not done: those instances stay where they are.
    pub async fn stop_rebalance(&self) -> Result<(), ControlError> {
        let asked = self.asked(&"stop rebalance")?;
        self.propose(Command::MoveInstances { moves: Vec::new(), at_ms: now_ms() }, asked).await?;
        Ok(())
    }
}

/// The same for the same moves.
fn id(moves: &impl Serialize) -> Result<String, ControlError> {
    let text = serde_json::to_vec(moves).map_err(|e| ControlError::new(ErrorKind::Internal, e.to_string()))?;
    Ok(hex::encode(&Sha256::digest(text)[..8]))
}

/// As much of a text of any length as an error can show.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}
