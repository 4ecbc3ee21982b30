//! Answers the questions for names that this node's containers ask: its own zone from what runs, everything else from the
//! name servers of the machine. Nobody else is answered.
//!
//! ```text
//!  container --53--> gateway's address --(packet rules)--> server --> message: what is asked, and how it is answered
//!                                                             |-----> zone: names of workloads, by who may reach whom
//!                                                             `-----> upstream: the machine's name servers, with a cache
//! ```
//!
//! The zone is handed in whole whenever the cluster's state changed; nothing here looks for news by itself.

mod message;
pub mod resolv_conf;
mod server;
mod upstream;
pub mod zone;

pub use server::NameServer;
pub use zone::Zone;
