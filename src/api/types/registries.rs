//! What the API says of logins at registries: everything but their passwords.

use serde::{Deserialize, Serialize};
use toft_model::state::RegistryRow;
use utoipa::ToSchema;

use super::time;

/// A login at a registry of images.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Registry {
    /// The registry, as image references name it: `docker.io`, `ghcr.io`, `nas.lan:5000`.
    pub registry: String,
    /// Who logs in.
    pub username: String,
    /// When the first login was written.
    pub created_at: String,
    /// When the newest was written.
    pub updated_at: String,
}

impl From<RegistryRow> for Registry {
    fn from(row: RegistryRow) -> Self {
        Self {
            registry: row.registry.to_string(),
            username: row.username,
            created_at: time(row.created_at_ms),
            updated_at: time(row.updated_at_ms),
        }
    }
}
