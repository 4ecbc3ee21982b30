//! Decides what should run where. Pure: a [`Snapshot`] goes in, a plan comes out. `README.md` states the problem.

mod feasible;
mod gpus;
pub mod place;
mod plan;
mod rank;
pub mod replay;
mod snapshot;
#[cfg(test)]
mod tests;

pub(crate) use feasible::Claims;
pub use feasible::serves;
pub use plan::{Plan, plan, why_nowhere};
pub use snapshot::Snapshot;
