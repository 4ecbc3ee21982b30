//! Orders commands onto the model's state.
//!
//! One node writes its commands straight into SQLite: a command is acknowledged once the transaction that applied it,
//! its index included, is on disk (WAL, `synchronous=FULL`). Many proposals that wait together share one transaction.
//! The [`Handle`] is all that other rooms see: propose, read, watch.

mod handle;
mod open;
#[cfg(test)]
mod tests;
mod writer;

pub use handle::{CopyError, Handle, ProposeError, ReadError};
pub use open::{OpenError, open};
