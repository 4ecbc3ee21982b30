//! Pulls of images, as they are told.

use serde::{Deserialize, Serialize};
use toft_model::{name::Name, pull::PullProgress};
use utoipa::ToSchema;

use super::{ErrorBody, Image, time};
use crate::control::node_access::ImagePull;

/// What shall be pulled.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The image's reference.
    pub image: String,
    /// The node that is to have it; the one that is asked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub node: Option<Name>,
}

/// A pull that is under way, or failed a short while ago and was not tried again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Pull {
    /// How far it is; a failed one has no layers.
    #[serde(flatten)]
    pub progress: PullProgress,
    /// When it failed (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

impl From<ImagePull> for Pull {
    fn from(pull: ImagePull) -> Self {
        let (failed_at, error) = pull.failure.map(|(at_ms, error)| (time(at_ms), ErrorBody::from(error))).unzip();
        Self { progress: pull.progress, failed_at, error }
    }
}

/// One line of the answer to a pull. The last one has `image` or `error`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullLine {
    /// It goes on.
    Progress(PullProgress),
    /// It is there.
    Image(Image),
    /// It failed.
    Error(ErrorBody),
}
