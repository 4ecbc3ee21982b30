//! Backups: one encrypted file with everything a node needs to come back, made while the node works, and put back by
//! hand on a node that does not.
//!
//! A backup is an [age](https://age-encryption.org/v1) file around a gzipped tar, so that `age -d FILE | tar xz` opens it
//! without toft. [`manifest`] says what is inside, [`archive`] writes it and [`unpack`] reads it,
//! [`digest`] tells whether two databases say the same. [`Backups`] makes backups of a running node and keeps the folder;
//! [`schedule`] is its task. [`verify`] and [`restore`] need no daemon.
//!
//! This room knows no HTTP and asks nobody questions: the doors do.

pub mod archive;
mod digest;
mod error;
mod folder;
pub mod keys;
mod make;
pub mod manifest;
pub mod restore;
pub mod schedule;
mod service;
pub mod stream;
#[cfg(test)]
mod tests;
mod unpack;
pub mod verify;

pub use error::BackupError;
pub use folder::{Condition, Stored};
pub use manifest::Manifest;
pub use service::{Backups, Settings, Status, Streamed};
