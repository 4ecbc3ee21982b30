//! The files of a container.

use std::{any::Any, os::fd::OwnedFd};

use async_trait::async_trait;
use toft_model::ids::InstanceId;

use super::RuntimeError;

/// A container's root directory, open. Everything below it is untrusted: see [`crate::agent::files`].
pub struct Root {
    /// The directory.
    pub directory: OwnedFd,
    /// What keeps it usable.
    pub held: Box<dyn Any + Send>,
}

/// The part of a runtime that gives access to containers' files.
#[async_trait]
pub trait RootRuntime {
    /// Opens a container's root: while it runs, as its processes see it, volumes included; else its own files. While
    /// those of a stopped one are open, it cannot be started. Refusals: [`RuntimeError::NotFound`].
    async fn root(&self, id: InstanceId) -> Result<Root, RuntimeError>;
}
