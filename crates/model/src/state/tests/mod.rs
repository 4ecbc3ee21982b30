//! Tests of the state, and the cluster in memory that the scheduler's tests use as well.

mod applying;
pub(crate) mod cluster;
mod external_users;
mod fixtures;
mod following;
mod gpus;
mod members;
mod mesh;
mod passkeys;
mod placing;
mod registries;
mod replay;
mod reports;
mod rollouts;
mod second_factors;
mod secrets;
mod signing_keys;
mod subnets;
mod users;
mod volume_moves;
mod volumes;
