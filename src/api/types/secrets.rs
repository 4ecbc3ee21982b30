//! What the API says of secrets: everything but their values.

use serde::{Deserialize, Serialize};
use toft_model::state::{SecretUser, SecretView};
use utoipa::ToSchema;

use super::time;

/// A secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Secret {
    /// Name.
    pub name: String,
    /// Counts the values written, from 1; the ETag.
    pub version: u64,
    /// Size of the value.
    pub size_bytes: u64,
    /// When the name was first written.
    pub created_at: String,
    /// When the value was last changed.
    pub updated_at: String,
    /// Workloads that use it, by name.
    pub used_by: Vec<String>,
    /// Those of them with a process that was started before the value was last changed; it has an older one until it
    /// is restarted.
    pub outdated: Vec<String>,
}

impl From<SecretView> for Secret {
    fn from(view: SecretView) -> Self {
        let names =
            |users: &mut dyn Iterator<Item = &SecretUser>| users.map(|user| user.workload.to_string()).collect();
        Self {
            name: view.row.name.to_string(),
            version: view.row.version,
            size_bytes: view.row.size_bytes,
            created_at: time(view.row.created_at_ms),
            updated_at: time(view.row.updated_at_ms),
            used_by: names(&mut view.users.iter()),
            outdated: names(&mut view.users.iter().filter(|user| user.outdated)),
        }
    }
}
