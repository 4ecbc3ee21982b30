//! toft: a self-contained appliance that runs containers on homelab boxes. See `docs/ARCHITECTURE.md`.

pub mod access;
pub mod agent;
pub mod api;
pub mod backup;
pub mod cli;
pub mod config;
pub mod consensus;
pub mod control;
pub mod daemon;
pub mod dashboard;
pub mod doctor;
pub mod embedded;
pub mod enroll;
pub mod identity;
pub mod observe;
pub mod oidc;
pub mod remote;
pub mod seal;
pub mod series;
pub mod wire;

pub use toft_files as files;
