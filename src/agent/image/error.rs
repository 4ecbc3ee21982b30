//! Why an image could not be pulled.

use std::{path::Path, time::Duration};

use toft_model::image::ImageRef;

use crate::agent::runtime::RuntimeError;
use crate::observe::chain;

/// What kind of trouble it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullErrorKind {
    /// The registry has no such image.
    NoSuchImage,
    /// The registry wants a login, or refuses the one there is.
    Denied,
    /// The registry cannot be reached.
    Unreachable,
    /// The registry asks to come later, or is out of order.
    Busy,
    /// The registry answers something that no registry should.
    BadAnswer,
    /// What it hands out is not what its name or manifest says.
    BadContent,
    /// The image cannot run here.
    Unusable,
    /// The disk is full.
    DiskFull,
    /// The container runtime is away.
    RuntimeDown,
    /// The container runtime failed.
    Runtime,
    /// The daemon ends.
    Cancelled,
}

/// A pull that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("image `{image}` could not be pulled: {reason}")]
pub struct PullError {
    /// The image.
    pub image: ImageRef,
    /// What kind of trouble it was.
    pub kind: PullErrorKind,
    /// What happened.
    pub reason: String,
    /// The next step, when one is known.
    pub hint: Option<String>,
}

/// Trouble while one thing was fetched, before it is said of which image.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub(crate) kind: PullErrorKind,
    reason: String,
    hint: Option<String>,
    /// Wait before the next try that the registry asked for.
    pub(super) later: Option<Duration>,
}

impl Trouble {
    pub(crate) fn new(kind: PullErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), hint: None, later: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, with what was in the way besides.
    pub(super) fn and(mut self, other: &Self) -> Self {
        self.reason = format!("{}; {}", self.reason, other.reason);
        self.hint = self.hint.or_else(|| other.hint.clone());
        self
    }

    /// Says which disk it was.
    pub(crate) fn on_disk_of(mut self, directory: &Path) -> Self {
        self.reason = format!("{}, on the disk of `{}`", self.reason, directory.display());
        self
    }

    /// Whether the same question may be answered in a moment.
    pub(crate) fn passes(&self) -> bool {
        matches!(self.kind, PullErrorKind::Unreachable | PullErrorKind::Busy)
    }

    /// The same, said of an image.
    pub(crate) fn of(self, image: &ImageRef) -> PullError {
        PullError { image: image.clone(), kind: self.kind, reason: self.reason, hint: self.hint }
    }
}

impl From<RuntimeError> for Trouble {
    fn from(error: RuntimeError) -> Self {
        let kind = match &error {
            RuntimeError::Unavailable { .. } => PullErrorKind::RuntimeDown,
            RuntimeError::DiskFull { .. } => PullErrorKind::DiskFull,
            RuntimeError::ImageUnusable { .. } | RuntimeError::BadArchive { .. } => PullErrorKind::Unusable,
            RuntimeError::ImageMissing { .. }
            | RuntimeError::NotFound { .. }
            | RuntimeError::Exists { .. }
            | RuntimeError::NotRunning { .. }
            | RuntimeError::NotInteractive { .. }
            | RuntimeError::StartFailed { .. }
            | RuntimeError::Failed { .. } => PullErrorKind::Runtime,
        };
        let hint = (kind == PullErrorKind::DiskFull)
            .then(|| "free some space; `toft image prune` removes images that nothing uses".to_owned());
        Self { kind, reason: chain(&error), hint, later: None }
    }
}

/// A text of a registry, fit to be shown.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    text.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}
