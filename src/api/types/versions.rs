//! Versions of a workload.

use serde::{Deserialize, Serialize};
use toft_model::{
    state::VersionRow,
    workload::{Rollout, VersionCause, WorkloadSpec, changed_fields},
};
use utoipa::ToSchema;

use super::time;

/// A specification that a workload has or had.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The workload's generation when it was written.
    pub generation: u64,
    /// Why it was written.
    #[serde(flatten)]
    pub cause: VersionCause,
    /// How far it came.
    pub rollout: Rollout,
    /// When it was written.
    pub written_at: String,
    /// Fields that are not as in the version before it, such as `image`; absent of the oldest that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Vec<String>>,
    /// The specification.
    pub spec: WorkloadSpec,
}

/// What is to be written again.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackRequest {
    /// Generation of the version; the newest before the present one that worked when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}

impl Version {
    /// All of a workload, the newest first.
    pub fn all(rows: Vec<VersionRow>) -> Vec<Self> {
        let before: Vec<_> = rows.iter().skip(1).map(|row| Some(row.spec.clone())).chain([None]).collect();
        rows.into_iter()
            .zip(before)
            .map(|(row, before)| Self {
                generation: row.generation,
                cause: row.cause,
                rollout: row.rollout,
                written_at: time(row.at_ms),
                changed: before.map(|before| changed_fields(&before, &row.spec)),
                spec: row.spec,
            })
            .collect()
    }
}
