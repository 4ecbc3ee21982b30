//! Pulls of images, as they are told.

use serde::{Deserialize, Serialize};
use toft_model::pull::PullProgress;
use utoipa::ToSchema;

use super::{ErrorBody, Image};

/// What shall be pulled.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The image's reference.
    pub image: String,
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
