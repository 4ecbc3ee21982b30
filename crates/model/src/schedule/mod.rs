//! Decides what should run where. Pure: a [`Snapshot`] goes in, a plan comes out. `README.md` states the problem.

mod board;
mod choose;
mod drain;
mod explain;
mod expression;
mod feasible;
mod filter;
mod gpus;
mod index;
mod moving;
mod obstacle;
mod outlook;
pub mod place;
mod plan;
mod policy;
mod preempt;
mod rebalance;
pub mod replay;
mod rollout;
mod rules;
mod scheduler;
mod score;
mod snapshot;
mod standing;
#[cfg(test)]
mod tests;
mod time;
mod topology;

pub use choose::why_nowhere;
pub use drain::{Remaining, RemainingState, remaining};
pub use explain::{Explanation, InstanceVerdict, NodeVerdict, Refused, explain};
pub use feasible::serves;
pub(crate) use feasible::{Claims, moves_off, welcome};
pub use moving::still_to_move;
pub use obstacle::Obstacle;
pub use plan::{Plan, plan};
pub use policy::{PlacementChanges, PlacementSettings, Policy, Term};
pub use rebalance::{CardTotals, PlannedMove, Rebalance, Staying, rebalance};
pub(crate) use rollout::{starts_first, waits_its_turn};
pub(crate) use rules::{holds, keeps_off};
pub use scheduler::{Change, Scheduler};
pub use score::Points;
pub use snapshot::Snapshot;
pub(crate) use standing::{Losses, is_up, moves, stops_first};
