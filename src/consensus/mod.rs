//! Orders commands onto the model's state, on one machine or on several.
//!
//! Raft (openraft) with its log and vote in redb ([`log_store`]) and its state machine in SQLite ([`state_machine`]). A
//! command is acknowledged once a majority has the log entry that holds it on their disks and this member's database
//! has it applied. Proposals that wait together share one entry: one flush of the disk, one transaction. The [`Handle`]
//! is all that other rooms see: propose, read, watch. docs/consensus.md tells the whole.

mod changes;
mod compact;
mod copy;
mod edition;
mod executor;
mod found;
mod handle;
mod leader;
mod log_store;
mod membership;
pub mod network;
mod open;
mod propose;
mod recover;
mod removal;
mod short;
mod space;
mod state_machine;
#[cfg(test)]
pub(crate) mod tests;
pub mod types;

pub use copy::CopyError;
pub use edition::Edition;
pub use found::{OpenError, adopt, detach};
pub use handle::{ClusterStatus, Handle, MemberStatus, NotCurrent, ProposeError};
pub use open::{Door, Files, Opened, open};
pub use recover::{Account, recover, survey};
pub use removal::RemovalError;
pub use state_machine::{Follows, ReadError, Rows};
