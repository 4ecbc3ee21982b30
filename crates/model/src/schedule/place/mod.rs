//! The placement engine: where a request goes among nodes with CPU, memory and cards.
//!
//! Numbers only: no rows, no names, no clock; chance comes in as a seed. The scheduler translates nodes and workloads into
//! it, and `toft sim` traces (`replay`).
//!
//! A [`Fleet`] holds the nodes. [`Fleet::choose`] finds the best one for an [`Ask`] under a [`Policy`],
//! [`Fleet::take`] and [`Fleet::give_back`] change what is free. Requests that no score can tell apart are a class; for
//! each class the fleet keeps the nodes in order of their score, and when the class is asked for again it scores again
//! only the nodes that changed since. A score is a few look-ups in tables made from the target workload ([`Mix`]), so it
//! is cheaper to compute than to remember by state. The result is always that of a scan over all nodes.

mod ask;
mod balance;
mod fleet;
mod host;
mod mix;
mod node;
mod policy;
mod random;
pub(super) mod ranking;
#[cfg(test)]
mod tests;

pub use ask::{Ask, Gpus, Kind, Kinds};
pub use balance::Gain;
pub use fleet::{Fleet, Place, PlaceSet, Spot};
pub use mix::Mix;
pub use node::{Card, CardSet, Node, Refusal};
pub use policy::Policy;
pub use random::Random;
